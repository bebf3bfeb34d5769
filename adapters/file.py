"""The adapter file with its tensors: read, validate, write ``.safetensors`` with a config in its header.

What the header says is checked in ``header.py``; here the values. It does not know the device, the server or how the
residuals are computed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from adapters.atomic import replacing
from adapters.config import MAX_CLASSES, MAX_FRAMES, MAX_RANK, AdapterConfig
from adapters.errors import BrokenAdapter
from adapters.header import METADATA_KEY, check_header, compare, digest_of, read_header
from adapters.layout import Layout
from adapters.limits import OWN_FILE, FileLimits

if TYPE_CHECKING:
    from adapters.backbone import Backbone


@dataclass(frozen=True)
class Adapter:
    """A config, its tensors on the CPU, and the sha256 of the file they came from (hex)."""

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    digest: str

    @classmethod
    def load(cls, path: str | os.PathLike[str], backbone: Backbone | None = None) -> Adapter:
        """Read a file of one's own, whatever its size. Raises as ``read_adapter``, and OSError.

        Whether it belongs to a backbone is checked now if one is given, else by the Predictor that it is added to.
        """
        adapter = read_adapter(Path(path), None, OWN_FILE)
        if backbone is not None:
            adapter.check(backbone.layout)
        return adapter

    def check(self, layout: Layout) -> None:
        """Raise WrongBase or BrokenAdapter unless config and tensors are those of an adapter of this backbone."""
        layout.check(self.config, max_rank=MAX_RANK, max_classes=MAX_CLASSES, max_frames=MAX_FRAMES)
        compare({name: ("", tuple(t.shape)) for name, t in self.tensors.items()}, layout.tensors(self.config))

    @property
    def parameters(self) -> int:
        return sum(t.numel() for t in self.tensors.values())


def read_adapter(path: Path, layout: Layout | None, limits: FileLimits, *, digest: str = "") -> Adapter:
    """Read and check a whole file, against a backbone where its layout is given.

    ``digest`` is that of the file's bytes, from a caller who hashed them as they came; without it they are hashed here.
    Raises NotAnAdapter, BrokenAdapter, WrongBase or AdapterTooLarge; the message names the tensor or field,
    what was expected and what came.
    """
    header = read_header(path, limits) if layout is None else check_header(path, layout, limits)
    content = path.read_bytes()
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise BrokenAdapter(f"the safetensors content does not load: {error}") from error
    for name, tensor in tensors.items():
        # One pass that makes no tensor, and NaN is both; isfinite makes four and waits for torch's threads each time.
        if not all(math.isfinite(extreme) for extreme in torch.aminmax(tensor)):
            bad = int((~torch.isfinite(tensor)).sum())
            raise BrokenAdapter(
                f"tensor {name} holds {bad} values that are NaN or infinite, out of {tensor.numel()}",
                tensor=name, value=bad,
            )  # fmt: skip
    return Adapter(header.config, tensors, digest or hashlib.sha256(content).hexdigest())


def write_adapter(path: Path, config: AdapterConfig, tensors: Mapping[str, Tensor]) -> str:
    """Write an adapter file, as ``write_tensors`` does. Returns the digest."""
    return write_tensors(path, tensors, {METADATA_KEY: config.model_dump_json(exclude_none=True)})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> str:
    """Write safetensors atomically: a reader sees the whole file or none. Returns the digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with replacing(path, mode=0o644) as temporary:
        save_file(plain, temporary, metadata=metadata)
        return digest_of(temporary)
