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
from service.engine.engine import Engine
from service.engine.health import Health
from service.errors import DeadlineExceeded, Draining

log = logging.getLogger(__name__)

TRIES = 6
"""Looks that must find no life in a row, over the time allowed; so a process that was suspended wakes up in peace."""


@contextmanager
def watching(engine: Engine, health: Health, lost_s: float, on_lost: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, call ``on_lost`` with a sentence once the device has shown no life for ``lost_s`` seconds.

    Life is a forward pass that succeeds, or one under way in which block after block is computed: a slow device is
    not a lost one. On CUDA, where blocks only queue up, it is the end of a batch, so ``lost_s`` must be longer than the
    slowest of them. ``on_lost`` is called on a thread of its own, at most once; 0 seconds means never.
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
    while True:
        due = max(due + tick, time.monotonic())
        if end.wait(due - time.monotonic()):
            return
        why, waited = ("", False) if health.age <= tick else _ask(engine, health, tick)
        failed = failed + 1 if why and health.age > tick else 0
        if failed == 1:
            log.warning("the device does not compute (%s); if it stays so for %g s, the process ends", why, lost_s)
        if failed >= TRIES - waited:  # an answer that was waited for in vain has taken its share of the time already
            break
    if not end.is_set():
        on_lost(f"the device has computed nothing for {lost_s:g} s (device_lost_s): {why}")


def _ask(engine: Engine, health: Health, timeout_s: float) -> tuple[str, bool]:
    """Empty, or why no forward pass came of it; and whether all the time went by."""
    if not engine.alive:
        return "the engine's thread has ended", False
    start = time.monotonic()
    try:
        health.ask(engine, timeout_s)
    except Draining:
        return "", False
    except (TimeoutError, DeadlineExceeded):
        gets_on = engine.last_step() > start
        return "" if gets_on else f"a forward pass did not end within {timeout_s:g} s", True
    except AdaptError as error:
        return engine.last_failure or error.message, False
    return "", False
