"""Jobs: trainings asked over HTTP, each a small record on disk that front ends write and a trainer carries out.

A change is one rename under the lock of all jobs, so that a trainer hears of a stop before it publishes anything. It
knows no HTTP and no torch.

    root/jobs/<id>/job.json                              the record
    root/jobs/<id>/<method>.safetensors[.resume|.report] what the trainer keeps until the end, and the reports
    root/jobs/writing                                    held by whoever changes a record
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adapters.atomic import replacing
from service.errors import QueueFull, UnknownJob
from service.store.locks import write_lock
from service.store.staging import FULL, Reserve, disk_errors, sync_folder
from service.teach.records import JobAnswer, JobMethod, TrainingJob

log = logging.getLogger(__name__)

RETRY_AFTER_S = 30.0
_ID = re.compile(r"[0-9]{8}-[0-9]{9}-[0-9a-f]{6}")


class Stopped(Exception):
    """The job was cancelled, or its task was deleted: nothing of it may go on."""


class Jobs:
    """Blocking; any number of processes over one folder. Every method raises storage errors."""

    def __init__(self, root: Path, *, max_waiting: int = 16, max_kept: int = 100, owner: str = "") -> None:
        """``root`` is the data folder, ``owner`` as of a Repository."""
        self.folder, self._root = root / "jobs", root
        self._max_waiting, self._max_kept = max_waiting, max_kept
        self._reserve = Reserve(root, owner)

    def add(
        self, task: str, method: JobMethod, examples: Mapping[str, int], *, epochs: int | None, activate: bool,
        by: str | None = None,
    ) -> TrainingJob:  # fmt: skip
        """One more that waits, durable before this returns; ``by`` a key of that name. Raises QueueFull."""
        now = datetime.now(UTC)
        job = TrainingJob(
            id=f"{now:%Y%m%d-%H%M%S}{now.microsecond // 1000:03}-{secrets.token_hex(3)}", task=task, method=method,
            examples=dict(examples), created=_moment(now), activate=activate, wanted_epochs=epochs, by=by,
        )  # fmt: skip
        with self._change():
            known = self.all()
            waiting = sum(one.state == "waiting" for one in known)
            # One that waits only until its trainer is there is not in anybody's way.
            if waiting >= self._max_waiting + (not any(one.state == "running" for one in known)):
                raise QueueFull(
                    f"{waiting} trainings wait for their turn, the limit is {self._max_waiting} (max_jobs_waiting); "
                    "try again later, or stop one",
                    retry_after=RETRY_AFTER_S, field="max_jobs_waiting", limit=self._max_waiting, value=waiting + 1,
                )  # fmt: skip
            for old in [one for one in known if not one.open][self._max_kept - 1 :]:
                self._remove(old.id)
            folder = self.folder / job.id
            folder.mkdir()
            try:
                self._write(job)
                sync_folder(self.folder)
            except BaseException:
                self._remove(job.id)
                raise
        return job

    def get(self, job_id: str) -> TrainingJob:
        """Raises UnknownJob."""
        job = self._read(job_id) if _ID.fullmatch(job_id) else None
        if job is None:
            raise self.unknown(job_id)
        return job

    @staticmethod
    def unknown(job_id: str) -> UnknownJob:
        """The error that says so."""
        return UnknownJob(f"there is no training '{job_id[:40]}'; GET /v1/jobs lists those that are kept")

    def all(self) -> list[TrainingJob]:
        """Newest first; a record that cannot be read is left out."""
        return [job for name in sorted(self._ids(), reverse=True) if (job := self._read(name))]

    def place(self, job: JobAnswer, method: str) -> Path:
        """Where the trainer keeps that method's file; what else belongs to it lies beside it."""
        return self.folder / job.id / f"{method}.safetensors"

    def report(self, job_id: str, version: int) -> Path:
        """The page of a version's training. Raises UnknownJob."""
        job = self.get(job_id)
        found = next((one for one in job.published if one.version == version), None)
        if found is None:
            raise UnknownJob(f"training '{job_id}' has published no version {version}", version=version)
        path = self.place(job, found.method)
        return path.with_name(f"{path.name}.report") / "index.html"

    def cancel(self, job_id: str) -> TrainingJob:
        """Stop it, if it is not over; what it has published stays. Raises UnknownJob."""
        with self._change():
            job = self.get(job_id)
            if job.open:
                job = self._changed(job, state="cancelled", stage=None, seconds_left=None, ended=_moment())
            return job

    def forget(self, task: str) -> None:
        """Stop a task's jobs, and remove all that is kept of them."""
        if any(job.task == task for job in self.all()):
            with self._change():
                for job in self.all():
                    if job.task == task:
                        self._remove(job.id)

    def work(self, slot: int) -> bool:
        """Whether there is any for that trainer."""
        return any(job.state == "waiting" or (job.state == "running" and job.slot == slot) for job in self.all())

    def claim(self, slot: int) -> TrainingJob | None:
        """For a trainer: its own job from before its end, else the one that waits longest."""
        with self._change():
            known = self.all()
            mine = next((job for job in known if job.state == "running" and job.slot == slot), None)
            if mine is not None:
                return self._changed(mine, deaths=mine.deaths + 1)
            waiting = next((job for job in reversed(known) if job.state == "waiting"), None)
            return waiting and self._changed(waiting, state="running", slot=slot, deaths=1, started=_moment())

    def rest(self) -> None:
        """All trainers were ended in good order: no job is to blame."""
        for job in self.all():
            if job.state == "running":
                with self._change():
                    self._changed(job, deaths=0)

    def update(self, job: TrainingJob, **changes: Any) -> TrainingJob:
        """For its trainer: the record with those changes. Raises Stopped."""
        with self._change():
            return self._changed(self.still(job), **changes)

    @contextmanager
    def publishing(self, job: TrainingJob) -> Iterator[None]:
        """While the block runs nobody can stop the job. Raises Stopped."""
        with self._change():
            self.still(job)
            yield

    def record(self, job: TrainingJob, **changes: Any) -> TrainingJob:
        """``update`` for whoever is ``publishing``."""
        return self._changed(self.still(job), **changes)

    def fail(self, job: TrainingJob, problem: dict[str, Any]) -> None:
        """It is over, also on a full disk: what it kept to go on is removed first. Raises Stopped."""
        self.tidy(job)
        self.update(job, state="failed", stage=None, seconds_left=None, problem=problem, ended=_moment())

    def finish(self, job: TrainingJob, verdict: str) -> None:
        """It is done. Raises Stopped."""
        self.update(job, state="done", stage=None, progress=1.0, seconds_left=None, verdict=verdict, ended=_moment())
        self.tidy(job)

    def tidy(self, job: JobAnswer) -> None:
        """Of a job that is over only the record and the reports are kept, of one that is gone nothing."""
        folder = self.folder / job.id
        if not (folder / "job.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in folder.iterdir():
            if path.is_file() and path.name != "job.json":
                path.unlink(missing_ok=True)

    def recover(self, slots: int) -> None:
        """At the start, before others use the folder: what no record tells of is removed.

        Jobs of trainers beyond so many ``slots`` wait again.
        """
        with self._change():
            for name in self._ids():
                if not (self.folder / name / "job.json").exists():
                    self._remove(name)
            for job in self.all():
                if job.state == "running" and job.slot is not None and job.slot >= slots:
                    self._changed(job, state="waiting", slot=None)

    def still(self, job: TrainingJob) -> TrainingJob:
        """The record as it is now. Raises Stopped where it is not running any more."""
        now = self._read(job.id)
        if now is None or now.state != "running":
            raise Stopped
        return now

    @contextmanager
    def _change(self) -> Iterator[None]:
        with disk_errors():
            self.folder.mkdir(exist_ok=True)
            with write_lock(self.folder):
                yield

    def _changed(self, job: TrainingJob, **changes: Any) -> TrainingJob:
        new = job.model_copy(update=changes)
        self._write(new)
        return new

    def _write(self, job: TrainingJob) -> None:
        text, path = job.model_dump_json().encode(), self.folder / job.id / "job.json"

        def write() -> None:
            with replacing(path) as temporary:
                temporary.write_bytes(text)

        try:
            write()
        except OSError as error:
            if error.errno not in FULL or job.open:
                raise
            with write_lock(self._root):  # that a job is over must be told on a full disk too
                self._reserve.spend(write)

    def _read(self, job_id: str) -> TrainingJob | None:
        try:
            return TrainingJob.model_validate_json((self.folder / job_id / "job.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("the record of training %s cannot be read: %s", job_id, error)
            return None

    def _ids(self) -> list[str]:
        with disk_errors():
            try:
                return [path.name for path in self.folder.iterdir() if _ID.fullmatch(path.name)]
            except FileNotFoundError:  # there was none yet
                return []

    def _remove(self, job_id: str) -> None:
        """The record first: what a trainer writes meanwhile is removed when it hears of it."""
        folder = self.folder / job_id
        (folder / "job.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _moment(now: datetime | None = None) -> str:
    return (now or datetime.now(UTC)).isoformat(timespec="milliseconds")
