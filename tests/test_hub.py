"""timm names without a network, with a cache, and with a hub that is slow: a line within seconds, or the weights."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from adapters.backbone import fingerprint_of, load_backbone
from adapters.errors import BackboneError

NAME = "vit_tiny_patch16_224"
REPOSITORY = f"timm/{NAME}.augreg_in21k_ft_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINE = "could not be loaded .*cannot be reached in .* s, and its weights are not in the local cache.*--weights"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub's client."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return tmp_path / "hub"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers, as behind a firewall that drops what it does not like."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the hub has for ``NAME``, and its fingerprint."""
    made = timm.create_model(NAME, pretrained=False)
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(made.state_dict(), path)
    return path, fingerprint_of(made)


def at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The hub is there; the client has made the template of its addresses of it already."""
    hub = huggingface_hub.constants
    monkeypatch.setattr(
        hub, "HUGGINGFACE_CO_URL_TEMPLATE", hub.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.ENDPOINT, address)
    )
    monkeypatch.setattr(hub, "ENDPOINT", address)


@pytest.mark.parametrize("network", ["silent", "closed"])
def test_no_network_is_a_line_within_seconds(
    network: str, cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    at(monkeypatch, request.getfixturevalue(network))
    start = time.monotonic()
    with pytest.raises(BackboneError, match=LINE):
        load_backbone(NAME, "", "cpu")
    assert time.monotonic() - start < 10


def test_weights_at_an_address_of_their_own_are_no_different(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = timm.get_pretrained_cfg("vit_huge_patch14_gap_224.in1k_ijepa")
    assert (config.hf_hub_id, config.url[:8]) == (None, "https://")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: dataclasses.replace(config, url=f"{closed}/vit.pth"))
    with pytest.raises(BackboneError, match=LINE):
        load_backbone("vit_huge_patch14_gap_224.in1k_ijepa", "", "cpu")


def test_a_name_server_that_hangs_is_not_waited_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    woken = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        woken.wait(60)
        raise OSError("too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr("adapters.backbone.source.REACH_S", 0.3)
    at(monkeypatch, "http://hub.invalid")
    try:
        with pytest.raises(BackboneError, match=LINE):
            load_backbone(NAME, "", "cpu")
    finally:
        woken.set()


def test_what_is_in_the_cache_needs_no_network(
    cache: Path, closed: str, weights: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "model.safetensors").symlink_to(weights[0])
    at(monkeypatch, closed)
    assert load_backbone(NAME, "", "cpu").layout.fingerprint == weights[1]
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
    other = load_backbone(NAME, "", "cpu", "float32", (48, 80))
    assert (other.layout.fingerprint, other.layout.input_size) == (weights[1], (48, 80))
    plain = timm.create_model(NAME, pretrained=True, num_classes=0, img_size=(48, 80), cache_dir=cache).eval()
    picture = torch.randn(1, 3, 48, 80)
    with torch.inference_mode():
        assert torch.equal(other.features(picture).normed, plain.forward_features(picture))


def test_a_slow_download_has_all_the_time_it_needs(
    cache: Path, weights: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = weights[0].read_bytes()
    sent: list[float] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def head(self) -> bool:
            here = "/resolve/" not in self.path or self.path.endswith("/model.safetensors")
            self.send_response(200 if here else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content) if here else 0))
            self.end_headers()
            return here

        def do_HEAD(self) -> None:
            self.head()

        def do_GET(self) -> None:
            start = time.monotonic()
            if self.head():
                for i in range(4):  # 2 seconds in all
                    time.sleep(0.5)
                    self.wfile.write(content[i * len(content) // 4 : (i + 1) * len(content) // 4])
                sent.append(time.monotonic() - start)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr("adapters.backbone.source.REACH_S", 1.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
            assert load_backbone(NAME, "", "cpu").layout.fingerprint == weights[1]
        finally:
            server.shutdown()
            thread.join()
            huggingface_hub.close_session()
    assert sent[0] > 1.5


def test_the_command_ends_in_one_line(closed: str, tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": closed, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(
        [*command, "--backbone", NAME], env=dict(os.environ) | environment, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
