"""The benchmarks' own machinery: resumed ledgers, sections of a page, figures, and what a step keeps for backward."""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.training.baselines import model_of
from adapters.training.recipe import Recipe, config_of
from benchmarks import many, page
from benchmarks.figure import Panel, figure
from benchmarks.ledger import Ledger
from benchmarks.methods import DIGITS, Pace, choose, summary, table_of, verdict
from benchmarks.trial import Trial, kept_for_backward
from service.store.descriptions import Summary
from service.store.repository import Repository
from tests.models import small_backbone

TRIALS = [Trial("digits", "lora", lr=lr, epochs=1, batch=8) for lr in (1e-3, 3e-3, 1e-2)]


def result(trial: Trial, backbone: str = "one") -> dict[str, Any]:
    return {"accuracy": 0.5 + trial.lr, "held_out_loss": 1.0, "fingerprint": backbone}


def test_a_ledger_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    ran: list[float] = []

    def runner(trial: Trial) -> dict[str, Any]:
        ran.append(trial.lr)
        if len(ran) == 3:
            raise RuntimeError("stopped")
        return result(trial)

    with pytest.raises(RuntimeError, match="stopped"):
        Ledger(tmp_path / "l.json", "command").run("t", TRIALS, 1, runner)
    again = Ledger(tmp_path / "l.json", "command")
    again.run("t", TRIALS, 1, runner)
    assert ran == [1e-3, 3e-3, 1e-2, 1e-2]
    assert [again[t]["accuracy"] for t in TRIALS] == [0.5 + t.lr for t in TRIALS]
    more = Ledger(tmp_path / "m.json", "command", also=again)
    more.run("t", TRIALS, 1, runner)
    assert len(ran) == 4
    assert more[TRIALS[0]] == again[TRIALS[0]]


def test_a_ledger_of_another_backbone_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.json", "command")
    ledger.run("t", TRIALS[:1], 1, result)
    with pytest.raises(RuntimeError, match="another backbone"):
        ledger.run("t", TRIALS, 1, lambda trial: result(trial, "two"))


def test_keys_tell_trials_apart() -> None:
    rows = {row.trial(1e-3, Pace(), seed=seed).key for row in DIGITS for seed in range(3)}
    assert len(rows) == 3 * len(DIGITS)


def test_learning_rates_are_chosen_on_training_data_alone(tmp_path: Path) -> None:
    def runner(trial: Trial) -> dict[str, Any]:
        assert trial.part == "choose"
        return result(trial) | {"accuracy": 0.5, "held_out_loss": abs(trial.lr - 3e-3)}

    ledger = Ledger(tmp_path / "l.json", "command")
    before = Ledger.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "run", lambda self, title, trials, jobs: before(self, title, trials, jobs, runner))
        rates = choose(ledger, 1, Pace())
    assert set(rates) == {row.rates_of for row in DIGITS}
    assert rates["lora"] == rates["vpt"] == 3e-3  # equal accuracies: the lowest loss


def test_the_verdict_names_who_wins() -> None:
    def line(name: str, *accuracies: float) -> dict[str, Any]:
        rest = {"parameters": 1, "share": 0.5, "cpu_seconds": 1.0, "peak": 2, "growth": 1, "kept": 1}
        return summary(name, 0.1, [{"accuracy": a} | rest for a in accuracies])

    ours, full, linear = line("AdaptFormer", 0.8, 0.9), line("full tuning", 0.9, 0.92), line("linear", 0.1, 0.2)
    told = verdict([ours, full, linear], "AdaptFormer")
    assert "Highest: full tuning (91.00%)" in told
    assert "loses to full tuning (91.00%); the ranges of full tuning and its own overlap" in told
    assert "No other wins" in verdict([ours, linear], "AdaptFormer")
    assert table_of([ours]).rows[0][:3] == ("AdaptFormer", "85.00%", "80.00% to 90.00%")


def test_a_section_is_replaced_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE", tmp_path / "R.md")
    page.PAGE.write_text("before\n<!-- a: written by the command -->\nold\n<!-- end of a -->\nafter\n")
    table = page.Table(("x", "y"), (("1", "2"),))
    for _ in range(2):
        page.put("a", "words", table)
    assert page.PAGE.read_text() == (
        "before\n<!-- a: written by the command -->\nwords\n\n| x | y |\n| :--- | ---: |\n| 1 | 2 |\n"
        "<!-- end of a -->\nafter\n"
    )
    with pytest.raises(RuntimeError, match="lacks the lines"):
        page.put("b", "words", table)


def test_a_figure_is_xml_and_holds_its_numbers() -> None:
    drawn = figure([Panel("rank", (("4", 0.91, False), ("a<b", 1.0, True))), Panel("p", (("x", 0.503, False),))], "l")
    root = ET.fromstring(drawn)
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"91.0", "100.0", "50.3", "a<b", "rank"} <= set(texts)
    heights = [float(e.attrib["cy"]) for e in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert heights[1] < heights[0] < heights[2] < float(root.attrib["height"])


def test_an_adapter_keeps_less_for_its_backward_pass_than_full_tuning(tmp_path: Path) -> None:
    backbone = small_backbone(tmp_path / "vit")
    pixels = torch.zeros(4, 1, 3, 32, 32, dtype=torch.uint8)
    recipes = {m: Recipe("t", m) for m in ("linear", "adaptformer", "full")}  # type: ignore[arg-type]
    kept = {
        name: kept_for_backward(model_of(r, backbone, config_of(r, backbone, "image", ("a", "b"))), pixels)
        for name, r in recipes.items()
    }
    assert 0 < kept["linear"] < kept["adaptformer"] / 4
    assert kept["adaptformer"] < 0.8 * kept["full"]


def test_the_many_tasks_are_as_uploads_leave_them(tmp_path: Path) -> None:
    files = many.Files()
    for number in range(3):
        files.task(tmp_path, f"task-{number}", [number, 10 + number])
    repository = Repository(tmp_path)
    assert repository.recover() == []
    tasks = repository.tasks()
    repository.close()
    assert len({version.digest for task in tasks for version in task.versions.values()}) == 6
    for task in tasks:
        assert task.told is not None
        kept = Summary.read(task.told)
        assert kept is not None
        assert kept.config.labels == tuple("0123456789")
        content = (tmp_path / f"tasks/{task.name}/versions/1.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest() == task.shown.digest
