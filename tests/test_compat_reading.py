"""Bodies of other servers' protocols: what is read, and what is refused and how."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from adapters.errors import AdaptError, MediaTooLarge, UnsupportedMedia
from adapters.scores import Prediction
from service.errors import BadRequest, BodyTooLarge, status_of
from service.web.routes.compat.huggingface import ListedInputs, read_hub
from service.web.routes.compat.reading import STEP, Bounds, file_of, from_base64, inflated, json_of
from service.web.routes.compat.tensorflow import read_serving
from service.web.routes.compat.tensors import read_infer, write_infer
from service.web.routes.compat.torchserve import read_prediction
from tests.compat_bodies import BOUNDS, PICTURE, ROW, TEXT, element, infer, infer_json


@pytest.mark.parametrize(
    "text",
    [
        TEXT, TEXT.rstrip("="), TEXT + "\n", "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76)),
        f"data:image/jpeg;base64,{TEXT}", base64.urlsafe_b64encode(PICTURE).decode(), TEXT.encode(),
    ],
)  # fmt: skip
def test_base64_in_its_usual_forms(text: str | bytes) -> None:
    assert from_base64(text, "it", BOUNDS) == PICTURE
    assert file_of(text if isinstance(text, bytes) else text.encode(), "it", BOUNDS) == PICTURE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://example.org/cat.jpg", "fetches nothing"), ("FILE:///etc/passwd", "fetches nothing"),
        ("data:image/png,abc", "not base64"), ("a===b", "element 3 is not base64"), ("abcde", "not base64"),
        ("é", "not base64"), ("ab!d", "not base64"),
    ],
)  # fmt: skip
def test_what_is_no_base64_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match="element 3") as caught:
        from_base64(text, "element 3", BOUNDS)
    assert words in caught.value.message


def test_bytes_that_are_a_file_stay_as_they_are() -> None:
    for data in (PICTURE, b"", b"abcde", b"RIFF\0\0\0\0WEBP", b" " * 4000 + b"\0"):
        assert file_of(data, "it", BOUNDS) == data


def test_a_file_is_measured_before_it_is_decoded() -> None:
    for send in (partial(from_base64, "A" * 6670), partial(file_of, b"\0" * 5001), partial(file_of, b"A" * 6670)):
        with pytest.raises(MediaTooLarge, match="max_body_bytes"):
            send("it", BOUNDS)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress), ("deflate", zlib.compress), ("Deflate", lambda body: zlib.compress(body)[2:-4]),
        ("identity", bytes), (None, bytes),
    ],
)  # fmt: skip
def test_content_encodings(encoding: str | None, pack: Callable[[bytes], bytes]) -> None:
    assert inflated(pack(PICTURE), encoding, BOUNDS) == PICTURE


def test_encodings_that_are_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="'br' is not read here"):
        inflated(b"", "br", BOUNDS)
    whole = gzip.compress(PICTURE)
    for body in (whole[:-1], whole + b"x", b"", PICTURE):
        with pytest.raises(BadRequest, match="gzip"):
            inflated(body, "gzip", BOUNDS)
    with pytest.raises(BodyTooLarge, match="max_request_bytes"):
        inflated(gzip.compress(bytes(20_001)), "gzip", BOUNDS)
    assert len(inflated(gzip.compress(bytes(20_000)), "gzip", BOUNDS)) == 20_000


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":[' + b"1," * 100_000 + b"1]}", b'{"a":' * 1000])
def test_json_of_more_values_than_files_need_is_refused_before_it_is_read(body: bytes) -> None:
    with pytest.raises(BodyTooLarge, match="not their pixels as numbers"):
        json_of(body, dict, BOUNDS)


def test_an_infer_request_in_all_its_forms() -> None:
    for shape in ([2], [2, 1], [1, 2], [2, 1, 1]):
        body, header = infer(PICTURE, b"x\0", input={"shape": shape})
        asked = read_infer(body, header, BOUNDS)
        assert (list(asked.files), asked.top_k, asked.labels, asked.id) == ([PICTURE, b"x\0"], 5, 5, None)
    asked = read_infer(infer_json(TEXT, id="7", parameters={"top_k": 2, "timeout": 2_500_000}), None, BOUNDS)
    assert (list(asked.files), asked.labels, asked.id, asked.seconds) == ([PICTURE], 2, "7", 2.5)
    asked = read_infer(infer_json([TEXT], [TEXT], input={"shape": [2, 1]}, outputs=None), None, BOUNDS)
    assert list(asked.files) == [PICTURE, PICTURE]
    outputs = [{"name": "SCORE", "parameters": {"classification": 9}}, {"name": "LABEL"}]
    asked = read_infer(infer_json(TEXT, outputs=outputs, parameters={"binary_data_output": True}), None, BOUNDS)
    assert [(one.name, one.binary, one.classes) for one in asked.outputs] == [("SCORE", True, 9), ("LABEL", True, None)]
    assert (asked.top_k, asked.labels) == (9, 5)
    body, header = infer(TEXT.encode())
    assert list(read_infer(body, header, BOUNDS).files) == [PICTURE]
    for raw in (PICTURE, element(PICTURE)):
        assert list(read_infer(raw, "0", BOUNDS).files) == [PICTURE]


BAD_INFER: list[tuple[bytes, str | None, str]] = [
    (b"", None, "not the JSON"),
    (b"{}", None, "`inputs`"),
    (b"[1]", None, "not the JSON"),
    (b'{"inputs": []}', None, "0 inputs"),
    (infer_json(TEXT, input={"datatype": "FP32"}), None, "not its pixels"),
    (infer_json(TEXT, input={"shape": [2]}), None, "'shape' tells of 2 elements, and 'data' has 1"),
    (infer_json(TEXT, input={"shape": []}), None, "'shape' has 0 numbers"),
    (infer_json(TEXT, input={"shape": [-1]}), None, "$.inputs[0].shape[0]"),
    (infer_json(TEXT, input={"shape": [0]}), None, "no picture"),
    (infer_json(*[TEXT] * 5), None, "max_items_per_request"),
    (infer_json(TEXT, input={"shape": [2**31 - 1] * 8}), None, "max_items_per_request"),
    (infer_json(TEXT, input={"data": TEXT}), None, "'data' must be an array"),
    (infer_json(TEXT, input={"data": None}), None, "there is nothing"),
    (infer_json(TEXT, input={"data": [[[[[[[[[["a"]]]]]]]]]]}), None, "'data' must be an array"),
    (infer_json(TEXT, 7), None, "int in it"),
    (infer_json(TEXT, "!"), None, "element 1 of 'data' is not base64"),
    (infer_json(TEXT, parameters={"topk": 1}), None, "did you mean 'top_k'?"),
    (infer_json(TEXT, parameters={"sequence_id": 1}), None, "no task here has one"),
    (infer_json(TEXT, parameters={"binary_data_output": 1}), None, "true or false"),
    (infer_json(TEXT, outputs=[{"name": "LABEL"}] * 2), None, "more than once"),
    (infer_json(TEXT, outputs=[{"name": "PROB"}]), None, "unknown output 'PROB'"),
    (infer_json(TEXT, outputs=[{"name": "LABEL", "parameters": {"binary_data": "yes"}}]), None, "true or false"),
    (infer_json(TEXT, id="x" * 1025), None, "the limit is 1024"),
    (infer(PICTURE)[0], None, "not the JSON"),
    (infer(PICTURE)[0], "99999", "says how many"),
    (infer(PICTURE)[0], "-1", "says how many"),
    (infer(PICTURE)[0], "²", "says how many"),
    (infer(PICTURE, input={"parameters": {}})[0], infer(PICTURE, input={"parameters": {}})[1], "binary_data_size"),
    (*infer(PICTURE, input={"data": ["a"]}), "both"),
    (infer(PICTURE)[0] + b"x", infer(PICTURE)[1], "'binary_data_size' is"),
    (*infer(PICTURE, input={"shape": [2]}), "element 1 of 2 is not there"),
    (*infer(PICTURE, PICTURE, input={"shape": [1]}), "bytes follow the last"),
    (*infer(b"\0" * 5001), "max_body_bytes"),
]


@pytest.mark.parametrize(("body", "header", "words"), BAD_INFER)
def test_an_infer_request_that_is_refused_hears_why(body: bytes, header: str | None, words: str) -> None:
    with pytest.raises(AdaptError) as caught:
        read_infer(body, header, BOUNDS)
    assert words in caught.value.message
    assert status_of(caught.value) in (400, 413)


LONG = "1" + "0" * 5000


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "true", '"3"', "1.5", "null", "[1]", "{}", str(2**60), LONG, f"-{LONG}", f"[-{LONG}]"],
    ids=range(12),
)
@pytest.mark.parametrize("name", ["top_k", "timeout"])
def test_numbers_that_are_none(name: str, text: str) -> None:
    body = infer_json(TEXT, parameters={name: "HERE"}).replace(b'"HERE"', text.encode())
    if (name, text) == ("timeout", "0"):
        assert read_infer(body, None, BOUNDS).seconds is None
        return
    with pytest.raises(BadRequest):
        read_infer(body, None, BOUNDS)


def test_an_elements_length_is_never_believed() -> None:
    body, header = infer(PICTURE)
    at = int(header)
    for length in (0, 1, len(PICTURE) - 1, len(PICTURE) + 1, 2**31, 2**32 - 1):
        with pytest.raises((BadRequest, MediaTooLarge)):
            read_infer(body[:at] + struct.pack("<I", length) + body[at + 4 :], header, BOUNDS)


def test_answers_as_json_and_as_bytes() -> None:
    rows = [
        [Prediction("neun", 9, 0.75), Prediction("fünf", 5, 0.25)],
        [Prediction("a:b", 0, 1.0), Prediction("c", 1, 0)],
    ]
    outputs = [{"name": "SCORE", "parameters": {"binary_data": True}}, {"name": "LABEL"}]
    asked = read_infer(infer_json(TEXT, TEXT, id="i", outputs=outputs), None, BOUNDS)
    body, size = write_infer(asked, "digits", 3, rows)
    assert size is not None
    head = json.loads(body[:size])
    assert head == {
        "model_name": "digits", "model_version": "3", "id": "i",
        "outputs": [
            {"name": "SCORE", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
            {"name": "LABEL", "datatype": "BYTES", "shape": [2, 2], "data": ["neun", "fünf", "a:b", "c"]},
        ],
    }  # fmt: skip
    assert struct.unpack("<4f", body[size:]) == (0.75, 0.25, 1.0, 0.0)
    binary = {"binary_data_output": True, "top_k": 1}
    body, size = write_infer(read_infer(infer_json(TEXT, parameters=binary), None, BOUNDS), "d", 1, rows[:1])
    assert body[size:] == element(b"neun") + struct.pack("<f", 0.75)
    outputs = [{"name": "SCORE", "parameters": {"classification": 2}}]
    body, size = write_infer(read_infer(infer_json(TEXT, outputs=outputs), None, BOUNDS), "d", 1, rows[:1])
    assert size is None
    assert json.loads(body)["outputs"][0]["data"] == ["0.750000:9:neun", "0.250000:5:fünf"]


@pytest.mark.parametrize(
    ("document", "count", "columns"),
    [
        ({"instances": [{"b64": TEXT}]}, 1, False),
        ({"instances": [{"image_bytes": {"b64": TEXT}}, {"image": {"b64": TEXT}, "key": "2"}, TEXT]}, 3, False),
        ({"instances": [{"data": TEXT}], "inputs": None, "signature_name": "x"}, 1, False),
        ({"inputs": [{"b64": TEXT}] * 2}, 2, True),
        ({"inputs": {"image_bytes": [{"b64": TEXT}]}}, 1, True),
        ({"inputs": {"b64": TEXT}}, 1, True),
        ({"inputs": {"image_bytes": {"b64": TEXT}}}, 1, True),
    ],
)
def test_rows_and_columns(document: Any, count: int, columns: bool) -> None:
    asked = read_serving(json.dumps(document).encode(), ROW, 5, BOUNDS)
    assert (list(asked.files), asked.columns) == ([PICTURE] * count, columns)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "'instances' or 'inputs'"), ({"instances": [TEXT], "inputs": [TEXT]}, "it has 2"), ([], "not the JSON"),
        ({"instances": []}, "no picture"), ({"instances": TEXT}, "must be an array"),
        ({"instances": [[1]]}, "an array"),
        ({"instances": [TEXT, {"b64": "!"}]}, "element 1 of 'instances' is not base64"), ({"instances": [3]}, "is 3"),
        ({"instances": [{"a": {"b": {"c": {"b64": TEXT}}}}]}, "an object"), ({"instances": [{}]}, "an object"),
        ({"inputs": {"a": [TEXT], "b": [TEXT]}}, "2 inputs"), ({"inputs": {}}, "0 inputs"),
        ({"instances": [TEXT] * 5}, "max_items_per_request"), ({"examples": [TEXT]}, "it has 0"),
    ],
)  # fmt: skip
def test_rows_and_columns_that_are_refused(document: Any, words: str) -> None:
    with pytest.raises(AdaptError) as caught:
        read_serving(json.dumps(document).encode(), ROW, 5, BOUNDS)
    assert words in caught.value.message


def test_the_hubs_two_forms() -> None:
    assert list(read_hub(PICTURE, 5, BOUNDS).files) == [PICTURE]
    parameters = {"top_k": 3, "function_to_apply": "none", "num_frames": None}
    asked = read_hub(json.dumps({"inputs": TEXT, "parameters": parameters, "options": {}}).encode(), 5, BOUNDS)
    assert (list(asked.files), asked.top_k, asked.score) == ([PICTURE], 3, "none")
    several = read_hub(json.dumps({"inputs": [TEXT] * 2}).encode(), 5, BOUNDS)
    assert isinstance(several, ListedInputs)
    assert (list(several.files), several.top_k, several.score) == ([PICTURE] * 2, 5, None)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "`inputs`"), ({"inputs": 3}, "not the JSON"), ({"inputs": []}, "no picture"),
        ({"inputs": "http://a/b.png"}, "fetches nothing"),
        ({"inputs": TEXT, "parameters": {"function_to_apply": "relu"}}, "softmax, sigmoid, none"),
        ({"inputs": TEXT, "parameters": {"function_to_apply": [1]}}, "an array came"),
        ({"inputs": TEXT, "parameters": {"num_frames": 8}}, "'num_frames' cannot be chosen"),
        ({"inputs": TEXT, "parameters": {"top_n": 3}}, "did you mean 'top_k'?"),
        ({"inputs": TEXT, "parameters": {"top_k": 0}}, "whole number from 1"),
        ({"inputs": [TEXT, "!"]}, "element 1 of 'inputs'"), ({"inputs": [TEXT] * 5}, "max_items_per_request"),
    ],
)  # fmt: skip
def test_what_the_hubs_form_may_not_hold(document: Any, words: str) -> None:
    with pytest.raises(AdaptError) as caught:
        read_hub(json.dumps(document).encode(), 5, BOUNDS)
    assert words in caught.value.message


def test_torchserves_forms() -> None:
    for body in (PICTURE, TEXT.encode(), json.dumps({"data": TEXT}).encode(), json.dumps({"body": TEXT}).encode()):
        assert list(read_prediction(body, 5, BOUNDS).files) == [PICTURE]
    for document in ({}, {"data": 3}, {"data": TEXT, "body": TEXT}):
        with pytest.raises(BadRequest, match="'data'"):
            read_prediction(json.dumps(document).encode(), 5, BOUNDS)


def test_base64_of_any_length_and_padding_only_at_its_end() -> None:
    wide = Bounds(1, 2 * STEP, 2 * STEP)
    for size in (0, 1, 2, 3, STEP // 4 * 3 - 1, STEP // 4 * 3, STEP // 4 * 3 + 1, STEP):
        data = bytes(size // 2) + b"\xff" * (size - size // 2)
        text = base64.b64encode(data).decode()
        assert from_base64(text, "it", wide) == from_base64(text.rstrip("=") + "\n", "it", wide) == data
    broken = "A" * (STEP - 4) + "AA==" + "AAAA"
    with pytest.raises(BadRequest, match="it is not base64"):
        from_base64(broken, "it", wide)
