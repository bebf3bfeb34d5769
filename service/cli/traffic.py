"""`traffic`, `shadow` and `agreement`: let a new version answer a part of what is asked, and see how it does.

HTTP is ``adaptserve_client``'s; no torch is imported for it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from adaptserve_client import Client, TaskTraffic, VersionAgreement
from adaptserve_client.calls import DEFAULT_URL
from adaptserve_client.traffic import KEPT, Guard
from service.cli.client import AGENT, Key, Url
from service.cli.console import complain, one_line_errors, out
from service.exits import USAGE

SHOWN = 20
"""Labels, and inputs on which two versions differ, that are shown."""
DIGEST_SHOWN = 12

TheTask = Annotated[str, typer.Argument(metavar="TASK", help="The task's name.")]


def traffic(
    task: TheTask,
    weights: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VERSION=WEIGHT]...", help="As 1=95 2=5; the active version among them."),
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option("--guard", metavar="NAME=VALUE", help="A bound of the new version, as min_agreement=0.9; repeat."),
    ] = None,
    no_guard: Annotated[bool, typer.Option("--no-guard", help="Keep the weights, whatever it does.")] = False,
    end: Annotated[bool, typer.Option("--end", help="Let the active version answer all again.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Let versions share TASK's requests by weight, or show how they do.

    Which one answers depends on the header X-AdaptServe-Sticky, else on the picture, so the same picture goes to the
    same version. A new version that fails, is slow or disagrees loses its part by itself.

    Example:  adaptserve traffic digits 1=95 2=5 --guard min_agreement=0.9
    """
    given = _weights(weights or [])
    if given and end:
        raise _wrong("give weights or --end, not both")
    if (guard or no_guard) and not given:
        raise _wrong("a guard goes with weights, as 1=95 2=5")
    bounds: Guard = None if no_guard else _guard(guard) if guard else KEPT
    with one_line_errors(), Client(url, key, retries=0, user_agent=AGENT) as client:
        if end:
            client.end_traffic(task)
        _show(client.set_traffic(task, given, bounds) if given else client.traffic(task))


def shadow(
    task: TheTask,
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", help="Which one; without it: show.")] = None,
    share: Annotated[float, typer.Option(help="Of the requests, 0 to 1.")] = 0.1,
    end: Annotated[bool, typer.Option("--end", help="Let no version be the shadow.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Let VERSION see a share of TASK's requests and answer nobody; `agreement` tells how it does.

    Example:  adaptserve shadow digits 3 --share 0.2
    """
    if version is not None and end:
        raise _wrong("give a version or --end, not both")
    with one_line_errors(), Client(url, key, retries=0, user_agent=AGENT) as client:
        if end:
            client.end_shadow(task)
        _show(client.traffic(task) if version is None else client.set_shadow(task, version, share))


def agreement(
    task: TheTask,
    version: Annotated[
        int | None, typer.Option(help="Which one.  [default: the shadow, or the only one with a part of the traffic]")
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Show how often a shadow's or new version's best label is the active version's, and where it is not.

    Inputs are named by the sha256 of their bytes.

    Example:  adaptserve agreement digits --version 3
    """
    with one_line_errors(), Client(url, key, retries=0, user_agent=AGENT) as client:
        _show_agreement(client.agreement(task, version))


def _show(told: TaskTraffic) -> None:
    whole = sum(told.weights.values())
    table = Table("version", "share", "requests", "errors", "no numbers", "p50 ms", "p99 ms", "agreement", box=None)
    for one in told.versions:
        share = f"{100 * told.weights.get(one.version, 0) / whole:.4g} %" if one.version in told.weights else "shadow"
        table.add_row(
            f"{one.version}{' (active)' if one.version == told.active else ''}", share, str(one.requests),
            str(one.errors), str(one.not_finite), _number(one.p50_ms), _number(one.p99_ms),
            "" if one.agreement is None else f"{one.agreement:.1%} of {one.compared}",
        )  # fmt: skip
    out().print(table)
    if told.guard is not None:
        bounds = " ".join(f"{name}={json.dumps(value)}" for name, value in told.guard.items())
        out().print(f"guard: {bounds}", markup=False)
    if told.rolled_back is not None:
        out().print(f"rolled back at {told.rolled_back['time']}: {told.rolled_back['why']}", markup=False)


def _show_agreement(told: VersionAgreement) -> None:
    agreed = "nothing is compared yet" if told.agreement is None else f"{told.agreement:.1%} of {told.compared} agree"
    out().print(f"{told.task}: version {told.version} against {told.against}: {agreed}", markup=False)
    table = Table("label", "compared", "agreed", box=None)
    for label in told.labels[:SHOWN]:
        table.add_row(str(label["label"]), str(label["compared"]), str(label["agreed"]))
    if told.labels:
        out().print(table)
    for one in told.disagreements[:SHOWN]:
        line = f"{one['digest'][:DIGEST_SHOWN]}  {one['label']!r}, and {one['other']!r} by version {told.version}"
        out().print(line, markup=False)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _weights(given: list[str]) -> dict[int, int]:
    found = {}
    for one in given:
        version, _, weight = one.partition("=")
        try:
            found[int(version)] = int(weight)
        except ValueError:
            raise _wrong(f"'{one}' is no weight; write VERSION=WEIGHT, as 1=95 2=5") from None
    return found


def _guard(given: list[str]) -> dict[str, Any]:
    """Numbers, or null where a version is not held against that."""
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            raise _wrong(f"'{one}' is no bound; write NAME=NUMBER, or NAME=null for none") from None
    return found


def _wrong(message: str) -> typer.Exit:
    complain(message)
    return typer.Exit(USAGE)
