"""Parts: everything the server is made of, in one frozen value, so that nothing is a global.

``service.web.app`` builds and closes it; it does nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.backbone import Backbone
from adapters.bank import Bank
from service.engine.engine import Engine
from service.keys import Keys
from service.settings import Settings
from service.store.catalogue import Catalogue
from service.store.repository import Repository
from service.watch.counts import Counts
from service.engine.health import Health
from service.watch.metrics import Metrics
from service.watch.tracing import Tracing
from service.web.budget import Budget
from service.pool import Pool
from service.web.prediction import Predictor
from service.web.uploads import Uploads


@dataclass(frozen=True)
class Parts:
    """In the order in which they are built; closed in reverse."""

    settings: Settings
    keys: Keys
    backbone: Backbone
    bank: Bank
    engine: Engine
    repository: Repository
    catalogue: Catalogue
    bodies: Budget
    decode_pool: Pool
    upload_pool: Pool
    predictor: Predictor
    uploads: Uploads
    health: Health
    metrics: Metrics
    counts: Counts
    tracing: Tracing | None
