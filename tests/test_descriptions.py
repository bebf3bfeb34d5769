"""What is known of files without opening them: summaries that fit a manifest, a cache that keeps its bound."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.config import AdapterConfig, BaseModelConfig, InputConfig, SiteConfig, VideoConfig
from adapters.header import Header
from service.store.descriptions import LISTED_LABELS, Description, Descriptions, Summary, _weight


def config(classes: int, **changes: Any) -> AdapterConfig:
    fields: dict[str, Any] = {
        "task": "dogs",
        "labels": tuple(f"a class with a name, {n}" for n in range(classes)),
        "base": BaseModelConfig(model="vit", fingerprint="a" * 64),
        "sites": (SiteConfig(site="parallel", blocks=tuple(range(12)), rank=64),),
        "input": InputConfig(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    }
    return AdapterConfig(**(fields | changes))


@given(
    st.integers(1, 200), st.sampled_from(["image", "video"]), st.sampled_from(["softmax", "sigmoid"]),
    st.none() | st.floats(0, 1),
)  # fmt: skip
def test_a_summary_is_read_as_it_was_written_and_stays_small(
    classes: int, modality: str, score: str, accuracy: float | None
) -> None:
    video = VideoConfig(frames=16) if modality == "video" else None
    whole = config(classes, modality=modality, score=score, video=video, training={"report": "x" * 10_000})
    summary = Summary.of(Description(whole, 5, fits=True, accuracy=accuracy))
    assert Summary.read(summary.text()) == summary
    assert len(summary.text()) < 1500
    assert (summary.classes, summary.accuracy) == (classes, accuracy)
    assert summary.config.labels == whole.labels[:LISTED_LABELS]
    assert (summary.config.frames, summary.config.score, summary.parameters) == (whole.frames, score, 5)


def test_a_summary_of_another_release_is_none() -> None:
    assert Summary.read("{}") is None
    assert Summary.read('{"classes": 1, "parameters": 2, "config": {"format": 9}}') is None
    assert Summary.read("[") is None


def test_a_summary_without_an_accuracy_is_of_another_release() -> None:
    """So that the file is read once more; one that says that there is none is believed."""
    told = json.loads(Summary.of(described(2)).text())
    assert told.pop("accuracy") is None
    assert Summary.read(json.dumps(told)) is None


@pytest.mark.parametrize(
    ("told", "shown"), [(0.975, 0.975), (1, 1.0), (None, None), ("97 %", None), (True, None), (1.5, None), ([1], None)]
)
def test_an_accuracy_is_a_number_from_0_to_1(told: object, shown: float | None) -> None:
    header = Header(config(2, training={"held_out_accuracy": told}), {})
    assert Description.of(header, fits=True).accuracy == shown


def described(classes: int) -> Description:
    return Description(config(classes, training={"report": "x" * 1000}), 5, fits=True)


def test_the_least_recently_used_are_dropped_beyond_the_bound() -> None:
    one = _weight(config(10))
    kept = Descriptions(3 * one)
    for digest in "abc":
        kept.keep(digest, described(10))
    assert kept.get("a") is not None
    kept.keep("d", described(10))
    assert [digest for digest in "abcd" if kept.get(digest)] == ["a", "c", "d"]
    kept.keep("large", described(60_000))  # alone beyond the bound
    assert kept.get("large") is None
    kept.keep("a", described(10))
    kept.keep("a", described(10))
    kept.forget("a")
    assert kept._bytes == 0
    found = kept.get("a")
    assert found is None


def test_the_training_report_takes_no_memory() -> None:
    kept = Descriptions(2**20)
    kept.keep("a", described(10))
    found = kept.get("a")
    assert found is not None
    assert found.config.training == {}
    assert found.config.labels == config(10).labels


def test_the_bound_is_about_what_python_takes() -> None:
    for classes in (1, 1000):
        texts = [
            config(classes, labels=tuple(f"class {n} of file {file}" for n in range(classes))).model_dump_json()
            for file in range(50)
        ]
        tracemalloc.start()
        try:
            parsed = [AdapterConfig.model_validate_json(text) for text in texts]
            taken = tracemalloc.get_traced_memory()[0] / len(texts)
        finally:
            tracemalloc.stop()
        assert 0.5 < _weight(parsed[0]) / taken < 3
