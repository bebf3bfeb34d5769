"""`adaptserve` in which the device, a load or decoding hangs while a file of that name exists, or each load takes long.

It stands in for a driver, a network disk or a codec that does not come back, and for adapters of real size. While
there is a file `crash`, front ends end as soon as they start; while there is `short`, as soon as they are up.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import children

FOLDER = "TEST_HANG"
"""The variable that names the folder of the files."""
LOAD_S = "TEST_LOAD_S"
"""The variable that says how many seconds a load takes."""


def _hang(sign: Path, inner: Callable[..., Any]) -> Callable[..., Any]:
    def outer(*args: Any, **kwargs: Any) -> Any:
        if sign.exists():
            sign.with_suffix(".reached").touch()
        while sign.exists():
            time.sleep(0.02)
        return inner(*args, **kwargs)

    return outer


def _slow(seconds: float, inner: Callable[..., Any]) -> Callable[..., Any]:
    def outer(*args: Any) -> Any:
        end = time.monotonic() + seconds
        loaded = inner(*args)
        time.sleep(max(0.0, end - time.monotonic()))
        return loaded

    return outer


def _short(sign: Path, inner: Callable[..., Any]) -> Callable[..., Any]:
    def end() -> None:
        if sign.exists():
            os._exit(70)

    async def outer(*args: Any, **kwargs: Any) -> None:
        await inner(*args, **kwargs)
        asyncio.get_running_loop().call_later(0.05, end)

    return outer


def _change(process: str) -> None:
    folder = Path(os.environ.get(FOLDER, "/nowhere"))
    if process == children.FRONT_END:
        if (folder / "crash").exists():
            sys.exit("told to crash")
        from service.web.decoding import Decoder
        from service.web.server import Server

        Server.startup = _short(folder / "short", Server.startup)  # type: ignore[method-assign]
        Decoder._decode = _hang(folder / "decode", Decoder._decode)  # type: ignore[method-assign]
        return
    from adapters.forward.banked import BankedForward
    from service.engine.loading import Loading

    slow = _slow(float(os.environ.get(LOAD_S, "0")), Loading.load)
    Loading.load = _hang(folder / "load", slow)  # type: ignore[method-assign]
    BankedForward.__call__ = _hang(folder / "device", BankedForward.__call__)  # type: ignore[method-assign]


if __name__ == "__main__":
    children.run("tests.hanging", _change)
