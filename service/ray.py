"""Ray Serve: the server as replicas of one deployment. `serve run service.ray:app`, or `adaptserve ray deploy`.

A replica is a whole server in one process, engine and front end, behind Ray's own proxy; what several of them share is
the store. Ray is imported where it is needed: the rest of this file, and its tests, do without.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.types import ASGIApp

from adapters.limits import PREFIX
from service.alone import Alone, alone
from service.errors import BadRequest, Conflict
from service.hosts import is_loopback
from service.keys import Keys, dump
from service.settings import Settings, read_settings
from service.store.locks import FolderLock
from service.watch import logs
from service.web.proxied import Behind

log = logging.getLogger(__name__)

NAME = "adaptserve"
"""Of the application and its deployment."""
MOST_ON_ONE_MACHINE = 64
LOOK_S, PATIENCE_S = 0.25, 10.0
"""How often, and how long beyond ``drain_s``, a replica without a store waits for the one before it to leave."""
QUEUE_S, BUSY = "adaptserve_queue_s", "adaptserve_busy"
"""What each replica tells Ray's autoscaler: how long its queue takes, and whether its device computes now."""
MOST_BUSY = 0.8
"""Replicas are taken away only where the rest would compute for no more than this share of the time."""
MOST_GROWTH = 2.0
"""So many times as many replicas at most, in one step."""


class RaySettings(BaseSettings):
    """What only Ray need know; docs/SCALE.md has the table. In the environment the names begin with ADAPTSERVE_RAY_."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}RAY_", frozen=True, extra="forbid")

    replicas: int = Field(1, ge=1, le=10_000, description="Replicas; with max_replicas above it, the fewest.")
    max_replicas: int = Field(0, ge=0, le=10_000, description="The most that autoscaling may start; 0: as many always.")
    queue_s: float = Field(
        0.1, gt=0, description="How long a queue may take on average until more replicas are started, in seconds."
    )
    up_s: float = Field(15.0, ge=0, description="For how long it must have been longer, in seconds.")
    down_s: float = Field(300.0, ge=0, description="For how long fewer must have done, in seconds.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs of a replica, parts too: 0.5 puts two on one.")
    num_cpus: float = Field(1.0, ge=0, description="Cores that Ray sets aside for a replica, and torch's threads.")

    @property
    def most(self) -> int:
        """Replicas that there may be."""
        return max(self.replicas, self.max_replicas)


def app(args: Mapping[str, Any]) -> Any:
    """The application that Ray deploys. ``args`` are settings of both kinds by their names; the environment has others.

    `serve run service.ray:app replicas=2 store=s3://bucket/tasks`. Raises BadRequest for what cannot be.
    """
    own = {name: value for name, value in args.items() if name in RaySettings.model_fields}
    others = {name: value for name, value in args.items() if name not in own}
    if unknown := sorted(others.keys() - Settings.model_fields.keys()):
        known = ", ".join(RaySettings.model_fields)
        raise BadRequest(
            f"there is no setting {', '.join(unknown)}; there are those of docs/SETTINGS.md in small letters without "
            f"{PREFIX}, and {known}", field=unknown[0],
        )  # fmt: skip
    return deployment(RaySettings(**own), read_settings(**others))


def deployment(ray_settings: RaySettings, settings: Settings) -> Any:
    """The same from settings. Raises BadRequest for what cannot be, and what reading the keys does."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    check(ray_settings, settings)
    scale: dict[str, Any] = {"num_replicas": ray_settings.replicas}
    if ray_settings.max_replicas > ray_settings.replicas:
        policy = AutoscalingPolicy(
            policy_function=f"{__name__}:{QueuePolicy.__name__}", policy_kwargs={"queue_s": ray_settings.queue_s}
        )
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=ray_settings.replicas, max_replicas=ray_settings.max_replicas, policy=policy,
                upscale_delay_s=ray_settings.up_s, downscale_delay_s=ray_settings.down_s,
            )
        }  # fmt: skip
    made = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        ray_actor_options={"num_cpus": ray_settings.num_cpus, "num_gpus": ray_settings.num_gpus},
        max_ongoing_requests=settings.max_connections,  # refusing is the server's own business
        max_queued_requests=settings.max_connections,
        health_check_period_s=5,
        health_check_timeout_s=settings.ready_timeout_s + 5,
        graceful_shutdown_timeout_s=settings.drain_s + 5,
        graceful_shutdown_wait_loop_s=1,
        **scale,
    )
    return made.bind(of_replicas(settings).model_dump_json())


def check(ray_settings: RaySettings, settings: Settings) -> None:
    """Raises BadRequest where the replicas could not serve the same."""
    if ray_settings.most > 1 and not settings.store:
        raise BadRequest(
            f"{ray_settings.most} replicas need a store that they share, or each would have tasks of its own; name one "
            f"({PREFIX}STORE, store=): s3://, gs:// or az:// with bucket and path, or file:// for a folder that all "
            "machines have", field="store",
        )  # fmt: skip
    if "," in settings.device:
        raise BadRequest(
            "a replica has one device; start as many replicas as there are devices (replicas, num_gpus)", field="device"
        )
    if ray_settings.num_gpus and settings.device == "cpu":
        raise BadRequest("num_gpus sets GPUs aside, and device is cpu; leave one of them out", field="num_gpus")


def of_replicas(settings: Settings) -> Settings:
    """The same for replicas, which may be on other machines and run in other folders; in them nobody trains.

    Raises BadKeys and more.
    """
    keys = Keys.read(settings.keys, settings.keys_file)
    return settings.model_copy(
        update={
            "keys": dump(keys.all) if keys else "", "keys_file": "", "data_dir": settings.data_dir.absolute(),
            "max_trainings": 0,
        }
    )  # fmt: skip


class Replica:
    """One server. Ray makes it on the event loop that serves its requests."""

    def __init__(self, settings: str) -> None:
        """``settings`` as JSON."""
        self._settings = Settings.model_validate_json(settings)
        self._stack = ExitStack()
        self._alone: Alone | None = None
        self._following: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray asks for the application by."""
        logs.configure(self._settings.log_level, self._settings.log_format)
        check_door(self._settings, *listening())
        return await self.begin(_own_name())

    async def begin(self, name: str) -> ASGIApp:
        """Return once the device has computed and pinned tasks are there: who comes up serves at once."""
        self._alone = await asyncio.to_thread(self._begin)
        front_end = self._alone.front_end
        await front_end.pins.settle()
        self._following = asyncio.create_task(front_end.pins.follow())
        return Behind(front_end.served, name, self.end)

    def _begin(self) -> Alone:
        own, lock = claimed(self._settings, self._stack)
        log.info("this replica's folder is %s", own.data_dir)
        return self._stack.enter_context(alone(own, lock))

    async def check_health(self) -> None:
        """As /readyz. Ray starts another replica for one that raises here three times in a row."""
        if self._alone is not None:
            await self._alone.engine.ready()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For ``QueuePolicy``; Ray asks twice a second and averages."""
        if self._alone is None:
            return {QUEUE_S: 0.0, BUSY: 0.0}
        engine = self._alone.engine.engine
        return {QUEUE_S: engine.room.wait_s, BUSY: float(engine.busy_s > 0)}

    async def end(self) -> None:
        """After the last answer."""
        if self._following is not None:
            self._following.cancel()
        await asyncio.to_thread(self._stack.close)


def claimed(settings: Settings, stack: ExitStack) -> tuple[Settings, FolderLock]:
    """A data folder that no other replica on this machine has, which ``stack`` keeps; blocks. Raises Conflict.

    With a store it is below the setting's: numbered, and a replica takes the first that is free, so that one which
    comes after another finds the files that it left. Without, it waits for the one that there is.
    """
    number, waited = 0, 0.0
    while True:
        own = settings
        if settings.store:
            own = settings.model_copy(update={"data_dir": settings.data_dir / f"replica-{number}"})
        try:
            return own, stack.enter_context(FolderLock(own.data_dir))
        except Conflict:
            if number == MOST_ON_ONE_MACHINE or waited > settings.drain_s + PATIENCE_S:
                raise
        if settings.store:
            number += 1
        else:
            time.sleep(LOOK_S)
            waited += LOOK_S


class QueuePolicy:
    """How many replicas there should be, for Ray's autoscaler; it waits and keeps within bounds by itself."""

    def __init__(self, queue_s: float) -> None:
        self._queue_s = queue_s

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """From what replicas recorded, the mean of each over the last half minute."""
        told = {name: list(context.aggregated_metrics.get(name, {}).values()) for name in (QUEUE_S, BUSY)}
        return wanted(context.target_num_replicas, told[QUEUE_S], told[BUSY], self._queue_s), {}


def wanted(replicas: int, queues: Sequence[float], busy: Sequence[float], queue_s: float) -> float:
    """More in the proportion in which the mean queue is too long; fewer where the rest would not be too busy."""
    if not queues or not busy:
        return replicas
    queue = fmean(queues)
    if queue > queue_s:
        return replicas * min(queue / queue_s, MOST_GROWTH)
    return min(replicas, max(1, math.ceil(sum(busy) / MOST_BUSY)))


def check_door(settings: Settings, host: str, ports: bool) -> None:
    """Raises BadRequest where other machines could upload and delete: Ray listens there, and there are no keys.

    ``ports``: replicas have ports of their own, on all addresses, as Ray with HAProxy gives them.
    """
    if settings.keys or settings.insecure or not (ports or not is_loopback(host)):
        return
    where = "replicas behind HAProxy listen on all addresses" if ports else f"Ray listens on {host}"
    raise BadRequest(
        f"{where}, and anybody there could upload and delete tasks; make a key with `adaptserve keys create` and name "
        "its file (keys_file=), or say insecure=true if the network is trusted", field="keys",
    )  # fmt: skip


def listening() -> tuple[str, bool]:
    """The address that Ray's proxies have, and whether replicas have ports of their own."""
    from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS
    from ray.serve.context import _get_global_client

    return str(_get_global_client().http_config.host or ""), bool(RAY_SERVE_ENABLE_DIRECT_INGRESS)


def _own_name() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_tag)
