"""A task's manifest: its versions as frozen values, and their one JSON form.

    {"next": 3, "active": 2, "versions": {"1": {"digest": ..., "size": ..., "created": ...}, "2": {...}},
     "about": {"digest": ..., ...}}

``about`` is what lists show of one version; files from before it was written lack it. ``traffic``, ``shadow`` and
``rolled_back`` are there where versions share the requests, or did (``service.store.traffic``). Manifests in a store
that servers share also have ``log``, the numbers of the changes that made them, the last ones alone; and what a server
keeps of them has ``mark``, by which the store knows that state again. It knows no disk.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Self

from service.store.traffic import (
    RolledBack,
    Shadow,
    Traffic,
    rolled_back_of,
    shadow_of,
    traffic_of,
    traffic_text,
)


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """An immutable file of a task: its number only grows; ``created`` is ISO 8601 in UTC."""

    task: str
    number: int
    digest: str
    size: int
    created: str


NO_VERSIONS: Final[Mapping[int, VersionInfo]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class About:
    """What lists show of the file with that digest: JSON text, which nobody here looks into."""

    digest: str
    text: str


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task's versions by number, the active one (None before the first activation), the next number.

    ``log`` and ``mark`` are empty but for tasks of a store that servers share.
    """

    name: str
    versions: Mapping[int, VersionInfo]
    active: int | None
    next: int
    about: About | None = None
    log: tuple[int, ...] = ()
    mark: tuple[str, str] | None = None
    traffic: Traffic | None = None
    shadow: Shadow | None = None
    rolled_back: RolledBack | None = None

    @property
    def is_ruled(self) -> bool:
        """Whether another version than the active one has something to do with requests that name none."""
        return self.traffic is not None or self.shadow is not None

    @property
    def generation(self) -> int:
        """The number of the change that made it; 0 where changes have none."""
        return self.log[-1] if self.log else 0

    @property
    def shown(self) -> VersionInfo:
        """The version that lists tell of: the active one, or the newest while none is. It must have one."""
        return self.versions[self.active if self.active is not None else max(self.versions)]

    @property
    def told(self) -> str | None:
        """What is known of ``shown``; None where the manifest tells of another version, or of none."""
        about = self.about
        return about.text if about is not None and self.versions and about.digest == self.shown.digest else None

    def without(self, numbers: Collection[int]) -> Self:
        """As if these versions had never been; none is active where one of them was, and no rule has them."""
        if not numbers:
            return self
        kept = {n: v for n, v in self.versions.items() if n not in numbers}
        traffic = None if self.traffic and any(n in numbers for n in self.traffic.weights) else self.traffic
        shadow = None if self.shadow and self.shadow.version in numbers else self.shadow
        active = None if self.active in numbers else self.active
        return replace(self, versions=MappingProxyType(kept), active=active, traffic=traffic, shadow=shadow)

    def activating(self, number: int | None) -> Self:
        """With another version active, or none: what shared the traffic with the old one has it no more."""
        if number == self.active:
            return self
        shadow = self.shadow if self.shadow is not None and self.shadow.version != number else None
        return replace(self, active=number, traffic=None, shadow=shadow, rolled_back=None)

    def settled(self) -> Self:
        """Without rules that name versions which are not there: whoever wrote it knew no rules, and lost them half."""
        traffic, shadow = self.traffic, self.shadow
        if traffic is not None and not (
            self.active in traffic.weights and traffic.weights.keys() <= self.versions.keys()
        ):
            traffic = None
        if shadow is not None and (shadow.version == self.active or shadow.version not in self.versions):
            shadow = None
        return (
            self if (traffic, shadow) == (self.traffic, self.shadow) else replace(self, traffic=traffic, shadow=shadow)
        )

    def emptied(self) -> Self:
        """What stays of a task that is deleted: its numbers go on."""
        return replace(self, versions=NO_VERSIONS, active=None, about=None, traffic=None, shadow=None, rolled_back=None)

    def telling(self, about: About | None) -> Self:
        """With what is known of ``shown``, if it is of that version; else with what was known."""
        return (
            self
            if about is None or not self.versions or about.digest != self.shown.digest
            else replace(self, about=about)
        )


def render(task: TaskInfo) -> bytes:
    """The manifest's text."""
    document: dict[str, Any] = {"next": task.next, "active": task.active}
    document["versions"] = {
        str(n): {"digest": v.digest, "size": v.size, "created": v.created} for n, v in task.versions.items()
    }
    if task.about is not None:
        document["about"] = {"digest": task.about.digest} | json.loads(task.about.text)
    if task.traffic is not None:
        document["traffic"] = traffic_text(task.traffic)
    document |= {name: asdict(kept) for name in ("shadow", "rolled_back") if (kept := getattr(task, name)) is not None}
    if task.log:
        document["log"] = task.log
    if task.mark is not None:
        document["mark"] = task.mark
    return json.dumps(document, indent=1).encode()


def parse(name: str, raw: bytes) -> TaskInfo:
    """Raises ValueError for anything that is not a manifest. Fields that a later release may add are passed over."""
    try:
        data = json.loads(raw)
        versions = {}
        for text, kept in data["versions"].items():
            number = int(text)
            versions[number] = VersionInfo(name, number, str(kept["digest"]), int(kept["size"]), str(kept["created"]))
        active = None if data["active"] is None else int(data["active"])
        following = max(int(data["next"]), 1, *(n + 1 for n in versions))
        log = tuple(int(number) for number in data.get("log", ()))
        mark = tuple(map(str, data.get("mark") or ()))
        return TaskInfo(
            name, MappingProxyType(versions), active, following, _about(data.get("about")), log,
            (mark[0], mark[1]) if len(mark) == 2 else None, traffic_of(data.get("traffic")),
            shadow_of(data.get("shadow")), rolled_back_of(data.get("rolled_back")),
        ).settled()  # fmt: skip
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _about(kept: Any) -> About | None:
    """What cannot be used is as if it were not there: the file itself tells it again."""
    if not isinstance(kept, dict) or not isinstance(digest := kept.pop("digest", None), str):
        return None
    return About(digest, json.dumps(kept))
