"""Temperatures and thresholds: what they are, when none is written, and what a server makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from adapters import Adapter, Predictor
from adapters.config import MIN_TEMPERATURE, AdapterConfig
from adapters.errors import BrokenAdapter
from adapters.file import read_adapter, write_adapter
from adapters.header import METADATA_KEY
from adapters.limits import OWN_FILE
from adapters.scores import best, probabilities
from adapters.training.calibration import (
    Bin,
    abstention,
    bins_of,
    calibration_error,
    fit_temperature,
    told_of,
)
from tests.houses import IMAGE, House, Kit, house, photograph, problem, scores_of
from tests.models import close

DEMO = sorted((Path(__file__).parent.parent / "adapters/demo/tasks").glob("*.safetensors"))
ANSWERS = st.lists(
    st.tuples(st.sampled_from([0.2, 0.5, 0.5001, 0.7, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30
)


def drawn(
    items: int = 3000, classes: int = 6, views: int = 1, temperature: float = 2.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are so many times too sure, and truths that were drawn from what they should have said."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(items, views, classes, generator=generator) * 1.5
    truth = torch.multinomial(logits.softmax(-1).mean(1), 1, generator=generator)[:, 0]
    return (logits * temperature).squeeze(1), truth


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_a_temperature_is_found_again(views: int, temperature: float) -> None:
    logits, truth = drawn(views=views, temperature=temperature)
    found = fit_temperature(logits, truth)
    assert found.value == pytest.approx(temperature, rel=0.1)
    assert found.loss_after < found.loss_before
    assert fit_temperature(logits, truth) == found


def test_a_temperature_of_many_labels_is_found_again() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1500, 4, generator=generator) * 2
    truth = torch.bernoulli(logits.sigmoid(), generator=generator)
    found = fit_temperature(logits * 3, truth)
    assert found.value == pytest.approx(3, rel=0.1)
    before, after = (F.binary_cross_entropy_with_logits(logits * 3 / t, truth) for t in (1, found.value))
    assert after < before


def test_scores_that_are_right_already_stay() -> None:
    """So few that a temperature fits their noise alone: on what was left out it does harm, and none is written."""
    kept = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(25, 4, generator=generator)
        truth = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        found = fit_temperature(logits, truth)
        assert found.loss_after <= found.loss_before
        kept += found.value == 1.0
    assert kept >= 8


def test_what_is_never_wrong_is_not_made_sure() -> None:
    logits = F.one_hot(torch.arange(40) % 4, 4).float() * 3 + torch.rand(
        40, 4, generator=torch.Generator().manual_seed(0)
    )
    found = fit_temperature(logits, torch.arange(40) % 4)
    scores = np.array([probabilities(row, "softmax", found.value).max() for row in logits.numpy()])
    assert MIN_TEMPERATURE < found.value < 1
    assert scores.mean() < 1 - 0.5 / 42


@pytest.mark.parametrize("items", [1, 4, 5])
def test_few_files_get_none_or_a_number(items: int) -> None:
    logits, truth = drawn(items)
    found = fit_temperature(logits, truth)
    told = told_of(found, [Bin(items, 0.5, 0.5)], [Bin(items, 0.5, 0.5)], None)
    json.dumps(told, allow_nan=False)
    assert items >= 5 or found.value == 1.0


def test_the_error_is_that_of_the_formula() -> None:
    confidence, right = np.array([0.95, 0.9401, 0.5, 0.07, 0.0]), np.array([True, False, True, False, False])
    bins = bins_of(confidence, right)
    assert [one.count for one in bins] == [1, 1, 1, 2]  # 1 / 15 = 0.067: the bins are open below
    weights = abs(0 - 0) + abs(0 - 0.07) + abs(1 - 0.5) + abs(0.5 - (0.95 + 0.9401) / 2) * 2
    assert calibration_error(bins) == pytest.approx(weights / 5)


@given(ANSWERS, st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_the_threshold_is_the_smallest_that_will_do(answers: list[tuple[float, bool]], wanted: float) -> None:
    confidence, right = np.array([c for c, _ in answers]), np.array([r for _, r in answers])
    found = abstention(confidence, right, wanted)
    good = [t for t in np.unique(confidence) if right[confidence >= t].mean() >= wanted]
    if found is None:
        assert not good
        return
    accepted = confidence >= found.threshold
    assert (accepted == (confidence >= min(good))).all()
    assert (found.share, found.accuracy) == (pytest.approx(accepted.mean()), pytest.approx(right[accepted].mean()))


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=8),
    st.floats(0.3, 30),
    st.sampled_from(["softmax", "sigmoid"]),
)
def test_a_temperature_leaves_the_order(values: list[float], temperature: float, score: str) -> None:
    logits, labels = np.unique(np.round(np.array(values, np.float32), 2)), "abcdefgh"
    plain, calibrated = (best(probabilities(logits, score, t), labels, 8) for t in (1.0, temperature))
    assert [one.label for one in plain] == [one.label for one in calibrated]
    raw = probabilities(logits, "none", temperature)
    np.testing.assert_array_equal(raw, logits)


@pytest.mark.parametrize("path", DEMO, ids=lambda path: path.stem)
def test_files_of_before_are_written_as_they_were(path: Path, tmp_path: Path) -> None:
    adapter = read_adapter(path, None, OWN_FILE)
    with safe_open(path, "pt") as file:
        text = file.metadata()[METADATA_KEY]
    assert adapter.config.model_dump_json(exclude_none=True) == text
    assert (adapter.config.temperature, adapter.config.abstain) == (1.0, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", v) for v in (0, -1, 0.001, 1e9, "nan", "inf")] + [("abstain", v) for v in (-0.1, 1.1, "nan")],
)
def test_numbers_out_of_range_are_refused(kit: Kit, field: str, value: float | str) -> None:
    config = kit.file(0)[1].config.model_dump(mode="json")
    with pytest.raises(ValueError, match=field):
        AdapterConfig.model_validate(config | {field: float(value)})


@pytest.fixture(scope="module")
def sure(kit: Kit) -> Adapter:
    adapter = kit.file(1, IMAGE)[1]
    scores = Predictor(kit.backbone, adapter)(photograph()).best.score
    return Adapter(adapter.config.model_copy(update={"temperature": 3.0, "abstain": scores}), adapter.tensors, "")


@pytest.fixture(scope="module")
def home(kit: Kit, sure: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("data")
    write_adapter(folder / "sure.safetensors", sure.config, sure.tensors)
    with house(kit.settings(data_dir=folder / "store")) as made:
        made.put("sure", (folder / "sure.safetensors").read_bytes()).raise_for_status()
        made.put("plain", kit.file(1, IMAGE)[0]).raise_for_status()
        yield made


def test_a_server_scores_as_the_library(kit: Kit, home: House, sure: Adapter) -> None:
    result = Predictor(kit.backbone, sure)(photograph())
    answer = home.ask("sure", photograph()).raise_for_status().json()
    expected = torch.tensor(result.logits).double().div(3).softmax(0)
    close(torch.tensor(result.scores), expected)
    close(torch.from_numpy(scores_of(answer)), expected)
    plain = home.ask("plain", photograph()).json()
    assert [p["label"] for p in answer["predictions"]] == [p["label"] for p in plain["predictions"]]
    assert answer["accepted"] is result.accepted is False  # the threshold is what it was before the temperature
    assert "accepted" not in plain
    both = home.client.post("/v1/predict", params={"task": ["sure", "plain"], "abstain": 0.1}, content=photograph())
    assert [one["accepted"] for one in both.json()["results"]] == [True, True]


def test_labels_below_the_least_score_are_left_out(home: House) -> None:
    whole = home.ask("sure", photograph()).json()
    middle = whole["predictions"][2]["score"]
    some = home.ask("sure", photograph(), min_score=middle).json()
    assert some == whole | {"predictions": whole["predictions"][:3]}
    assert home.ask("sure", photograph(), min_score=middle, top_k=2).json()["predictions"] == whole["predictions"][:2]
    none = home.ask("sure", photograph(), min_score=1, abstain=0.0).json()
    assert none == whole | {"predictions": [], "accepted": True}
    many = home.client.post("/v1/predict", params={"task": ["sure"], "min_score": middle}, content=photograph())
    assert many.json()["results"] == [some]


@pytest.mark.parametrize("name", ["min_score", "abstain"])
@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "inf", "x", ""])
def test_a_share_out_of_range_is_a_problem(home: House, name: str, value: str) -> None:
    for path in ("/v1/tasks/sure/predict", "/v1/predict?task=sure"):
        response = home.client.post(path, params=httpx_params(path, name, value), content=photograph())
        assert problem(response, 400)["field"] == name


def httpx_params(path: str, name: str, value: str) -> dict[str, str]:
    return ({"task": "sure"} if "?" in path else {}) | {name: value}


def test_a_file_with_a_bad_threshold_is_refused(kit: Kit, home: House, sure: Adapter, tmp_path: Path) -> None:
    config = sure.config.model_copy(update={"temperature": 1e-12})
    write_adapter(tmp_path / "bad.safetensors", config, sure.tensors)
    with pytest.raises(BrokenAdapter, match="temperature"):
        Adapter.load(tmp_path / "bad.safetensors")
    assert problem(home.put("bad", (tmp_path / "bad.safetensors").read_bytes()), 422)["field"] == "temperature"
