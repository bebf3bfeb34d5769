"""A server with a few tasks, and requests as other servers' clients send them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.houses import CLIP, House, Kit, house, photograph

PICTURES = [photograph(seed, kind) for seed, kind in enumerate(["JPEG", "PNG", "WEBP"])]
TEXTS = [base64.b64encode(picture).decode() for picture in PICTURES]
ITEMS = 6


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    bounds = {"max_items_per_request": ITEMS, "max_request_bytes": 2**20, "max_body_bytes": 2**18, "max_queue_rows": 20}
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), **bounds)) as made:
        for task, files in {
            "pets": [kit.file(1), kit.file(2)],
            "clips": [kit.file(3, CLIP)],
            "away": [kit.file(4)],
        }.items():
            for content, _ in files:
                made.put(task, content).raise_for_status()
        yield made


def error(response: httpx.Response, status: int) -> str:
    """The sentence of a refusal in JSON, as clients look for it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert document["error"] == document["detail"]
    assert document["request_id"] == response.headers["x-request-id"]
    return str(document["error"])


def infer(files: list[bytes], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A binary request of the Open Inference Protocol as tritonclient sends it, without a Content-Type."""
    behind = b"".join(struct.pack("<I", len(file)) + file for file in files)
    parameters = {"binary_data_size": len(behind)}
    tensor = {"name": "IMAGE", "shape": [len(files), 1], "datatype": "BYTES", "parameters": parameters}
    head = json.dumps({"inputs": [tensor]} | more).encode()
    return head + behind, {"Inference-Header-Content-Length": str(len(head))}
