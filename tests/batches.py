"""A server for small batch calls, and how tests send one and read its lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.archives import Files, body
from tests.houses import CLIP, House, Kit, house, photograph

BATCH = "/v1/tasks/t/batch"
GOOD = [(f"{place}.jpg", photograph(place)) for place in range(5)]


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server with a window of four rows, so that even small batches are longer than it."""
    folder = tmp_path_factory.mktemp("data")
    bounds = {
        "max_items_per_batch": 30, "max_batch_bytes": 400_000, "max_body_bytes": 100_000, "batch_window_rows": 4,
        "max_batches": 2, "batch_timeout_s": 60.0, "max_queue_rows": 64, "max_batch_rows": 8, "send_timeout_s": 60.0,
    }  # fmt: skip
    with house(kit.settings(data_dir=folder, **bounds)) as made:
        for task, content in {"t": kit.file(1)[0], "other": kit.file(2)[0], "clips": kit.file(3, CLIP)[0]}.items():
            made.put(task, content).raise_for_status()
        yield made


def send(home: House, content: bytes, kind: str | None = None, task: str = "t", **params: Any) -> httpx.Response:
    headers = {} if kind is None else {"Content-Type": kind}
    path = f"/v1/tasks/{task}/batch"
    return home.client.post(path, content=content, headers=headers, params={"top_k": 5} | params)


def lines_of(response: httpx.Response) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items' lines, which are in order, and the last line."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    *items, last = [json.loads(line) for line in response.text.splitlines()]
    assert [item["index"] for item in items] == list(range(len(items)))
    assert last["failed"] == sum("problem" in item for item in items)
    return items, last


def asked(home: House, files: Files, form: str, **params: Any) -> list[dict[str, Any]]:
    items, last = lines_of(send(home, *body(files, form), **params))
    assert last == {"done": True, "items": len(items), "failed": last["failed"]}
    return items


def left_behind(home: House) -> bool:
    """Whether anything is still held: a place, rows, pixels, a decode."""
    built = home.built
    memory = built.answers._decoder._memory
    return bool(built.batches.running or home.local.engine.queued_rows or memory.held)
