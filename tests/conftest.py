"""What every test run shares: few threads, no network, a reason for each skipped GPU test, and one small backbone."""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.houses import Kit

# Before torch is imported: as many threads as the smallest machine has, so that parallel runs do not starve each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")
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


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A small backbone, and adapter files for it."""
    from tests.houses import Kit  # torch, after the lines above

    return Kit(tmp_path_factory.mktemp("kit"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` run where CUDA is, and say why not elsewhere."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))
