"""The command line's frame: the commands, the version, and how it ends.

It does not know what the commands do; heavy imports wait until a command needs them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from adapters.version import installed_version
from service.cli import keys
from service.cli.client import predict, push
from service.cli.console import out
from service.cli.evaluate import evaluate
from service.cli.history import history
from service.cli.import_ import app as import_app
from service.cli.inspect import inspect
from service.cli.ray import app as ray_app
from service.cli.serve import serve
from service.cli.sources import app as sources_app
from service.cli.store import app as store_app
from service.cli.top import top
from service.cli.traffic import agreement, shadow, traffic
from service.cli.train import train

app = typer.Typer(
    name="adaptserve",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""One frozen Vision Transformer, many tasks: each task is a small adapter file with its own endpoint.

    Start with `adaptserve serve`: it comes up on a small shipped backbone with demo tasks.
    `adaptserve push FILE` adds a task, `adaptserve predict PATH --task NAME` asks it, about whole folders too.
    `adaptserve train DATA --out FILE` makes one from labelled pictures or clips, `adaptserve evaluate DATA --task NAME`
    scores it as it is served. `adaptserve traffic` lets a new version answer a part of what is asked, and takes that
    back from one that does badly. `adaptserve store` checks, moves and tidies what several servers share, `adaptserve
    history` tells who changed what, `adaptserve sources check` what is wrong with a file of tasks.

    Exit codes: 0 done, 1 it did not work (one line on stderr says why), 2 the command line is wrong, 3 a server's
    device was lost: start it again.
    """,
)
app.command()(serve)
app.command()(inspect)
app.command()(push)
app.command()(predict)
app.command()(top)
app.command()(traffic)
app.command()(shadow)
app.command()(agreement)
app.command()(history)
app.command()(train)
app.command()(evaluate)
app.add_typer(import_app, name="import")
app.add_typer(keys.app, name="keys")
app.add_typer(store_app, name="store")
app.add_typer(sources_app, name="sources")
app.add_typer(ray_app, name="ray")


def _show_version(wanted: bool) -> None:
    if wanted:
        out().print(f"adaptserve {installed_version()}")
        raise typer.Exit


@app.callback()
def _frame(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the installed command."""
    app()
