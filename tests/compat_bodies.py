"""Bodies of the Open Inference Protocol around one picture, and the bounds that they are read in."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

from service.web.routes.compat.reading import Bounds
from tests.houses import photograph

BOUNDS = Bounds(max_items_per_request=4, max_body_bytes=5000, max_request_bytes=20_000)
PICTURE = photograph()
TEXT = base64.b64encode(PICTURE).decode()
ROW = ("instances", "inputs")


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def infer(*files: bytes, **more: Any) -> tuple[bytes, str]:
    """A binary request, and the header that goes with it."""
    behind = b"".join(map(element, files))
    tensor = {"name": "IMAGE", "shape": [len(files), 1], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(behind)}
    head = json.dumps({"inputs": [tensor | more.pop("input", {})]} | more).encode()
    return head + behind, str(len(head))


def infer_json(*texts: Any, **more: Any) -> bytes:
    tensor = {"name": "IMAGE", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}
    return json.dumps({"inputs": [tensor | more.pop("input", {})]} | more).encode()
