"""The Open Inference Protocol's requests and answers, JSON and binary: bytes -> files, labels -> tensors.

Pure. It knows no HTTP beyond the one header that parts JSON from tensors.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from adapters.scores import Prediction
from service.errors import BadRequest
from service.web.routes.compat.reading import (
    MAX_NUMBER,
    Bounds,
    Inputs,
    check_known,
    file_of,
    from_base64,
    json_of,
    positive,
    shown,
)
from service.web.routes.predict import TOP_K

LABEL, SCORE = "LABEL", "SCORE"
OUTPUTS = {LABEL: "BYTES", SCORE: "FP32"}
HEADED = "Inference-Header-Content-Length"
MAX_ID = 1024
"""Characters of a request's id, which comes back in the answer."""
MAX_DIMENSIONS = 8
_LENGTH = struct.Struct("<I")
PARAMETERS = ("top_k", "timeout", "binary_data_output")
IGNORED = ("priority", "content_type", "headers")
"""Parameters that are no error and change nothing: every request has the same priority; the rest is for proxies."""


class TensorIn(msgspec.Struct):
    """An input as it came."""

    name: str
    shape: list[Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class TensorOut(msgspec.Struct):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """The JSON of a request; what else it holds (``model_name``) is left out."""

    inputs: list[TensorIn]
    id: str | None = None
    outputs: list[TensorOut] | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class Wanted:
    """An output: its name, whether it goes as bytes, and the number of classes where they are asked for as strings."""

    name: str
    binary: bool
    classes: int | None = None


@dataclass(frozen=True, kw_only=True)
class InferInputs(Inputs):
    """A request whole. ``labels`` is how many the outputs have that name no number of classes."""

    id: str | None
    outputs: Sequence[Wanted]
    labels: int


def read_infer(body: bytes, header_length: str | None, bounds: Bounds) -> InferInputs:
    """A request's body; ``header_length`` is the header's value. Raises BadRequest and more, never anything else."""
    size = _header_length(header_length, len(body))
    if size == 0:  # Triton's raw form: all of the body is the one element of the one input
        bounds.check_items(1)
        return InferInputs(files=[_raw(body, bounds)], id=None, outputs=_all(binary=False), labels=TOP_K)
    request = json_of(body if size is None else body[:size], InferRequest, bounds)
    parameters = request.parameters or {}
    _check_parameters(parameters)
    if request.id is not None and len(request.id) > MAX_ID:
        raise BadRequest(f"'id' has {len(request.id)} characters, the limit is {MAX_ID}", field="id", limit=MAX_ID)
    files = list(_files(_only_input(request.inputs), b"" if size is None else memoryview(body)[size:], bounds))
    outputs = _wanted(request.outputs, binary=parameters.get("binary_data_output") is True)
    labels = positive("top_k", parameters.get("top_k", TOP_K))
    return InferInputs(
        files=files, top_k=max([labels, *(one.classes or 1 for one in outputs)]), seconds=_seconds(parameters),
        id=request.id, outputs=outputs, labels=labels,
    )  # fmt: skip


def _header_length(text: str | None, whole: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= whole):
        raise BadRequest(
            f"header {HEADED} is {text[:40]!r}, and the body has {whole} bytes; it says how many of them are the JSON",
            field=HEADED, got=text[:40],
        )  # fmt: skip
    return int(text)


def _raw(body: bytes, bounds: Bounds) -> bytes:
    """With the element's length before it or without."""
    if len(body) > _LENGTH.size and _LENGTH.unpack_from(body)[0] == len(body) - _LENGTH.size:
        body = body[_LENGTH.size :]
    return file_of(body, "the body", bounds)


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    if "sequence_id" in parameters:
        raise BadRequest("'sequence_id' is for models with a state, and no task here has one", field="sequence_id")
    check_known("parameter", parameters, PARAMETERS, IGNORED)
    if not isinstance(parameters.get("binary_data_output", False), bool):
        raise BadRequest("'binary_data_output' must be true or false", field="binary_data_output")


def _seconds(parameters: Mapping[str, Any]) -> float | None:
    """Of ``timeout``, microseconds; 0 is none."""
    given = parameters.get("timeout", 0)
    return positive("timeout", given) / 1e6 if given != 0 or isinstance(given, bool) else None


def _only_input(inputs: Sequence[TensorIn]) -> TensorIn:
    if len(inputs) != 1:
        raise BadRequest(
            f"the request has {len(inputs)} inputs, and a task takes one; several pictures are elements of that one",
            field="inputs", expected=1, got=len(inputs),
        )  # fmt: skip
    only = inputs[0]
    if only.datatype != "BYTES":
        raise BadRequest(
            f"input '{only.name[:40]}' is {only.datatype[:20]}, and a task takes BYTES: the picture's or clip's file "
            "as it is, in the binary form or as base64 in 'data', not its pixels",
            field="datatype", expected="BYTES", got=only.datatype[:20],
        )  # fmt: skip
    return only


def _files(tensor: TensorIn, rest: bytes | memoryview, bounds: Bounds) -> Iterator[bytes]:
    count = _count(tensor.shape)
    bounds.check_items(count)
    claimed = (tensor.parameters or {}).get("binary_data_size")
    if claimed is None:
        if len(rest):
            raise BadRequest(
                f"{len(rest)} bytes follow the JSON, and no input says that they are its own (binary_data_size)",
                field="binary_data_size",
            )
        yield from _from_json(tensor.data, count, bounds)
        return
    if tensor.data is not None:
        raise BadRequest("the input has both 'data' and 'binary_data_size'; send one of them", field="inputs")
    if not isinstance(claimed, int) or isinstance(claimed, bool) or claimed != len(rest):
        raise BadRequest(
            f"'binary_data_size' is {shown(claimed)}, and {len(rest)} bytes follow the JSON, whose length the header "
            f"{HEADED} tells",
            field="binary_data_size", got=shown(claimed), expected=len(rest),
        )  # fmt: skip
    yield from _from_bytes(memoryview(rest), count, bounds)


def _count(shape: Sequence[int]) -> int:
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise BadRequest(
            f"'shape' has {len(shape)} numbers; send 1 to {MAX_DIMENSIONS}, as [2, 1] for two pictures", field="shape"
        )
    return math.prod(shape)


def _from_json(data: Any, count: int, bounds: Bounds) -> Iterator[bytes]:
    texts = list(_flat(data))
    if len(texts) != count:
        raise BadRequest(f"'shape' tells of {count} elements, and 'data' has {len(texts)}", field="data")
    for place, text in enumerate(texts):
        yield from_base64(text, f"element {place} of 'data'", bounds)


def _flat(data: Any, depth: int = 0) -> Iterator[str]:
    """The strings in an array of arrays."""
    if isinstance(data, list) and depth <= MAX_DIMENSIONS:
        for part in data:
            yield from _flat(part, depth + 1)
    elif isinstance(data, str) and depth:
        yield data
    else:
        what = "nothing" if data is None else f"{type(data).__name__} in it" if depth else "no array"
        raise BadRequest(f"'data' must be an array of base64 strings; there is {what}", field="data")


def _from_bytes(data: memoryview, count: int, bounds: Bounds) -> Iterator[bytes]:
    """Each element after its length, 4 bytes, little-endian."""
    at = 0
    for place in range(count):
        if len(data) - at < _LENGTH.size:
            raise _broken(f"element {place} of {count} is not there")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size > len(data) - at:
            raise _broken(f"element {place} says that it has {size} bytes, and {len(data) - at} are left")
        bounds.check_size(f"element {place}", size)
        yield file_of(bytes(data[at : at + size]), f"element {place}", bounds)
        at += size
    if at != len(data):
        raise _broken(f"{len(data) - at} bytes follow the last of {count} elements")


def _broken(what: str) -> BadRequest:
    return BadRequest(
        f"the input's bytes are no BYTES tensor of its shape: {what}; each element comes after its length, 4 bytes, "
        "little-endian",
        field="inputs",
    )


def _all(*, binary: bool) -> list[Wanted]:
    return [Wanted(name, binary) for name in OUTPUTS]


def _wanted(outputs: Sequence[TensorOut] | None, *, binary: bool) -> list[Wanted]:
    """Those asked for, in that order; all where none is."""
    if not outputs:
        return _all(binary=binary)
    names = [one.name for one in outputs]
    if len(set(names)) < len(names):
        raise BadRequest("an output is asked for more than once; ask for each once", field="outputs")
    check_known("output", dict.fromkeys(names), list(OUTPUTS))
    found = []
    for one in outputs:
        parameters = one.parameters or {}
        own = parameters.get("binary_data", binary)
        if not isinstance(own, bool):
            raise BadRequest("'binary_data' must be true or false", field="binary_data")
        classes = parameters.get("classification", 0)
        number = None if classes == 0 and not isinstance(classes, bool) else positive("classification", classes)
        found.append(Wanted(one.name, own, number))
    return found


def write_infer(
    asked: InferInputs, task: str, version: int, rows: Sequence[Sequence[Prediction]]
) -> tuple[bytes, int | None]:
    """An answer's body, and how many bytes of it are JSON where tensors follow. ``rows`` has the best of each file."""
    head: dict[str, Any] = {"model_name": task, "model_version": str(version)}
    if asked.id is not None:
        head["id"] = asked.id
    tensors, behind = [], []
    for wanted in asked.outputs:
        count = asked.labels if wanted.classes is None else wanted.classes
        kind, values = _values(wanted, [row[:count] for row in rows])
        tensor: dict[str, Any] = {"name": wanted.name, "datatype": kind, "shape": [len(rows), len(values) // len(rows)]}
        if wanted.binary:
            packed = _packed(kind, values)
            tensor["parameters"] = {"binary_data_size": len(packed)}
            behind.append(packed)
        else:
            tensor["data"] = values
        tensors.append(tensor)
    text = msgspec.json.encode(head | {"outputs": tensors})
    return b"".join([text, *behind]), len(text) if behind else None


def _values(wanted: Wanted, rows: Sequence[Sequence[Prediction]]) -> tuple[str, list[Any]]:
    if wanted.classes is not None:
        return "BYTES", [f"{one.score:f}:{one.index}:{one.label}" for row in rows for one in row]
    if wanted.name == LABEL:
        return OUTPUTS[LABEL], [one.label for row in rows for one in row]
    return OUTPUTS[SCORE], [one.score for row in rows for one in row]


def _packed(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "FP32":
        return np.asarray(values, "<f4").tobytes()
    texts = [value.encode() for value in values]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))
