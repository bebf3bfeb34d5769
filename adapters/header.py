"""The adapter file's header: all that can be checked of a file before its tensors are read; and its digest.

Reading never trusts: the header first, then names, dtypes and shapes, and the error says which. It reads no tensor
and imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from adapters.config import AdapterConfig
from adapters.errors import AdapterTooLarge, BrokenAdapter, NotAnAdapter
from adapters.layout import Layout, Shape, oversized
from adapters.limits import FileLimits, raised

METADATA_KEY = "adaptserve"
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
_OTHER_FORMATS = (
    (b"\x80\x02", "a pickle"), (b"\x80\x03", "a pickle"), (b"\x80\x04", "a pickle"), (b"\x80\x05", "a pickle"),
    (b"PK\x03\x04", "a zip archive, such as torch.save writes"), (b"\x1f\x8b", "a gzip archive"),
    (b"\xff\xd8\xff", "a JPEG picture"), (b"\x89PNG", "a PNG picture"), (b"\x89HDF", "an HDF5 file"),
)  # fmt: skip
HEADER_ENTRY_BYTES = 100
"""At most what a header says of one tensor beside its name."""
TOLD_BYTES = 64 * 1024
"""At most what a file tells of its training."""
PICKLE_SUFFIXES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".ckpt")


@dataclass(frozen=True)
class Header:
    """What can be known of a file before its tensors are read."""

    config: AdapterConfig
    tensors: Mapping[str, tuple[str, Shape]]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def read_header(path: Path, limits: FileLimits) -> Header:
    """Parse the header alone. Raises NotAnAdapter, BrokenAdapter or AdapterTooLarge."""
    size = path.stat().st_size
    if size > limits.max_file_bytes:
        raise _too_many_bytes("the file has", size, limits.max_file_bytes, "max_adapter_bytes")
    with path.open("rb") as file:
        raw = _header_bytes(file, size, limits)
        body = size - file.tell()
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BrokenAdapter(f"the safetensors header is not valid JSON ({error})", field="header") from error
    if not isinstance(parsed, dict):
        raise BrokenAdapter("the safetensors header is not a JSON object", field="header")
    config = _config(parsed.pop("__metadata__", None))
    return Header(config, _tensor_table(parsed, body))


def check_header(path: Path, layout: Layout, limits: FileLimits) -> Header:
    """Parse the header and compare all that it says with a backbone: what ``read_adapter`` does before the values.

    Raises NotAnAdapter, BrokenAdapter, WrongBase or AdapterTooLarge.
    """
    header = read_header(path, limits)
    layout.check(header.config, **limits.of_config)
    compare(header.tensors, layout.tensors(header.config))
    return header


def refusals(config: AdapterConfig, layout: Layout, limits: FileLimits) -> list[AdapterTooLarge]:
    """Why a server with these bounds would refuse the float32 file of this config; empty where it would take it.

    The file's size is foreseen with room for what training will tell in it.
    """
    shapes = layout.tensors(config)
    # The config is JSON within JSON; beside it stands an entry of name, dtype, shape and place for each tensor.
    header = len(json.dumps(config.model_dump_json(exclude_none=True), ensure_ascii=False).encode())
    header += sum(len(name) + HEADER_ENTRY_BYTES for name in shapes) + TOLD_BYTES
    size = header + 4 * sum(math.prod(shape) for shape in shapes.values())
    found = list(oversized(config, **limits.of_config))
    if header > limits.max_header_bytes:
        found.append(
            _too_many_bytes("the file's header has", header, limits.max_header_bytes, "max_adapter_header_bytes")
        )
    if size > limits.max_file_bytes:
        found.append(_too_many_bytes("the file has", size, limits.max_file_bytes, "max_adapter_bytes"))
    return found


def _too_many_bytes(what: str, size: int, limit: int, setting: str, **facts: object) -> AdapterTooLarge:
    return AdapterTooLarge(
        f"{what} {size} bytes, the limit is {limit}; a server takes it when started with {raised([setting], size)}",
        limit=limit, value=size, settings=[setting], **facts,
    )  # fmt: skip


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_pickle_name(filename: str | None) -> None:
    """Refuse a file that calls itself a pickle, whatever its bytes are. Raises NotAnAdapter."""
    if filename and filename.lower().endswith(PICKLE_SUFFIXES):
        raise NotAnAdapter(
            f"'{Path(filename).name[:80]}' is named like a pickle; only .safetensors is read here, "
            "convert checkpoints with `adaptserve import`",
            expected=".safetensors", got=Path(filename).suffix[:16],
        )  # fmt: skip


def _header_bytes(file: BinaryIO, size: int, limits: FileLimits) -> bytes:
    prefix, first = file.read(8), file.read(1)
    if (
        first != b"{"
    ):  # looked at before the other formats: a header of 640 bytes has a length that begins like a pickle
        for magic, noun in _OTHER_FORMATS:
            if prefix.startswith(magic):
                raise NotAnAdapter(f"this is {noun}, not a .safetensors file", expected="safetensors", got=noun)
        if len(prefix) < 8:
            raise NotAnAdapter(
                f"the file has {size} bytes, too few for safetensors", expected="safetensors", value=size
            )
        raise NotAnAdapter("this is not a .safetensors file: no JSON header at byte 8", expected="safetensors")
    (length,) = struct.unpack("<Q", prefix)
    if length > limits.max_header_bytes:
        raise _too_many_bytes(
            "the safetensors header claims", length, limits.max_header_bytes, "max_adapter_header_bytes", field="header"
        )
    if 8 + length > size:
        raise BrokenAdapter(
            f"the file is cut short: its header needs {8 + length} bytes, the file has {size}",
            field="header", expected=8 + length, got=size,
        )  # fmt: skip
    return first + file.read(length - 1)


def _config(metadata: Any) -> AdapterConfig:
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise BrokenAdapter(
            f"the file has no '{METADATA_KEY}' entry in its metadata, so it says nothing of labels or sites; "
            "write it with `adaptserve train` or `adaptserve import`",
            field=f"__metadata__.{METADATA_KEY}",
        )  # fmt: skip
    try:
        return AdapterConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "config"
        raise BrokenAdapter(
            f"config field '{field}': {first['msg']}", field=field, got=repr(first.get("input"))[:200]
        ) from error
    except RecursionError as error:
        raise BrokenAdapter("the config is nested too deeply", field="config") from error


def _tensor_table(entries: dict[str, Any], body: int) -> dict[str, tuple[str, Shape]]:
    table: dict[str, tuple[str, Shape]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        try:
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, start, end))
        except (TypeError, KeyError, ValueError):
            whole = False
        if not whole:
            raise BrokenAdapter(f"tensor {name[:200]} has a malformed header entry", tensor=name[:200])
        if dtype not in DTYPES:
            raise BrokenAdapter(
                f"tensor {name[:200]} has dtype {str(dtype)[:16]}, expected one of {', '.join(DTYPES)}",
                tensor=name[:200], expected=list(DTYPES), got=str(dtype)[:16],
            )  # fmt: skip
        table[name] = (dtype, shape)
        spans.append((start, end, name))
        if DTYPES[dtype] * math.prod(shape) != end - start:
            raise BrokenAdapter(f"tensor {name[:200]}: its shape and its byte range disagree", tensor=name[:200])
    reached = 0
    for start, end, name in sorted(spans):
        if start != reached:
            raise BrokenAdapter(f"tensor {name[:200]} starts at byte {start}, expected {reached}", tensor=name[:200])
        reached = end
    if reached != body:
        noun = "cut short" if reached > body else "followed by other bytes"
        raise BrokenAdapter(
            f"the file is {noun}: its tensors need {reached} bytes, it holds {body}", expected=reached, got=body
        )
    return table


def compare(found: Mapping[str, tuple[str, Shape]], wanted: Mapping[str, Shape]) -> None:
    """Raise BrokenAdapter unless the tensors found, each a dtype and a shape, are those wanted and no others."""
    for name, shape in wanted.items():
        if name not in found:
            raise BrokenAdapter(
                f"tensor {name} is missing; the config asks for shape {list(shape)}", tensor=name, expected=list(shape)
            )
        if found[name][1] != shape:
            raise BrokenAdapter(
                f"tensor {name} has shape {list(found[name][1])}, expected {list(shape)}",
                tensor=name, expected=list(shape), got=list(found[name][1]),
            )  # fmt: skip
    for name in found:
        if name not in wanted:
            raise BrokenAdapter(
                f"tensor {name[:200]} belongs to no site of the config, and nothing else is accepted", tensor=name[:200]
            )
