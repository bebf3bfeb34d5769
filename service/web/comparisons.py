"""Comparisons: what versions under a rule answered is counted, and after the answer has gone others are asked the same.

A shadow is asked about its share of what comes, the active version about what a new one answered. Nobody waits for
that: its rows are the least urgent of all, there are few at a time, and what finds no room is left out, and counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from adapters.errors import AdapterError, AdaptError
from service.errors import BadScores, ClientGone, Draining, QueueFull, UnknownVersion, status_of
from service.settings import Settings
from service.store.catalogue import Catalogue, Served
from service.store.changes import precisely_now
from service.store.manifest import TaskInfo
from service.store.traffic import GUARD
from service.watch.version_metrics import VersionMetrics
from service.watch.versions import VersionKey, VersionNews
from service.web.caller import Caller
from service.web.outcomes import Outcome, Outcomes
from service.web.picture import Picture
from service.web.prediction import Answers

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long a comparison may wait for the device to have nothing else to do."""
LOAD_S = 5.0
"""How often comparisons may bring a version to the device that others' have pushed out."""

Count = Callable[[VersionKey, float], VersionNews]
"""Where a version's counts go; the seconds are its guard's window."""


@dataclass(frozen=True)
class _Second:
    """A version that is asked the same: whose agreement it is about, and whether that is the one that answered."""

    version: int
    about: int
    since: str
    answered: bool


class Comparisons:
    """For the event loop's thread."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, answers: Answers, count: Count, metrics: VersionMetrics,
        residents: Callable[[Sequence[str]], Coroutine[Any, Any, Sequence[str]]],
    ) -> None:  # fmt: skip
        """``residents`` tells where versions are by their digests: ``device`` is where they cost nobody anything."""
        self._catalogue, self._answers, self._count, self._metrics = catalogue, answers, count, metrics
        self._residents = residents
        self._most_rows, self._most_bytes = settings.max_shadow_rows, settings.max_shadow_bytes
        self._rows = self._bytes = 0
        self._work: set[asyncio.Task[None]] = set()
        self._loaded: dict[str, float] = {}

    @property
    def rows(self) -> int:
        """Under way."""
        return self._rows

    async def version_for(self, task: str, version: int | None, picture: Picture | None) -> Served:
        """What answers: the version asked for, else as the task's rule has it. Raises as ``Catalogue.resolve``.

        Without a ``picture`` there was no rule when the request came.
        """
        catalogue = self._catalogue
        rule = catalogue.repository.ruled.get(task) if version is None and picture is not None else None
        if rule is None or rule.active is None or picture is None:
            return await catalogue.resolve(task, version)
        number = rule.active
        if rule.traffic is not None:
            number = rule.traffic.version_of(task, await picture.key())
        try:
            return replace(await catalogue.resolve(task, number), rule=rule)
        except UnknownVersion:  # the rule has ended this moment, and somebody has deleted it
            return await catalogue.resolve(task)
        except AdaptError as error:
            if _is_a_versions(error):
                self._count_failure(rule, number, error)
            raise

    def answered(self, outcomes: Outcomes, pictures: Sequence[tuple[Picture, bytes | None]]) -> None:
        """Count, and ask again; never raises.

        ``pictures``: of each outcome, with the bytes where they are at hand, or one of all.
        """
        for place, outcome in enumerate(outcomes.results):
            served, rule = outcome.served, outcome.served.rule
            if rule is None:
                continue
            seconds = outcomes.decode_s + outcome.queue_s + outcome.compute_s
            self._of(rule, served.version).timed(seconds)
            self._metrics.answered(served.task, served.version, seconds)
            picture, body = pictures[min(place, len(pictures) - 1)]
            for second in _seconds(rule, served.version):
                self._begin(second, outcome, picture, body)

    def failed(self, ruled: Sequence[Served], error: Exception) -> None:
        """Count those that an error speaks against: the version that it names, or all that were asked; never raises."""
        if not _is_a_versions(error):
            return
        named = error.facts.get("task") if isinstance(error, AdaptError) else None
        for served in {(one.task, one.version): one for one in ruled}.values():
            if served.rule is not None and named in (None, served.task):
                self._count_failure(served.rule, served.version, error)

    def _count_failure(self, rule: TaskInfo, version: int, error: Exception) -> None:
        not_finite = isinstance(error, BadScores)
        self._of(rule, version).failed(not_finite=not_finite)
        self._metrics.failed(rule.name, version, not_finite=not_finite)

    def _of(self, rule: TaskInfo, version: int) -> VersionNews:
        """Where to count."""
        traffic, shadow = rule.traffic, rule.shadow
        guard = traffic.guard if traffic is not None else None
        since = ""
        if shadow is not None and (traffic is None or version == shadow.version):
            since = shadow.since
        elif traffic is not None:
            since = traffic.since
        return self._count(VersionKey(rule.name, version, since), (guard or GUARD).window)

    def _begin(self, second: _Second, outcome: Outcome, picture: Picture, body: bytes | None) -> None:
        """Unless there is too much under way."""
        seen = outcome.seen
        if seen is None:  # parts of a clip were asked for
            return
        rows, size = len(seen.pixels), len(body or b"")
        full = self._rows + rows > self._most_rows or self._bytes + size > self._most_bytes
        # One at a time of a version that answers people goes on even then: it must be found out under load too.
        if full or (self._answers.is_busy and (self._rows or not second.answered)):
            self._metrics.dropped("busy")
            return
        self._rows += rows
        self._bytes += size
        work = asyncio.ensure_future(self._compare(second, outcome, picture, body))
        self._work.add(work)

        def ended(done: asyncio.Task[None]) -> None:
            self._work.discard(done)
            self._rows -= rows
            self._bytes -= size

        work.add_done_callback(ended)

    async def _compare(self, second: _Second, outcome: Outcome, picture: Picture, body: bytes | None) -> None:
        rule = outcome.served.rule
        assert rule is not None
        more = 0
        try:
            other = await self._catalogue.resolve(rule.name, second.version)
            if not await self._may_ask(other.digest):
                self._metrics.dropped("not on the device")
                return
            alike = self._answers.alike(other, outcome.served)
            more = 0 if alike else other.config.rows
            if self._rows + more > self._most_rows:
                more = 0
                self._metrics.dropped("busy")
                return
            self._rows += more
            if not alike and body is None:
                self._metrics.dropped("other pixels")
                return
            found = await self._answers.again(other, None if alike else body, outcome.seen, Caller(PATIENCE_S))
            digest = await picture.digest()
        except (BadScores, AdapterError) as error:
            if not second.answered:  # it is the shadow's own fault
                self._count_failure(rule, second.version, error)
            self._metrics.dropped("failed")
            return
        except AdaptError as error:
            busy = isinstance(error, QueueFull | Draining) or status_of(error) == 504
            self._metrics.dropped("busy" if busy else "failed")
            return
        except Exception:
            log.exception("a comparison of two versions of task '%s' failed", rule.name)
            self._metrics.dropped("failed")
            return
        finally:
            self._rows -= more
        label, theirs = (found.best, outcome.best) if second.answered else (outcome.best, found.best)
        news = self._count(VersionKey(rule.name, second.about, second.since), _window(rule))
        if not second.answered:
            news.counts.requests += 1
            self._metrics.answered(rule.name, second.about, 0.0)
        news.compared(digest, label, theirs, precisely_now())
        self._metrics.compared(rule.name, second.about, agreed=label == theirs)

    async def _may_ask(self, digest: str) -> bool:
        """Whether that version is on the device, or may be brought there again."""
        (tier,) = await self._residents([digest])
        if tier == "device":
            return True
        now = asyncio.get_running_loop().time()
        if now - self._loaded.get(digest, -LOAD_S) < LOAD_S:
            return False
        if len(self._loaded) > 1000:
            self._loaded.clear()
        self._loaded[digest] = now
        return True


def _seconds(rule: TaskInfo, version: int) -> list[_Second]:
    """Who is asked the same as that version was."""
    found = []
    shadow, traffic = rule.shadow, rule.traffic
    if version == rule.active:
        if shadow is not None and random.random() < shadow.share:  # noqa: S311
            found.append(_Second(shadow.version, shadow.version, shadow.since, answered=False))
    elif traffic is not None and rule.active is not None and random.random() < (traffic.guard or GUARD).compare:  # noqa: S311
        found.append(_Second(rule.active, version, traffic.since, answered=True))
    return found


def _window(rule: TaskInfo) -> float:
    guard = rule.traffic.guard if rule.traffic is not None else None
    return (guard or GUARD).window


def _is_a_versions(error: Exception) -> bool:
    """Whether it speaks against a version at all, and not against what came or how much."""
    if isinstance(error, BadScores | AdapterError):
        return True
    if isinstance(error, ClientGone | Draining):
        return False
    return not isinstance(error, AdaptError) or status_of(error) >= 500
