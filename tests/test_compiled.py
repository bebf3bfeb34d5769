"""torch.compile as a runtime: only what is warmed up, only if it answers as eager, and with what the bank holds now."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.bank import pack
from adapters.forward import compiled
from adapters.forward.banked import BankedForward
from tests.models import random_adapter
from tests.test_graphs import SPECS, Bench, close


def as_it_is(traced: Any, dynamic: bool = True) -> Any:
    """In the place of torch.compile, which takes long: the traced graph itself."""
    assert not dynamic
    return traced


def wrong(traced: Any, dynamic: bool = True) -> Any:
    return lambda *inputs: tuple(out + 1 for out in traced(*inputs))


def failing(traced: Any, dynamic: bool = True) -> Any:
    raise RuntimeError("no C++ compiler")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.forward = BankedForward(bench.backbone, bench.slabs, compile=True)
    return bench


def test_a_traced_batch_answers_as_eager_also_with_a_new_adapter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also clips, several sites and activations, own norms; the slot is written anew after it was traced."""
    monkeypatch.setattr(torch, "compile", as_it_is)
    assert bench.forward.warm_up((1,), [meta for _, _, meta in bench.held]) > 6
    calls: list[object] = []
    eager = bench.forward.reference.__class__.__call__
    monkeypatch.setattr(type(bench.forward.reference), "__call__", lambda *a: (calls.append(1), eager(*a))[1])
    for turn in range(2):
        for number in range(len(SPECS)):
            jobs = bench.jobs(number, seed=turn)
            found, before = bench.forward(jobs), len(calls)
            close(found, bench.eager(jobs))
            assert len(calls) == before + 1  # the compiled forward did not call it
            calls.clear()
        for (slot, pages, _), spec in zip(bench.held, SPECS, strict=True):
            packed = pack(random_adapter(bench.backbone, spec, 100 + slot), bench.backbone.layout, 8, torch.float32)
            bench.slabs.write(slot, pages, packed)
    jobs = bench.jobs(0, 1, 2, 3)  # was not warmed up
    close(bench.forward(jobs), bench.eager(jobs))


@pytest.mark.parametrize("compiler", [wrong, failing])
def test_what_does_not_compile_or_answers_otherwise_runs_eagerly(
    bench: Bench, compiler: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", compiler)
    assert bench.forward.warm_up((1,)) == 0
    assert caplog.text.count("eager") >= 2
    bench.same(bench.jobs(0))


def test_a_bound_on_what_is_compiled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", as_it_is)
    monkeypatch.setattr(compiled, "MAX_COMPILED", 2)
    assert bench.forward.warm_up((1, 2, 4), [meta for _, _, meta in bench.held]) == 2


@pytest.mark.torture
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(600)
def test_compiled_for_real(bench: Bench) -> None:
    assert bench.forward.warm_up((2,), [bench.held[0][2]]) == 3
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(2):
            bench.same(bench.jobs(2, 2, seed=seed))
            bench.same(bench.jobs(0, 0, seed=seed))
