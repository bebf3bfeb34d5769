"""What a call may carry beside its body, held against what its endpoint declares: the rest is named, not ignored.

It runs after the guard and before any value is read. It knows the OpenAPI document, and no endpoint.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request

from service.errors import BadRequest

SHOWN = 8
"""Names of one kind that a message repeats."""


@dataclass
class Declared:
    """An endpoint's query parameters, whether each may come more than once, and its headers."""

    query: dict[str, bool] = field(default_factory=dict)
    headers: list[str] = field(default_factory=list)


async def known_parameters(request: Request) -> None:
    """Let the call pass when each of its query parameters is known, and comes once where one is read.

    Raises BadRequest.
    """
    known = declared(request)
    for name in known.headers:
        if len(request.headers.getlist(name)) > 1:
            raise BadRequest(f"header {name} came more than once; send it once", field=name)
    given = [name for name, _ in request.query_params.multi_items()]
    if strange := [name for name in given if name not in known.query]:
        raise BadRequest(
            unknown("query parameter", strange, list(known.query)),
            field=strange[0][:64], expected=list(known.query), got=[name[:64] for name in strange[:SHOWN]],
        )  # fmt: skip
    for name in given:
        if not known.query[name] and given.count(name) > 1:
            raise BadRequest(f"query parameter '{name}' came {given.count(name)} times; send it once", field=name)


def declared(request: Request) -> Declared:
    """What the endpoint of this request declares; nothing where /docs does not show it."""
    return _table(request.app).get((request.scope["route"].path, request.method)) or Declared()


def unknown(kind: str, names: Sequence[str], known: Sequence[str]) -> str:
    """A sentence about names that mean nothing here, with what is meant where that is likely, and what there is."""
    plain = {name.lower().replace("-", "_"): name for name in known}
    said = []
    for name in dict.fromkeys(names[:SHOWN]):
        near = difflib.get_close_matches(name[:64].lower().replace("-", "_"), plain, n=1)
        said.append(f"'{name[:64]}'" + (f" (did you mean '{plain[near[0]]}'?)" if near else ""))
    there = "there are " + ", ".join(f"'{name}'" for name in known) if known else "this call takes none"
    return f"unknown {kind}{'s' if len(said) > 1 else ''} {', '.join(said)}; {there}"


def _table(app: FastAPI) -> dict[tuple[str, str], Declared]:
    """By path and method, once for each document."""
    document = app.openapi()
    if getattr(app.state, "declared_in", None) is not document:
        app.state.declared = _read(document)
        app.state.declared_in = document
    table: dict[tuple[str, str], Declared] = app.state.declared
    return table


def _read(document: dict[str, Any]) -> dict[tuple[str, str], Declared]:
    table = {}
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            table[path, method.upper()] = found = Declared()
            for parameter in call.get("parameters", ()):
                if parameter["in"] == "query":
                    shape = parameter["schema"]
                    kinds = [shape, *shape.get("anyOf", ())]
                    found.query[parameter["name"]] = any(kind.get("type") == "array" for kind in kinds)
                elif parameter["in"] == "header":
                    found.headers.append(parameter["name"])
    return table
