"""`keys create` and `keys list`: make keys, keep their hashes in a file, show who holds one.

It knows files and the terminal; it does not know the server, which reads the file when it starts.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.table import Table

from adapters.atomic import replacing
from service import keys as store
from service.cli.console import complain, one_line_errors, out
from service.errors import BadKeys

app = typer.Typer(no_args_is_help=True, help="Make keys for a server that others can reach, and list them.")

ScopeName = Annotated[str, typer.Option("--scope", metavar="predict|admin", help="admin includes predict.")]
File = Annotated[Path, typer.Option("--file", metavar="FILE", help="The JSON file of keys.")]


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Who holds it; shown in logs and lists.")],
    scope: ScopeName,
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="TASK", help="Only this task; may be repeated.")
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option("--weight", metavar="NUMBER", help="Share of the device, beside others; 1 if not said."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="NUMBER", help="Pictures or clips a second; else any number."),
    ] = None,
    burst: Annotated[
        int | None, typer.Option("--burst", metavar="COUNT", help="How many of them at once; a second's if not said.")
    ] = None,
    quota: Annotated[
        int | None,
        typer.Option("--quota", metavar="COUNT", help="Pictures or clips a day (UTC); else any number."),
    ] = None,
    max_priority: Annotated[
        int | None,
        typer.Option("--max-priority", metavar="0-9", help="The highest X-Priority that it may send; 9 if not said."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Add its hash here; without, print the entry.")
    ] = None,
) -> None:
    """Print a new key, once, and add its hash to FILE, or print the JSON to put into ADAPTSERVE_KEYS.

    The key cannot be shown again. A running server reads keys when it starts.

    Example:  adaptserve keys create --name shop --scope predict --task pets --file keys.json
    Example:  adaptserve keys create --name night --scope predict --weight 0.5 --rate 20 --quota 100000 --file keys.json
    """
    with one_line_errors():
        secret, key = store.create(
            name, cast(store.Scope, scope), task or (), weight=weight, rate=rate, burst=burst, quota=quota,
            max_priority=max_priority,
        )  # fmt: skip
        if file is not None:
            _append(file, key)
    console = out()
    console.print(secret, markup=False)
    if file is None:
        console.print(json.dumps([key.entry()]), markup=False)
        complain("the first line is the key, shown this once; the second is for ADAPTSERVE_KEYS", kind="note")
    else:
        complain(f"the key is shown this once; {file} keeps its hash; restart the server to use it", kind="note")


@app.command(name="list")
def list_keys(file: File) -> None:
    """Show the holders in FILE and their limits. To withdraw a key, delete its entry and restart the server.

    Example:  adaptserve keys list --file keys.json
    """
    with one_line_errors():
        keys = store.load(file)
    table = Table()
    for column in ("name", "scope", "tasks", "weight", "rate", "quota", "max priority", "sha256"):
        table.add_column(column, overflow="fold")
    for key in keys:
        tasks = "all" if key.tasks is None else ", ".join(sorted(key.tasks))
        rate = "any" if key.rate is None else f"{key.rate:g}/s, {key.at_once} at once"
        quota = "any" if key.quota is None else f"{key.quota}/day"
        table.add_row(
            key.name, key.scope, tasks, f"{key.weight:g}", rate, quota, str(key.max_priority), key.sha256[:12]
        )
    out().print(table)


def _append(file: Path, key: store.Key) -> None:
    """Add one key to the file, whole or not at all. Raises BadKeys, OSError."""
    target = file.resolve()  # a link stays a link
    with _locked(target.parent) as folder:
        kept = store.load(target) if target.exists() and target.stat().st_size else ()
        text = store.dump([*kept, key])
        try:
            store.parse(text, str(file))
        except BadKeys as error:
            raise BadKeys(f"the key was not added: {error.message}") from error
        _replace(target, text)
        os.fsync(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Two commands at once must not lose a key; the folder is what both have."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _replace(target: Path, text: str) -> None:
    """Readable for the server's user, who may be another; hashes of random keys tell nothing."""
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
    with replacing(target, mode=mode) as temporary:
        temporary.write_text(text)
