"""Whether weights can be had by a name: from the hub, or from its cache where there is no network.

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

_FILES = (
    "config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)  # fmt: skip
"""What is taken of a repository: never a pickle."""


class OutOfReach(Exception):
    """There are no such weights, or no way to them; it says why."""


@contextmanager
def within_reach(name: str, patience_s: float) -> Iterator[None]:
    """Inside, timm loads the weights of that name. Without a network the hub's client would retry for a minute.

    ``patience_s``: for the hub's first answer, unless HF_HUB_ETAG_TIMEOUT is set. Raises OutOfReach.
    """
    config = timm.get_pretrained_cfg(name)
    if not (config and config.has_weights):
        raise OutOfReach("timm has no pretrained weights for it")
    address = huggingface_hub.constants.ENDPOINT if config.hf_hub_id else config.url
    if huggingface_hub.constants.HF_HUB_OFFLINE or _reachable(address, bound := _bound(patience_s)):
        yield
        return
    if not _is_cached(config):
        raise _out_of_reach(address, bound)
    with _offline():
        yield


def fetched(repository: str, revision: str | None, patience_s: float) -> Path:
    """The folder in the hub's cache with a repository's configs and safetensors, which are downloaded if need be.

    ``patience_s``: as for ``within_reach``. Raises OutOfReach.
    """
    address, bound = huggingface_hub.constants.ENDPOINT, _bound(patience_s)
    online = not huggingface_hub.constants.HF_HUB_OFFLINE and _reachable(address, bound)
    try:
        return Path(huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(_FILES), local_files_only=not online,
        ))  # fmt: skip
    except Exception as error:  # of a kind for each thing that may be missing
        if not online:
            raise _out_of_reach(address, bound) from error
        why = next(iter(str(error).strip().splitlines()), "")
        raise OutOfReach(f"{type(error).__name__}: {why[:200]}") from error


def _bound(patience_s: float) -> float:
    """Set by its user, the hub's time for a first answer counts; ten seconds as it comes are too long here."""
    hub = huggingface_hub.constants
    return patience_s if hub.HF_HUB_ETAG_TIMEOUT == hub.DEFAULT_ETAG_TIMEOUT else float(hub.HF_HUB_ETAG_TIMEOUT)


def _out_of_reach(address: str, bound: float) -> OutOfReach:
    return OutOfReach(
        f"{address} cannot be reached in {bound:g} s, and its weights are not in the local cache; "
        "the environment's HF_HUB_ETAG_TIMEOUT gives a slow network more seconds"
    )


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
