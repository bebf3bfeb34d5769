"""`history`: what was done to a server's tasks, by whom; it asks a running server and knows no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

import typer
from rich.table import Table

from adaptserve_client import Change, Client
from adaptserve_client.calls import DEFAULT_URL
from service.cli.client import Key, Url
from service.cli.console import one_line_errors, out


def history(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="One task.  [default: all]")] = None,
    url: Url = DEFAULT_URL,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many changes, the newest ones.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each, oldest first.")] = False,
    key: Key = None,
) -> None:
    """Tell who published, staged, activated, rolled back or deleted what, when, and by which way; the newest last.

    A task's history outlives its deletion. The key needs the scope admin; one that is limited to tasks sees theirs, and
    has to name TASK.

    Example:  adaptserve history pets --limit 50

    Example:  adaptserve history --json --limit 100000 > history.jsonl
    """
    with one_line_errors(), Client(url, key, retries=0) as client:
        found = list(islice(client.history(task, limit=min(limit, 100)), limit))[::-1]
    if as_json:
        for one in found:
            known = asdict(one)
            typer.echo(json.dumps(known.pop("extra") | known))
        return
    table = Table("when", *([] if task else ["task"]), "what", "by", "server")
    for one in found:
        table.add_row(_when(one.time), *([] if task else [one.task]), sentence(one), _who(one), one.server)
    out().print(table if found else "nothing is told of it: it was last changed before there was a history")


def sentence(one: Change) -> str:
    """What was done, in words; what a later server may tell of as it stands there."""
    version, detail = "" if one.version is None else f"version {one.version}", one.detail
    before = f", instead of {detail['before']}" if isinstance(detail.get("before"), int) else ""
    told = {
        "published": f"published {version}{before}",
        "staged": f"staged {version}",
        "activated": f"activated {version}{before}",
        "deactivated": "deactivated: no version answers",
        "version_deleted": f"deleted {version}",
        "deleted": f"deleted the task, {detail.get('versions')} versions",
        "copied": f"copied from another store, {detail.get('versions')} versions",
        "traffic": f"traffic: {_weights(detail.get('weights'))}",
        "shadow": f"shadow: {version}, {detail.get('share', 0):.1%} of the traffic" if detail.get("share")
        else f"no shadow any more, was {version}",
        "rolled_back": f"rolled back: {version} has no traffic any more",
    }.get(one.what, f"{one.what} {version}".strip())  # fmt: skip
    return f"{told}; {one.why}" if one.why else told


def _weights(weights: Any) -> str:
    if not isinstance(weights, Mapping):
        return "all to the active version"
    return ", ".join(f"version {number}: {weight}" for number, weight in weights.items())


def _when(time: str) -> str:
    """To the second, in UTC."""
    return time[:19].replace("T", " ")


def _who(one: Change) -> str:
    return f"{one.by} ({one.origin})" if one.by else one.origin
