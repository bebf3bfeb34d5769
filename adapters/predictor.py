"""Predictor: pictures and clips in, every task's labels and scores out; the library's front door.

It computes in the caller's thread what a server computes in its engine: the same decoding, bank and forward. It has no
queue and no deadline.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from os import PathLike
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from adapters.backbone import Backbone
from adapters.bank import SimpleBank
from adapters.config import AdapterConfig, is_task_name
from adapters.errors import (
    AdapterError,
    AdapterTooLarge,
    BrokenAdapter,
    BrokenMedia,
    MediaError,
    UnknownTask,
    UnsupportedMedia,
)
from adapters.file import Adapter
from adapters.forward.banked import BankedForward, Job
from adapters.limits import BATCH_ROWS, MEDIA_SETTINGS, MediaLimits, variable
from adapters.media import Frames, Pixels, Preprocess, Source, geometry, rows, seen_by, take
from adapters.meta import AdapterMeta, bare_config
from adapters.result import Result

Input = TypeVar("Input")
Tasks = str | Iterable[str] | None
"""One task for every input, or a task for each; None where only one is held."""


class _Asked(NamedTuple):
    """One input as a task sees it: uint8 (rows, 3, height, width), equal for equal ``picture``; bad frames."""

    task: str
    adapter: Adapter
    pixels: Pixels
    picture: object = None
    bad_frames: int = 0

    def views(self) -> Iterator[_Asked]:
        """Each view alone, its pixels (frames, 3, size, size)."""
        frames = self.adapter.config.frames
        for first in range(0, len(self.pixels), frames):
            picture = None if self.picture is None else (self.picture, first)
            yield self._replace(pixels=self.pixels[first : first + frames], picture=picture)


class Predictor:
    """Adapters on one backbone, asked by the name of their task; rows of any mix of tasks share a batch.

    Threads decode side by side and take turns on the device; of two predictors on one backbone that compute at the same
    time, the second one gets the backbone's RuntimeError. ``slots`` is the number of tasks that
    there is room for at first; adding more makes more room. A batch has at most ``batch_rows`` rows (a picture is one,
    a view of T frames of a clip is T), or one view that has more. ``limits`` bound each picture and clip.
    ``cuda_graphs`` as in ``BankedForward``. Raises AdapterError: WrongBase for a file of another backbone,
    BrokenAdapter, AdapterTooLarge.
    """

    def __init__(
        self,
        backbone: Backbone,
        *adapters: Adapter,
        slots: int = 1,
        limits: MediaLimits | None = None,
        batch_rows: int = BATCH_ROWS,
        cuda_graphs: bool = True,
    ) -> None:
        self.backbone, self.limits = backbone, limits or MediaLimits()
        self._batch_rows, self._cuda_graphs, self._turn = batch_rows, cuda_graphs, threading.Lock()
        held: dict[str, Adapter] = {}
        for adapter in adapters:
            name = self._checked(adapter, adapter.config.task)
            if name in held:
                raise AdapterError(
                    f"two adapters are of task '{name}'; give the second one another name: "
                    f"add(adapter, task='{name}-2')",
                    task=name,
                )
            held[name] = adapter
        self._bank = SimpleBank(
            backbone.layout, held, dtype=backbone.dtype, device=backbone.device, slots=slots,
            rank=1 if held else backbone.layout.slot_rank(), seen=backbone.input,
        )  # fmt: skip
        self._forward = BankedForward(backbone, self._bank.slabs, cuda_graphs=cuda_graphs)

    def __repr__(self) -> str:
        return f"Predictor({self.backbone.layout.model}: {', '.join(self.tasks) or 'no tasks'})"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names that can be asked."""
        return tuple(self._bank.adapters)

    def adapter(self, task: str | None = None) -> Adapter:
        """The adapter of a task, or the only one. Raises UnknownTask."""
        return self._bank.adapters[self._known(task)]

    def add(self, adapter: Adapter, task: str | None = None) -> None:
        """Hold one more, under another name where ``task`` is given; in place of the one that has the name."""
        name = self._checked(adapter, adapter.config.task if task is None else task)
        with self._turn:
            self._bank.put(name, adapter)
            if self._bank.slabs is not self._forward.slabs:
                self._forward = BankedForward(self.backbone, self._bank.slabs, cuda_graphs=self._cuda_graphs)

    def remove(self, task: str) -> None:
        """Let an adapter go; its room is free for another. Raises UnknownTask."""
        with self._turn:
            self._bank.drop(self._known(task))

    def __call__(self, source: Source, task: str | None = None) -> Result:
        """What a task says of one picture or clip: a path, a file's bytes, or what Pillow opened.

        ``task`` may be left out where only one is held. Raises UnknownTask, a MediaError, and OSError for a path that
        cannot be read.
        """
        return self.many([source], task)[0]

    def each_task(self, source: Source, tasks: Iterable[str] | None = None) -> dict[str, Result]:
        """What many tasks say of one picture or clip; all of them if none are named.

        It is decoded once, and a batch computes the blocks below its first adapted one once.
        """
        names = dict.fromkeys(self.tasks if tasks is None else tasks)
        seen = self._see(source, [(name, self.adapter(name)) for name in names])
        return {found.task: found for found in self._results(seen)}

    def many(self, sources: Iterable[Source], tasks: Tasks = None) -> list[Result]:
        """What a task says of every input, or each one's own task, in the order given. All or nothing."""
        return list(self.stream(sources, tasks))

    def stream(self, sources: Iterable[Source], tasks: Tasks = None) -> Iterator[Result]:
        """``many``, one batch after another: the next batch is read when the results of this one are taken."""
        if isinstance(sources, str | bytes | PathLike | Image):  # the letters of a path would each be one
            raise UnsupportedMedia.named("one input alone", "a list of inputs, or ask predictor(source)")
        asked = self._pairs(sources, tasks)
        return self._results(self._see(source, [(task, self.adapter(task))])[0] for source, task in asked)

    def logits(self, pixels: Iterable[Pixels], tasks: Tasks = None) -> list[NDArray[np.float32]]:
        """Logits as in ``Result``, of inputs that are decoded and resized already: uint8 (rows, 3, height, width)."""
        asked = (self._fitting(one, task, self.adapter(task)) for one, task in self._pairs(pixels, tasks))
        return [logits for _, logits in self._computed(asked)]

    def embed(self, source: Source, task: str | None = None, frames: int | None = None) -> NDArray[np.float32]:
        """One vector (width,) of a picture or clip: what a task's head sees of it, else the bare backbone's own.

        A task's is pooled and normed as its file says, the mean over the frames and views of a clip. Without a task it
        is timm's own ``forward_features`` and ``forward_head`` before the classifier, of pixels as the backbone was
        trained on; ``frames`` are taken from a clip, of which it is the mean, and None is for a picture, or for a clip
        where the backbone sees nothing else.
        """
        if task is None:
            config = bare_config(self.backbone.layout, self.backbone.input, frames)
            adapter = Adapter(config, {}, "")
        else:
            adapter = self.adapter(task)
        asked = self._see(source, [(task or "", adapter)])[0]
        vectors = np.stack([self._run_embedding(view) for view in asked.views()])
        mean: NDArray[np.float32] = vectors.mean(0)
        return mean

    def _run_embedding(self, one: _Asked) -> NDArray[np.float32]:
        with self._turn:
            job = self._job(one) if one.task else Job(one.pixels, 0, (0,), self._bare(len(one.pixels)))
            running = self._forward.run(self._forward.prepare([replace(job, embed=True)]))
            return running.vectors()[0]

    def _bare(self, frames: int) -> AdapterMeta:
        return AdapterMeta.bare(self.backbone.layout, self.backbone.input, frames)

    def _checked(self, adapter: Adapter, name: str) -> str:
        """The name, for an adapter that can be held and a name that can be asked."""
        if not is_task_name(name):
            raise AdapterError(
                f"'{name[:80]}' is no name for a task; take lower case letters, digits, '.', '_' and '-'",
                task=name[:80],
            )
        adapter.check(self.backbone.layout)
        frames, views = adapter.config.rows, adapter.config.views
        if frames > self.limits.max_frames:
            raise AdapterTooLarge(
                f"task '{name}' takes clips of {frames} frames{f' in {views} views' if views > 1 else ''}, at most "
                f"{self.limits.max_frames} are taken; allow more with limits=MediaLimits(max_frames={frames})",
                field="video.frames", limit=self.limits.max_frames, value=frames,
            )  # fmt: skip
        return name

    def _known(self, task: str | None) -> str:
        held = self._bank.adapters
        if task is None and len(held) == 1:
            return next(iter(held))
        if task is not None and task in held:
            return task
        problem = "which task? give its name" if task is None else f"there is no task '{task[:80]}'"
        have = f"the predictor has {', '.join(held)}" if held else "the predictor has none; add(adapter) gives it one"
        raise UnknownTask(f"{problem}; {have}", task=task and task[:80], expected=list(held))

    def _pairs(self, inputs: Iterable[Input], tasks: Tasks) -> Iterator[tuple[Input, str]]:
        """Every input with its task's name; UnknownTask comes before the input is decoded."""
        if tasks is None or isinstance(tasks, str):
            tasks = self._known(tasks)
            return ((each, tasks) for each in inputs)
        return ((each, self._known(task)) for each, task in zip(inputs, tasks, strict=True))

    def _see(self, source: Source, tasks: Sequence[tuple[str, Adapter]]) -> list[_Asked]:
        """What each task sees of one input; tasks that see the same share the work."""
        configs, transform = [adapter.config for _, adapter in tasks], cache(Preprocess)

        def seen(frames: Frames, preprocess: Preprocess, config: AdapterConfig) -> tuple[Pixels, bytes, int]:
            pixels = rows(frames, preprocess, crops=config.crops)
            return pixels, hashlib.sha256(pixels.data).digest(), frames.bad

        found = seen_by(configs, partial(self._decoded, source), lambda config: transform(geometry(config)), seen)
        return [_Asked(task, adapter, *what) for (task, adapter), what in zip(tasks, found, strict=True)]

    def _decoded(self, source: Source, config: AdapterConfig) -> Frames:
        try:
            return take(source, config, self.limits)
        except MediaError as error:
            field = str(error.facts.get("field"))
            if field not in MediaLimits.__dataclass_fields__:
                raise
            # A server is told of its setting.
            setting = variable(MEDIA_SETTINGS.get(field, field))
            told = error.message.replace(setting, f"limits=MediaLimits({field}=...)")
            raise type(error)(told, **error.facts) from error

    def _fitting(self, pixels: Pixels, task: str, adapter: Adapter) -> _Asked:
        wanted = (adapter.config.rows, 3, *adapter.config.input.size)
        if tuple(pixels.shape) != wanted or pixels.dtype != np.uint8:
            raise BrokenMedia(
                f"the pixels are {pixels.dtype} {list(pixels.shape)}, task '{task}' takes uint8 {list(wanted)}",
                field="pixels", expected=list(wanted), got=list(pixels.shape),
            )  # fmt: skip
        return _Asked(task, adapter, pixels)

    def _results(self, asked: Iterable[_Asked]) -> Iterator[Result]:
        for one, logits in self._computed(asked):
            if not np.isfinite(logits).all():
                raise BrokenAdapter(f"task '{one.task}' computed scores that are not finite numbers", task=one.task)
            logits.setflags(write=False)
            config = one.adapter.config
            yield Result(
                one.task, config.labels, config.score, logits, one.bad_frames, config.temperature, config.abstain
            )

    def _computed(self, asked: Iterable[_Asked]) -> Iterator[tuple[_Asked, NDArray[np.float32]]]:
        """Whatever comes, its views in one batch or several."""
        found: list[NDArray[np.float32]] = []
        for one, logits in self._batched(view for whole in asked for view in whole.views()):
            found.append(logits)
            if len(found) == one.adapter.config.views:
                yield one, np.stack(found) if len(found) > 1 else logits
                found = []

    def _batched(self, asked: Iterable[_Asked]) -> Iterator[tuple[_Asked, NDArray[np.float32]]]:
        """Views as they come, in batches."""
        batch: list[_Asked] = []
        count = 0
        for one in asked:
            if batch and count + len(one.pixels) > self._batch_rows:
                yield from zip(batch, self._run(batch), strict=True)
                batch, count = [], 0
            batch.append(one)
            count += len(one.pixels)
        if batch:
            yield from zip(batch, self._run(batch), strict=True)

    def _run(self, batch: Sequence[_Asked]) -> list[NDArray[np.float32]]:
        with self._turn:
            return self._forward([self._job(one) for one in batch])

    def _job(self, one: _Asked) -> Job:
        if self._bank.adapters.get(one.task) is not one.adapter:
            raise UnknownTask(f"task '{one.task}' was removed or replaced before its turn came", task=one.task)
        held = self._bank[one.task]
        return Job(one.pixels, held.slot, held.pages, held.meta, one.picture)
