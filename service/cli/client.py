"""`push` and `predict`: the two calls that everybody makes first, against a running server.

HTTP is ``adaptserve_client``'s; no torch is imported for it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from adapters.header import read_header
from adapters.limits import OWN_FILE
from adapters.version import installed_version
from adaptserve_client import Classification, Client, PredictOptions, Upload
from adaptserve_client.calls import DEFAULT_URL, KEY_VARIABLES, URL_VARIABLE
from service.cli.console import complain, one_line_errors, out
from service.cli.folder import many, predict_all
from service.cli.rows import Form
from service.exits import USAGE

AGENT = f"adaptserve-cli/{installed_version()}"
"""By which the server's history knows what came from here."""
TOP_K = 5
"""Labels that are shown of one picture or clip."""

Key = Annotated[
    str | None, typer.Option("--key", envvar=list(KEY_VARIABLES), help="The server's key, where it asks for one.")
]
Url = Annotated[str, typer.Option("--url", metavar="URL", envvar=URL_VARIABLE, help="The server.")]


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors adapter file.")],
    to: Annotated[str, typer.Option("--to", metavar="URL", envvar=URL_VARIABLE, help="The server.")] = DEFAULT_URL,
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="Publish under this name instead of the file's own.")
    ] = None,
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", help="Let the new version answer at once, or stage it.")
    ] = True,
    key: Key = None,
) -> None:
    """Upload FILE; its endpoint answers as soon as this returns.

    The server checks it first: names, shapes, base model, finite values, one trial run. The same bytes
    again change nothing.

    Example:  adaptserve push digits.safetensors --to http://127.0.0.1:8000
    """
    with one_line_errors():
        name = task or read_header(file, OWN_FILE).config.task
        with Client(to, key, retries=0, user_agent=AGENT) as client:
            made = _upload(client, file, name, activate)
    state = "active" if made.active else "staged"
    known = "" if made.new else " (the server had it already)"
    out().print(
        f"{made.task} version {made.version} is {state}{known}: {len(made.labels)} labels, "
        f"{made.parameters:,} parameters ({100 * made.share:.2f} % of the backbone), sha256 {made.digest[:12]}"
    )
    if made.active:
        out().print(f"try: curl --data-binary @FILE {to.rstrip('/')}/v1/tasks/{made.task}/predict")


def predict(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Pictures and clips, folders of them, patterns like '*.jpg'.")
    ],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task to ask.")],
    url: Url = DEFAULT_URL,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write a row for each of many here.  [default: to stdout]"),
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="Of the rows.  [default: csv, or jsonl where FILE is named so]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with FILE: what it has is not asked again.")] = False,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="How many labels.  [default: 5 of one file, 1 in a row]")
    ] = None,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Ask this version.  [default: the active one]")
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            metavar="SECONDS",
            min=0.001,
            help="How long the answer for one file is worth waiting for.  [default: the server's]",
        ),
    ] = None,
    key: Key = None,
) -> None:
    """Ask a running server's task what it sees in a picture or clip, or in many.

    One file gives a table. Folders, which are searched for pictures and clips by their suffixes, patterns and several
    files give a row each, in order, as soon as it is there; a file that gets no answer is a row with its error.
    Ctrl-C or a crash leaves the rows that there are, and --resume goes on after them. The version that is active at the
    beginning answers for all. Exit code 1 where files got no answer.

    With --deadline the server refuses at once what it could only answer later, and gives up when the time is over.

    Example:  adaptserve predict cat.jpg --task pets --url http://127.0.0.1:8000 --top-k 3 --deadline 2.5

    Example:  adaptserve predict photos/ 'more/**/*.png' --task pets --out labels.csv
    """
    if deadline is not None and not math.isfinite(deadline):
        complain(f"--deadline is a number of seconds, not {deadline}")
        raise typer.Exit(USAGE)
    if file or form or resume or many(paths):
        if deadline is not None:
            complain("--deadline is for one file; of many, each has the server's own (ADAPTSERVE_DEADLINE_S)")
            raise typer.Exit(USAGE)
        predict_all(paths, task, url, key, file, form, top_k=top_k or 1, version=version, resume=resume)
        return
    options: PredictOptions = {"top_k": top_k or TOP_K}
    if version is not None:
        options["version"] = version
    if deadline is not None:
        options["deadline"] = deadline
    with one_line_errors(), Client(url, key, retries=0) as client:
        answer = client.predict(paths[0], task=task, **options)
    _show(answer)


def _show(answer: Classification) -> None:
    table = Table(title=f"{answer.task} version {answer.version}, sha256 {answer.digest[:12]}")
    table.add_column("label")
    table.add_column("score", justify="right")
    for row in answer.predictions:
        table.add_row(row.label, f"{row.score:.4f}")
    out().print(table)
    if answer.bad_frames:
        out().print(f"{answer.bad_frames} frames of the clip did not decode")
    told = ", ".join(f"{stage} {value:.2f}" for stage, value in answer.timing.items()) or "not reported"
    out().print(f"time (ms): {told}")


def _upload(client: Client, file: Path, task: str, activate: bool) -> Upload:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, transient=True) as progress, progress.open(file, "rb", description=file.name) as opened:
        return client.upload(opened, task=task, activate=activate)
