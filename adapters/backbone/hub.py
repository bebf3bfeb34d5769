"""Whether timm's own weights can be had: from the hub, or from its cache where there is no network.

It builds no model and knows none but by name.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch


class OutOfReach(Exception):
    """There are no such weights, or no way to them; it says why."""


@contextmanager
def within_reach(name: str, patience_s: float) -> Iterator[None]:
    """Inside, timm loads the weights of that name. Without a network the hub's client would retry for a minute.

    ``patience_s``: for the hub's first answer, unless HF_HUB_ETAG_TIMEOUT is set. Raises OutOfReach.
    """
    hub = huggingface_hub.constants
    config = timm.get_pretrained_cfg(name)
    if not (config and config.has_weights):
        raise OutOfReach("timm has no pretrained weights for it")
    # Set by its user, the hub's time for a first answer counts; ten seconds as it comes are too long here.
    bound = patience_s if hub.HF_HUB_ETAG_TIMEOUT == hub.DEFAULT_ETAG_TIMEOUT else float(hub.HF_HUB_ETAG_TIMEOUT)
    address = hub.ENDPOINT if config.hf_hub_id else config.url
    if hub.HF_HUB_OFFLINE or _reachable(address, bound):
        yield
        return
    if not _is_cached(config):
        raise OutOfReach(
            f"{address} cannot be reached in {bound:g} s, and its weights are not in the local cache; "
            "the environment's HF_HUB_ETAG_TIMEOUT gives a slow network more seconds"
        )
    with _offline():
        yield


def _is_cached(config: Any) -> bool:
    """Whether the hub's client has anything of the model's repository, or torch's has the file of an address."""
    if not config.hf_hub_id:
        return (Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name).is_file()
    try:
        huggingface_hub.snapshot_download(config.hf_hub_id, local_files_only=True)
    except Exception:  # of a kind for each thing that may be missing
        return False
    return True


def _reachable(address: str, bound: float) -> bool:
    """Whether anything answers there in ``bound`` seconds, by the hub's own client with its proxies and certificates.

    In a thread, since a name server that does not answer heeds no timeout of a client.
    """
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            huggingface_hub.get_session().head(address, timeout=bound)
        except Exception:  # of the client, of TLS or of a proxy: there is no way there
            answers.put(False)
        else:
            answers.put(True)

    threading.Thread(target=ask, name="hub", daemon=True).start()
    try:
        return answers.get(timeout=bound)
    except queue.Empty:
        return False


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's client takes what is in its cache and asks nobody."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
