"""The front end: builds what serves HTTP, in order, closes it in reverse, and puts the application in front.

It knows every part of a front end and none of their insides; the engine and the repository are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

from adapters.version import installed_version
from service.engine.interface import Link
from service.engine.pixels import PixelMemory
from service.keys import Keys
from service.limits import decode_workers, example_limits, file_limits, media_limits
from service.pool import Pool
from service.settings import Settings
from service.store.catalogue import Catalogue, Elsewhere
from service.store.examples import Examples
from service.store.recents import Recents
from service.store.repository import Repository
from service.teach.jobs import Jobs
from service.usage import USAGE, Consumption, open_table
from service.watch import tracing
from service.watch.counts import Counting
from service.watch.metrics import Metrics
from service.watch.versions import Ledger
from service.web import problems, routes
from service.web.addresses import Methods, PlainPath
from service.web.batches import BatchRunner
from service.web.budget import Budget
from service.web.comparisons import Comparisons
from service.web.decoding import Decoder
from service.web.door import Cors, KnownHost, KnownOrigin, Proxies
from service.web.intake import Intake
from service.web.middleware import LastResort, RequestContext
from service.web.pins import Pins
from service.web.prediction import Answers
from service.web.recorder import Recorder
from service.web.routes.guard import guard, still_open
from service.web.routes.parameters import known_parameters
from service.web.routes.plain import Plain
from service.web.routes.predict import Calls
from service.web.uploads import Uploads

ABOUT = "One frozen Vision Transformer, many tasks; each is a small adapter file with its own endpoint."


@dataclass(frozen=True)
class FrontEnd:
    """The framework's application, what a server runs around it, the catalogue that it reads, and its workers."""

    app: FastAPI
    served: ASGIApp
    catalogue: Catalogue
    pins: Pins
    pools: tuple[Pool, ...]

    @property
    def hanging(self) -> list[str]:
        """After the close: what did not end."""
        return [pool.name for pool in self.pools if pool.alive]


@contextmanager
def front_end(
    settings: Settings, engine: Link, repository: Repository, memory: PixelMemory, counts: Counting, ledger: Ledger,
    metrics: Metrics, job_added: Callable[[], None] = lambda: None, elsewhere: Elsewhere | None = None,
) -> Iterator[FrontEnd]:  # fmt: skip
    """Everything between a socket and an engine, ready to serve. Raises BadKeys and more.

    ``ledger`` takes down how versions do that a rule names. ``job_added`` is called when there is another training;
    nobody carries it out unless somebody hears it. ``elsewhere`` has tasks that are brought in when first asked for.
    """
    with ExitStack() as stack:
        keys = Keys.read(settings.keys, settings.keys_file)
        traces = tracing.start(settings)
        if traces is not None:
            stack.callback(traces.close)
        facts = engine.facts
        catalogue = Catalogue(
            repository, facts.layout, file_limits(settings, facts.rank), engine.forget,
            cache_bytes=settings.config_cache_bytes, elsewhere=elsewhere,
        )  # fmt: skip
        pins = Pins(settings, engine, catalogue, elsewhere)
        decoding = Pool(
            "decode", workers=decode_workers(settings),
            max_waiting=settings.max_decodes_waiting, setting="max_decodes_waiting", weights=keys.weights,
        )  # fmt: skip
        stack.callback(decoding.close)
        decoder = Decoder(decoding, media_limits(settings), memory, settings.max_queue_rows)
        decoder.warm_up(facts.input)
        # An upload has one job at a time, and one more to clear up after it.
        uploading = Pool(
            "upload", workers=settings.max_uploads, max_waiting=2 * settings.max_uploads, setting="max_uploads"
        )
        stack.callback(uploading.close)
        spooling = Pool(
            "batch", workers=settings.max_batches, max_waiting=2 * settings.max_batches, setting="max_batches"
        )
        stack.callback(spooling.close)
        recents, recorder = None, None
        if settings.keep_recent:
            recents = Recents(settings.data_dir, settings.keep_recent, settings.keep_recent_bytes)
            recorder = stack.enter_context(Recorder(recents))
        app = FastAPI(
            title="AdaptServe",
            version=installed_version(),
            description=ABOUT,
            redirect_slashes=False,
            docs_url=None,
            redoc_url=None,
            dependencies=[Depends(still_open), Depends(guard), Depends(known_parameters)],
        )
        # Endpoints declare which of these they use; ``routes.common`` hands them out.
        app.state.settings, app.state.keys, app.state.engine = settings, keys, engine
        app.state.catalogue, app.state.counts, app.state.metrics = catalogue, counts, metrics
        usage = Consumption(keys, open_table(settings.data_dir / USAGE, keys), refused=metrics.limited)
        app.state.answers = Answers(decoder, engine, catalogue, usage)
        app.state.ledger = ledger
        app.state.comparisons = Comparisons(
            settings, catalogue, app.state.answers, ledger.of, metrics.versions, engine.tiers
        )
        app.state.uploads = Uploads(catalogue, engine, uploading, metrics, max_uploads=settings.max_uploads)
        app.state.batches = BatchRunner(engine, settings, spooling, decoding.workers)
        app.state.bodies = Budget(settings.max_bodies_bytes, "max_bodies_bytes", keys.weights)
        app.state.examples = Examples(settings.data_dir, example_limits(settings), repository.owner)
        app.state.intake = Intake(app.state.examples, decoding, spooling, media_limits(settings))
        app.state.recents, app.state.recorder = recents, recorder
        app.state.jobs = Jobs(
            settings.data_dir, max_waiting=settings.max_jobs_waiting, max_kept=settings.max_jobs_kept,
            owner=repository.owner,
        )  # fmt: skip
        app.state.job_added = job_added
        app.state.tracing = traces
        app.state.calls = Calls(app.state)
        _install(app, settings)
        yield FrontEnd(app, _around(app, settings, keys, metrics), catalogue, pins, (decoding, uploading, spooling))


def _install(app: FastAPI, settings: Settings) -> None:
    problems.install(app)
    routes.install(app, settings.root_path)
    # From the inside out: a request passes the last one first.
    app.add_middleware(Methods)
    app.add_middleware(KnownOrigin, settings=settings)
    app.add_middleware(LastResort)
    if settings.allowed_origins:
        app.add_middleware(Cors, settings=settings)
    app.add_middleware(KnownHost, settings=settings)
    app.openapi()  # calls are held against it; made here, no request waits a tenth of a second for it


def _around(app: FastAPI, settings: Settings, keys: Keys, metrics: Metrics) -> ASGIApp:
    """What every request passes, the usual ones without going on into the framework."""
    plain = Plain(app, settings, keys, app.state.calls)
    named = PlainPath(RequestContext(plain, metrics.requested), settings.root_path, app)
    return Proxies(named, settings) if settings.trusted_proxies else named
