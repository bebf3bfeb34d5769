"""How the command speaks: results on stdout, one line per error on stderr, exit codes 0 to 4.

It does not know what the commands do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import typer
from pydantic import ValidationError
from rich.console import Console

from adapters.errors import AdaptError
from adapters.limits import variable
from adaptserve_client import AdaptServeError, NoAnswerError, TimedOutError
from service.exits import FAILED, USAGE
from service.settings import Settings, read_settings


def out() -> Console:
    """For results; plain text where stdout is no terminal."""
    return Console(highlight=False, soft_wrap=True)


def complain(message: str, kind: str = "error") -> None:
    """One line on stderr."""
    line = " ".join(message.split())
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"{kind}: {line}", markup=False)


@contextmanager
def one_line_errors(complain: Callable[[str], None] = complain) -> Iterator[None]:
    """Our errors, those of files and those of the network end the command with one line and exit code 1."""
    try:
        yield
    except AdaptError as error:
        complain(error.message)
        raise typer.Exit(FAILED) from error
    except TimedOutError as error:
        complain(f"the server at {urlsplit(error.url).netloc} did not answer in time; is it overloaded?")
        raise typer.Exit(FAILED) from error
    except NoAnswerError as error:
        complain(f"{error}; is `adaptserve serve` running?")
        raise typer.Exit(FAILED) from error
    except AdaptServeError as error:
        complain(str(error))
        raise typer.Exit(FAILED) from error
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        complain(f"{(error.strerror or str(error)).lower()}:{where}")
        raise typer.Exit(FAILED) from error


def settings_or_exit(env_file: Path | None, **given: object) -> Settings:
    """The settings of the environment and ``env_file``; one line and exit code 2 where one is out of its range."""
    try:
        return read_settings(env_file, **given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        complain(f"setting {name} ({variable(name)}): {first['msg']}, got {first.get('input')!r}")
        raise typer.Exit(USAGE) from error
