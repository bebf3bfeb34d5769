"""A process of the server under its supervisor: how it begins, hears of the end, and tells what went wrong.

It does not know what the process is for.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import AdaptError
from service.exits import CUT_OFF, FAILED
from service.messages import ALIVE, LENGTH_BYTES, Channel, Message, Told, failed, framed
from service.settings import Settings
from service.watch import logs

log = logging.getLogger(__name__)

LAST_WORDS_S = 1.0
NICENESS = 15
"""Of what goes last: beside one process that wants all of a core it has 3 % of it."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Beginning:
    """What the supervisor told, and the socket on which it says more."""

    control: socket.socket
    settings: Settings
    told: dict[str, Any]

    def refuse(self, error: AdaptError) -> None:
        """The process cannot start, and why; the supervisor tells the user."""
        self.control.setblocking(True)
        self.control.sendall(framed(failed(0, 0, error)))

    async def listen(self, on_message: Callable[[Message], None]) -> Channel:
        """From now on the event loop's."""

        def heard(message: Message) -> None:
            if isinstance(message, Told) and message.name == ALIVE:
                channel.send(message)
            else:
                on_message(message)

        channel = Channel(heard, lambda: None)
        await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=self.control)
        return channel


def begin() -> Beginning:
    """For the first line of a process; its one argument is the control socket's descriptor.

    Signals are the supervisor's: a terminal's Ctrl-C and a stray TERM reach all, and must cut nobody off. Where the
    supervisor dies, so does this process, whatever it is doing.
    """
    _die_with_parent()
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with control.makefile("rb", buffering=0) as stream:
        told = json.loads(_exactly(stream, int.from_bytes(_exactly(stream, LENGTH_BYTES), "little")))
    threading.Thread(target=_end_with_supervisor, args=(control.dup(),), name="supervisor", daemon=True).start()
    settings = Settings.model_validate_json(told["settings"])
    logs.configure(settings.log_level, settings.log_format)
    return Beginning(control, settings, told)


def go_last() -> None:
    """Let every other process of this machine have the processor first, from now on."""
    os.nice(NICENESS)
    with suppress(OSError):  # where the kernel weighs sessions, niceness says nothing beyond a process's own
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def beginning(told: dict[str, Any]) -> bytes:
    """What ``begin`` reads."""
    content = json.dumps(told).encode()
    return len(content).to_bytes(LENGTH_BYTES, "little") + content


def freeze() -> None:
    """What the start made stays.

    Left to the collector, half a million objects of torch and the tasks' hold up the event loop whenever it looks
    through all of them: for 0.3 s, whatever runs.
    """
    gc.collect()
    gc.freeze()


def end(why: str, code: int) -> None:
    """End at once, with a line in the log. Nothing can drain."""
    line = threading.Thread(
        target=log.critical, args=("%s; the process ends with exit code %d", why, code), daemon=True
    )
    line.start()
    line.join(LAST_WORDS_S)  # whoever should read the log may hang too
    os._exit(code)


def leave(hanging: list[str]) -> None:
    """All is closed. Python would now take libraries apart, for seconds in which nothing answers and nothing starts."""
    if hanging:
        end(f"the server was told to stop, and {' and '.join(hanging)} did not end", CUT_OFF)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _exactly(stream: Any, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = stream.read(count - len(content))
        if not part:
            os._exit(FAILED)  # the supervisor died before it had said a word
        content += part
    return content


def _die_with_parent() -> None:
    """Where the kernel can: it ends also a process that is stopped, or whose interpreter is stuck."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_supervisor(control: socket.socket) -> None:
    poller = select.poll()
    poller.register(control, 0)  # nothing but the other end's closing
    poller.poll()
    os._exit(FAILED)
