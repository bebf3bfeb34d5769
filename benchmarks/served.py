"""Trained adapters as they are served: five resident at once on one frozen ViT-S, asked in mixed batches over HTTP.

``python -m benchmarks.served --data FOLDER`` starts a server, uploads the adapters that ``benchmarks.pictures`` and it
have trained, asks every held-out file of every task in random order, and puts the table into docs/RESULTS.md: are the
answers over HTTP those of the training, example by example, and what does a task take?
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.progress import track

from benchmarks.family import WAIT_S, served
from benchmarks.page import Table
from benchmarks.pictures import RANKS, SETS, chosen
from benchmarks.sets import written
from benchmarks.tables import Bench
from benchmarks.trial import BACKBONES, WORK, Trial, run

CLIENTS = 16
SERVER = "vit-s"


@dataclass(frozen=True)
class Asked:
    """A held-out file, its task, and the scores by label that the library gives it."""

    task: str
    path: Path
    label: str
    expected: dict[str, float]


def trials_of(adapted: Trial) -> list[Trial]:
    """Three that ``benchmarks.pictures`` has trained, and two more: one of them of clips."""
    return [
        *(replace(adapted, data=name) for name in (*SETS, "letters")),
        Trial("down or up", "linear", head="frames"),
    ]


def examples(trial: Trial, backbone: Any) -> list[Asked]:
    """Every held-out file with what the library says of it, by the adapter file alone."""
    from adapters.file import read_adapter
    from adapters.limits import FileLimits
    from adapters.training.data import find_examples
    from adapters.training.fit import FitConfig
    from adapters.training.plan import TrainingPlan
    from adapters.training.progress import Teller
    from adapters.training.recipe import Recipe
    from adapters.training.run import read_data
    from adapters.training.score import scored, served_logits

    root = written(trial.data, WORK)
    adapter = read_adapter(trial.file, backbone.layout, FileLimits(max_rank=RANKS[-1]))
    plan = TrainingPlan(root, trial.file, Recipe("t"), FitConfig())
    data = read_data(plan, find_examples(root), adapter.config, Teller(sys.stderr))[1][1]
    logits = served_logits(adapter, backbone, data)
    return [
        Asked(task_of(trial), root / one.path, one.label, one.scores) for one in scored(logits, adapter.config, data)
    ]


def task_of(trial: Trial) -> str:
    return trial.data.replace(" ", "-")


def ask(url: str, asked: Sequence[Asked]) -> list[dict[str, float]]:
    """The scores by label of each, from several clients at once, in random order so that batches are mixed."""
    found: list[dict[str, float]] = [{} for _ in asked]
    order = np.random.default_rng(0).permutation(len(asked)).tolist()
    with httpx.Client(base_url=url, timeout=WAIT_S) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def one(index: int) -> None:
            file = asked[index]
            answer = client.post(
                f"/v1/tasks/{file.task}/predict", params={"top_k": 100}, content=file.path.read_bytes()
            ).raise_for_status()
            found[index] = {p["label"]: p["score"] for p in answer.json()["predictions"]}

        list(track(pool.map(one, order), "asking", total=len(order), transient=True))
    return found


def line(trial: Trial, accuracy: float, pairs: Sequence[tuple[Asked, dict[str, float]]]) -> tuple[str, ...]:
    right = sum(max(got, key=got.__getitem__) == one.label for one, got in pairs)
    alike = sum(max(got, key=got.__getitem__) == max(one.expected, key=one.expected.__getitem__) for one, got in pairs)
    apart = max(abs(got[label] - score) for one, got in pairs for label, score in one.expected.items())
    return (
        trial.data, "AdaptFormer" if trial.method != "linear" else "linear, head frames", f"{accuracy:.2%}",
        f"{right / len(pairs):.2%}", f"{alike} of {len(pairs)}", f"{apart:.4f}",
        f"{trial.file.stat().st_size / 1e6:.2f}",
    )  # fmt: skip


def main() -> None:
    from adapters.backbone import load_backbone

    bench = Bench("served", __doc__)
    trials = [bench.paced(trial) for trial in trials_of(chosen(bench, "served"))]
    bench.run("training", trials)
    for trial in trials:
        if not trial.file.exists():  # measured on another machine, or before a cleaning
            run(trial, bench.options.data)
    name, weights, size = BACKBONES[SERVER]
    backbone = load_backbone(name, str(bench.options.data / weights), "cpu", "auto", size)
    asked = {trial: examples(trial, backbone) for trial in trials}
    arguments = ("--backbone", name, "--weights", str(bench.options.data / weights), "--image-size", size,
                 "--dtype", str(backbone.dtype).removeprefix("torch."))  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch, served(arguments, Path(scratch)) as (_, url, _):
        for trial in trials:
            content = trial.file.read_bytes()
            httpx.put(f"{url}/v1/tasks/{task_of(trial)}/adapter", content=content, timeout=WAIT_S).raise_for_status()
        every = [one for trial in trials for one in asked[trial]]
        answers = ask(url, every)
    pairs = list(zip(every, answers, strict=True))
    rows = [
        line(trial, bench.ledger[trial]["accuracy"], [pair for pair in pairs if pair[0].task == task_of(trial)])
        for trial in trials
    ]
    files = sum(trial.file.stat().st_size for trial in trials)
    one = sum(p.numel() * 4 for p in backbone.model.parameters())
    bench.put(
        "served",
        f"{bench.place()}; one server with one {name} in {arguments[-1]}, all five tasks resident, {len(every):,} "
        f"files in random order from {CLIENTS} clients. The five adapters take {files / 1e6:.1f} MB beside one "
        f"model of {one / 1e6:.0f} MB (float32); five full models would take {5 * one / 1e6:.0f} MB.",
        Table(
            ("task", "method", "accuracy in training", "over HTTP", "same answer as the file in the library",
             "scores apart, at most", "file, MB"),
            tuple(rows),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
