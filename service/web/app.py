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
from adapters.forward.banked import BankedForward
from service.engine.engine import CLOSE_S, BatchReport, Engine
from service.keys import Keys
from service.limits import file_limits, media_limits
from service.settings import Settings
from service.store.catalogue import Catalogue
from service.store.demo import publish_demo
from service.store.repository import Repository
from service.version import installed_version
from service.watch import tracing
from service.watch.counts import Counts
from service.watch.health import Health
from service.watch.metrics import Metrics, Snapshot
from service.web import problems, routes
from service.web.addresses import Methods, PlainPath
from service.web.budget import Budget
from service.web.decoding import Decoder
from service.web.door import Cors, KnownHost, KnownOrigin, Proxies
from service.web.middleware import LastResort, RequestContext
from service.web.parts import Parts
from service.web.pool import Pool
from service.web.prediction import Predictor
from service.web.routes.guard import guard, still_open
from service.web.routes.parameters import known_parameters
from service.web.uploads import Uploads

log = logging.getLogger(__name__)

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
        forward = BankedForward(backbone, slabs, cuda_graphs=settings.cuda_graphs, compile=settings.compile)
        forward.warm_up((1, settings.max_batch_rows))
        engine = Engine(
            forward,
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
        limits = file_limits(settings, slabs.rank)
        catalogue = Catalogue(repository, bank, limits, cache_bytes=settings.config_cache_bytes)
        if settings.backbone == "demo":
            publish_demo(catalogue)
        decode_pool = Pool(
            "decode", workers=_decode_workers(settings),
            max_waiting=settings.max_decodes_waiting, setting="max_decodes_waiting",
        )  # fmt: skip
        stack.callback(decode_pool.close)
        decoder = Decoder(decode_pool, media_limits(settings))
        decoder.warm_up(backbone.input)
        # An upload has one job at a time, and one more to clear up after it.
        upload_pool = Pool(
            "upload", workers=settings.max_uploads, max_waiting=2 * settings.max_uploads, setting="max_uploads"
        )
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
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(still_open), Depends(guard), Depends(known_parameters)],
    )
    app.state.parts = parts
    problems.install(app)
    routes.install(app)
    # From the inside out: a request passes the last one first.
    app.add_middleware(Methods)
    app.add_middleware(KnownOrigin, settings=parts.settings)
    app.add_middleware(LastResort)
    if parts.settings.allowed_origins:
        app.add_middleware(Cors, settings=parts.settings)
    app.add_middleware(KnownHost, settings=parts.settings)
    app.add_middleware(RequestContext, on_done=parts.metrics.requested)
    app.add_middleware(PlainPath, root_path=parts.settings.root_path)
    if parts.settings.trusted_proxies:
        app.add_middleware(Proxies, settings=parts.settings)
    app.openapi()  # calls are held against it; made here, no request waits a tenth of a second for it
    return app


def _slabs(settings: Settings, backbone: Backbone) -> Slabs:
    return Slabs(
        backbone.layout,
        slots=settings.slots,
        rank=backbone.layout.slot_rank(settings.max_rank),
        pages=PAGES_PER_SLOT * settings.slots + -(-settings.max_classes // PAGE),
        dtype=backbone.dtype,
        device=backbone.device,
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
