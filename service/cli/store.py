"""`store check`, `store copy` and `store gc`: care of a data folder, or of a store that several servers share.

It knows the terminal; ``service.store.care`` does the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.training.progress import telling
from service.cli.console import complain, one_line_errors, out
from service.exits import FAILED, USAGE

if TYPE_CHECKING:
    from service.store.care import Step

app = typer.Typer(
    no_args_is_help=True,
    help="""Check, move and tidy a store of tasks.

    A store is a data folder, as `data`, or one that several servers share: `s3://bucket/path`, `gs://bucket/path`,
    `az://container/path`, or `file:///mnt/shared/tasks` on a shared disk. Keys and endpoints come from the environment
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and so on); those in a cloud need
    `pip install 'adaptserve[store]'`.
    """,
)

SHOWN = 20
Store = Annotated[str, typer.Argument(metavar="STORE", help="A data folder, or s3://, gs://, az://, file://.")]


@app.command()
def check(store: Store) -> None:
    """Hold every version's file against its digest, and every history against its task; exit 1 if one is wrong.

    Servers may run meanwhile. They never serve such a file; uploading the same file again mends it.

    Example:  adaptserve store check s3://bucket/tasks
    """
    from service.store import care
    from service.store.stock import stock

    with one_line_errors():
        total, problems = _show("checking", care.check(stock(store)))
    out().print(f"{total} files checked, {problems} wrong", markup=False)
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The store that has the tasks.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The store that gets those it never had.")],
) -> None:
    """Bring all tasks of FROM into TO, with their versions, numbers and digests, each verified on the way.

    What TO has already is left as it is, so a copy that was cut off goes on where it was. Servers of a shared store may
    run meanwhile; a data folder as TO must have none.

    Example:  adaptserve store copy data s3://bucket/tasks
    """
    from service.store import care
    from service.store.locks import FolderLock
    from service.store.objects import is_remote
    from service.store.stock import stock

    if source == target:
        complain("FROM and TO are the same store")
        raise typer.Exit(USAGE)
    with one_line_errors():
        of, to = stock(source), stock(target, make=True)
        with nullcontext() if is_remote(target) else FolderLock(Path(target)):
            total, problems = _show("copying", care.copy(of, to))
    out().print(f"{total - problems} of {total} tasks are in {target}", markup=False)
    if problems:
        raise typer.Exit(FAILED)


@app.command()
def gc(
    store: Store,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
) -> None:
    """Remove files that no task names any more and that are older than a day, and pack the history.

    Deleting a version or a task in a shared store leaves its file there, since other servers may be reading it. Servers
    may run meanwhile. Run it once a day or so. A data folder is tidied by its server when that starts.

    Example:  adaptserve store gc s3://bucket/tasks --dry-run
    """
    from service.store import care
    from service.store.objects import is_remote
    from service.store.stock import SharedStock, stock

    with one_line_errors():
        found = stock(store, make=not is_remote(store))
        if not isinstance(found, SharedStock):
            complain("a data folder is tidied by its server when that starts; gc is for stores that servers share")
            raise typer.Exit(USAGE)
        total, _ = _show("looking" if dry_run else "removing", care.tidy(found.truth, dry=dry_run))
    out().print(f"{total} objects {'would be removed' if dry_run else 'removed'}", markup=False)


def _show(stage: str, steps: Iterator[Step]) -> tuple[int, int]:
    """Tell of each step; how many there were, and how many went wrong."""
    total, problems = 0, 0
    with telling() as teller:
        for step in steps:
            total = step.total
            if step.problem:
                problems += 1
                if problems <= SHOWN:
                    teller.warn(step.problem)
            elif step.line:
                teller.reached(stage, step.done / step.total, step.line)
            teller.at(stage, step.done / step.total, f"{step.done} of {step.total}")
    if problems > SHOWN:
        complain(f"{problems - SHOWN} more are wrong", "warning")
    return total, problems
