"""A job carried out: what its method trains, one thing after another, each published by what held-out examples say.

Method auto begins with a head on the frozen backbone, which is there in seconds, and goes on to an AdaptFormer.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from adapters.backbone import Backbone, load_backbone
from adapters.config import InputConfig, size_text
from adapters.errors import AdaptError, NoRoom, TrainingError
from adapters.layout import Layout
from adapters.training.data import DataListing
from adapters.training.fit import FitConfig
from adapters.training.plan import TrainingPlan
from adapters.training.progress import Teller
from adapters.training.recipe import CROP, FRAMES, Recipe, config_of
from adapters.training.run import train
from service.engine.interface import Facts
from service.errors import ComputeFailed, StorageFull, problem
from service.limits import file_limits, media_limits
from service.messages import Item
from service.settings import Settings
from service.store.catalogue import Catalogue
from service.store.events import Actor
from service.store.examples import Examples, ExampleSet
from service.store.staging import FULL, disk_errors
from service.teach.asking import Asking
from service.teach.jobs import Jobs, Stopped
from service.teach.judge import Judged, judged, listing_of
from service.teach.records import PublishedVersion, TrainingJob
from service.teach.split import check_examples
from service.teach.telling import JobTeller

log = logging.getLogger(__name__)

Trains = Literal["linear", "adaptformer", "lora"]
HEAD_PART = 0.15
"""Of the progress of a job of method auto that is the head's, which comes first."""
MOST_DEATHS = 3
"""So many trainers in a row that end over one job, without having got on with it, are enough."""
CHUNK = 1024 * 1024


@dataclass(frozen=True)
class _Known:
    """What a linear head needs of a backbone that another process has: to know what it is."""

    layout: Layout
    input: InputConfig
    dtype: torch.dtype
    device: torch.device
    model: None = None


class Teaching:
    """Carries jobs out, on one thread. Nothing is raised at its caller but what the disk does to a job's last word."""

    def __init__(
        self, settings: Settings, facts: Facts, jobs: Jobs, examples: Examples, catalogue: Catalogue, asking: Asking,
        aside: Callable[[], AbstractContextManager[Executor]], on_step: Callable[[bool], None],
    ) -> None:  # fmt: skip
        """``aside`` gives a thread for the training of an adapter, for which nobody waits.

        ``on_step`` is called after each step of that, with whether it is on CUDA.
        """
        self._settings, self._facts, self._jobs, self._examples = settings, facts, jobs, examples
        self._catalogue, self._asking, self._aside, self._on_step = catalogue, asking, aside, on_step
        self._media, self._threads = media_limits(settings), threads(settings)
        self._backbone: Backbone | None = None

    def carry_out(self, job: TrainingJob) -> None:
        """To its end, whatever that is."""
        try:
            try:
                self._carry_out(job)
            except Stopped:
                raise
            except Exception as error:
                told = self._told(error)
                log.warning("training %s of '%s' failed: %s", job.id, job.task, told.message)
                self._jobs.fail(job, _plain(told))
        except Stopped:
            log.info("training %s of '%s' was stopped", job.id, job.task)
            with suppress(OSError):
                self._jobs.tidy(job)

    def _carry_out(self, job: TrainingJob) -> None:
        if job.deaths > MOST_DEATHS:
            raise NoRoom(
                f"the process of this training ended {MOST_DEATHS} times in a row, as happens where the memory does "
                "not do; see the log, and train with fewer or smaller examples"
            )
        methods: tuple[Trains, ...] = ("linear", "adaptformer") if job.method == "auto" else (job.method,)
        verdict, begin = "", 0.0
        for method in methods:
            end = HEAD_PART if method != methods[-1] else 1.0
            done = next((one for one in job.published if one.method == method), None)
            if done is None:
                examples = self._examples.of(job.task)
                check_examples(examples, self._settings.max_classes)
                teller = JobTeller(self._jobs, job, method, (begin, end), on_step=self._step)
                path = self._trained(job, method, examples, teller)
                teller.at("publish", 1.0)
                done = self._publish(job, method, path, examples)
                job = self._jobs.still(job)
            verdict, begin = done.verdict, end
        self._jobs.finish(job, verdict)

    def _trained(self, job: TrainingJob, method: Trains, examples: ExampleSet, teller: Teller) -> Path:
        """The adapter's file, made here or by a process before this one."""
        path = self._jobs.place(job, method)
        if path.exists() and (path.with_name(f"{path.name}.report") / "index.html").exists():
            return path
        listing, facts = listing_of(examples), self._facts
        known = cast("Backbone", _Known(facts.layout, facts.input, getattr(torch, facts.dtype), torch.device("cpu")))
        served = file_limits(self._settings, facts.rank)
        frames = min(FRAMES, served.max_frames) if listing.modality == "video" and facts.layout.frames == 1 else None
        recipe = Recipe(job.task, method, epochs=job.wanted_epochs, frames=frames)
        if any(site.rank > facts.rank for site in config_of(recipe, known, listing.modality, listing.labels).sites):
            recipe = replace(recipe, rank=facts.rank)
        plan = TrainingPlan(
            examples.folder, path, recipe, FitConfig(crop=CROP, workers=self._threads), fallback=False,
            limits=self._media, served=served, threads=self._threads, resume=True,
        )  # fmt: skip
        if method == "linear":  # somebody waits for it
            train(plan, known, teller, listing=listing, computing=self._asking)
        else:
            with self._aside() as thread:
                thread.submit(self._adapt, plan, teller, listing).result()
        return path

    def _adapt(self, plan: TrainingPlan, teller: Teller, listing: DataListing) -> None:
        backbone = self._own_backbone()
        try:
            train(plan, backbone, teller, listing=listing, computing=self._asking)
        except TrainingError as error:
            if error.facts.get("field") != "resume":
                raise
            log.info("the training of '%s' begins anew: its examples are others by now", plan.recipe.task)
            plan.checkpoint.unlink()
            train(plan, backbone, teller, listing=listing, computing=self._asking)

    def _own_backbone(self) -> Backbone:
        """A copy of the one that serves, for gradients; loaded once."""
        if self._backbone is None:
            settings, facts = self._settings, self._facts
            device = facts.device if settings.training_device == "auto" else settings.training_device
            dtype = "float32" if facts.dtype == "float16" else facts.dtype
            self._backbone = load_backbone(
                settings.backbone, settings.weights, device, dtype, size_text(facts.layout.input_size)
            )
        return self._backbone

    def _publish(self, job: TrainingJob, method: Trains, path: Path, examples: ExampleSet) -> PublishedVersion:
        """As an upload would; active where that was asked for, and for method auto where it is better."""
        repository, task = self._catalogue.repository, job.task
        staging = repository.open_staging(self._settings.max_adapter_bytes)
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    staging.write(chunk)
            digest = staging.finish()
            header = self._catalogue.check(staging.path)
            self._asking.try_file(staging.path, digest, task)
            item = Item(task, digest, (str(staging.path),))
            new = judged(self._asking, item, header.config, examples, self._media, self._threads)
            repository.follow()
            active, verdict = self._choice(job, digest, new, examples)
            with self._jobs.publishing(job):
                info, _ = self._catalogue.publish(staging, task, header, activate=active, by=Actor(job.by, "teach"))
                done = PublishedVersion(
                    version=info.number, digest=digest, method=method, accuracy=new.accuracy,
                    balanced_accuracy=new.balanced_accuracy, held_out=len(new.losses), active=active, verdict=verdict,
                    report=f"/v1/jobs/{job.id}/reports/{info.number}",
                )  # fmt: skip
                self._jobs.record(job, published=[*job.published, done], deaths=0)
        finally:
            staging.discard()
        log.info("training %s published version %d of '%s': %s", job.id, info.number, task, verdict)
        return done

    def _choice(self, job: TrainingJob, digest: str, new: Judged, examples: ExampleSet) -> tuple[bool, str]:
        """Whether to activate what was trained, and why."""
        catalogue, staged = self._catalogue, "; kept staged, as was asked"
        number = catalogue.active(job.task)
        if number is None:
            return job.activate, "no version was active before" + ("" if job.activate else staged)
        info = catalogue.repository.version(job.task, number)
        if info.digest == digest:
            return True, f"version {number}, which is active, has these very bytes"
        path = catalogue.repository.path(job.task, number)
        try:
            catalogue.repository.bring_now(info)
            item, config = Item(job.task, info.digest, (str(path),)), catalogue.check(path).config
            old = judged(self._asking, item, config, examples, self._media, self._threads)
        except (AdaptError, OSError) as error:
            said = self._told(error).message
            return job.activate, f"version {number}, which was active, cannot answer ({said})"
        better = new.better_than(old)
        told = (
            f"{'better' if better else 'no better'} than version {number} on {len(new.losses)} held-out examples: "
            f"log loss {new.losses.mean():.3f} and {old.losses.mean():.3f}, balanced accuracy "
            f"{new.balanced_accuracy:.2%} and {old.balanced_accuracy:.2%}"
        )
        if not job.activate:
            return False, told + staged
        if job.method == "auto" and not better:
            return False, told + "; kept staged"
        return True, told

    def _step(self) -> None:
        self._on_step(self._backbone is not None and self._backbone.device.type == "cuda")

    def _told(self, error: Exception) -> AdaptError:
        """In words for a caller, who knows no paths of this machine."""
        cause = error.__cause__ if isinstance(error, TrainingError) else error
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return NoRoom("the memory does not do for this training; give fewer examples, or another training_device")
        if isinstance(error, FileNotFoundError):
            return TrainingError("examples were deleted while they were trained on; train again")
        if _is_full(cause, self._jobs.folder):
            return StorageFull("the disk with the data folder is full; free some space, then train again")
        if isinstance(cause, OSError):
            try:
                with disk_errors():
                    raise cause
            except AdaptError as told:
                return told
        if isinstance(error, AdaptError):
            return error
        log.error("a training failed by a mistake of the server's own", exc_info=error)
        kind = type(error).__name__
        return ComputeFailed(f"the training failed by a mistake of the server's own ({kind}); see the log")


def threads(settings: Settings) -> int:
    """Of one training: of all together half of the processor's, unless a setting says how many."""
    together = settings.training_threads or len(os.sched_getaffinity(0)) // 2
    return max(1, together // max(1, settings.max_trainings))


def _is_full(error: BaseException | None, folder: Path) -> bool:
    """Whether the disk is; torch has one word for all that may be wrong with it."""
    if isinstance(error, OSError):
        return error.errno in FULL
    with suppress(OSError):
        return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < CHUNK
    return False


def _plain(error: AdaptError) -> dict[str, Any]:
    """The problem document; facts that are no JSON go as text."""
    document: dict[str, Any] = json.loads(json.dumps(problem(error), default=str))
    return document
