"""The engine of this process, as front ends see one, with its bank and its files; and how one is built from settings.

It knows every part of an engine; it does not know HTTP, tasks' versions or who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from adapters.backbone import Backbone, load_backbone
from adapters.bank import PAGE, Bank, PackedAdapter, Slabs
from adapters.errors import AdaptError, BackboneError
from adapters.file import Adapter
from adapters.forward.banked import BankedForward
from adapters.forward.prefix import PrefixCache
from adapters.limits import raised
from adapters.meta import AdapterMeta
from service.engine.batch import BatchReport
from service.engine.engine import CLOSE_S, Engine
from service.engine.health import Health
from service.engine.interface import Answer, Facts, Readiness
from service.engine.loading import Load, Loading
from service.engine.pixels import Framed
from service.engine.room import Room
from service.limits import file_limits
from service.messages import BARE, NOBODY, Asker, Item
from service.pool import Pool
from service.settings import Settings
from service.share_settings import weights_of
from service.watch.metrics import MOST_TOLD, Metrics, Snapshot

PAGES_PER_SLOT = 4
"""Head pages beside those of one largest head: 64 classes for each slot."""
WARM_UP_S = 300.0
BACKGROUND_ROWS = 8
"""Of a batch in the background on CUDA, which takes about as long as one row; a processor takes as long for each."""


class LocalEngine:
    """See ``interface.Link``."""

    def __init__(
        self, backbone: Backbone, bank: Bank, engine: Engine, loading: Loading, health: Health, files: Pool,
        prefixes: PrefixCache | None,
    ) -> None:  # fmt: skip
        """``files`` are the workers that check uploads."""
        self.on_loaded: Callable[[], None] = lambda: None
        """Called on the loader's thread when an adapter has come into a slot."""
        self.backbone, self.bank, self.engine, self.health = backbone, bank, engine, health
        self.loading, self.files, self._prefixes = loading, files, prefixes
        self._pinned: dict[str, str] = {}  # digests by task
        self._pinning = asyncio.Lock()
        slabs = bank.slabs
        self.facts = Facts(
            backbone.layout, backbone.input, str(slabs.device), str(slabs.dtype).removeprefix("torch."),
            slabs.slots, slabs.rank, slabs.nbytes,
        )  # fmt: skip

    @property
    def backlog_s(self) -> float:
        return self.engine.room.backlog_s()

    async def check_room(
        self, rows: int, deadline: float, digests: Sequence[str], asker: Asker = NOBODY, *, spare: bool = False
    ) -> None:
        self.engine.check_room(rows, deadline, digests, Asker(*asker), spare=spare)

    def ask(
        self, items: Sequence[Item], pixels: Framed, deadline: float, picture: bytes, asker: Asker = NOBODY, *,
        embed: bool = False, background: bool = False,
    ) -> Sequence[Future[Answer]]:  # fmt: skip
        if not background:
            digests = [item.digest for item in items if item.digest not in BARE]
            self.engine.check_room(len(items), deadline, digests, asker)
        frames, answers = pixels.array, list[Future[Answer]]()
        try:
            for item in items:
                if pool := BARE.get(item.digest):
                    meta = AdapterMeta.bare(self.backbone.layout, self.backbone.input, len(frames), pool)
                    answer = self.engine.embed(frames, deadline, meta, picture, asker, background=background)
                else:
                    load = Load(self.loading, item.digest, item.files)
                    answer = self.engine.submit(
                        item.task, item.digest, load, frames, deadline, asker, picture=picture, admitted=True,
                        embed=embed, background=background,
                    )  # fmt: skip
                answer.add_done_callback(_Hold(pixels))
                answers.append(answer)
        except AdaptError as error:
            for answer in answers:
                answer.cancel()
            error.facts.setdefault("task", items[len(answers)].task)
            raise
        return answers

    async def try_file(self, file: str, digest: str, task: str, deadline: float, asker: Asker = NOBODY) -> None:
        adapter, packed = await asyncio.wrap_future(self.files.submit(lambda: self._read(Path(file), digest)))
        blank = np.zeros((adapter.config.frames, 3, *adapter.config.input.size), np.uint8)
        trial = self.engine.submit(task, adapter.digest, lambda: packed, blank, deadline, Asker(*asker))
        await asyncio.wrap_future(trial)

    async def pin(self, items: Sequence[Item]) -> None:
        async with self._pinning:
            failure: AdaptError | None = None
            wanted = {item.task: item.digest for item in items}
            self._pinned = {task: digest for task, digest in self._pinned.items() if task in wanted}
            for item in items:
                try:
                    await self._pin(item)
                except AdaptError as error:
                    failure = failure or error.copy()
                    failure.facts.setdefault("task", item.task)
            self.bank.keep(self._pinned.values())
        if failure is not None:
            raise failure

    async def _pin(self, item: Item) -> None:
        """One: its task's former version stays until this one is there, in the slot that nobody has pinned."""
        self.bank.keep({*self._pinned.values(), item.digest})
        if not self.bank.resident(item.digest):
            lease = self.bank.acquire(item.digest, Load(self.loading, item.digest, item.files))
            (await asyncio.wrap_future(lease)).release()
        self._pinned[item.task] = item.digest
        self.bank.keep(self._pinned.values())

    def forget(self, digest: str) -> None:
        self.bank.forget(digest)

    async def tiers(self, digests: Sequence[str]) -> Sequence[str]:
        return [self.bank.tier(digest) for digest in digests]

    async def ready(self) -> Readiness:
        return Readiness(await self.health.check(self.engine), self.engine.busy_s)

    async def snapshot(self) -> Snapshot:
        stats, slabs, prefixes = self.bank.stats(), self.bank.slabs, self._prefixes
        if slabs.device.type == "cuda":
            memory = torch.cuda.memory_reserved(slabs.device)
        else:
            memory = slabs.nbytes + sum(p.nbytes for p in self.backbone.model.parameters())
            memory += prefixes.nbytes if prefixes else 0
        return Snapshot(
            queue_rows=self.engine.queued_rows,
            slots={"used": stats.used - stats.pinned, "pinned": stats.pinned, "free": stats.slots - stats.used},
            host_cache_bytes=stats.host_bytes,
            loads=stats.loads,
            evictions=stats.evictions,
            device_memory_bytes=memory,
            ready=self.health.ready(self.engine),
            prefix_cache_hits=prefixes.hits if prefixes else 0,
            running_rows=self.engine.runner.rows if self.engine.busy_s else 0,
            resident=stats.resident[-MOST_TOLD:],
            waiting=stats.waiting[:MOST_TOLD],
        )

    @property
    def hanging(self) -> list[str]:
        """After the close: what did not end."""
        what = {"a batch on the device": self.engine.alive, "a load": self.bank.alive, "an upload": self.files.alive}
        return [name for name, alive in what.items() if alive]

    def _read(self, path: Path, digest: str) -> tuple[Adapter, PackedAdapter]:
        adapter = self.loading.read(path, digest)
        return adapter, self.loading.pack(adapter)


@contextmanager
def local_engine(
    settings: Settings, device: str, metrics: Metrics, room: Room | None = None, front_ends: int = 1
) -> Iterator[LocalEngine]:
    """An engine that has computed a first forward. Raises BackboneError and more."""
    with ExitStack() as stack:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        backbone = load_backbone(settings.backbone, settings.weights, device, settings.dtype, settings.image_size)
        _check_batch(settings, backbone)
        health = Health(
            backbone.layout.input_size, fresh_s=settings.ready_fresh_s, timeout_s=settings.ready_timeout_s,
            frames=backbone.layout.frames,
        )  # fmt: skip
        slabs = _slabs(settings, backbone)
        made: list[LocalEngine] = []
        bank = Bank(slabs, host_cache_bytes=settings.host_cache_bytes, on_load=_both(metrics, made))
        stack.callback(bank.close)
        forward = BankedForward(
            backbone, slabs, cuda_graphs=settings.cuda_graphs, compile=settings.compile,
            prefix_cache_bytes=settings.prefix_cache_bytes,
        )  # fmt: skip
        forward.warm_up((1, settings.max_batch_rows))
        engine = Engine(
            forward,
            bank,
            max_batch_rows=settings.max_batch_rows,
            max_queue_rows=settings.max_queue_rows,
            on_batch=_tell(metrics, health),
            last_step=lambda: backbone.last_step,
            room=room or Room.of(settings),
            task_weights=weights_of(settings.task_weights),
            background_rows=BACKGROUND_ROWS if backbone.device.type == "cuda" else 1,
        )
        engine.start()
        stack.callback(engine.close)
        stack.callback(engine.drain, min(settings.drain_s, CLOSE_S))  # front ends have drained before; for rests
        health.ask(engine, WARM_UP_S)  # nobody is served before the device has computed
        # An upload has one job at a time.
        files = Pool(
            "upload", workers=settings.max_uploads, max_waiting=settings.max_uploads * front_ends, setting="max_uploads"
        )
        stack.callback(files.close)
        loading = Loading(slabs, file_limits(settings, slabs.rank))
        made.append(LocalEngine(backbone, bank, engine, loading, health, files, forward.prefixes))
        yield made[0]


class _Hold:
    """An answer that is awaited refers to this, and so to its pixels, whose rows stay its own until it is there."""

    def __init__(self, pixels: Framed) -> None:
        self._pixels: Framed | None = pixels

    def __call__(self, _: Future[Answer]) -> None:
        self._pixels = None  # a future keeps what it called


def _check_batch(settings: Settings, backbone: Backbone) -> None:
    """Raise BackboneError where a batch could not hold what the backbone sees together."""
    frames = backbone.layout.frames
    if settings.max_batch_rows < frames:
        raise BackboneError(
            f"{backbone.layout.model} sees clips of {frames} frames, and a batch holds {settings.max_batch_rows} rows; "
            f"start with {raised(('max_batch_rows',), frames)}",
            field="max_batch_rows", limit=settings.max_batch_rows, value=frames,
        )  # fmt: skip


def _slabs(settings: Settings, backbone: Backbone) -> Slabs:
    return Slabs(
        backbone.layout,
        slots=settings.slots,
        rank=backbone.layout.slot_rank(settings.max_rank),
        pages=PAGES_PER_SLOT * settings.slots + -(-settings.max_classes // PAGE),
        dtype=backbone.dtype,
        device=backbone.device,
        seen=backbone.input,
    )


def _both(metrics: Metrics, engines: Sequence[LocalEngine]) -> Callable[[float], None]:
    def call(seconds: float) -> None:
        metrics.loaded(seconds)
        for engine in engines:
            engine.on_loaded()

    return call


def _tell(metrics: Metrics, health: Health) -> Callable[[BatchReport], None]:
    def call(report: BatchReport) -> None:
        metrics.batch(report.rows, report.adapters, report.holders, report.compute_s, failed=report.failed)
        health.saw(report)

    return call
