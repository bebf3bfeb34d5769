"""Names of hosts and origins: reading the lists that the settings hold, and what a request's headers say.

It knows no request and no web framework; ``service.web.door`` asks here who may come in.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

LOOPBACK = ("localhost", "*.localhost", "host.docker.internal", "host.containers.internal")
"""Names that mean this machine, to its browsers and to its containers; nobody else can have them."""
ANY = "*"

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_HOST = re.compile(r"(\[[0-9a-f:.]+(?:%[\w.~%-]+)?\]|[^:\[\]]+)(?::(\d{0,5}))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Place:
    """A host, lower case and without the dot at its end, and the port if one was named."""

    host: str
    port: int | None

    @property
    def is_address(self) -> bool:
        """True for an IP address, in any notation that a URL may have: nobody can make a name of it."""
        try:
            ipaddress.ip_address(self.host.strip("[]"))
        except ValueError:
            pass
        else:
            return True
        if not re.fullmatch(r"[0-9a-fx.]+", self.host):
            return False
        try:
            socket.inet_aton(self.host)  # 127.1, 0x7f000001
        except OSError:
            return False
        return True


def place(text: str) -> Place:
    """A ``Host`` header, or what follows the scheme in an origin. Raises ValueError."""
    match = _HOST.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text[:80]!r} is no host")
    host, port = match[1].removesuffix("."), int(match[2]) if match[2] else None
    known = Place(host, port)
    if (host.startswith("[") and not known.is_address) or not (host.startswith("[") or _NAME.fullmatch(host)):
        raise ValueError(f"{text[:80]!r} is no host")
    if port is not None and port > 65535:
        raise ValueError(f"{port} is no port")
    return known


@dataclass(frozen=True)
class Origin:
    """Where a page comes from: scheme, host, and the port, where the scheme has no other by default."""

    scheme: str
    place: Place

    def is_at(self, host: Place) -> bool:
        """True when that host and port, reached by this origin's scheme, is this origin's."""
        default = _PORTS.get(self.scheme)
        return (self.place.host, self.place.port or default) == (host.host, host.port or default)

    def __str__(self) -> str:
        """As a browser writes it."""
        port = "" if self.place.port in (None, _PORTS.get(self.scheme)) else f":{self.place.port}"
        return f"{self.scheme}://{self.place.host}{port}"


def origin(text: str) -> Origin:
    """An ``Origin`` header. Raises ValueError; also for ``null``, which any sandboxed page sends."""
    match = _ORIGIN.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text[:80]!r} is no origin")
    return Origin(match[1], place(match[2]))


class Hosts:
    """A list of names, where ``*.example.org`` is every name below example.org and ``*`` any."""

    def __init__(self, names: Iterable[str]) -> None:
        names = set(names)
        self._any = ANY in names
        self._exact = frozenset(name for name in names if not name.startswith("*"))
        self._below = tuple(name[1:] for name in names if name.startswith("*."))

    def __contains__(self, host: Place) -> bool:
        return self._any or host.host in self._exact or host.host.endswith(self._below) or host.is_address


def of_this_machine(*listened_on: str) -> set[str]:
    """Names that need no setting: loopback's, the machine's own, and those that the server is told to listen on."""
    own = socket.gethostname().lower()
    names = {own, own.partition(".")[0], *(name.lower().strip("[].") for name in listened_on)}
    return {*LOOPBACK, *(name for name in names if _NAME.fullmatch(name))}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listed(text: str) -> list[str]:
    """The entries of a setting that holds several, separated by commas or spaces."""
    return text.replace(",", " ").split()


def check_hosts(text: str) -> str:
    """The setting ``allowed_hosts``, in lower case. Raises ValueError."""
    for entry in listed(text.lower()):
        if entry != ANY and not _NAME.fullmatch(entry.removeprefix("*.")):
            raise ValueError(f"'{entry}' is no name of a host; write example.org, *.example.org or *, without a port")
    return text.lower()


def check_origins(text: str) -> str:
    """The setting ``allowed_origins``, each as a browser writes it. Raises ValueError."""
    return ",".join(_checked_origin(entry) for entry in listed(text))


def _checked_origin(entry: str) -> str:
    if entry == ANY:
        return entry
    try:
        return str(origin(entry.removesuffix("/")))
    except ValueError as error:
        raise ValueError(f"'{entry}' is no origin; write https://example.org, with the port if it has one") from error


def check_proxies(text: str) -> str:
    """The setting ``trusted_proxies``. Raises ValueError."""
    for entry in listed(text):
        if entry != ANY:
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError as error:
                raise ValueError(f"'{entry}' is no IP address or network; write 10.0.0.5, 10.0.0.0/8 or *") from error
    return ",".join(listed(text))


def check_root_path(text: str) -> str:
    """The setting ``root_path``: empty, or like ``/vision``. Raises ValueError."""
    path = text.strip().rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9_.~-]+)+", path):
        raise ValueError("it begins with / and has letters, digits, '.', '_', '~' and '-', like /vision")
    return path
