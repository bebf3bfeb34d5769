"""A task whose traffic several versions share, over HTTP: what tests of a safe change begin with."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from adapters.file import write_adapter
from service.web.prediction import Answers
from tests.archives import archive
from tests.houses import House, Kit, house, photograph

PICTURES = [photograph(seed) for seed in range(24)]
TEXTS = [base64.b64encode(picture).decode() for picture in PICTURES]
HALF = {"weights": {"1": 50, "2": 50}, "guard": None}


def permuted(kit: Kit, seed: int) -> bytes:
    """The adapter of that seed with each label's weights at another label: it answers wrong with all confidence."""
    adapter = kit.file(seed)[1]
    tensors = dict(adapter.tensors)
    for name in ("head.weight", "head.bias"):
        tensors[name] = tensors[name].roll(1, 0).contiguous()
    path = kit.folder / "permuted.safetensors"
    write_adapter(path, adapter.config, tensors)
    return path.read_bytes()


def zipped(pictures: Sequence[bytes]) -> bytes:
    return archive([(f"{number}.jpg", picture) for number, picture in enumerate(pictures)], "zip")


def put(home: House, task: str, *files: bytes) -> None:
    """Versions of a task, the first one active."""
    for number, content in enumerate(files):
        home.put(task, content, activate=not number).raise_for_status()


def direct(client: httpx.Client, task: str, body: Any) -> dict[str, Any]:
    answer = client.put(f"/v1/tasks/{task}/traffic", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def state(home: House, task: str) -> dict[str, Any]:
    return home.client.get(f"/v1/tasks/{task}/traffic").raise_for_status().json()  # type: ignore[no-any-return]


def versions(home: House, task: str, pictures: Sequence[bytes] = PICTURES, **headers: str) -> list[int]:
    post = home.client.post
    return [post(f"/v1/tasks/{task}/predict", content=body, headers=headers).json()["version"] for body in pictures]


def share(home: House, kit: Kit, task: str) -> list[int]:
    """Two versions share the task's traffic: which of them each picture is for."""
    put(home, task, kit.file(1)[0], kit.file(2)[0])
    assert direct(home.client, task, HALF)["weights"] == {"1": 50, "2": 50}
    found = versions(home, task)
    assert set(found) == {1, 2}
    return found


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with (
        pytest.MonkeyPatch.context() as patch,
        house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as built,
    ):
        patch.setattr(Answers, "is_busy", False)  # so that all is compared, however slow this machine is
        yield built


@pytest.fixture(scope="module")
def halved(home: House, kit: Kit) -> list[int]:
    """Two versions share the traffic of task ``half``: which of them each picture is for."""
    return share(home, kit, "half")
