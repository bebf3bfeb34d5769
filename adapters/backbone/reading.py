"""Read the tensors of a checkpoint from a file, or from the files that an index names.

It knows files and the spellings of transformers; what fits a model is ``checkpoint``'s.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import load_state_dict

from adapters.backbone.transformers_names import timm_names
from adapters.errors import BackboneError

log = logging.getLogger(__name__)

INDEX = ".index.json"
"""How the name of an index of shards ends."""
MAX_INDEX_BYTES = 32 * 2**20
SHOWN = 3
"""Names of one kind in a sentence."""


def read(path: Path) -> Mapping[str, Any]:
    """What safetensors or torch's restricted unpickler reads, unwrapped as timm does; transformers' names as timm's.

    An index of shards, ``*.index.json``, stands for all of them. Raises BackboneError.
    """
    state = read_as_named(path)
    found = timm_names(state)
    if found is None:
        return state
    if found.aside:
        shown = ", ".join(found.aside[:SHOWN])
        log.info("%s: %d tensors are no part of the backbone, such as %s", path.name, len(found.aside), shown)
    return found.tensors


def read_as_named(path: Path) -> Mapping[str, Any]:
    """The same by the file's own names. Raises BackboneError."""
    if not path.is_file():
        raise BackboneError(f"weights file '{path}' does not exist", weights=str(path))
    state: Mapping[str, Any] = {}
    for shard in _shards_of(path) if path.name.endswith(INDEX) else [path]:
        state = {**state, **_read(shard)}
    return state


def _shards_of(index: Path) -> list[Path]:
    """The files that an index of transformers or timm names, all of which lie beside it. Raises BackboneError."""
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"it has more than {MAX_INDEX_BYTES} bytes")
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError("its weight_map must name files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BackboneError(f"weights index '{index.name}' cannot be read ({type(error).__name__}: {error})",
                            weights=str(index)) from error  # fmt: skip
    shards = [index.parent / name for name in sorted(names)]
    lacking = [shard.name for shard in shards if not shard.is_file()]
    if lacking:
        raise BackboneError(f"weights index '{index.name}' names {len(lacking)} files that are not beside it, such as "
                            f"{lacking[0][:80]}", weights=str(index))  # fmt: skip
    return shards


def _read(path: Path) -> Mapping[str, Any]:
    try:
        state: Mapping[str, Any] = load_state_dict(str(path), use_ema=True, weights_only=True)
    except Exception as error:  # torch, safetensors and timm raise many kinds: it cannot be read
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise BackboneError(
            f"weights file '{path.name}' cannot be read as a checkpoint of plain tensors "
            f"({type(error).__name__}: {first})",
            weights=str(path),
        ) from error
    return state
