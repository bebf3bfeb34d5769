"""Addresses of sources: `hf://`, `s3://`, `gs://`, `az://`, `oci://`, `https://` or a path; and which are allowed.

It fetches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SCHEMES: Final = ("hf", "s3", "gs", "az", "oci", "https")
OBJECTS: Final = ("s3", "gs", "az")
LONGEST: Final = 1024
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SourceAddress:
    """Where a file is. ``scheme`` is empty for a path; ``host`` is a bucket, a registry, an owner on the hub.

    ``version`` is a revision on the hub, a tag or digest in a registry, an object's version; empty for the newest.
    """

    text: str
    scheme: str
    host: str
    path: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.version})" if self.version and self.version not in self.text else self.text


@dataclass(frozen=True, slots=True)
class AllowedBeginning:
    """How allowed addresses begin; an empty host stands for any."""

    scheme: str
    host: str
    path: str

    def covers(self, source: SourceAddress) -> bool:
        """Whole parts of the path alone: `hf://org` does not allow `hf://organisation/x`."""
        if self.scheme != source.scheme or self.host not in ("", source.host):
            return False
        return not self.path or f"{source.path}/".startswith(f"{self.path}/")


def allowed_of(text: str) -> Sequence[AllowedBeginning]:
    """The setting ``sources_allowed``, read. Raises ValueError."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        scheme, mark, rest = part.partition("://")
        if not mark or scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise ValueError(f"'{part[:80]}' is no beginning of an address; write some of {known}, then host and path")
        host, _, path = rest.partition("/")
        if scheme == "https" and not host:
            raise ValueError("'https://' would allow any host; name those that may, like https://models.example.org")
        found.append(AllowedBeginning(scheme, host.lower() if scheme in ("https", "oci") else host, path.strip("/")))
    return tuple(found)


def is_allowed(source: SourceAddress, allowed: Sequence[AllowedBeginning]) -> bool:
    """Whether the file may be asked for; a path always."""
    return not source.scheme or any(beginning.covers(source) for beginning in allowed)


def source_of(text: str, version: str = "") -> SourceAddress:
    """An address, read. Raises ValueError with what is wrong, and how it is written."""
    if not text or len(text) > LONGEST or any(not character.isprintable() for character in text):
        raise ValueError(f"a source is an address or a path of 1 to {LONGEST} printable characters")
    scheme, mark, rest = text.partition("://")
    if not mark:
        return _path(text, version)
    if scheme not in SCHEMES:
        raise ValueError(
            f"'{scheme[:20]}://' is no kind of source; use {', '.join(f'{s}://' for s in SCHEMES)} or a path"
        )
    if "?" in rest or "#" in rest:
        raise ValueError("a source has no '?' and no '#': what is secret belongs into the environment")
    read = {"hf": _hub, "oci": _registry, "https": _https}.get(scheme, _object)
    return read(text, scheme, rest, version)


def _path(text: str, version: str) -> SourceAddress:
    parts = text.split("/")
    if text.startswith(("/", "~")) or ".." in parts or "\\" in text:
        raise ValueError("a path is within the folder of the tasks file, like adapters/cats.safetensors")
    if version:
        raise ValueError("a path has no version; leave it out, or pin the file with sha256")
    return SourceAddress(text, "", "", text)


def _hub(text: str, scheme: str, rest: str, version: str) -> SourceAddress:
    """`hf://org/repo[/file][@revision]`, or with the revision after the repository, as the hub's own tools write it."""
    owner, _, further = rest.partition("/")
    name, _, file = further.partition("/")
    name, _, early = name.partition("@")
    file, _, late = file.partition("@")
    revision = _one(version, early, late)
    if not _NAME.fullmatch(owner) or not _NAME.fullmatch(name):
        raise ValueError("write hf://org/repo, hf://org/repo/file.safetensors or hf://org/repo/file.safetensors@v1")
    _check_file(file, needed=False)
    return SourceAddress(text, scheme, owner, f"{name}/{file}" if file else name, revision)


def _registry(text: str, scheme: str, rest: str, version: str) -> SourceAddress:
    host, _, name = rest.partition("/")
    name, at, digest = name.partition("@")
    last = name.rpartition("/")[2]
    tag = last.partition(":")[2]
    name = name.removesuffix(f":{tag}") if ":" in last else name
    if (":" in last and not tag) or (at and not digest):
        raise ValueError("the tag or digest is empty; write oci://registry/name:tag")
    if tag and digest and not version:  # the digest says it all, as with containers
        tag = ""
    reference = _one(version, tag, digest) or "latest"
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(name) or len(name) > 255:
        raise ValueError("write oci://registry/name:tag or oci://registry/name@sha256:..., the name in small letters")
    if not (_DIGEST.fullmatch(reference) or _TAG.fullmatch(reference)):
        raise ValueError(f"'{reference[:80]}' is neither a tag nor sha256: and 64 hexadecimal digits")
    return SourceAddress(text, scheme, host.lower(), name, reference)


def _https(text: str, scheme: str, rest: str, version: str) -> SourceAddress:
    host, _, path = rest.partition("/")
    if "@" in host:
        raise ValueError("an address holds no user and password; they would stand in logs")
    if not _HOST.fullmatch(host) or not path:
        raise ValueError("write https://host/path/to/file.safetensors")
    if version:
        raise ValueError("an https:// source has no version; leave it out, or pin the file with sha256")
    return SourceAddress(text, scheme, host.lower(), path)


def _object(text: str, scheme: str, rest: str, version: str) -> SourceAddress:
    bucket, _, key = rest.partition("/")
    if not bucket or "@" in bucket:
        raise ValueError(f"write {scheme}://bucket/path/to/file.safetensors")
    _check_file(key, needed=True)
    if version:
        raise ValueError(f"a version is no part of an {scheme}:// source; leave it out, or pin the file with sha256")
    return SourceAddress(text, scheme, bucket, key)


def _check_file(path: str, *, needed: bool) -> None:
    parts = path.split("/") if path or needed else []
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("the address names no file; it ends like /path/to/file.safetensors")


def _one(*versions: str) -> str:
    """The one that is given. Raises ValueError where two differ."""
    given = {version for version in versions if version}
    if len(given) > 1:
        raise ValueError(f"two versions are named, {' and '.join(sorted(given))}; name one")
    return given.pop() if given else ""
