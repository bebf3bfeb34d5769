"""Trainings on the server: what is sent, how it is read, and both clients' methods for them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from adaptserve_client.answers import read
from adaptserve_client.calls import Request, json_of, member, segment, task_path
from adaptserve_client.errors import UnexpectedAnswerError


@dataclass(frozen=True)
class TrainedVersion:
    """What a training published, what held-out examples say of it, and why it was activated or not."""

    version: int
    digest: str
    method: str
    accuracy: float
    balanced_accuracy: float
    held_out: int
    active: bool
    verdict: str
    report: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Training:
    """A training on the server. ``state``: waiting, running, done, failed or cancelled; ``progress`` from 0 to 1.

    ``problem`` is the problem document of one that failed; ``curves`` has a list for each thing that was scored.
    """

    id: str
    task: str
    method: str
    state: str
    progress: float
    stage: str | None = None
    seconds_left: float | None = None
    epoch: int = 0
    epochs: int = 0
    curves: Mapping[str, Any] = field(default_factory=dict, repr=False)
    published: tuple[TrainedVersion, ...] = ()
    verdict: str | None = None
    problem: Mapping[str, Any] | None = None
    examples: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state not in ("waiting", "running")


class JobMethods:
    """Those of ``Client``."""

    _send: Callable[[Request[Any]], Any]
    _pages: Callable[[Callable[[Any], Request[Any]]], Iterator[Any]]

    def train_task(
        self, task: str, method: str = "auto", *, epochs: int | None = None, activate: bool = True
    ) -> Training:
        """Begin to train a task on its examples; the server does it beside its other work. ``job`` tells how far it is.

        ``method``: auto, linear, adaptformer or lora; not ``activate`` stages what is trained.
        """
        told: Training = self._send(begun(task, method, epochs, activate=activate))
        return told

    def job(self, job_id: str) -> Training:
        """How far a training is, and what came of it."""
        told: Training = self._send(one_job(job_id))
        return told

    def jobs(self, task: str | None = None, state: str | None = None) -> Iterator[Training]:
        """Trainings that the key may see, newest first."""
        return self._pages(lambda after: listed_jobs(task, state, after))

    def cancel(self, job_id: str) -> None:
        """Stop a training, if it is not over; what it has published stays."""
        self._send(cancelled(job_id))


class AsyncJobMethods:
    """Those of ``AsyncClient``; arguments and answers are the same."""

    _send: Callable[[Request[Any]], Any]
    _pages: Callable[[Callable[[Any], Request[Any]]], AsyncIterator[Any]]

    async def train_task(
        self, task: str, method: str = "auto", *, epochs: int | None = None, activate: bool = True
    ) -> Training:
        """Begin to train a task on its examples."""
        told: Training = await self._send(begun(task, method, epochs, activate=activate))
        return told

    async def job(self, job_id: str) -> Training:
        """How far a training is, and what came of it."""
        told: Training = await self._send(one_job(job_id))
        return told

    def jobs(self, task: str | None = None, state: str | None = None) -> AsyncIterator[Training]:
        """Trainings that the key may see, newest first."""
        return self._pages(lambda after: listed_jobs(task, state, after))

    async def cancel(self, job_id: str) -> None:
        """Stop a training, if it is not over; what it has published stays."""
        await self._send(cancelled(job_id))


def begun(task: str, method: str, epochs: int | None, *, activate: bool) -> Request[Training]:
    """A new training; asked again it would be another one."""
    asked = {"method": method, "activate": activate} | ({} if epochs is None else {"epochs": epochs})
    return Request(
        "POST", task_path(task, "training"), lambda r: _training(json_of(r)),
        headers={"Content-Type": "application/json"}, content=json.dumps(asked).encode(), repeatable=False,
    )  # fmt: skip


def one_job(job_id: str) -> Request[Training]:
    """One training."""
    return Request("GET", f"/v1/jobs/{segment(job_id)}", lambda r: _training(json_of(r)))


def listed_jobs(task: str | None, state: str | None, after: Any) -> Request[tuple[list[Training], Any]]:
    """A page of the list, and where it goes on."""

    def trainings(response: httpx.Response) -> tuple[list[Training], Any]:
        document = json_of(response)
        return [_training(one) for one in member(document, "jobs")], document.get("next")

    asked = {"task": task, "state": state, "after": after}
    return Request("GET", "/v1/jobs", trainings, params={k: v for k, v in asked.items() if v is not None})


def cancelled(job_id: str) -> Request[None]:
    """Stop it; again changes nothing."""
    return Request("DELETE", f"/v1/jobs/{segment(job_id)}", lambda _: None)


def _training(document: Any) -> Training:
    """Raises UnexpectedAnswerError."""
    if not isinstance(document, dict):
        raise UnexpectedAnswerError(f"expected an object with a Training, got {str(document)[:80]}")
    published = tuple(read(TrainedVersion, one) for one in document.get("published", ()))
    return read(Training, {k: v for k, v in document.items() if k != "published"}, published=published)
