"""Bodies of other servers' protocols at random: files within the bounds or a refusal, and nothing else ever."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import AdaptError
from service.errors import BadRequest, status_of
from service.web.routes.compat.huggingface import read_hub
from service.web.routes.compat.reading import Inputs, inflated
from service.web.routes.compat.tensorflow import read_serving
from service.web.routes.compat.tensors import read_infer
from service.web.routes.compat.torchserve import read_prediction
from tests.compat_bodies import BOUNDS, ROW, TEXT, infer

READERS: dict[str, Callable[[bytes], Inputs]] = {
    "infer": lambda body: read_infer(body, None, BOUNDS),
    "hub": lambda body: read_hub(body, 5, BOUNDS),
    "serving": lambda body: read_serving(body, ROW, 5, BOUNDS),
    "classify": lambda body: read_serving(body, ("examples",), 5, BOUNDS),
    "torchserve": lambda body: read_prediction(body, 5, BOUNDS),
}
NAMES = st.sampled_from(
    ["inputs", "instances", "examples", "data", "body", "b64", "image_bytes", "name", "shape", "datatype", "parameters",
     "outputs", "id", "top_k", "timeout", "binary_data_size", "binary_data_output", "classification",
     "function_to_apply", "num_frames"]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([TEXT, "BYTES", "LABEL", "SCORE", "none", "", "data:,", "A" * 9000]), st.text(max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=5)),
    max_leaves=12,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.just("I"), "shape": st.lists(st.integers(0, 3), min_size=1, max_size=3), "datatype": st.just("BYTES")},
    optional={"data": VALUES, "parameters": st.dictionaries(NAMES, LEAVES, max_size=3)},
)
DOCUMENTS = st.one_of(
    VALUES, st.dictionaries(NAMES, VALUES, max_size=5),
    st.fixed_dictionaries(
        {"inputs": st.lists(TENSORS, max_size=2)}, optional={"parameters": VALUES, "outputs": VALUES}
    ),
)  # fmt: skip


def within_bounds(read: Callable[[], Inputs]) -> None:
    """Nothing but files within the bounds, or one of our errors that is the client's fault."""
    refused: AdaptError | None = None
    try:
        asked = read()
    except AdaptError as error:
        refused = error
    if refused is not None:
        assert status_of(refused) in (400, 413, 415)
        assert len(refused.message) < 600
    else:
        assert 1 <= len(asked.files) <= BOUNDS.max_items_per_request
        assert all(len(file) <= BOUNDS.max_body_bytes for file in asked.files)
        assert asked.top_k >= 1


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=50, deadline=None, database=None)
@given(body=st.one_of(DOCUMENTS.map(lambda made: json.dumps(made).encode()), st.binary(max_size=60)))
def test_no_json_does_any_harm(reader: str, body: bytes) -> None:
    within_bounds(lambda: READERS[reader](body))


@settings(max_examples=100, deadline=None, database=None)
@given(
    files=st.lists(st.binary(max_size=20), max_size=6), shape=st.none() | st.lists(st.integers(0, 4), max_size=4),
    cut=st.integers(-9, 9), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    off=st.integers(-3, 3),
)  # fmt: skip
def test_no_binary_request_does_any_harm(
    files: list[bytes], shape: list[int] | None, cut: int, flips: list[tuple[int, int]], off: int
) -> None:
    whole, header = infer(*files, input={} if shape is None else {"shape": shape})
    body = bytearray(whole[:cut] if cut < 0 else whole + bytes(cut))
    for at, value in flips:
        body[at % len(body)] = value
    within_bounds(lambda: read_infer(bytes(body), str(int(header) + off), BOUNDS))
    within_bounds(lambda: read_infer(bytes(body), "0", BOUNDS))
    if shape is None and not (cut or flips or off) and 1 <= len(files) <= 4 and all(b"\0" in file for file in files):
        assert list(read_infer(whole, header, BOUNDS).files) == files


@settings(max_examples=60, deadline=None, database=None)
@given(body=st.binary(max_size=200), name=st.sampled_from(["gzip", "deflate"]), cut=st.integers(0, 5))
def test_no_compressed_body_does_any_harm(body: bytes, name: str, cut: int) -> None:
    packed = gzip.compress(body) if name == "gzip" else zlib.compress(body)
    for sent in (packed[: len(packed) - cut], body):
        try:
            assert sent is body or inflated(sent, name, BOUNDS) == body
        except BadRequest:
            assert cut or sent is body
