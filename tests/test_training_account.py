"""The verdict of a training: what it was worth, and what more would give, where that can be said at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from adapters.training.account import verdict
from adapters.training.checkpoint import FitResult
from adapters.training.tune import Tuned


def tuned(held_out: int, *, linear: float, half: float, loss: float = 0.01, kept: bool = False) -> Tuned:
    result = FitResult(history=[{"loss": loss}])
    parts = (SimpleNamespace(labels=torch.zeros(10)), SimpleNamespace(labels=torch.zeros(held_out)))
    told = SimpleNamespace(linear={"accuracy": linear}, half=half, vectors=parts, kept_linear=kept, result=result)
    return cast(Tuned, told)


@pytest.mark.parametrize(
    ("held_out", "linear", "half", "expected"),
    [
        (359, 0.94, 0.92, "2.0 points less, so more of them should help"),
        (359, 0.94, 0.94, "need not help"),
        (359, 0.94, 0.95, "need not help"),
        (20, 0.90, 0.90, "20 held-out files are too few to say"),
        (20, 0.90, 0.85, "20 held-out files are too few to say"),
        (20, 0.90, 0.60, "30.0 points less, so more of them should help"),
        (3, 1.0, 0.67, "3 held-out files are too few to say"),
    ],
)
def test_more_examples_are_asked_for_where_they_would_tell(
    held_out: int, linear: float, half: float, expected: str
) -> None:
    for method in ("linear", "adaptformer"):
        assert expected in verdict(tuned(held_out, linear=linear, half=half), method, 0.95)
    assert expected in verdict(tuned(held_out, linear=linear, half=half, kept=True), "lora", linear)


def test_it_says_what_the_method_is_worth() -> None:
    assert verdict(tuned(359, linear=0.9, half=0.9), "adaptformer", 0.95).startswith(
        "+5.0 points over the best linear head (90.00%); the training examples are learnt by heart"
    )
    falls = verdict(tuned(359, linear=0.9, half=0.9, loss=0.4), "adaptformer", 0.95)
    assert "more epochs or a higher rank may give more" in falls
    kept = verdict(tuned(359, linear=0.9, half=0.9, kept=True), "lora", 0.9)
    assert kept.startswith("lora found nothing better than the best linear head, which was kept (90.00%)")
