"""What every test run shares: few threads, no network, a reason for each skipped GPU test, and one small backbone.

`make test` runs two files at a time, each in a worker process of its own. A test marked ``alone`` measures time, so
no other test runs beside it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser import Browser
    from tests.houses import House, Kit, Process

WORKER = "PYTEST_XDIST_WORKER" in os.environ
# Before torch is imported: all workers together have as many threads as the smallest machine, and starve nobody.
os.environ.setdefault("OMP_NUM_THREADS", "1" if WORKER else "2")
# Child processes inherit it; weights come from the tests themselves.
os.environ["HF_HUB_OFFLINE"] = "1"


def _refuse_network(event: str, args: tuple[object, ...]) -> None:
    """An audit hook: a connection or a name look-up beyond this machine fails the test that asked for it."""
    if event == "socket.connect":
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # a str or bytes is a Unix socket
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else host
    if isinstance(name, str) and not _is_local(name):
        raise PermissionError(f"tests stay on this machine, and this one wants to reach {name!r}")


def _is_local(host: str) -> bool:
    if host in {"", "localhost"}:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


sys.addaudithook(_refuse_network)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Workers share the machine test by test, with what a test sets up and takes down; the wait is not the test's."""
    if not WORKER:
        return (yield)
    run = Path(item.config.option.basetemp).parent  # that of all workers
    with machine(run, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def machine(run: Path, *, alone: bool) -> Iterator[None]:
    """Shared, or held by one; who waits to be alone waits at the gate, past which nobody else comes meanwhile."""
    with (run / "machine").open("a") as held, (run / "gate").open("a") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)  # not by closing alone: a process that the test forked may have it too


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A small backbone, and adapter files for it."""
    from tests.houses import Kit  # torch, after the lines above

    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server on the demo, in this process, for the tests of the page."""
    from service.settings import Settings
    from tests.houses import house

    data = tmp_path_factory.mktemp("data")
    with house(Settings(data_dir=data, device="cpu", dtype="float32", threads=1, port=0)) as home:
        yield home


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a file's tests, whose camera is a made-up one."""
    from tests.browser import Browser

    with Browser(["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]) as opened:
        opened.look(1280, 900)
        yield opened


@pytest.fixture
def page(served: House | Process, browser: Browser) -> Iterator[Browser]:
    """The page, newly opened; afterwards its console is empty and it has asked nobody else."""
    from tests.page_driving import shown

    with shown(browser, served.url) as opened:
        yield opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` run where CUDA is, and say why not elsewhere."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))
