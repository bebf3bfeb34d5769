"""Files of weights as they lie on a disk: which of a folder, one or in shards, by the file's own names.

It knows no model; what the names mean is ``checkpoint``'s and ``transformers_names``'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import load_state_dict

from adapters.errors import BackboneError

INDEX = ".index.json"
"""How the name of an index of shards ends."""
MAX_INDEX_BYTES = 32 * 2**20
_FOLDER_FILES = (
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ADVICE = "give a local file with --weights, or use the shipped demo"


def not_loaded(name: str, why: str) -> BackboneError:
    """The error of a model that cannot be had, and what to do."""
    return BackboneError(f"{name} could not be loaded ({why}); {_ADVICE}", model=name)


def file_in(folder: Path, label: str) -> Path:
    """The checkpoint in a folder of timm's or transformers' layout, or its parts' index, or the only one in it.

    Raises BackboneError.
    """
    known = [folder / name for name in (*_FOLDER_FILES, *_INDICES) if (folder / name).is_file()]
    others = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".pth", ".bin")]
    if not known and len(others) != 1:
        count = f"{len(others)} checkpoints and none" if others else "no checkpoint"
        raise not_loaded(label, f"the folder has {count} with a name such as {_FOLDER_FILES[0]}")
    return (known or others)[0]


def read_as_named(path: Path) -> Mapping[str, Any]:
    """What safetensors or torch's restricted unpickler reads, unwrapped as timm does, of all shards of an index.

    Raises BackboneError.
    """
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
