"""Parts: everything the server is made of, in one frozen value, so that nothing is a global.

``service.app`` builds and closes it; it does nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.backbone import Backbone
from adapters.bank import Bank
from service.engine import Engine
from service.keys import Keys
from service.metrics import Metrics
from service.repository import Repository
from service.serving.budget import Budget
from service.serving.catalogue import Catalogue
from service.serving.counts import Counts
from service.serving.health import Health
from service.serving.pool import Pool
from service.serving.prediction import Predictor
from service.serving.uploads import Uploads
from service.settings import Settings
from service.tracing import Tracing


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
