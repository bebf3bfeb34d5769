"""Predict calls in their usual form, answered without the framework's machinery, which costs more than all the rest.

A call is usual when nothing about it could be refused before its body is read. Whatever is not, right or wrong, goes
through the framework, which knows all forms and has the words for what is wrong.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.config import TASK_PATTERN
from adapters.errors import AdaptError
from service.hosts import place
from service.keys import EVERYBODY, Key, Keys
from service.settings import Settings
from service.web.caller import Caller
from service.web.door import hosts_of
from service.web.middleware import given_up, unforeseen
from service.web.picture import MAX_STICKY, STICKY
from service.web.problems import respond
from service.web.protocol import CROWDED
from service.web.routes.callers import asker_of, deadline_seconds
from service.web.routes.common import GENERATION, count_for
from service.web.routes.predict import MANY, ONE, TOP_K, Calls
from service.web.server import DRAINING

_NUMBER = rb"[1-9][0-9]{0,8}"
_NAME = TASK_PATTERN.removeprefix("^").removesuffix("$")
_ONE = re.compile(rb"(?:top_k=(%b))?(?:(?:^|&)version=(%b))?" % (_NUMBER, _NUMBER))
_MANY = re.compile(rb"(task=%b(?:&task=%b)*)(?:&top_k=(%b))?" % (_NAME.encode(), _NAME.encode(), _NUMBER))
_DEADLINE, _PRIORITY = re.compile(_NUMBER), re.compile(rb"[0-9]")
_UNUSUAL = frozenset((b"origin", b"sec-fetch-site"))
_GENERATION = GENERATION.lower().encode()
_HEEDED = _UNUSUAL | frozenset(b"host authorization x-api-key x-deadline-ms x-priority content-type".split())
_STICKY = STICKY.lower().encode()
_HEEDED |= {_GENERATION, _STICKY}
MAX_HOSTS = 256
"""Forms of this server's own names that are remembered, as they came in Host headers."""


@dataclass(frozen=True, slots=True)
class Template:
    """An endpoint's path, for logs and traces; stands where the framework puts its route."""

    path: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a usual call asks, of whom it comes, and whether it is for several tasks."""

    template: Template
    tasks: tuple[str, ...]
    top_k: int
    version: int | None
    deadline_ms: int | None
    priority: int | None
    key: Key


class Plain:
    """Answers usual calls; the application behind it answers all others."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, calls: Calls) -> None:
        self._app, self._keys, self._calls = app, keys, calls
        self._path = re.compile(f"{re.escape(settings.root_path)}/v1/(?:tasks/({_NAME})/)?predict")
        self._hosts, self._known_hosts = hosts_of(settings), set[bytes]()
        self._one, self._many = Template(ONE), Template(MANY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = self.asked(scope)
        if asked is None:
            await self._app(scope, receive, send)
            return
        state, calls = scope["state"], self._calls
        state["key"], scope["route"] = asked.key, asked.template
        request = Request(scope, receive)
        response: Response
        try:
            caller = Caller(deadline_seconds(calls.settings, asked.deadline_ms), asker_of(asked.key, asked.priority))
            await calls.catalogue.catch_up()
            count_for(request, calls.catalogue, asked.tasks)
            if asked.template is self._one:
                response = await calls.one(request, asked.tasks[0], asked.version, asked.top_k, caller)
            else:
                response = await calls.many(request, asked.tasks, asked.top_k, caller)
        except AdaptError as error:
            response = respond(error, state["request_id"])
        except asyncio.CancelledError:  # uvicorn's, at the end of a stop
            response = given_up(scope)
        except Exception as error:
            response = unforeseen(scope, error)
        await response(scope, receive, send)

    def asked(self, scope: Scope) -> Asked | None:
        """None unless the call is usual: then it may come in, and nothing is wrong with any of its parameters."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path, state = self._path.fullmatch(scope["path"]), scope["state"]
        if path is None or CROWDED in state or DRAINING in state:
            return None
        heeded: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _HEEDED:
                if name in heeded:
                    return None
                heeded[name] = value
        if not _UNUSUAL.isdisjoint(heeded) or not self._is_ours(heeded.get(b"host")):
            return None
        deadline, priority = heeded.get(b"x-deadline-ms"), heeded.get(b"x-priority")
        well_formed = (
            _is(_DEADLINE, deadline) and _is(_PRIORITY, priority) and len(heeded.get(_STICKY, b"")) <= MAX_STICKY
        )
        if not (well_formed and self._sees(heeded.get(_GENERATION))):
            return None
        one: str | None = path[1]
        query = (_MANY if one is None else _ONE).fullmatch(scope["query_string"])
        if query is None:
            return None
        if one is None:
            tasks, top_k, version = tuple(name[5:].decode() for name in query[1].split(b"&")), query[2], None
            if len(tasks) > self._calls.settings.max_tasks_per_request:
                return None
        else:
            tasks, top_k, version = (one,), query[1], query[2]
        key = self._key(heeded, tasks) if self._keys else EVERYBODY
        if key is None:
            return None
        return Asked(
            self._many if one is None else self._one, tasks, int(top_k or TOP_K),
            None if version is None else int(version), int(deadline) if deadline else None,
            int(priority) if priority else None, key,
        )  # fmt: skip

    def _sees(self, generation: bytes | None) -> bool:
        """Whether what other servers had done by then is known here, as it mostly is."""
        if generation is None:
            return True
        return re.fullmatch(_NUMBER, generation) is not None and self._calls.catalogue.repository.sees(int(generation))

    def _is_ours(self, host: bytes | None) -> bool:
        if host in self._known_hosts:
            return True
        if host is None:
            return False
        try:
            ours = place(host.decode("latin-1")) in self._hosts
        except ValueError:
            return False
        if ours and len(self._known_hosts) < MAX_HOSTS:
            self._known_hosts.add(host)
        return ours

    def _key(self, heeded: dict[bytes, bytes], tasks: tuple[str, ...]) -> Key | None:
        """Whose it is, if it may do this; the guard has the words for whoever may not."""
        kind, _, token = heeded.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
        secret = token.strip() if kind.lower() == "bearer" else heeded.get(b"x-api-key", b"").decode("latin-1")
        key = self._keys.find(secret)
        if key is None or not key.may("predict") or not all(map(key.sees, tasks)):
            return None
        return key


def _is(form: re.Pattern[bytes], header: bytes | None) -> bool:
    """Whether a header has that form, or did not come."""
    return header is None or form.fullmatch(header) is not None
