"""Adapters that AdapterHub's own library has made are served with its own scores."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.settings import Settings
from tests.houses import House, house, photograph, scores_of

PYTHON = os.environ.get("ADAPTERHUB_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="ADAPTERHUB_PYTHON names no interpreter that has AdapterHub's library; `make libraries` does"
)
TASKS = ("par_bn", "scaled_par_bn", "seq_bn", "sequential", "double_seq_bn", "compacter", "adapter_plus", "lora")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the library has made, of three pictures."""
    folder = tmp_path_factory.mktemp("hub")
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(photograph(seed, "PNG", (90, 70)))
    script = Path(__file__).with_name("adapterhub_library.py").resolve()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, str(script), str(folder)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def home(made: Path) -> Iterator[House]:
    settings = Settings(
        backbone=str(made / "base"), device="cpu", dtype="float32", threads=1, port=0, data_dir=made / "data"
    )
    with house(settings) as found:
        yield found


@pytest.mark.parametrize("task", TASKS)
def test_the_scores_are_the_librarys(made: Path, home: House, task: str) -> None:
    file = made / f"{task}.safetensors"
    done = CliRunner().invoke(
        app, ["import", "adapterhub", str(made / task), "--base", str(made / "base"), "--out", str(file)]
    )
    assert done.exit_code == 0, done.output
    assert home.put(task, file.read_bytes()).status_code == 201
    expected = np.array(json.loads((made / task / "scores.json").read_text()))
    assert np.ptp(expected, axis=0).max() > 1e-3  # or any picture would do
    for seed, right in enumerate(expected):
        answer = home.ask(task, (made / f"{seed}.png").read_bytes(), top_k=100).raise_for_status().json()
        np.testing.assert_allclose(scores_of(answer), right, rtol=0, atol=1e-4)
        assert {one["label"] for one in answer["predictions"]} == {"cat", "dog", "a/b", "été", "[x"}
