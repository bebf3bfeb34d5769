"""Watchdog: a device that computes nothing any more is noticed, also when nobody asks, and the process may end.

It knows the engine and its health; what an end means (an exit code, a restart) is its caller's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapters.errors import AdaptError
from service.engine import Engine
from service.errors import Draining
from service.serving.health import Health

log = logging.getLogger(__name__)

TRIES = 6
"""Forward passes that must fail in a row, over the time allowed; so a process that was suspended wakes up in peace."""


@contextmanager
def watching(engine: Engine, health: Health, lost_s: float, on_lost: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, call ``on_lost`` with a sentence once no forward pass succeeded for ``lost_s`` seconds.

    It is called on a thread of its own, at most once; 0 seconds means never.
    """
    end = threading.Event()
    if lost_s:
        arguments = (engine, health, lost_s, on_lost, end)
        threading.Thread(target=_watch, args=arguments, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        end.set()  # not joined: its last forward pass may hang


def _watch(engine: Engine, health: Health, lost_s: float, on_lost: Callable[[str], None], end: threading.Event) -> None:
    """Every ``lost_s / TRIES`` seconds: anybody's batch is proof enough, else ask for one."""
    tick, failed, due = lost_s / TRIES, 0, time.monotonic()
    while failed < TRIES:
        due = max(due + tick, time.monotonic())
        if end.wait(due - time.monotonic()):
            return
        why = "" if health.age <= tick else _ask(engine, health, tick)
        failed = failed + 1 if why and health.age > tick else 0
        if failed == 1:
            log.warning("the device does not compute (%s); if it stays so for %g s, the process ends", why, lost_s)
    if not end.is_set():
        on_lost(f"the device has computed nothing for {lost_s:g} s (device_lost_s): {why}")


def _ask(engine: Engine, health: Health, timeout_s: float) -> str:
    """Empty, or why no forward pass came of it."""
    if not engine.alive:
        return "the engine's thread has ended"
    try:
        health.ask(engine, timeout_s)
    except Draining:
        return ""
    except TimeoutError:
        return f"a forward pass did not end within {timeout_s:g} s"
    except AdaptError as error:
        return engine.last_failure or error.message
    return ""
