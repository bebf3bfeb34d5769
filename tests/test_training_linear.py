"""The solved head: scikit-learn's minimum at the same penalty, a penalty that is chosen well, odd data taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from adapters.training.linear import Scale, Solved, solve


def digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).long()


def blobs(items: int, width: int, classes: int, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(items) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return centres[labels] + spread * torch.randn(items, width, generator=generator), labels


def logits(solved: Solved, features: Tensor) -> Tensor:
    return features @ solved.weight.T + solved.bias


def accuracy(solved: Solved, features: Tensor, labels: Tensor) -> float:
    return (logits(solved, features).argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize(("items", "width"), [(300, 64), (40, 64)], ids=["many", "fewer than features"])
def test_it_is_the_minimum_that_scikit_learn_finds(items: int, width: int) -> None:
    features, labels = digits()
    features, labels = features[:items, :width], labels[:items]
    scale, penalty = Scale.of(features), 0.3
    theirs = LogisticRegression(C=width / (penalty * items), max_iter=5000, tol=1e-8)
    theirs.fit(scale(features).double().numpy(), labels.numpy())
    ours = solve(features, labels, 10, penalty=penalty)
    mine, expected = logits(ours, features).softmax(1), theirs.predict_proba(scale(features).double().numpy())
    torch.testing.assert_close(mine.double(), torch.from_numpy(expected), atol=2e-4, rtol=0)


def test_many_labels_are_as_many_questions() -> None:
    features, labels = digits()
    yes = torch.stack([labels < 5, labels % 2 == 0], dim=1).float()
    ours = solve(features[:400], yes[:400], 2, penalty=0.3)
    scale = Scale.of(features[:400])
    for column in range(2):
        theirs = LogisticRegression(C=64 / (0.3 * 400), max_iter=5000, tol=1e-8)
        theirs.fit(scale(features[:400]).double().numpy(), yes[:400, column].numpy())
        expected = theirs.predict_proba(scale(features).double().numpy())[:, 1]
        mine = logits(ours, features)[:, column].sigmoid().double().numpy()
        np.testing.assert_allclose(mine, expected, atol=2e-3)


@pytest.mark.parametrize("count", [60, 200, 400])
@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_penalty_is_as_good_as_scikit_learn_s_default(count: int, seed: int) -> None:
    features, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(count + seed))
    train, held_out = order[:count], order[1000:]
    scale = Scale.of(features[train])
    theirs = LogisticRegression(max_iter=2000).fit(scale(features[train]).numpy(), labels[train].numpy())
    score = theirs.score(scale(features[held_out]).numpy(), labels[held_out].numpy())
    ours = solve(features[train], labels[train], 10)
    assert accuracy(ours, features[held_out], labels[held_out]) >= score - 0.005
    assert ours.accuracy == pytest.approx(score, abs=0.1)


def test_few_examples_that_would_like_a_weaker_penalty_get_the_usual_one() -> None:
    """Every penalty is right about what is left out here, and the loss is least at the weakest."""
    features, labels = blobs(80, 20, 2, spread=0.2)
    assert solve(features, labels, 2).penalty == 20 / 80


def test_a_weaker_penalty_that_is_clearly_better_is_taken() -> None:
    """A small difference tells the labels apart, beside much that does not: only large weights see it."""
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(600, 1, generator=generator)
    features = shared + 0.1 * torch.randn(600, 20, generator=generator)
    labels = (features[:, 0] > features[:, 1]).long()
    solved = solve(features, labels, 2)
    assert solved.penalty < 20 / 600
    assert solved.accuracy > 0.8


def test_a_stronger_penalty_that_is_clearly_better_is_taken() -> None:
    """Four hundred features each say a little, and there are fewer examples than features."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1300) % 2
    features = torch.randn(1300, 400, generator=generator)
    features += 0.15 * torch.linspace(1, 0, 400) * (2 * labels[:, None] - 1)
    train, held_out = (features[:300], labels[:300]), (features[300:], labels[300:])
    solved, usual = solve(*train, 2), solve(*train, 2, penalty=400 / 300)
    assert solved.penalty > 10 * usual.penalty
    assert accuracy(solved, *held_out) > accuracy(usual, *held_out)


def test_noise_gets_the_usual_penalty() -> None:
    """Some penalty is always best by chance; nothing says that it is."""
    noise = torch.randn(200, 20, generator=torch.Generator().manual_seed(5))
    solved = solve(noise, torch.arange(200) % 2, 2)
    assert solved.penalty == 20 / 200
    assert solved.accuracy < 0.7


def test_a_seed_gives_one_answer() -> None:
    features, labels = blobs(90, 10, 3)
    first, again = (solve(features, labels, 3, seed=4) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert first.penalty == again.penalty


def test_fewer_examples_than_folds_are_left_out_one_by_one() -> None:
    solved = solve(*blobs(4, 12, 2, spread=0.01), 2)
    assert solved.accuracy == 1.0
    assert math.isfinite(solved.loss)


def test_one_example_with_many_labels_is_taken() -> None:
    assert math.isnan(solve(torch.ones(1, 4), torch.tensor([[1.0, 0.0]]), 2).accuracy)


def test_one_example_of_a_label_is_enough() -> None:
    features, labels = blobs(5, 12, 5, spread=0.01)
    solved = solve(features, labels, 5)
    assert math.isnan(solved.accuracy)
    assert accuracy(solved, *blobs(50, 12, 5, seed=1, spread=0.01)) == 1.0


def test_a_feature_that_never_changes_and_a_label_without_examples_are_taken() -> None:
    features, labels = blobs(60, 6, 3, spread=0.1)
    features[:, 2] = 7.0
    solved = solve(features, labels, 4)  # the fourth has none
    assert torch.isfinite(solved.weight).all()
    assert accuracy(solved, features, labels) == 1.0


def test_scales_of_features_do_not_matter() -> None:
    features, labels = blobs(120, 8, 3, spread=1.5)
    factors = 10.0 ** torch.arange(-3, 5)
    plain, scaled = solve(features, labels, 3), solve(features * factors + 3, labels, 3)
    torch.testing.assert_close(logits(plain, features), logits(scaled, features * factors + 3), atol=0.05, rtol=0.02)


def test_it_tells_how_far_it_is() -> None:
    shares: list[float] = []
    solve(*blobs(60, 6, 3), 3, on_step=shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1
