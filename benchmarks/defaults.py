"""What `adaptserve train DATA --out FILE` reaches with no other option, on small sets of different kinds.

``python -m benchmarks.defaults --data FOLDER`` trains a linear head and an AdaptFormer on each set with the demo
backbone, and scikit-learn's logistic regression on the same frozen features; prints the table and puts it into
docs/RESULTS.md.
FOLDER holds cifar10.tar.xz, sign_digits.tar and thermal_actions.tar. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.ledger import RESULTS, write_json
from benchmarks.page import Table, put
from benchmarks.sets import ALL, CHOSEN_ON, KEPT_ASIDE, Set, unpack, written
from benchmarks.trial import ROOT, WORK

FILE = RESULTS / "defaults.json"
METHODS = ("linear", "adaptformer")


def one(name: str) -> dict[str, Any]:
    """Both methods on a set, in this process, with one thread."""
    import torch

    from adapters.backbone import load_backbone
    from adapters.training.fit import FitConfig
    from adapters.training.plan import TrainingPlan
    from adapters.training.progress import Teller
    from adapters.training.recipe import CROP, Recipe
    from adapters.training.run import Trained, train

    torch.set_num_threads(1)
    chosen = next(each for each in ALL if each.name == name)
    backbone = load_backbone("demo", device="cpu")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def trained(method: str) -> Trained:
            recipe = Recipe("t", method)  # type: ignore[arg-type]
            plan = TrainingPlan(
                written(chosen.name, WORK), folder / f"{method}.safetensors", recipe, FitConfig(crop=CROP), report=False
            )
            return train(plan, backbone, Teller(sys.stderr))

        for method in METHODS:
            began, made = time.process_time(), trained(method)
            told = made.config.training
            found[method] = {
                "accuracy": made.accuracy,
                "balanced": made.recalls.balanced_accuracy,
                "share": told["share_of_backbone"],
                "kept": told["method"],
                "epochs": told["epochs_run"],
                "cpu_seconds": time.process_time() - began,
                "pool": made.config.pool,
                "head": made.config.head,
                "verdict": told["verdict"],
            }
            found |= {"train": told["train_examples"], "held_out": told["held_out_examples"]}
        found["regression"] = _regression(made)
        found["classes"] = len(made.config.labels)
    return found


def _regression(made: Any) -> float:
    """scikit-learn's logistic regression with its defaults, on the same features, standardised."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (train, held_out), config = made.tuned.vectors, made.tuned.start.config
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(train.seen(config).flatten(1).numpy(), train.labels.numpy())
    score: float = model.score(held_out.seen(config).flatten(1).numpy(), held_out.labels.numpy())
    return score


def run(name: str) -> dict[str, Any]:
    """In a process of its own."""
    command = [sys.executable, "-m", "benchmarks.defaults", "--one", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def row(each: Set, found: dict[str, Any]) -> tuple[str, ...]:
    linear, adapter = found["linear"], found["adaptformer"]
    kept = " (the linear head was kept)" if adapter["kept"] == "linear" else ""
    return (
        f"{each.name}: {each.about}", f"{found['train']:,} / {found['held_out']:,}", str(found["classes"]),
        f"{found['regression']:.1%}", f"{linear['accuracy']:.1%}", f"{adapter['accuracy']:.1%}{kept}",
        f"{100 * (adapter['accuracy'] - linear['accuracy']):+.1f}", f"{adapter['share']:.2%}",
        f"{linear['cpu_seconds']:.0f} / {adapter['cpu_seconds']:.0f}",
    )  # fmt: skip


def summary(sets: tuple[Set, ...], results: dict[str, dict[str, Any]]) -> str:
    there = [results[each.name] for each in sets if each.name in results]
    if not there:
        return "none was run"
    gain = statistics.mean(r["adaptformer"]["accuracy"] - r["linear"]["accuracy"] for r in there)
    behind = [r["linear"]["accuracy"] - r["regression"] for r in there]
    return (
        f"linear less logistic regression {100 * statistics.mean(behind):+.2f} on the mean and "
        f"{100 * min(behind):+.1f} at the least, AdaptFormer less linear {100 * gain:+.1f} on the mean of {len(there)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data", type=Path, help="folder of the archives")
    parser.add_argument("--jobs", type=int, default=2, help="sets at a time, one thread each (default 2)")
    parser.add_argument("--only", nargs="*", metavar="SET", help="run these; the table shows all that ever ran")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    import torch

    from benchmarks.common import machine

    WORK.mkdir(exist_ok=True)
    if args.data:
        unpack(args.data, WORK)
    held: dict[str, Any] = {"machine": machine(torch.device("cpu")), "sets": {}}
    if FILE.exists():
        held = json.loads(FILE.read_text())
    wanted = [each.name for each in ALL] if args.only is None else args.only
    missing = [name for name in wanted if name not in held["sets"]]
    with ThreadPoolExecutor(args.jobs) as pool:
        for name, found in track(
            zip(missing, pool.map(run, missing), strict=True), "sets", total=len(missing), transient=True
        ):
            held["sets"][name] = found
            write_json(FILE, held)
    place, sets = held["machine"], held["sets"]
    put(
        "defaults",
        f"{place['device']}, each training with one thread, torch {place['torch']}, "
        f"{place['date']}, one seed. On the {len(CHOSEN_ON)} sets that the defaults were chosen on: "
        f"{summary(CHOSEN_ON, sets)}. On the {len(KEPT_ASIDE)} kept aside: {summary(KEPT_ASIDE, sets)}.",
        Table(
            ("set", "train / held out", "classes", "scikit-learn", "linear", "AdaptFormer", "points more",
             "of the backbone", "CPU seconds"),
            tuple(row(each, sets[each.name]) for each in ALL if each.name in sets),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
