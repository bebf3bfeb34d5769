"""docs/CLIENT.md: each example, run against a server with the demo, prints what stands below it."""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.houses import House, house

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/CLIENT.md").read_text()
EXAMPLES = re.findall(r"```python\n((?s:.*?))```\n\n((?:    .*\n)+)", PAGE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    data = tmp_path_factory.mktemp("data")
    with house(Settings(data_dir=data, device="cpu", dtype="float32", threads=1, port=0)) as made:
        yield made


def test_the_examples_are_found() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 8


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_an_example_is_true(home: House, code: str, printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ADAPTSERVE_URL", home.url)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code.replace("http://127.0.0.1:8000", home.url), "docs/CLIENT.md", "exec"), {})
    assert out.getvalue() == textwrap.dedent(printed)
