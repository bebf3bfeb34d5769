"""docs/CLIENTS.md: each row of its table, sent to a server with the demo."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from service.store.demo import DEMO
from tests.houses import House, house

PAGE = (Path(__file__).parent.parent / "docs/CLIENTS.md").read_text()
ROWS = re.findall(r"^\| `([A-Z]+) (/\S*)` \| (?:`([^`]+)`)? ?\| (\d{3}) `([^`]+)` \|$", PAGE, re.MULTILINE)
CLASS = re.compile(r"\d\.\d{6}:\d+:.*")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    data = tmp_path_factory.mktemp("data")
    with house(Settings(data_dir=data, device="cpu", dtype="float32", threads=1, port=0)) as made:
        yield made


def sample(name: str) -> bytes:
    return (DEMO / "samples" / name).read_bytes()


def parted(value: Any) -> Any:
    """A class of the protocol's extension, ``0.878147:9:nine``, as its score and the rest; in answers of any shape."""
    if isinstance(value, str) and CLASS.fullmatch(value):
        score, rest = value.split(":", 1)
        return [float(score), rest]
    if isinstance(value, list):
        return [parted(one) for one in value]
    return {name: parted(one) for name, one in value.items()} if isinstance(value, dict) else value


def about(wanted: Any) -> Any:
    """The same with numbers that may differ a little, as they do between processors."""
    if isinstance(wanted, float):
        return pytest.approx(wanted, rel=5e-3, abs=1e-5)
    if isinstance(wanted, list):
        return [about(one) for one in wanted]
    return {name: about(one) for name, one in wanted.items()} if isinstance(wanted, dict) else wanted


def test_the_table_is_found() -> None:
    assert len(ROWS) == len([line for line in PAGE.splitlines() if line.startswith("| `")]) > 20


@pytest.mark.parametrize(("method", "path", "body", "status", "answer"), ROWS)
def test_a_row_is_true(home: House, method: str, path: str, body: str, status: str, answer: str) -> None:
    if body.startswith("@"):
        content = sample(body[1:])
    else:
        content = re.sub("<([^>]+)>", lambda name: base64.b64encode(sample(name[1])).decode(), body).encode()
    response = home.client.request(method, path, content=content)
    assert response.status_code == int(status), response.text
    wanted, found = json.loads(answer), response.json()
    if isinstance(wanted, dict) and set(wanted) == {"error"}:  # of a problem document the page shows the sentence alone
        found = {"error": found["error"]}
    assert parted(found) == about(parted(wanted))
