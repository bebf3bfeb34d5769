"""`sources check`: the file of tasks, looked through without a server, and what it names fetched if that is wished.

It imports no torch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.config import MAX_RANK
from adapters.errors import AdaptError
from adapters.header import read_header
from service.cli.console import complain, one_line_errors, out, settings_or_exit
from service.exits import FAILED

if TYPE_CHECKING:
    from service.settings import Settings
    from service.sources.declared import Declaration

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Tasks that a file declares, with where their adapters come from; docs/SOURCES.md tells of the file.

    `adaptserve serve --tasks-file tasks.yaml` brings them in.
    """,
)


@app.callback()
def _frame() -> None:
    pass


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file.")],
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch every file too, and hold it against its sha256 and our format.")
    ] = False,
    env_file: Annotated[Path | None, typer.Option(help="File with ADAPTSERVE_ settings.")] = None,
) -> None:
    """Tell every mistake of FILE by its line; exit 1 if there is one.

    The settings are those of a server that is started here: what may be asked (ADAPTSERVE_SOURCES_ALLOWED), bounds of
    bytes and time. With --fetch credentials come from the environment, as the server's do. Whether an adapter fits
    the server's backbone, the server itself finds out.

    Example:  adaptserve sources check tasks.yaml --fetch
    """
    from service.errors import BadTasksFile
    from service.sources.declared import read_tasks_file

    settings = settings_or_exit(env_file, tasks_file=str(file))
    try:
        found = read_tasks_file(settings)
    except BadTasksFile as error:
        mistakes = error.facts.get("mistakes")
        for mistake in mistakes if isinstance(mistakes, list) else [error.message]:
            complain(mistake)
        raise typer.Exit(FAILED) from error
    if not fetch:
        out().print(f"{len(found.tasks)} tasks are declared; --fetch fetches their files", markup=False)
        return
    wrong = 0
    with one_line_errors(), tempfile.TemporaryDirectory(prefix="adaptserve-") as folder:
        for one in found.tasks.values():
            try:
                told = _tried(one, settings, found.folder, Path(folder))
            except AdaptError as error:
                wrong += 1
                complain(f"{one.name}: {error.message} ({one.source})")
            else:
                out().print(f"{one.name}: {told}", markup=False)
    out().print(f"{len(found.tasks) - wrong} of {len(found.tasks)} files are right", markup=False)
    if wrong:
        raise typer.Exit(FAILED)


def _tried(one: Declaration, settings: Settings, beside: Path, folder: Path) -> str:
    """What is known of a task's file. Raises what is wrong with it."""
    from service.limits import file_limits
    from service.sources.fetching import Fetcher
    from service.store.staging import Staging

    limits = file_limits(settings, settings.max_rank or MAX_RANK)
    staging = Staging(folder, limits.max_file_bytes)
    try:
        Fetcher(settings, beside).fetch(one.source, staging)
        digest = staging.finish()
        one.check(digest)
        config = read_header(staging.path, limits).config
        return f"{len(config.labels)} labels, for {config.base.model}, {staging.size} bytes, sha256 {digest}"
    finally:
        staging.discard()
