"""Servers for tests: one in this process with its parts at hand, one as a real process."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from adapters import Adapter, Backbone, Predictor, load_backbone
from adapters.config import SiteConfig
from adapters.file import write_adapter
from service.alone import alone
from service.engine.local import LocalEngine
from service.settings import Settings
from service.watch.metrics import Snapshot
from service.web.app import FrontEnd
from service.web.server import Server, server_config
from tests.models import Spec, random_adapter, small_backbone

WAIT = 30.0
STARTED_S = 90.0
"""An engine imports torch and a model, on whatever machine this is."""


def sites(rank: int = 4, temporal: bool = False) -> tuple[SiteConfig, ...]:
    return (SiteConfig(site="parallel", blocks=(0, 1, 2), rank=rank, temporal=temporal),)


IMAGE = Spec(sites(), 5, "avg", "trained")
CLIP = Spec(sites(temporal=True), 4, "avg", "trained", frames=4)


class Kit:
    """A backbone folder, adapter files for it, and what each of them answers when computed alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        small_backbone(folder / "vit")
        self.backbone: Backbone = load_backbone(str(folder / "vit"), "random:0", "cpu", "float32")

    def settings(self, **changes: Any) -> Settings:
        fields: dict[str, Any] = {
            "backbone": str(self.folder / "vit"), "weights": "random:0", "device": "cpu", "dtype": "float32",
            "threads": 1, "port": 0,
        }  # fmt: skip
        return Settings(**(fields | changes))

    def file(self, seed: int, spec: Spec = IMAGE, task: str = "t") -> tuple[bytes, Adapter]:
        """The bytes of a random adapter's file, and the adapter with the digest of those bytes."""
        adapter = random_adapter(self.backbone, spec, seed, size=0.5, task=task)
        path = self.folder / f"{threading.get_ident()}.safetensors"
        digest = write_adapter(path, adapter.config, adapter.tensors)
        return path.read_bytes(), Adapter(adapter.config, adapter.tensors, digest)

    def alone(self, adapter: Adapter, body: bytes) -> NDArray[np.float64]:
        """Probabilities by label index, from that adapter alone in a bank of one slot."""
        return Predictor(self.backbone, adapter)(body).scores


def scores_of(answer: dict[str, Any]) -> NDArray[np.float64]:
    """An answer's scores by label index; all labels must have been asked for."""
    found = {p["index"]: p["score"] for p in answer["predictions"]}
    return np.array([found[i] for i in range(len(found))])


def photograph(seed: int = 0, kind: str = "JPEG", size: tuple[int, int] = (90, 70)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


@dataclass
class House:
    """A server in this process: ``url`` for clients, the rest to look inside."""

    url: str
    client: httpx.Client
    settings: Settings
    local: LocalEngine
    front: FrontEnd

    @property
    def built(self) -> Any:
        """What the endpoints use."""
        return self.front.app.state

    def metrics(self) -> str:
        """What /metrics says of requests, without a request."""
        return self.front.app.state.metrics.render(Snapshot.nothing(), {}).decode()

    def put(self, task: str, content: bytes, **params: Any) -> httpx.Response:
        return self.client.put(f"/v1/tasks/{task}/adapter", content=content, params=params)

    def ask(self, task: str, body: bytes, **params: Any) -> httpx.Response:
        return self.client.post(f"/v1/tasks/{task}/predict", content=body, params={"top_k": 100} | params)


@contextmanager
def house(settings: Settings) -> Iterator[House]:
    with alone(settings) as home:
        config = server_config(settings, home.front_end.served)
        config.port = 0
        server = Server(config, pins=home.front_end.pins)
        thread = threading.Thread(target=server.run)
        thread.start()
        assert until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        try:
            with client_of(url) as client:
                yield House(url, client, settings, home.engine, home.front_end)
        finally:
            server.should_exit = True
            thread.join(WAIT)


class Process:
    """`adaptserve serve` as a real process."""

    def __init__(self, arguments: Sequence[str], log: Path, module: str = "service.cli") -> None:
        self.log = log
        command = [sys.executable, "-m", module, "serve", "--port", "0", *arguments]
        # In float32 unless a test says otherwise, so that answers can be held against the reference on every processor.
        environment = {"ADAPTSERVE_DTYPE": "float32"} | os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        with ExitStack() as failed:
            failed.callback(self._end)
            assert until(lambda: self._url() is not None or self.process.poll() is not None, STARTED_S), self.output
            assert self.process.poll() is None, self.output
            self.url = self._url() or ""
            self.client = failed.enter_context(client_of(self.url))
            assert until(self._ready, 30), self.output
            failed.pop_all()

    @property
    def output(self) -> str:
        return self.log.read_text()

    def family(self, module: str = "") -> list[psutil.Process]:
        """Its processes that run a module; without one itself, and then all others."""
        own = psutil.Process(self.process.pid)
        if not module:
            return [own, *own.children(recursive=True)]
        return [child for child in own.children() if module in _command(child)]

    def stop(self, number: int) -> int:
        self.client.close()
        self.process.send_signal(number)
        return self.process.wait(WAIT)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left behind, also where a test failed."""
        self.client.close()
        self._end()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _url(self) -> str | None:
        match = re.search(r"^(?:.*\")?serving +(http\S+?)(?=:?\s)", self.output, re.MULTILINE)
        return match[1] if match else None

    def _ready(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


def client_of(url: str) -> httpx.Client:
    """With connections of its own, and without what httpx prepares for https: that takes 30 ms."""
    return httpx.Client(base_url=url, timeout=WAIT, verify=False)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended, or is a zombie
        return []


def until(condition: Callable[[], bool], seconds: float = WAIT) -> bool:
    """Poll until true, at most ``seconds``; ever more seldom, since it takes the processor from what is waited for."""
    start, pause = time.monotonic(), threading.Event()
    while not condition() and (waited := time.monotonic() - start) < seconds:
        pause.wait(min(max(waited / 10, 0.01), 0.1))
    return condition()


def pages(client: httpx.Client, path: str, items: str, **params: Any) -> list[dict[str, Any]]:
    """Everything that a list holds, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        answer = client.get(path, params=params).raise_for_status().json()
        found += answer[items]
        if answer["next"] is None:
            return found
        params["after"] = answer["next"]


def problem(response: httpx.Response, status: int) -> dict[str, object]:
    """The problem document of a response that must have this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["request_id"] == response.headers["x-request-id"]
    assert len(document["detail"]) > 15
    assert document["error"] == document["detail"]  # where clients of other servers look
    return document  # type: ignore[no-any-return]
