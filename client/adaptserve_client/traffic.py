"""Safe change: which versions answer a task's requests, a shadow, how they agree; both clients' methods for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adaptserve_client.answers import read
from adaptserve_client.calls import Request, json_of, task_path
from adaptserve_client.errors import UnexpectedAnswerError

KEPT = "keep"
"""Of a guard: it stays as it is, and a new rule has the server's own."""
Guard = Mapping[str, Any] | None | str


@dataclass(frozen=True)
class VersionReport:
    """How a version does since it has its part: times in milliseconds; ``agreement`` is of ``compared`` answers."""

    version: int
    requests: int
    errors: int
    not_finite: int
    p50_ms: float | None
    p99_ms: float | None
    agreement: float | None
    compared: int
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class TaskTraffic:
    """Who answers a task's requests: ``weights`` by version. ``rolled_back`` says why a version lost its part last."""

    task: str
    active: int | None
    weights: Mapping[int, int]
    guard: Mapping[str, Any] | None
    shadow: Mapping[str, Any] | None
    versions: tuple[VersionReport, ...]
    rolled_back: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class VersionAgreement:
    """How often a version's best label is the active one's; ``disagreements`` name inputs by their sha256."""

    task: str
    version: int
    compared: int
    agreed: int
    agreement: float | None
    labels: tuple[Mapping[str, Any], ...] = ()
    disagreements: tuple[Mapping[str, Any], ...] = ()
    against: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


class TrafficMethods:
    """Those of ``Client``."""

    _send: Callable[[Request[Any]], Any]

    def traffic(self, task: str) -> TaskTraffic:
        """Which versions answer, by what weights, and how each of them does."""
        told: TaskTraffic = self._send(_traffic("GET", task))
        return told

    def set_traffic(self, task: str, weights: Mapping[int, int], guard: Guard = KEPT) -> TaskTraffic:
        """Let versions share the requests that name none: ``{1: 95, 2: 5}``, the active one among them.

        ``guard`` says what a new version is held against; None: nothing.
        """
        told: TaskTraffic = self._send(_traffic("PUT", task, _asked(weights, guard)))
        return told

    def end_traffic(self, task: str) -> None:
        """Let the active version answer all."""
        self._send(_ended(task, "traffic"))

    def set_shadow(self, task: str, version: int, share: float = 0.1) -> TaskTraffic:
        """Let a version see a share of the requests and answer nobody."""
        told: TaskTraffic = self._send(_shadow(task, version, share))
        return told

    def end_shadow(self, task: str) -> None:
        """Let no version be the shadow."""
        self._send(_ended(task, "shadow"))

    def agreement(self, task: str, version: int | None = None) -> VersionAgreement:
        """How often a shadow's or new version's best label is the active one's."""
        told: VersionAgreement = self._send(_agreement(task, version))
        return told


class AsyncTrafficMethods:
    """Those of ``AsyncClient``; arguments and answers are the same."""

    _send: Callable[[Request[Any]], Any]

    async def traffic(self, task: str) -> TaskTraffic:
        """Which versions answer, by what weights, and how each of them does."""
        told: TaskTraffic = await self._send(_traffic("GET", task))
        return told

    async def set_traffic(self, task: str, weights: Mapping[int, int], guard: Guard = KEPT) -> TaskTraffic:
        """Let versions share the requests that name none."""
        told: TaskTraffic = await self._send(_traffic("PUT", task, _asked(weights, guard)))
        return told

    async def end_traffic(self, task: str) -> None:
        """Let the active version answer all."""
        await self._send(_ended(task, "traffic"))

    async def set_shadow(self, task: str, version: int, share: float = 0.1) -> TaskTraffic:
        """Let a version see a share of the requests and answer nobody."""
        told: TaskTraffic = await self._send(_shadow(task, version, share))
        return told

    async def end_shadow(self, task: str) -> None:
        """Let no version be the shadow."""
        await self._send(_ended(task, "shadow"))

    async def agreement(self, task: str, version: int | None = None) -> VersionAgreement:
        """How often a shadow's or new version's best label is the active one's."""
        told: VersionAgreement = await self._send(_agreement(task, version))
        return told


def _asked(weights: Mapping[int, int], guard: Guard) -> dict[str, Any]:
    named = {str(number): weight for number, weight in weights.items()}
    return {"weights": named} | ({} if guard == KEPT else {"guard": None if guard is None else dict(guard)})  # type: ignore[arg-type]


def _traffic(
    method: str, task: str, asked: dict[str, Any] | None = None, what: str = "traffic"
) -> Request[TaskTraffic]:
    headers, content = (
        ({}, b"") if asked is None else ({"Content-Type": "application/json"}, json.dumps(asked).encode())
    )
    return Request(
        method, task_path(task, what), lambda r: _read_traffic(json_of(r)), headers=headers, content=content
    )  # fmt: skip


def _shadow(task: str, version: int, share: float) -> Request[TaskTraffic]:
    return _traffic("PUT", task, {"version": version, "share": share}, "shadow")


def _ended(task: str, what: str) -> Request[None]:
    return Request("DELETE", task_path(task, what), lambda _: None)


def _agreement(task: str, version: int | None) -> Request[VersionAgreement]:
    asked = {} if version is None else {"version": version}
    return Request("GET", task_path(task, "agreement"), lambda r: read(VersionAgreement, json_of(r)), params=asked)


def _read_traffic(document: Any) -> TaskTraffic:
    """Raises UnexpectedAnswerError."""
    if not isinstance(document, dict) or not isinstance(document.get("weights"), dict):
        raise UnexpectedAnswerError(f"expected an object with a TaskTraffic, got {str(document)[:80]}")
    versions = tuple(read(VersionReport, one) for one in document.get("versions", ()))
    weights = {int(number): weight for number, weight in document["weights"].items()}
    rest = {name: value for name, value in document.items() if name not in ("versions", "weights")}
    return read(TaskTraffic, rest, versions=versions, weights=weights)
