"""``python -m adapters.training.demo``: train the shipped tasks again, or only score the shipped files."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from adapters.backbone import load_backbone
from adapters.backbone.source import DEMO_BACKBONE
from adapters.training.demo.build import score_file, train_task, without_looking, write_task
from adapters.training.demo.samples import write_samples
from adapters.training.demo.tasks import tasks
from adapters.training.progress import telling

DEMO = DEMO_BACKBONE.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m adapters.training.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO, help="folder for tasks/ and samples/ (the shipped one)")
    parser.add_argument("--score", action="store_true", help="train nothing; score the files that are there")
    parser.add_argument("--task", action="append", help="only this task; may be repeated")
    parser.add_argument(
        "--cifar10", type=Path, metavar="FOLDER", help="CIFAR-10 as {train,test}/<class>/*, for the photographs' task"
    )
    parser.add_argument("--dtype", default="float32", help="to score in: float32 or bfloat16")
    args = parser.parse_args()
    chosen = [task for task in tasks(args.cifar10) if not args.task or task.name in args.task]
    console, backbone = Console(width=110), load_backbone("demo", dtype=args.dtype)
    if not args.score:
        with telling() as teller:
            for task in chosen:
                notes: dict[str, object] = {}
                if task.temporal:
                    _, flat = train_task(task, backbone, teller, temporal=False)
                    notes["held_out_accuracy_without_time_mixing"] = round(flat.accuracy, 4)
                model, result = train_task(task, backbone, teller, temporal=task.temporal)
                write_task(task, model, result, args.out / "tasks" / f"{task.name}.safetensors", notes)
                write_samples(task, args.out / "samples")
    table = Table(title="Held-out accuracy of the shipped adapters, computed as the server computes it")
    counts = ("held-out", "accuracy", "not looking", "without time mixing", "parameters", "share of backbone")
    for column in ("task", *counts):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task in chosen:
        adapter, accuracy = score_file(args.out / "tasks" / f"{task.name}.safetensors", task, backbone)
        flat_accuracy = adapter.config.training.get("held_out_accuracy_without_time_mixing")
        table.add_row(
            task.name, str(adapter.config.training["held_out_examples"]), f"{accuracy:.4f}",
            f"{without_looking(task.data()[1][1]):.4f}", f"{flat_accuracy:.4f}" if flat_accuracy is not None else "",
            f"{adapter.parameters:,}",
            f"{adapter.parameters / backbone.layout.parameters:.2%}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
