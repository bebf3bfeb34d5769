"""Files in container registries: one safetensors layer of an OCI artifact, as `oras push` or ModelPack put it there.

The distribution protocol as far as a pull needs it: token, manifest, blob. What it gives is held against its digest.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from service.errors import SourceFailed
from service.source_address import SourceAddress
from service.sources.fetching import FetchBounds, check_status, client, no_netrc, said, stream

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER: Final = "application/vnd.docker.distribution.manifest.v2+json"
MODEL_LAYER: Final = "application/vnd.cncf.model.weight.v1.raw"
TITLE: Final = "org.opencontainers.image.title"
FILE_PATH: Final = "org.cncf.model.filepath"
MAX_DOCUMENT: Final = 4 * 2**20
"""Bytes of a manifest, as registries bound them, or of a token."""
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def registry_file(source: SourceAddress, bounds: FetchBounds) -> Iterator[bytes]:
    """The bytes of the one safetensors layer. Raises SourceFailed or AdapterTooLarge."""
    with said("the registry"), client(bounds) as http:
        registry = _Registry(http, source, bounds)
        layer = _layer(registry.manifest(source.version), source)
        digest = str(layer.get("digest", ""))
        if not _DIGEST.fullmatch(digest):
            raise SourceFailed("the layer has no sha256 digest")
        size = layer.get("size")
        bounds.check_size(size if isinstance(size, int) else 0)
        hashed = hashlib.sha256()
        for chunk in stream(http, registry.address("blobs", digest), registry.headers, bounds):
            hashed.update(chunk)
            yield chunk
        if f"sha256:{hashed.hexdigest()}" != digest:
            raise SourceFailed("the registry gave other bytes than those of the layer's digest")


class _Registry:
    """One repository of a registry, asked with whatever it wants for a pull."""

    def __init__(self, http: httpx.Client, source: SourceAddress, bounds: FetchBounds) -> None:
        self._http, self._source, self._bounds = http, source, bounds
        scheme = "http" if _is_local(source.host) else "https"  # as container tools have it
        host = "registry-1.docker.io" if source.host == "docker.io" else source.host
        self._base = f"{scheme}://{host}/v2/{source.path}"
        self.headers: dict[str, str] = {}

    def address(self, kind: str, name: str) -> str:
        return f"{self._base}/{kind}/{name}"

    def manifest(self, reference: str) -> dict[str, Any]:
        """The artifact's manifest; of an index the only one. Raises SourceFailed."""
        kinds = f"{MANIFEST}, {INDEX}, {DOCKER}"
        found = self._document(self.address("manifests", reference), {"Accept": kinds}, reference)
        if "manifests" not in found:
            return found
        several = [one for one in found["manifests"] or () if isinstance(one, dict)]
        if len(several) != 1 or reference == several[0].get("digest"):
            raise SourceFailed(f"{self._source.text} is {len(several)} artifacts; name one by its digest")
        digest = str(several[0].get("digest", ""))
        if not _DIGEST.fullmatch(digest):
            raise SourceFailed("the index names an artifact without a sha256 digest")
        return self._document(self.address("manifests", digest), {"Accept": f"{MANIFEST}, {DOCKER}"}, digest)

    def _document(self, url: str, headers: dict[str, str], reference: str) -> dict[str, Any]:
        answer = self._get(url, headers)
        if answer.status_code == 401:
            self._authorise(answer)
            answer = self._get(url, headers)
        if answer.status_code == 404:
            raise SourceFailed(f"the registry has no {self._source.path} of {reference} that this server may read")
        check_status(answer)
        content = answer.content
        if _DIGEST.fullmatch(reference) and f"sha256:{hashlib.sha256(content).hexdigest()}" != reference:
            raise SourceFailed("the registry gave another manifest than that of the digest")
        return _object(content)

    def _get(self, url: str, headers: dict[str, str], **more: Any) -> httpx.Response:
        """A small document, whole."""
        with self._http.stream("GET", url, headers=self.headers | headers, auth=no_netrc, **more) as answer:
            content = b""
            for chunk in answer.iter_bytes():
                content += chunk
                self._bounds.check_time()
                if len(content) > MAX_DOCUMENT:
                    raise SourceFailed(f"the registry's answer has more than {MAX_DOCUMENT} bytes")
        return httpx.Response(answer.status_code, headers=answer.headers, content=content, request=answer.request)

    def _authorise(self, answer: httpx.Response) -> None:
        """With what the registry asks for: a token of its token server, or the password itself."""
        kind, _, rest = answer.headers.get("www-authenticate", "").partition(" ")
        basic = _credentials(self._source.host)
        if kind.lower() == "basic" and basic:
            self.headers = {"Authorization": f"Basic {basic}"}
            return
        if kind.lower() != "bearer":
            raise SourceFailed("the registry asks for credentials; docker login, or DOCKER_CONFIG, has them")
        told = dict(re.findall(r'([a-z_]+)="([^"]*)"', rest))
        realm = urlsplit(told.get("realm", ""))
        if realm.scheme != "https" and not (realm.scheme == "http" and _is_local(realm.netloc)):
            raise SourceFailed("the registry's token server is not asked, since its address is not https")
        asked = {"service": told.get("service", ""), "scope": f"repository:{self._source.path}:pull"}
        headers = {"Authorization": f"Basic {basic}"} if basic else {}
        token = self._get(told["realm"], headers, params={name: value for name, value in asked.items() if value})
        check_status(token)
        found = _object(token.content)
        word = found.get("token") or found.get("access_token")
        if not isinstance(word, str) or not re.fullmatch(r"[\x21-\x7e]+", word):
            raise SourceFailed("the registry's token server gave no token")
        self.headers = {"Authorization": f"Bearer {word}"}


def _layer(manifest: dict[str, Any], source: SourceAddress) -> dict[str, Any]:
    """The one that is a safetensors file, by its media type or its name."""
    layers = [one for one in manifest.get("layers") or () if isinstance(one, dict)]
    ours = [one for one in layers if _is_ours(one)]
    if len(ours) == 1:
        return ours[0]
    if ours:
        raise SourceFailed(f"{source.text} has {len(ours)} safetensors layers; an artifact of one task has one")
    raise SourceFailed(
        f"{source.text} has no safetensors layer; push one with `oras push {source.host}/{source.path}:TAG "
        "task.safetensors`"
    )


def _is_ours(layer: dict[str, Any]) -> bool:
    kind = str(layer.get("mediaType", ""))
    if "+" in kind or ".tar" in kind:
        return False  # packed
    notes = layer.get("annotations")
    names = [str(notes.get(note, "")) for note in (TITLE, FILE_PATH)] if isinstance(notes, dict) else []
    return "safetensors" in kind or any(name.endswith(".safetensors") for name in names)


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SourceFailed("the registry's answer is no JSON object")
    return found


def _is_local(place: str) -> bool:
    host = urlsplit(f"//{place}").hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(host: str) -> str:
    """What `docker login` wrote, as Basic has it; empty where there is nothing, or a helper program has it."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        known = json.loads((folder / "config.json").read_bytes())["auths"]
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return ""
    names = ["https://index.docker.io/v1/", host] if host == "docker.io" else [host, f"https://{host}"]
    for name in names:
        entry = known.get(name) if isinstance(known, dict) else None
        if isinstance(entry, dict):
            if isinstance(entry.get("auth"), str):
                return str(entry["auth"])
            if isinstance(entry.get("username"), str) and isinstance(entry.get("password"), str):
                return base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
    return ""
