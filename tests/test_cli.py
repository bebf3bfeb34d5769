"""The command as a person uses it: real processes, real exit codes, one line per error."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from adaptserve_client import calls
from service.cli.main import app
from service.keys import create, dump
from tests.houses import Kit, Process, house, photograph, until

runner = CliRunner()


def arguments(kit: Kit, data: Path) -> list[str]:
    return ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--device", "cpu", "--data-dir", str(data)]


def serve(*given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", "serve", *given]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_serve_push_stop_copy_serve(kit: Kit, tmp_path: Path) -> None:
    """A server says what it loaded and who holds keys, drains on Ctrl-C, and its copied folder serves the same."""
    content, adapter = kit.file(1, task="pets")
    made = [create("boss", "admin"), create("reader", "predict")]
    (tmp_path / "keys.json").write_text(dump([key for _, key in made]))
    given = [*arguments(kit, tmp_path / "data"), "--threads", "1", "--keys-file", str(tmp_path / "keys.json")]
    server = Process(given, tmp_path / "log")
    server.client.headers["Authorization"] = f"Bearer {made[0][0]}"
    assert "warning: the weights are random" in server.output
    assert f"fingerprint {kit.backbone.layout.fingerprint[:12]}" in server.output
    assert "boss (admin), reader (predict)" in server.output
    server.client.put("/v1/tasks/pets/adapter", content=content).raise_for_status()
    body = photograph()
    before = server.client.post("/v1/tasks/pets/predict", content=body).json()
    answers: list[int] = []

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=30, headers=server.client.headers) as client:
            try:
                while True:
                    answers.append(client.post("/v1/tasks/pets/predict", content=body).status_code)
                    if answers[-1] == 503:
                        return
            except httpx.ConnectError:
                return  # the server has gone; no request that it accepted was lost

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    assert until(lambda: len(answers) > 20)
    assert server.stop(signal.SIGINT) == 0, server.output
    for client in clients:
        client.join(30)
    assert set(answers) <= {200, 503}, "what it took was answered, what came later refused"
    assert not [secret for secret, _ in made if secret in server.output]
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    with house(kit.settings(data_dir=tmp_path / "elsewhere")) as again:
        after = again.client.post("/v1/tasks/pets/predict", content=body).json()
    assert after["digest"] == adapter.digest
    assert after == before


def test_an_open_door_is_refused() -> None:
    refused = serve("--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "add --insecure" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["ALLOWED_HOSTS", "ALLOWED_ORIGINS"])
def test_every_page_may_come_in_only_where_there_are_keys(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ADAPTSERVE_{name}", "example.org,*" if name == "ALLOWED_HOSTS" else "*")
    refused = serve("--port", "0")
    assert refused.returncode == 2
    assert name in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = serve("--port", str(taken.getsockname()[1]), "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert "choose another --port" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def limited(limit: str, *command: str) -> subprocess.CompletedProcess[str]:
    script = ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh", sys.executable, *command]
    return subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)


def test_too_few_open_files_are_one_line_or_more_are_taken() -> None:
    done = limited("-n 300", "-m", "service.cli", "serve")
    assert done.returncode == 2
    assert "max_connections" in done.stderr
    assert "may have 300" in done.stderr.replace("\n", " ")
    code = (
        "import resource; from service.cli.serve import _make_room_for_files; from service.settings import Settings; "
        "_make_room_for_files(Settings(max_connections=500)); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    assert int(limited("-Sn 256", "-c", code).stdout) >= 500 + 32


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    refused = serve("--slots", "0", "--data-dir", str(tmp_path))
    assert refused.returncode == 2
    assert "ADAPTSERVE_SLOTS" in refused.stderr


def test_inspect(kit: Kit, tmp_path: Path) -> None:
    content, adapter = kit.file(2, task="pets")
    (tmp_path / "good.safetensors").write_bytes(content)
    shown = runner.invoke(app, ["inspect", str(tmp_path / "good.safetensors")])
    assert shown.exit_code == 0
    assert adapter.digest[:12] in shown.stdout
    assert "pets" in shown.stdout
    (tmp_path / "bad.safetensors").write_bytes(content[:500])
    bad = runner.invoke(app, ["inspect", str(tmp_path / "bad.safetensors")])
    assert bad.exit_code == 1
    assert runner.invoke(app, ["inspect", str(tmp_path / "none")]).exit_code == 1


def test_push_and_predict(kit: Kit, tmp_path: Path) -> None:
    file, picture = tmp_path / "pets.safetensors", tmp_path / "a.jpg"
    file.write_bytes(kit.file(3, task="pets")[0])
    picture.write_bytes(photograph())
    with house(kit.settings(data_dir=tmp_path / "data")) as home:
        pushed = runner.invoke(app, ["push", str(file), "--to", home.url])
        assert pushed.exit_code == 0
        assert "pets version 1 is active" in pushed.stdout
        again = runner.invoke(app, ["push", str(file), "--to", home.url, "--task", "pets"])
        assert "had it already" in again.stdout
        asked = runner.invoke(app, ["predict", str(picture), "--task", "pets", "--url", home.url, "--top-k", "2"])
        assert asked.exit_code == 0
        assert asked.stdout.count("label ") >= 2
        question = ["predict", str(picture), "--task", "pets", "--url", home.url, "--deadline"]
        assert runner.invoke(app, [*question, "20"]).exit_code == 0
        late = runner.invoke(app, [*question, "9999"])
        assert late.exit_code == 1
        assert "X-Deadline-Ms is 9999000" in late.stderr
        for wrong in ("0", "-1", "soon", "nan", "inf"):
            assert runner.invoke(app, [*question, wrong]).exit_code == 2, wrong
        missing = runner.invoke(app, ["predict", str(picture), "--task", "none", "--url", home.url])
        assert missing.exit_code == 1
    gone = runner.invoke(app, ["predict", str(picture), "--task", "pets", "--url", home.url])
    assert gone.exit_code == 1


def test_help_teaches() -> None:
    for command in ([], ["serve"], ["push"], ["predict"], ["inspect"]):
        shown = runner.invoke(app, [*command, "--help"])
        assert shown.exit_code == 0
        assert "adaptserve" in shown.stdout


def test_a_deadline_bounds_the_wait_for_a_server_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PATIENCE_S", 0.1)
    (tmp_path / "a.jpg").write_bytes(photograph())
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        asked = runner.invoke(
            app, ["predict", str(tmp_path / "a.jpg"), "--task", "t", "--url", url, "--deadline", "0.2501"]
        )
        assert time.monotonic() - begun < 5
        connection, _ = silent.accept()
        with connection:
            assert b"\r\nX-Deadline-Ms: 251\r\n" in connection.recv(65536)
    assert asked.exit_code == 1
    assert "did not answer in time" in asked.stderr
