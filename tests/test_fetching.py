"""Files from every kind of source, over small stand-ins: the bytes, the bounds, the words of failures, no secrets."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from adapters.errors import AdaptError, AdapterTooLarge
from service.errors import SourceFailed
from service.settings import Settings
from service.source_address import source_of
from service.sources.fetching import Fetcher
from service.store.staging import Staging
from tests.places import COMMIT, Answer, Hub, Place, Registry, served
from tests.s3 import options, s3

CONTENT = bytes(range(256)) * 9
SAFETENSORS = "application/vnd.docker.ai.safetensors"
SECRET = "user:hunter2"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of whoever runs the tests."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


def fetched(folder: Path, address: str, version: str = "", **changes: Any) -> bytes:
    staging = Staging(folder, changes.get("max_adapter_bytes", 10_000))
    try:
        settings = Settings(**{"max_adapter_bytes": 10_000, "source_timeout_s": 5.0} | changes)
        Fetcher(settings, folder).fetch(source_of(address, version), staging)
        assert staging.finish() == hashlib.sha256(staging.path.read_bytes()).hexdigest()
        return staging.path.read_bytes()
    finally:
        staging.discard()


def refusal(folder: Path, address: str, **changes: Any) -> str:
    with pytest.raises(SourceFailed) as caught:
        fetched(folder, address, **changes)
    return caught.value.message


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Iterator[tuple[Hub, Place]]:
    files = {"a.safetensors": CONTENT, "deep/b.safetensors": CONTENT[::-1], "config.json": b"{}"}
    made = Hub(**{"models": {"org/two": files, "org/one": {"x.safetensors": CONTENT, "README.md": b"x"}}} | fields)
    with served(Place(made.answer)) as place:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{place.host}")
        yield made, place


def test_a_path_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/a.safetensors").write_bytes(CONTENT)
    assert fetched(tmp_path, "inner/a.safetensors") == CONTENT
    assert "cannot be read (No such file" in refusal(tmp_path, "b.safetensors")
    assert "is no file" in refusal(tmp_path, "inner")
    (tmp_path / "inner/out").symlink_to("/etc/hostname")
    assert "leads out" in refusal(tmp_path, "inner/out")
    with pytest.raises(AdapterTooLarge):
        fetched(tmp_path, "inner/a.safetensors", max_adapter_bytes=100)


def test_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with hub(monkeypatch) as (_, place):
        assert fetched(tmp_path, "hf://org/one") == CONTENT
        assert place.asked[-1] == f"/org/one/resolve/{COMMIT}/x.safetensors"  # of the commit that was listed
        assert fetched(tmp_path, "hf://org/two/deep/b.safetensors@v2") == CONTENT[::-1]
        assert fetched(tmp_path, "hf://org/two@v2/a.safetensors") == CONTENT
        assert fetched(tmp_path, "hf://org/two/a.safetensors", "v2") == CONTENT
        assert "name one of a.safetensors, deep/b.safetensors" in refusal(tmp_path, "hf://org/two")
        assert "has no file c.safetensors; it has a.saf" in refusal(tmp_path, "hf://org/two/c.safetensors")
        assert "no revision v3" in refusal(tmp_path, "hf://org/two/a.safetensors@v3")
        assert "has no org/three that this server may read" in refusal(tmp_path, "hf://org/three")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE" in refusal(tmp_path, "hf://org/one")
        assert set(place.credentials) == {""}


def test_a_private_model_and_bytes_in_another_house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        served(Place(lambda path, headers: Answer(content=CONTENT))) as other,
        hub(monkeypatch, token="hf_secret", elsewhere=f"http://{other.host}") as (made, _),
    ):
        assert "set HF_TOKEN" in refusal(tmp_path, "hf://org/one")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert fetched(tmp_path, "hf://org/one") == CONTENT
        assert other.credentials == [""]  # the token is the hub's
        made.gated = True
        assert "is gated" in refusal(tmp_path, "hf://org/one")


def test_bounds_of_bytes_and_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with hub(monkeypatch) as (made, place):
        with pytest.raises(AdapterTooLarge, match="has 2304 bytes, the limit is 2000"):
            fetched(tmp_path, "hf://org/one", max_adapter_bytes=2000)
        assert len(place.asked) == 1  # refused before a byte came
        made.sizes["x.safetensors"] = 1  # it says less than it is
        with pytest.raises(AdapterTooLarge):
            fetched(tmp_path, "hf://org/one", max_adapter_bytes=2000)
        made.stall = threading.Event()
        assert "does not answer in time" in refusal(tmp_path, "hf://org/one", source_timeout_s=0.2)
        made.stall.set()
    assert "cannot be asked" in refusal(tmp_path, "hf://org/one")


def test_a_source_that_dribbles_ends_in_time(tmp_path: Path) -> None:
    """Each byte comes in time, all of them never do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def dribble() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n")
                while not stop.wait(0.02):
                    connection.sendall(b"x")

        thread = threading.Thread(target=dribble)
        thread.start()
        began = time.monotonic()
        said = refusal(tmp_path, f"oci://127.0.0.1:{listener.getsockname()[1]}/a:b", source_timeout_s=0.4)
        assert said == "the file did not come within 0.4 s (source_timeout_s)"
        assert time.monotonic() - began < 5
        stop.set()
        thread.join()


def test_an_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with s3() as (bucket, url):
        for name, value in options(url).items():
            monkeypatch.setenv(name, value)
        bucket.put("models/cats/a.safetensors", CONTENT)
        assert fetched(tmp_path, "s3://bucket/models/cats/a.safetensors") == CONTENT
        assert "no object models/dogs" in refusal(tmp_path, "s3://bucket/models/dogs")
        with pytest.raises(AdapterTooLarge):
            fetched(tmp_path, "s3://bucket/models/cats/a.safetensors", max_adapter_bytes=2000)
        bucket.away(30)
        assert "does not answer" in refusal(tmp_path, "s3://bucket/models/cats/a.safetensors", source_timeout_s=0.5)


@contextmanager
def registry(**fields: Any) -> Iterator[tuple[Registry, Place]]:
    made = Registry(**fields)
    with served(Place(made.answer)) as place:
        made.realm = made.realm or f"http://{place.host}/token"
        made.push("team/cats", "v1", ("application/octet-stream", "cats.safetensors", CONTENT))
        yield made, place


def test_a_registry(tmp_path: Path) -> None:
    with registry() as (made, place):
        digest = made.push("team/cats", "v2", ("text/plain", "README.md", b"x"), (SAFETENSORS, "", CONTENT[::-1]))
        at = f"oci://{place.host}/team/cats"
        assert fetched(tmp_path, f"{at}:v1") == CONTENT
        assert fetched(tmp_path, f"{at}@{digest}") == CONTENT[::-1]
        assert fetched(tmp_path, at, "v2") == CONTENT[::-1]
        made.push("team/cats", "packed", ("application/vnd.cncf.model.weight.v1.tar", "a.safetensors", CONTENT))
        made.push("team/cats", "two", (SAFETENSORS, "", b"a"), (SAFETENSORS, "", b"b"))
        index = {"manifests": [{"digest": digest, "mediaType": "application/vnd.oci.image.manifest.v1+json"}]}
        made.put("team/cats", "index", json.dumps(index).encode())
        made.put("team/cats", "junk", b"[]")
        assert fetched(tmp_path, f"{at}:index") == CONTENT[::-1]
        assert "no safetensors layer; push one with `oras push" in refusal(tmp_path, f"{at}:packed")
        assert "2 safetensors layers" in refusal(tmp_path, f"{at}:two")
        assert "no JSON object" in refusal(tmp_path, f"{at}:junk")
        assert "has no team/cats of v9" in refusal(tmp_path, f"{at}:v9")
        made.manifests[f"team/cats:{digest}"] += b" "
        assert "another manifest" in refusal(tmp_path, f"{at}@{digest}")
        made.wrong = True
        assert "other bytes" in refusal(tmp_path, f"{at}:v1")
        with pytest.raises(AdapterTooLarge):
            fetched(tmp_path, f"{at}:v1", max_adapter_bytes=2000)


@pytest.mark.parametrize("way", ["bearer", "basic"])
def test_a_registry_that_asks_for_credentials(way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        served(Place(lambda path, headers: Answer(content=CONTENT))) as other,
        registry(way=way, user=SECRET, elsewhere=f"http://{other.host}") as (_, place),
    ):
        address = f"oci://{place.host}/team/cats:v1"
        refused = refusal(tmp_path, address)
        basic = base64.b64encode(SECRET.encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {place.host: {"auth": basic}}}))
        assert fetched(tmp_path, address) == CONTENT
        assert other.credentials == [""]
        for secret in ("hunter2", basic, "for-repository"):
            assert secret not in refused + caplog.text


def test_no_line_of_the_log_has_an_address_that_is_signed() -> None:
    with served(Place(lambda path, headers: Answer(content=CONTENT))) as place:
        code = f"""
from service.watch import logs
logs.configure("debug", "text")
import time
from service.sources.fetching import FetchBounds, client, stream
bounds = FetchBounds(10_000, 5.0, time.monotonic() + 5.0)
with client(bounds) as http:
    print(sum(map(len, stream(http, "http://{place.host}/a?X-Amz-Signature=hunter2", {{}}, bounds))))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, "hunter2" in done.stderr) == (f"{len(CONTENT)}\n", False)


def test_an_anonymous_token(tmp_path: Path) -> None:
    with registry(way="bearer") as (made, place):
        assert fetched(tmp_path, f"oci://{place.host}/team/cats:v1") == CONTENT
        assert place.credentials[-1] == "Bearer for-repository:team/cats:pull"
        made.realm = "http://example.org/token"
        assert "not asked, since its address is not https" in refusal(tmp_path, f"oci://{place.host}/team/cats:v1")


def test_a_plain_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=x -addext"
    command = ["openssl", *made.split(), "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "crt"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    (tmp_path / "both").write_bytes((tmp_path / "key").read_bytes() + (tmp_path / "crt").read_bytes())
    answers = {"/a": Answer(content=CONTENT), "/here": Answer(302, headers={"Location": "/a"}),
               "/loop": Answer(302, headers={"Location": "/loop"}), "/private": Answer(403)}  # fmt: skip
    with served(Place(lambda path, headers: answers.get(path, Answer(404))), tmp_path / "both") as place:
        host = place.host
        answers["/away"] = Answer(307, headers={"Location": f"https://localhost:{place.port}/a"})
        answers["/plain"] = Answer(301, headers={"Location": f"http://{host}/a"})
        assert "certificate is not trusted" in refusal(tmp_path, f"https://{host}/a")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "crt"))
        assert fetched(tmp_path, f"https://{host}/a") == fetched(tmp_path, f"https://{host}/here") == CONTENT
        asked = len(place.asked)
        assert "redirects to another host, localhost" in refusal(tmp_path, f"https://{host}/away")
        assert "without encryption" in refusal(tmp_path, f"https://{host}/plain")
        assert len(place.asked) == asked + 2
        assert "more than 5 times" in refusal(tmp_path, f"https://{host}/loop")
        assert "it refuses (403)" in refusal(tmp_path, f"https://{host}/private")
        assert "nothing at that address (404)" in refusal(tmp_path, f"https://{host}/nothing")
    assert "cannot be reached (no connection)" in refusal(tmp_path, f"https://{host}/a")


def test_errors_are_ours(tmp_path: Path) -> None:
    """Whatever the address: nothing else is raised."""
    for address in ("https://127.0.0.1:1/x", "oci://127.0.0.1:1/x", "s3://bucket/x", "az://container/x", "gs://b/x"):
        with pytest.raises(AdaptError):
            fetched(tmp_path, address, source_timeout_s=0.3)
