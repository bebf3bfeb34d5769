"""`push` and `predict`: the two calls that everybody makes first, against a running server.

It knows HTTP only; no torch is imported for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import httpx
import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from adapters.header import read_header
from adapters.limits import OWN_FILE
from service.cli.console import accept, complain, one_line_errors, out
from service.exits import USAGE

CHUNK = 256 * 1024
UPLOAD_TIMEOUT_S = 600.0
PREDICT_TIMEOUT_S = 120.0
PATIENCE_S = 5.0
"""How much longer than the deadline the answer is waited for: the server's own 504 says more than a time-out here."""

Key = Annotated[
    str | None, typer.Option("--key", envvar="ADAPTSERVE_KEY", help="The server's key, where it asks for one.")
]


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors adapter file.")],
    to: Annotated[str, typer.Option("--to", metavar="URL", help="The server.")] = "http://127.0.0.1:8000",
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
        name = task or _task_of(file)
        with httpx.Client(base_url=to, timeout=UPLOAD_TIMEOUT_S, headers=headers(key)) as client:
            size = file.stat().st_size
            response = client.put(
                f"/v1/tasks/{segment(name)}/adapter",
                params={"activate": str(activate).lower()},
                content=_chunks(file, size),
                headers={"Content-Length": str(size), "Content-Disposition": _disposition(file)},
            )
        made = accept(response).json()
    state = "active" if made["active"] else "staged"
    known = "" if response.status_code == 201 else " (the server had it already)"
    out().print(
        f"{made['task']} version {made['version']} is {state}{known}: {len(made['labels'])} labels, "
        f"{made['parameters']:,} parameters ({100 * made['share']:.2f} % of the backbone), "
        f"sha256 {made['digest'][:12]}"
    )
    if made["active"]:
        out().print(f"try: curl --data-binary @FILE {to.rstrip('/')}/v1/tasks/{made['task']}/predict")


def predict(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A picture or a clip.")],
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="The task to ask.")],
    url: Annotated[str, typer.Option("--url", metavar="URL", help="The server.")] = "http://127.0.0.1:8000",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many labels to show.")] = 5,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            metavar="SECONDS",
            min=0.001,
            help="How long the answer is worth waiting for.  [default: the server's]",
        ),
    ] = None,
    key: Key = None,
) -> None:
    """Ask a task what it sees in PATH.

    With --deadline the server refuses at once what it could only answer later, and gives up when the time is over.

    Example:  adaptserve predict cat.jpg --task pets --url http://127.0.0.1:8000 --top-k 3 --deadline 2.5
    """
    asked, timeout = headers(key), PREDICT_TIMEOUT_S
    if deadline is not None:
        if not math.isfinite(deadline):
            complain(f"--deadline is a number of seconds, not {deadline}")
            raise typer.Exit(USAGE)
        asked["X-Deadline-Ms"], timeout = str(math.ceil(1000 * deadline)), deadline + PATIENCE_S
    with one_line_errors():
        body = path.read_bytes()
        with httpx.Client(base_url=url, timeout=timeout, headers=asked) as client:
            response = accept(client.post(f"/v1/tasks/{segment(task)}/predict", params={"top_k": top_k}, content=body))
    answer = response.json()
    table = Table(title=f"{answer['task']} version {answer['version']}, sha256 {answer['digest'][:12]}")
    table.add_column("label")
    table.add_column("score", justify="right")
    for row in answer["predictions"]:
        table.add_row(row["label"], f"{row['score']:.4f}")
    out().print(table)
    if bad := answer.get("bad_frames"):
        out().print(f"{bad} frames of the clip did not decode")
    out().print(f"time (ms): {_timing(response.headers.get('server-timing', ''))}")


def _task_of(file: Path) -> str:
    return read_header(file, OWN_FILE).config.task


def segment(name: str) -> str:
    """One path segment; whatever the name holds, it cannot climb to another address."""
    return quote(name, safe="").replace(".", "%2E")


def headers(key: str | None) -> dict[str, str]:
    """What every request carries."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def _disposition(file: Path) -> str:
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", file.name)
    return f'attachment; filename="{plain}"'


def _chunks(file: Path, size: int) -> Iterator[bytes]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with file.open("rb") as opened, Progress(*columns, transient=True) as progress:
        bar = progress.add_task(file.name, total=size)
        while chunk := opened.read(CHUNK):
            yield chunk
            progress.advance(bar, len(chunk))


def _timing(header: str) -> str:
    parts = re.findall(r"(\w+);dur=([\d.]+)", header)
    return ", ".join(f"{name} {value}" for name, value in parts) or "not reported"
