"""`evaluate`: ask a task about labelled files over HTTP, and compare with the labels or with a training's report.

It knows HTTP and how labelled files are listed; it knows no model.
"""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.errors import TrainingError
from adaptserve_client import Client, ProblemError
from adaptserve_client.calls import DEFAULT_URL
from service.cli.client import Key, Url
from service.cli.console import complain, one_line_errors, out
from service.exits import FAILED

if TYPE_CHECKING:
    from adapters.training.data import Example

CLIENTS = 4
RETRIES = 20
"""A full queue is asked again after the time it names, so often at most."""
TOLERANCES = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""How far a score may be from the report's, by what the server computes in: other machines round otherwise too."""
SHOWN = 5


@dataclass(frozen=True)
class Evaluated:
    """What the server said of one file: its best label and every score it gave; or why it gave none."""

    example: Example
    scores: dict[str, float]
    error: str = ""
    accepted: bool | None = None

    @property
    def label(self) -> str:
        return next(iter(self.scores), "")

    @property
    def right(self) -> bool:
        return _one_form(self.label) == self.example.label


def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder or a CSV as `adaptserve train` takes.")],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task to ask.")],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A FILE.report of `adaptserve train`: ask about its held-out files alone."),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Score a served task on labelled files: how often is its best label the right one?

    With --report, DATA is what the adapter was trained on: only what was held out is asked, and every answer is
    compared with the report's. Exit code 1 where they differ, or where files got no answer.

    Example:  adaptserve evaluate digits --task my-digits --report my-digits.safetensors.report
    """
    with one_line_errors():
        from adapters.training.data import list_examples  # torch takes seconds; --help need not wait for it

        expected = _expected(report) if report else {}
        examples = [e for e in list_examples(data).examples if not report or e.name in expected]
        if report and len(examples) < len(expected):
            lost = sorted(set(expected) - {e.name for e in examples})
            raise TrainingError(f"{data} lacks {len(lost)} files of the report, such as {lost[0]}; is it other data?")
        with Client(url, key, retries=0) as client:
            _check_labels(client.task(task).labels, examples)
            dtype = client.server().dtype
        with Client(url, key, retries=RETRIES) as client:
            replies = _ask_all(client, task, examples)
    failed = [r for r in replies if r.error]
    _say(task, replies)
    for reply in failed[:SHOWN]:
        complain(f"{reply.example.name}: {reply.error}", "no answer")
    agree = not report or _compare(replies, expected, dtype)
    if failed or not agree:
        raise typer.Exit(FAILED)


def _say(task: str, replies: Sequence[Evaluated]) -> None:
    """How many are right: of all files, of each class alike, and of each part where the data brings a split."""
    import numpy as np

    from adapters.training.calibration import bins_of, calibration_error
    from adapters.training.score import Recalls

    by_part: dict[str, list[bool]] = defaultdict(list)
    for reply in replies:
        by_part[reply.example.part or ""].append(reply.right)
    console, right = out(), sum(reply.right for reply in replies)
    console.print(f"{task}: {right / len(replies):.2%} of {len(replies)} files are right", markup=False)
    recalls = Recalls.of((r.example.label, r.example.label if r.right else "") for r in replies)
    console.print(f"balanced accuracy {recalls.summary()}", markup=False)
    sure = [(max(reply.scores.values()), reply.right) for reply in replies if reply.scores]
    if sure:
        error = calibration_error(bins_of(*map(np.array, zip(*sure, strict=True))))
        console.print(f"expected calibration error {error:.2%}, of {len(sure)} answers in 15 bins", markup=False)
    if judged := [reply for reply in replies if reply.accepted is not None]:
        accepted = [reply.right for reply in judged if reply.accepted]
        of_them = f", {sum(accepted) / len(accepted):.2%} of them right" if accepted else ""
        console.print(f"accepted {len(accepted)} of {len(judged)} answers{of_them}", markup=False)
    if len(by_part) > 1:
        shares = (f"{part} {sum(found) / len(found):.2%} of {len(found)}" for part, found in sorted(by_part.items()))
        console.print(f"by part: {', '.join(shares)}", markup=False)


def _check_labels(labels: Sequence[str], examples: Sequence[Example]) -> None:
    """A class that the task does not have could only be wrong."""
    unknown = sorted({e.label for e in examples} - {_one_form(label) for label in labels})
    if unknown:
        known = ", ".join(labels[:SHOWN]) + (", …" if len(labels) > SHOWN else "")
        raise TrainingError(f"class '{unknown[0]}' is no label of the task; it has {known}", field="data")


def _one_form(label: str) -> str:
    """As labels of files are read: NFC. A task may have been trained from names in another form."""
    return unicodedata.normalize("NFC", label)


def _expected(report: Path) -> dict[str, dict[str, Any]]:
    """Held-out file -> its line in the report."""
    try:
        lines = json.loads((report / "metrics.json").read_text(encoding="utf-8"))["held_out"]
        return {line["path"]: line for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{report}/metrics.json is no report of `adaptserve train`", field="report") from error


def _ask_all(client: Client, task: str, examples: Sequence[Example]) -> list[Evaluated]:
    from adapters.training.progress import telling

    replies: list[Evaluated] = []
    with ThreadPoolExecutor(CLIENTS) as pool, telling() as teller:
        for reply in pool.map(lambda example: _ask(client, task, example), examples):
            replies.append(reply)
            teller.at(f"asking about {len(examples)} files", len(replies) / len(examples))
    return replies


def _ask(client: Client, task: str, example: Example) -> Evaluated:
    try:
        answer = client.predict(example.path, task=task, top_k=100)
    except ProblemError as error:
        return Evaluated(example, {}, error.detail)
    return Evaluated(example, {p.label: p.score for p in answer.predictions}, accepted=answer.accepted)


def _compare(replies: Sequence[Evaluated], expected: dict[str, dict[str, Any]], dtype: str) -> bool:
    """Tell whether the answers are the report's, example by example; two labels that close may change places."""
    other, largest, tolerance = [], 0.0, TOLERANCES.get(dtype, TOLERANCES["float32"])
    for reply in replies:
        line = expected[reply.example.name]
        common = line["scores"].keys() & reply.scores.keys()
        apart = max((abs(line["scores"][label] - reply.scores[label]) for label in common), default=1.0)
        largest = max(largest, apart)
        best = line["scores"].get(line["predicted"], 1.0)
        tie = best - line["scores"].get(reply.label, 0.0) <= 2 * tolerance
        if apart > tolerance or (line["predicted"] != reply.label and not tie):
            other.append(reply)
    promised = sum(line["correct"] for line in expected.values()) / len(expected)
    rounding = "" if dtype == "float32" else f" (the server computes in {dtype})"
    out().print(
        f"the report says {promised:.2%}; {len(replies) - len(other)} of {len(replies)} answers are its own, "
        f"scores differ by {largest:.1g} at most{rounding}", markup=False,
    )  # fmt: skip
    for reply in other[:SHOWN]:
        told = expected[reply.example.name]["predicted"]
        complain(f"{reply.example.name}: the server says {reply.label or 'nothing'}, the report {told}", "differs")
    return not other
