"""The best linear head on frozen features: solved, not trained, its regularisation chosen by cross-validation.

Logistic regression with an L2 penalty on standardised features. It knows vectors and labels; it knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
MAX_CHOICE = 4000
"""Examples at most on which the penalty is chosen; all are used once it is."""
PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(5, -11, -1))
"""Of half the mean squared weight against the loss, from strong to weak: each begins where the one before ended."""
PATIENCE = 3
"""So many weaker penalties in a row that are worse end the search."""
SURE = 2.0
"""Standard errors by which a penalty weaker than scikit-learn's own must be better than that one."""
AS_GOOD = 1.0
"""Standard errors by which a penalty may be worse than the best and still count as equal to it."""
WITHOUT_FOLDS = 1.0
"""The penalty where a label has a single example, so that nothing can be left out."""
STEPS, FINAL_STEPS = 40, 300
"""Iterations of L-BFGS at most, while penalties are compared and in the end."""
COMPARED, EXACT = 1e-5, 1e-9
"""Change of the loss below which it ends, likewise."""
EPS = 1e-6


@dataclass(frozen=True)
class Scale:
    """What makes features comparable: each less its mean, over its deviation; (width,) float32."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Scale:
        """Of (items, width). A feature that never changes stays as it is."""
        deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
        return cls(mean.float(), torch.where(deviation < EPS, 1.0, deviation).float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


@dataclass(frozen=True)
class Solved:
    """``weight`` (classes, width) and ``bias`` (classes,) float32 for features as they came, and how they were chosen.

    ``loss`` and ``accuracy`` are those of the folds that were left out; not numbers where there were too few examples.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    loss: float
    accuracy: float


def solve(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    penalty: float | None = None,
    on_step: Callable[[float], None] | None = None,
) -> Solved:
    """Of features (items, width) float32 and labels, int64 (items,) or, for many at once, float32 (items, classes).

    Nothing is chosen where the ``penalty`` is given. ``on_step`` gets the share that is done.
    """
    scale = Scale.of(features)
    rotated, back = _rotated(scale(features).double())
    problem = _Problem(rotated, labels, classes, features.shape[1])
    chosen = _choose(problem, seed, on_step) if penalty is None else _Tried(penalty, math.nan, math.nan)
    weight, bias = problem.minimum(chosen.penalty, problem.zero(), FINAL_STEPS, EXACT)
    weight = (weight @ back.T) / scale.deviation
    bias = bias - weight @ scale.mean.double()
    return Solved(weight.float(), bias.float(), chosen.penalty, chosen.loss, chosen.accuracy)


def _rotated(features: Tensor) -> tuple[Tensor, Tensor]:
    """The same vectors in at most as many dimensions as there are, and what turns weights back.

    The penalty does not change when features are turned, and no minimum has weight where no feature is.
    """
    items, width = features.shape
    if width <= items:
        return features, torch.eye(width, dtype=features.dtype)
    back, upper = torch.linalg.qr(features.T)
    return upper.T.contiguous(), back


class _Problem:
    """Mean loss plus penalty, over some of the examples."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, width: int) -> None:
        """``width`` is that of the features before they were turned."""
        self.features, self.labels, self.classes, self.width = features, labels, classes, width
        self.many = labels.is_floating_point()

    def part(self, chosen: Tensor) -> _Problem:
        return _Problem(self.features[chosen], self.labels[chosen], self.classes, self.width)

    def zero(self) -> tuple[Tensor, Tensor]:
        return self.features.new_zeros(self.classes, self.features.shape[1]), self.features.new_zeros(self.classes)

    def loss(self, weight: Tensor, bias: Tensor) -> Tensor:
        logits = F.linear(self.features, weight, bias)
        if self.many:
            return F.binary_cross_entropy_with_logits(logits, self.labels.to(logits), reduction="sum") / len(logits)
        return F.cross_entropy(logits, self.labels)

    @property
    def usual_penalty(self) -> float:
        """scikit-learn's own, its C being 1: it adds the losses up, and the squares of the weights."""
        return self.width / len(self.features)

    def right(self, weight: Tensor, bias: Tensor) -> Tensor:
        """How much of each example is right: (items,) float64."""
        logits = F.linear(self.features, weight, bias)
        right = (logits > 0) == (self.labels > 0.5) if self.many else logits.argmax(1) == self.labels
        return right.double().view(len(logits), -1).mean(1)

    def minimum(self, penalty: float, start: tuple[Tensor, Tensor], steps: int, change: float) -> tuple[Tensor, Tensor]:
        weight, bias = (tensor.clone().requires_grad_() for tensor in start)
        solver = torch.optim.LBFGS(
            [weight, bias], max_iter=steps, history_size=20, tolerance_grad=1e-6, tolerance_change=change,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            solver.zero_grad()
            found = self.loss(weight, bias) + 0.5 * penalty * weight.square().sum() / self.width
            found.backward()  # type: ignore[no-untyped-call]
            return found

        solver.step(closure)  # type: ignore[no-untyped-call]
        return weight.detach(), bias.detach()


def _folds(problem: _Problem, seed: int) -> list[tuple[_Problem, _Problem]]:
    """Pairs of what is solved and what scores it; every label is spread over the folds. None where one is too rare."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(problem.features), generator=generator)[:MAX_CHOICE]
    if len(order) < 2:
        return []
    if problem.many:
        fold = torch.arange(len(order)) % FOLDS
    else:
        by_label = order[problem.labels[order].argsort(stable=True)]
        rarest = problem.labels[order].bincount(minlength=problem.classes)
        if rarest[rarest > 0].min() < 2:
            return []
        order, fold = by_label, torch.arange(len(by_label)) % FOLDS
    return [(problem.part(order[fold != k]), problem.part(order[fold == k])) for k in range(min(FOLDS, len(order)))]


@dataclass(frozen=True)
class _Tried:
    """A penalty, and what the examples that were left out say of it; ``right`` one by one, in one order for all."""

    penalty: float
    loss: float
    accuracy: float
    right: Tensor = field(default_factory=lambda: torch.empty(0))


def _choose(problem: _Problem, seed: int, on_step: Callable[[float], None] | None) -> _Tried:
    """The penalty of the highest accuracy together with its neighbours, or one nearer to scikit-learn's own.

    Neighbours, since the accuracy of few examples is a lottery; and not the loss, which asks for smaller weights than
    the accuracy does. For the same reason one that is nearer to the usual and as good within a standard error is taken
    (the rule of Breiman et al., 1984; Hastie et al., The Elements of Statistical Learning, sec. 7.10). A weaker one
    than the usual must be clearly better than that: what is left out is mostly of the same people, fonts or places as
    what is solved, and flatters weights that know them by heart.
    """
    folds = _folds(problem, seed)
    if not folds:
        return _Tried(WITHOUT_FOLDS, math.nan, math.nan)
    tried: list[_Tried] = []
    found, usual = [solved.zero() for solved, _ in folds], problem.usual_penalty
    penalties = sorted({*PENALTIES, usual}, reverse=True)
    for number, penalty in enumerate(penalties, 1):
        found = [
            solved.minimum(penalty, start, STEPS, COMPARED) for (solved, _), start in zip(folds, found, strict=True)
        ]
        parts = [part for _, part in folds]
        loss = sum(part.loss(*at).item() for part, at in zip(parts, found, strict=True)) / len(parts)
        right = torch.cat([part.right(*at) for part, at in zip(parts, found, strict=True)])
        tried.append(_Tried(penalty, loss, right.mean().item(), right))
        if on_step:
            on_step(number / len(penalties))
        if penalty <= usual and _only_worse(tried):
            break
    smoothed = _smoothed(tried)
    best = max(smoothed, key=lambda one: (one.accuracy, -one.loss))
    nearer = [one for one in smoothed if usual <= one.penalty <= best.penalty]
    if not nearer:
        known = next(one for one in smoothed if one.penalty == usual)
        return best if _standard_errors(best, known) > SURE else known
    return next(one for one in reversed(nearer) if _standard_errors(best, one) <= AS_GOOD)


def _standard_errors(one: _Tried, other: _Tried) -> float:
    """By how many of them it is better, of the examples that the two do not agree on: McNemar's comparison."""
    more = one.right - other.right
    found: float = more.sum().item() / max(more.square().sum().item(), 1.0) ** 0.5
    return found


def _smoothed(tried: list[_Tried]) -> list[_Tried]:
    """Each with the mean accuracy of itself and its neighbours."""
    found = []
    for at, one in enumerate(tried):
        near = tried[max(0, at - 1) : at + 2]
        found.append(replace(one, accuracy=sum(other.accuracy for other in near) / len(near)))
    return found


def _only_worse(tried: list[_Tried]) -> bool:
    """Whether the last ones are worse than the best before them in loss, and no better in accuracy."""
    before, last = tried[:-PATIENCE], tried[-PATIENCE:]
    if not before:
        return False
    loss, accuracy = min(one.loss for one in before), max(one.accuracy for one in before)
    return all(one.loss > loss and one.accuracy <= accuracy for one in last)
