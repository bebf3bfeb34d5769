"""Small stand-ins of the places that adapters come from: a model hub, a container registry, a plain host.

They speak as far as a pull needs it, count who asks for what and with which credentials, and fail on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TITLE = "org.opencontainers.image.title"


@dataclass
class Answer:
    """What a place says; ``stall`` is an event that its body waits for."""

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stall: threading.Event | None = None


@dataclass
class Place:
    """One server on the loopback: ``asked`` has the paths, ``credentials`` what came in Authorization with each."""

    answer: Callable[[str, Message], Answer]
    asked: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def served(place: Place, certificate: Path | None = None) -> Iterator[Place]:
    """Over TLS with a certificate, of key and certificate in one file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place.asked.append(self.path)
            place.credentials.append(self.headers.get("Authorization", ""))
            found = place.answer(self.path, self.headers)
            self.send_response(found.status)
            for name, value in ({"Content-Length": str(len(found.content))} | found.headers).items():
                self.send_header(name, value)
            self.end_headers()
            half = len(found.content) // 2
            try:
                self.wfile.write(found.content[:half])
                if found.stall is not None:
                    self.wfile.flush()
                    found.stall.wait(20)
                self.wfile.write(found.content[half:])
            except OSError:  # whoever asked has left
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    place.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield place
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@dataclass
class Hub:
    """Models of a hub by `owner/name` and file, at one commit; ``token`` is what private ones are read with."""

    models: dict[str, dict[str, bytes]]
    token: str = ""
    gated: bool = False
    elsewhere: str = ""  # where the bytes of files are, as large ones lie in another house
    sizes: dict[str, int] = field(default_factory=dict)
    stall: threading.Event | None = None

    def answer(self, path: str, headers: Message) -> Answer:
        parts = urlsplit(path).path.strip("/").split("/")
        allowed = not self.token or headers.get("Authorization") == f"Bearer {self.token}"
        if parts[:2] == ["api", "models"]:
            return self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", allowed=allowed)
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if not allowed or revision != COMMIT:
            return _error(401, "RepoNotFound")
        if self.elsewhere:
            return Answer(302, headers={"Location": f"{self.elsewhere}/{name}/{file}"})
        return Answer(content=self.models[name][file], stall=self.stall)

    def _info(self, name: str, revision: str, *, allowed: bool) -> Answer:
        if self.gated:
            return _error(403, "GatedRepo")
        if name not in self.models or not allowed:
            return _error(401, "RepoNotFound")
        if revision not in ("main", "v2", COMMIT):
            return _error(404, "RevisionNotFound")
        files = [
            {"rfilename": file, "size": self.sizes.get(file, len(content))}
            for file, content in self.models[name].items()
        ]
        return _json({"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "tags": [], "private": False})


def _error(status: int, code: str) -> Answer:
    return Answer(status, b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "no"})


def _json(document: object, **headers: str) -> Answer:
    return Answer(content=json.dumps(document).encode(), headers={"Content-Type": "application/json"} | headers)


@dataclass
class Registry:
    """Artifacts of a registry by `name:tag`; ``user`` and password in one, where it asks for them, by ``way``."""

    way: str = ""  # "", "bearer" or "basic"
    user: str = ""
    elsewhere: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    realm: str = ""
    wrong: bool = False

    def push(self, name: str, tag: str, *layers: tuple[str, str, bytes]) -> str:
        """An artifact of layers: media type, title and bytes; its digest."""
        told = []
        for kind, title, content in layers:
            self.blobs[_digest(content)] = content
            told.append({
                "mediaType": kind, "digest": _digest(content), "size": len(content), "annotations": {TITLE: title},
            })  # fmt: skip
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": told}).encode()
        return self.put(name, tag, manifest)

    def put(self, name: str, tag: str, manifest: bytes) -> str:
        digest = _digest(manifest)
        self.manifests[f"{name}:{tag}"] = self.manifests[f"{name}:{digest}"] = manifest
        return digest

    def answer(self, path: str, headers: Message) -> Answer:
        address, authorization = urlsplit(path), headers.get("Authorization", "")
        basic = f"Basic {base64.b64encode(self.user.encode()).decode()}"
        if address.path == "/token":
            (scope,) = parse_qs(address.query)["scope"]
            if self.user and authorization != basic:
                return Answer(401)
            return _json({"token": f"for-{scope}"})
        name, _, rest = address.path.removeprefix("/v2/").rpartition("/")
        name, _, kind = name.rpartition("/")
        wanted = {"bearer": f"Bearer for-repository:{name}:pull", "basic": basic}.get(self.way, authorization)
        if authorization != wanted:
            realm = f'realm="{self.realm}",service="here",scope="repository:{name}:pull"'
            return Answer(401, headers={"WWW-Authenticate": f"{self.way.capitalize()} {realm}"})
        if kind == "manifests" and f"{name}:{rest}" in self.manifests:
            return Answer(content=self.manifests[f"{name}:{rest}"], headers={"Content-Type": MANIFEST})
        if kind == "blobs" and rest in self.blobs:
            if self.elsewhere:
                return Answer(307, headers={"Location": f"{self.elsewhere}/{rest}"})
            return Answer(content=self.blobs[rest][::-1] if self.wrong else self.blobs[rest])
        return Answer(404)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
