"""Events: who changed a task, how, when and by which way, told from the task as it was before and after.

So an event cannot tell of another change than the one that is made with it. It knows no disk and no store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Self

from service.store.manifest import TaskInfo, VersionInfo
from service.store.traffic import weights_text

KEPT_NUMBERS: Final = 16
"""Of a task's changes its manifest names the last ones, and each event those that were the last before it."""
MOST_LISTED: Final = 20
"""Versions that the event of a deletion lists by number; more are counted."""
COPIED: Final = "copied"
"""What is told of a task that came from another store."""
MOST_WHY: Final = 500
"""Characters of a reason."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for a change: a key's name (None where there are no keys, or nobody asked), and by which way.

    ``origin`` is "http", "cli", "sources", "teach", "guard", "demo" and the like; never an address.
    """

    key: str | None = None
    origin: str = "server"


SERVER: Final = Actor()
"""The server itself."""


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One change of a task that was announced under ``number``; it was made if its task's manifest says so.

    ``what``: published, staged, activated, deactivated, version_deleted, deleted, ...; ``time`` is ISO 8601 in UTC, by
    the clock of ``server``. ``after`` are the numbers of the task's changes before it, the last ones alone: see
    ``service.store.history``.
    """

    number: int
    task: str
    time: str
    what: str
    version: int | None
    digest: str | None
    by: Actor
    why: str | None
    detail: Mapping[str, Any]
    server: str
    after: tuple[int, ...] = ()
    part: int = 0

    @property
    def id(self) -> str:
        """By which it is known in this store; ``part`` counts those that came with a copied task."""
        return f"{self.number}.{self.part}" if self.part else str(self.number)

    def line(self) -> bytes:
        """As it is kept: one line of JSON, with a line's end."""
        kept = {
            "id": self.number, "task": self.task, "time": self.time, "what": self.what, "version": self.version,
            "digest": self.digest, "by": self.by.key, "origin": self.by.origin, "why": self.why,
            "detail": dict(self.detail), "server": self.server, "after": self.after,
        }  # fmt: skip
        return json.dumps(kept).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Raises ValueError for what is no event. Members that a later release may add are passed over."""
        try:
            kept = json.loads(line)
            version, digest, why = kept["version"], kept["digest"], kept["why"]
            return cls(
                int(kept["id"]), str(kept["task"]), str(kept["time"]), str(kept["what"]),
                None if version is None else int(version), None if digest is None else str(digest),
                Actor(None if kept["by"] is None else str(kept["by"]), str(kept["origin"])),
                None if why is None else str(why), dict(kept["detail"]), str(kept["server"]),
                tuple(int(number) for number in kept["after"]),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


class Difference(NamedTuple):
    """What one change did to a task, as an event tells it."""

    what: str
    version: VersionInfo | None = None
    detail: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a change is made, and by whom; ``what`` where the task itself does not say it, as for a roll-back."""

    by: Actor = SERVER
    server: str = ""
    why: str | None = None
    what: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def event(self, old: TaskInfo, new: TaskInfo, number: int = 0) -> TaskEvent:
        """Of the change that makes ``new`` of ``old``."""
        found = difference(old, new)
        info = found.version if self.what != COPIED else None
        why = self.why if self.why is None else self.why[:MOST_WHY]
        return TaskEvent(
            number, new.name, datetime.now(UTC).isoformat(timespec="milliseconds"), self.what or found.what,
            info.number if info else None, info.digest if info else None, self.by, why,
            {**found.detail, **self.detail}, self.server, old.log[-KEPT_NUMBERS:],
        )  # fmt: skip


def numbered(task: TaskInfo, number: int) -> TaskInfo:
    """The task as the change of that number makes it."""
    return replace(task, log=(*task.log, number)[-KEPT_NUMBERS:])


def difference(old: TaskInfo, new: TaskInfo) -> Difference:
    """What was done; "changed" where lists alone tell of it."""
    added = [info for number, info in new.versions.items() if number not in old.versions]
    gone = [info for number, info in old.versions.items() if number not in new.versions]
    ended = {} if old.traffic is None or new.traffic is not None else {"traffic_ended": weights_text(old.traffic)}
    before = ended if old.active is None else {"before": old.active} | ended
    if added:
        active = new.active == added[-1].number
        return Difference("published" if active else "staged", added[-1], before if active else {})
    if gone and not new.versions:
        numbers = sorted(info.number for info in gone)
        return Difference("deleted", None, before | {"versions": len(numbers), "numbers": numbers[-MOST_LISTED:]})
    if gone:
        return Difference("version_deleted", gone[-1])
    if new.active != old.active:
        if new.active is None:
            return Difference("deactivated", None, before)
        return Difference("activated", new.versions[new.active], before)
    return _ruled(old, new) or Difference("changed")


def _ruled(old: TaskInfo, new: TaskInfo) -> Difference | None:
    """Of traffic and shadow."""
    traffic = {"weights": weights_text(new.traffic), "before": weights_text(old.traffic)}
    if new.rolled_back is not None and new.rolled_back != old.rolled_back:
        return Difference("rolled_back", new.versions.get(new.rolled_back.version), traffic)
    if new.traffic != old.traffic:
        guard = None if new.traffic is None or new.traffic.guard is None else new.traffic.guard.model_dump()
        return Difference("traffic", None, traffic | {"guard": guard})
    if new.shadow is not None and new.shadow != old.shadow:
        return Difference("shadow", new.versions[new.shadow.version], {"share": new.shadow.share})
    if old.shadow is not None and new.shadow is None:
        return Difference("shadow", old.versions.get(old.shadow.version), {"share": 0.0})
    return None
