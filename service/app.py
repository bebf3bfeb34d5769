"""Builds the server's parts, in order, closes them in reverse, and puts HTTP in front.

It knows every part and none of their insides; settings are passed in.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from fastapi import Depends, FastAPI
from prometheus_client import CollectorRegistry

from adapters.backbone import Backbone, load_backbone
from adapters.bank import PAGE, Bank, Slabs
from adapters.file import FileLimits
from adapters.forward import BankedForward
from adapters.media import MediaLimits
from service import problems, routes, tracing
from service.engine import CLOSE_S, BatchReport, Engine
from service.keys import Keys
from service.metrics import Metrics, Snapshot
from service.middleware import RequestContext
from service.repository import Repository
from service.routes.guard import guard, still_open
from service.serving.budget import Budget
from service.serving.catalogue import Catalogue
from service.serving.counts import Counts
from service.serving.decoding import Decoder
from service.serving.demo import publish_demo
from service.serving.health import Health
from service.serving.parts import Parts
from service.serving.pool import Pool
from service.serving.prediction import Predictor
from service.serving.uploads import Uploads
from service.settings import Settings
from service.version import installed_version

log = logging.getLogger(__name__)

MIN_SLOT_RANK = 16
PAGES_PER_SLOT = 4
"""Head pages beside those of one largest head: 64 classes for each slot."""
WARM_UP_S = 300.0


@contextmanager
def build(settings: Settings) -> Iterator[Parts]:
    """Every part, ready to serve: the device has computed a first forward. Raises BackboneError, Conflict and more."""
    with ExitStack() as stack:
        keys = Keys.read(settings.keys, settings.keys_file)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        repository = Repository(
            settings.data_dir, max_tasks=settings.max_tasks, max_versions=settings.max_versions_per_task
        )
        stack.callback(repository.close)
        for sentence in repository.recover():
            log.warning("recovery: %s", sentence)
        backbone = load_backbone(settings.backbone, settings.weights, settings.device, settings.dtype)
        traces = tracing.start(settings)
        if traces is not None:
            stack.callback(traces.close)
        metrics, counts = Metrics(CollectorRegistry()), Counts()
        health = Health(backbone.layout.input_size, fresh_s=settings.ready_fresh_s, timeout_s=settings.ready_timeout_s)
        slabs = _slabs(settings, backbone)
        bank = Bank(slabs, host_cache_bytes=settings.host_cache_bytes, on_load=metrics.loaded)
        stack.callback(bank.close)
        engine = Engine(
            BankedForward(backbone, slabs, cuda_graphs=settings.cuda_graphs),
            bank,
            max_batch_rows=settings.max_batch_rows,
            max_queue_rows=settings.max_queue_rows,
            on_batch=_both(metrics.batch, health.saw),
            last_step=lambda: backbone.last_step,
        )
        engine.start()
        stack.callback(engine.close)
        stack.callback(engine.drain, min(settings.drain_s, CLOSE_S))  # HTTP has drained before; this is for rests
        health.ask(engine, WARM_UP_S)  # nobody is served before the device has computed
        catalogue = Catalogue(repository, bank, _file_limits(settings, slabs), max_descriptions=settings.max_tasks)
        if settings.backbone == "demo":
            publish_demo(catalogue)
        decode_pool = Pool("decode", workers=_decode_workers(settings), max_waiting=settings.max_decodes_waiting)
        stack.callback(decode_pool.close)
        decoder = Decoder(decode_pool, _media_limits(settings))
        decoder.warm_up(backbone.input)
        # An upload has one job at a time, and one more to clear up after it.
        upload_pool = Pool("upload", workers=settings.max_uploads, max_waiting=2 * settings.max_uploads)
        stack.callback(upload_pool.close)
        parts = Parts(
            settings=settings,
            keys=keys,
            backbone=backbone,
            bank=bank,
            engine=engine,
            repository=repository,
            catalogue=catalogue,
            bodies=Budget(settings.max_bodies_bytes, "max_bodies_bytes"),
            decode_pool=decode_pool,
            upload_pool=upload_pool,
            predictor=Predictor(decoder, engine, catalogue),
            uploads=Uploads(catalogue, bank, engine, upload_pool, metrics, max_uploads=settings.max_uploads),
            health=health,
            metrics=metrics,
            counts=counts,
            tracing=traces,
        )
        metrics.watch(lambda: _snapshot(parts), _build_info(backbone))
        yield parts


def create_app(parts: Parts) -> FastAPI:
    """The HTTP application over built parts; whoever built them closes them."""
    app = FastAPI(
        title="AdaptServe",
        version=installed_version(),
        description="One frozen Vision Transformer, many tasks; each is a small adapter file with its own endpoint.",
        redoc_url=None,
        dependencies=[Depends(still_open), Depends(guard)],
    )
    app.state.parts = parts
    problems.install(app)
    routes.install(app)
    app.add_middleware(RequestContext, on_done=parts.metrics.requested)
    return app


def _slabs(settings: Settings, backbone: Backbone) -> Slabs:
    return Slabs(
        backbone.layout,
        slots=settings.slots,
        rank=settings.max_rank or max(MIN_SLOT_RANK, backbone.layout.default_rank()),
        pages=PAGES_PER_SLOT * settings.slots + -(-settings.max_classes // PAGE),
        dtype=backbone.dtype,
        device=backbone.device,
    )


def _file_limits(settings: Settings, slabs: Slabs) -> FileLimits:
    return FileLimits(
        max_file_bytes=settings.max_adapter_bytes,
        max_header_bytes=settings.max_adapter_header_bytes,
        max_rank=slabs.rank,
        max_classes=settings.max_classes,
        max_frames=min(settings.max_clip_frames, settings.max_batch_rows),  # a clip's rows go in one batch
    )


def _media_limits(settings: Settings) -> MediaLimits:
    return MediaLimits(
        max_bytes=settings.max_body_bytes,
        max_pixels=settings.max_pixels,
        max_side=settings.max_side,
        max_frames=settings.max_clip_frames,
        max_frame_pixels=settings.max_frame_pixels,
        max_duration_s=settings.max_clip_seconds,
        decode_timeout_s=settings.decode_timeout_s,
    )


def _decode_workers(settings: Settings) -> int:
    return settings.decode_workers or len(os.sched_getaffinity(0))


def _both(first: Callable[[BatchReport], None], second: Callable[[BatchReport], None]) -> Callable[[BatchReport], None]:
    def call(report: BatchReport) -> None:
        first(report)
        second(report)

    return call


def _snapshot(parts: Parts) -> Snapshot:
    stats, slabs = parts.bank.stats(), parts.bank.slabs
    if slabs.device.type == "cuda":
        memory = torch.cuda.memory_reserved(slabs.device)
    else:
        memory = slabs.nbytes + sum(p.nbytes for p in parts.backbone.model.parameters())
    return Snapshot(
        queue_rows=parts.engine.queued_rows,
        slots={"used": stats.used - stats.pinned, "pinned": stats.pinned, "free": stats.slots - stats.used},
        host_cache_bytes=stats.host_bytes,
        loads=stats.loads,
        evictions=stats.evictions,
        device_memory_bytes=memory,
        ready=parts.health.ready(parts.engine),
    )


def _build_info(backbone: Backbone) -> dict[str, str]:
    layout = backbone.layout
    return {
        "version": installed_version(),
        "backbone": layout.model,
        "fingerprint": layout.fingerprint,
        "device": str(backbone.device),
    }
