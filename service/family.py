"""A child of the supervisor: a process, how it is started, and how one speaks to it. `service.child` is its own side.

It does not know what the process is for.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters.errors import AdaptError
from service import child
from service.exits import FAILED
from service.messages import Channel, Message
from service.settings import Settings
from service.watch.metrics import SHARED_FOLDER

COMMAND: tuple[str, ...] = (sys.executable, "-m")
"""How a child's module is run."""


class Ended(AdaptError):
    """A child ended that the server cannot do without; ``code`` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Child:
    """A process, how to speak to it, and what it said at its start."""

    name: str
    process: asyncio.subprocess.Process
    channel: Channel
    up: asyncio.Future[dict[str, Any]]
    ended: asyncio.Task[int]
    built: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    since: float = 0.0
    silent: int = 0


async def spawn(
    name: str, module: str, told: dict[str, Any], settings: Settings, passed: Sequence[int], metrics: Path,
    on_message: Callable[[Child, Message], None],
) -> Child:  # fmt: skip
    """Start a module as a child. ``passed`` are the descriptors that it may use, ``metrics`` is where it counts."""
    ours, theirs = socket.socketpair()
    with theirs, ExitStack() as undo:
        undo.callback(ours.close)
        process = await asyncio.create_subprocess_exec(
            *COMMAND, module, str(theirs.fileno()), pass_fds=(theirs.fileno(), *passed),
            stdin=asyncio.subprocess.DEVNULL, start_new_session=True,  # a terminal's Ctrl-C is ours alone
            env=os.environ | {SHARED_FOLDER: str(metrics)},
        )  # fmt: skip
        undo.pop_all()
        with suppress(ConnectionError):  # it has ended already, which is seen
            # Keys may be more than the socket holds while nobody reads.
            await asyncio.to_thread(ours.sendall, child.beginning(told | {"settings": settings.model_dump_json()}))
    made: list[Child] = []
    channel = Channel(lambda message: on_message(made[0], message), lambda: None)
    loop = asyncio.get_running_loop()
    made.append(Child(name, process, channel, loop.create_future(), loop.create_task(process.wait())))
    await loop.create_unix_connection(lambda: channel, sock=ours)
    return made[0]


def how_ended(code: int) -> str:
    """For a sentence about a process."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


async def has_said(one: Child, sign: asyncio.Future[Any] | None = None) -> Any:
    """Wait until it has, that it is up if nothing else. Raises why it could not start, or Ended."""
    sign = sign or one.up
    await asyncio.wait({sign, one.ended}, return_when=asyncio.FIRST_COMPLETED)
    if sign.done():
        return sign.result()
    code = one.ended.result()
    raise Ended(f"the {one.name} process ended at its start (exit code {code}); its log says why", FAILED)
