"""The benchmarks' own machinery: resumed ledgers, sections of a page, figures, and what a step keeps for backward."""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.training.baselines import model_of
from adapters.training.recipe import Recipe, config_of
from benchmarks import ablations, clips, few, ledger, many, page, pictures, stability, tables
from benchmarks.figure import Panel, figure, marks
from benchmarks.ledger import Ledger
from benchmarks.tables import Bench, over_seeds
from benchmarks.trial import Trial, indices, kept_for_backward
from service.store.descriptions import Summary
from service.store.repository import Repository
from tests.models import small_backbone

TRIALS = [Trial("digits", "lora", lr=lr) for lr in (1e-3, 3e-3, 1e-2)]


def result(trial: Trial, backbone: str = "one") -> dict[str, Any]:
    return {"accuracy": 0.5 + (trial.lr or 0), "held_out_loss": 1.0, "fingerprint": backbone}


def test_a_ledger_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    ran: list[float | None] = []

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
    assert [again[t]["accuracy"] for t in TRIALS] == [0.5 + (t.lr or 0) for t in TRIALS]
    more = Ledger(tmp_path / "m.json", "command", also=again)
    more.run("t", TRIALS, 1, runner)
    assert len(ran) == 4
    assert more[TRIALS[0]] == again[TRIALS[0]]


def test_a_ledger_of_another_backbone_is_refused(tmp_path: Path) -> None:
    held = Ledger(tmp_path / "l.json", "command")
    held.run("t", TRIALS[:1], 1, result)
    with pytest.raises(RuntimeError, match="another backbone"):
        held.run("t", TRIALS, 1, lambda trial: result(trial, "two"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """A command whose trials are made up: more rank is better, a rate of 3e-3 is best, and seeds differ a little."""

    def made_up(trial: Trial, data: Path) -> dict[str, Any]:
        accuracy = 0.5 + (trial.rank or 0) / 1000 + trial.seed / 100 - (0.1 if trial.method == "linear" else 0)
        loss = abs((trial.lr or 0) - 3e-3)
        rest = {"share": 0.01, "cpu_seconds": 1.0, "peak": 2, "growth": 1, "dtype": "bfloat16", "parameters": 1}
        more = {"scales": [1.0], "balanced_accuracy": accuracy, "losses": [2.0, 1.0 + trial.seed, 1.5]}
        return {"accuracy": accuracy, "held_out_loss": loss, "fingerprint": trial.backbone} | rest | more

    monkeypatch.setattr(tables, "run", made_up)
    monkeypatch.setattr(tables, "unpack", lambda archives, folder: None)
    monkeypatch.setattr(tables, "written", lambda name, folder: folder)
    for module in (tables, ledger):
        monkeypatch.setattr(module, "RESULTS", tmp_path)

    def of(name: str, *options: str) -> Bench:
        return Bench(name, None, ["--data", str(tmp_path), "--jobs", "1", *options])

    return of


def test_keys_tell_trials_apart() -> None:
    rates = dict.fromkeys(pictures.RATES, 1e-3)
    rows = [row for data in pictures.SETS for row in pictures.rows_of(data, rates)]
    rows += [row for data in clips.SETS for row in clips.rows_of(data)]
    rows += [row for data in few.SETS for count in few.EXAMPLES for row in few.rows_of(data, count)]
    trials = over_seeds(rows, (0, 1))
    assert len({trial.key for trial in trials}) == len({trial.file for trial in trials}) == len(trials)


def test_learning_rates_are_chosen_on_training_data_alone(bench: Callable[..., Bench]) -> None:
    command = bench("pictures")
    rates = pictures.choose(command)
    assert rates == {"vpt": 3e-3, "lora": 3e-3, "adaptformer": 2e-3, "full": 3e-4}
    assert all("part choose" in key for key in json.loads(command.ledger.path.read_text())["trials"])


def test_a_part_of_the_training_data_is_the_same_for_every_method_and_new_for_every_seed_of_few() -> None:
    labels = [i % 3 for i in range(60)]
    chosen, rest = indices(labels, Trial("t", "lora", part="choose", seed=1))
    assert (len(chosen), len(rest)) == (42, 18)
    assert sorted(chosen + rest) == list(range(60))
    assert indices(labels, Trial("t", "vpt", part="choose"))[0] == chosen
    some = [indices(labels, Trial("t", "linear", examples=4, seed=seed))[0] for seed in (0, 1)]
    assert [sorted(labels[i] for i in one) for one in some] == [[0] * 4 + [1] * 4 + [2] * 4] * 2
    assert some[0] != some[1]
    assert indices(labels, Trial("t", "linear")) == (list(range(60)), [])


@pytest.mark.parametrize("module", [pictures, clips, few, ablations, stability])
def test_a_table_is_written_from_the_trials_that_have_run(
    module: Any, bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module.__name__.rsplit(".", 1)[1]
    text = f"before\n<!-- {name}: written by the command -->\nold\n<!-- end of {name} -->\nafter\n"
    monkeypatch.setattr(page, "PAGE", tmp_path / "RESULTS.md")
    page.PAGE.write_text(text)
    monkeypatch.setattr(module, "Bench", lambda name, about: bench(name, "--seeds", "2"))
    if hasattr(module, "FIGURE"):
        monkeypatch.setattr(module, "FIGURE", tmp_path / f"{name}.svg")
    module.main()
    told = page.PAGE.read_text()
    assert told.startswith("before\n")
    assert told.endswith("after\n")
    assert "old" not in told
    # From the lowest seed to the highest.
    assert "| 1.50 | 2.00 | 0.50 |" in told if module is stability else "to 5" in told or "to 6" in told
    if hasattr(module, "FIGURE"):
        ET.fromstring(module.FIGURE.read_text())


def test_who_is_ahead_is_told_by_the_numbers(bench: Callable[..., Bench]) -> None:
    command = bench("pictures", "--seeds", "1")
    rates = pictures.choose(command)
    command.run("signs", [row.trial for row in pictures.rows_of("signs", rates)])
    told = pictures.verdict(command, rates)
    assert told == "signs: AdaptFormer of rank 32 +13.2 points over linear, AdaptFormer, rank 64 is ahead (56.4%)"
    assert few.worth({1: -0.1, 5: 0.2, 10: -0.1, 50: 0.1}, "d") == "d: AdaptFormer is ahead from 50 of each class on"
    assert few.worth({1: 0.1, 5: -0.2}, "d") == "d: linear is ahead"


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


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.95, 1.0, ["95%", "96%", "97%", "98%", "99%", "100%"]),
        (0.2, 1.0, ["20%", "40%", "60%", "80%", "100%"]),
        (0.55, 1.0, ["60%", "70%", "80%", "90%", "100%"]),
        (0.0, 1.3, ["0%", "50%", "100%"]),
        (0.0, 0.07, ["0%", "2%", "4%", "6%"]),
    ],
)
def test_an_axis_has_round_numbers(low: float, high: float, expected: list[str]) -> None:
    assert [f"{mark:.0%}" for mark in marks(low, high)] == expected


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
