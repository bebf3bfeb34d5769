"""Keys: who may do what, kept as sha256 hashes, read from the environment or a JSON file.

It does not know HTTP: ``service.web.routes.guard`` takes the key from a request and asks here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from adapters.config import TASK_PATTERN
from service.errors import BadKeys
from service.share_settings import HEAVIEST, LIGHTEST

Scope = Literal["predict", "admin"]

PREFIX = "as_"
KEY_BYTES = 32
MAX_KEYS = 1000
"""Every request is compared with each of them."""
MAX_JSON_BYTES = 1024 * 1024
MAX_TASKS_PER_KEY = 1000
MAX_PRIORITY = 9
LIMITS = ("weight", "rate", "burst", "quota", "max_priority")
"""What an entry may say of a holder's part of the server; each has a default."""
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

TaskName = Annotated[str, Field(pattern=TASK_PATTERN)]


class Key(BaseModel):
    """One holder: a name for people and logs, a scope, and the only tasks that it may touch (None: all).

    ``weight`` is its share of the device, beside the others' that want it. ``rate`` is how many pictures or clips a
    second it may ask about, ``burst`` how many at once; ``quota`` how many a day (UTC). None: any number.
    ``max_priority`` is the highest X-Priority that it may ask for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=_NAME_PATTERN)]
    scope: Scope
    tasks: Annotated[frozenset[TaskName], Field(min_length=1, max_length=MAX_TASKS_PER_KEY)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    weight: Annotated[float, Field(ge=LIGHTEST, le=HEAVIEST, allow_inf_nan=False)] = 1.0
    rate: Annotated[float, Field(ge=0.001, le=1e6, allow_inf_nan=False)] | None = None
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    quota: Annotated[int, Field(ge=1, le=10**12)] | None = None
    max_priority: Annotated[int, Field(ge=0, le=MAX_PRIORITY)] = MAX_PRIORITY

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Self:
        if self.burst is not None and self.rate is None:
            raise ValueError("a burst is of a rate; give a rate too")
        return self

    def may(self, scope: Scope) -> bool:
        """True when this key's scope is, or includes, the one asked for."""
        return scope in (self.scope, "predict")

    def sees(self, task: str) -> bool:
        """True when the task is not outside this key's list; whether it exists is not asked."""
        return self.tasks is None or task in self.tasks

    @property
    def at_once(self) -> int:
        """How many pictures or clips it may ask about at once, where it has a rate: what it says, or a second's."""
        return self.burst or max(1, math.ceil(self.rate or 0))

    def entry(self) -> dict[str, Any]:
        """This key as it stands in a file."""
        entry: dict[str, Any] = {"name": self.name, "scope": self.scope}
        if self.tasks is not None:
            entry["tasks"] = sorted(self.tasks)
        for name in LIMITS:
            if getattr(self, name) != type(self).model_fields[name].default:
                entry[name] = getattr(self, name)
        return entry | {"sha256": self.sha256}


EVERYBODY = Key(name="everybody", scope="admin", sha256="0" * 64)
"""Who asks where there are no keys; never compared with."""


class Keys:
    """All keys of one server; falsy when there are none, and then everybody may do everything."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple((bytes.fromhex(key.sha256), key) for key in keys)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def all(self) -> tuple[Key, ...]:
        """In the order of the file."""
        return tuple(key for _, key in self._keys)

    @property
    def weights(self) -> dict[str, float]:
        """Of each holder, in the order of the file."""
        return {key.name: key.weight for key in self.all}

    def find(self, secret: str) -> Key | None:
        """The holder of ``secret``. Each hash is compared in full, so the time tells nothing about any of them."""
        given = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
        found = None
        for kept, key in self._keys:
            if hmac.compare_digest(kept, given):
                found = key
        return found

    @classmethod
    def read(cls, text: str, file: str) -> Self:
        """The keys of the settings ``keys`` (JSON) and ``keys_file`` (a path); either may be empty. Raises BadKeys."""
        keys = list(parse(text, "ADAPTSERVE_KEYS")) if text.strip() else []
        if file:
            keys += load(Path(file))
        _check_distinct(keys, file or "ADAPTSERVE_KEYS")
        return cls(keys)


def create(name: str, scope: Scope, tasks: Iterable[str] = (), **limits: Any) -> tuple[str, Key]:
    """A new secret, and the key that is kept of it; no task means all. ``limits``: those of LIMITS that are not None.

    Raises BadKeys.
    """
    secret = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    given = {limit: value for limit, value in limits.items() if value is not None}
    try:
        return secret, Key(name=name, scope=scope, tasks=frozenset(tasks) or None, sha256=digest, **given)
    except ValidationError as error:
        raise BadKeys(f"the key cannot be made: {_first(error)}") from error


def load(path: Path) -> tuple[Key, ...]:
    """The keys in a file. Raises BadKeys when it cannot be read, is malformed or holds none."""
    try:
        with path.open("rb") as opened:
            raw = opened.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise BadKeys(f"the keys file {path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    return parse(raw, str(path))


def parse(raw: str | bytes, source: str) -> tuple[Key, ...]:
    """The keys in a JSON list of entries, at least one. Messages never repeat a value."""
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_JSON_BYTES:
        raise BadKeys(f"the keys in {source} have over {MAX_JSON_BYTES} bytes, which is the limit; remove unused ones")
    try:
        keys = _LIST.validate_json(raw)
    except ValidationError as error:
        hint = "expected a JSON list as `adaptserve keys create` prints it"
        raise BadKeys(f"the keys in {source} are malformed: {_first(error)}; {hint}") from error
    if not keys:
        raise BadKeys(f"there is no key in {source}; make one with `adaptserve keys create` or unset the setting")
    _check_distinct(keys, source)
    return keys


def dump(keys: Iterable[Key]) -> str:
    """The file's text: one entry a line."""
    return "[\n" + ",\n".join("  " + json.dumps(key.entry()) for key in keys) + "\n]\n"


def _check_distinct(keys: Iterable[Key], source: str) -> None:
    names: set[str] = set()
    hashes: set[str] = set()
    for key in keys:
        if key.name in names or key.sha256 in hashes:
            raise BadKeys(f"key '{key.name}' in {source} has the name or the hash of another; give each key its own")
        names.add(key.name)
        hashes.add(key.sha256)
    if len(names) > MAX_KEYS:
        raise BadKeys(f"{source} makes {len(names)} keys, the limit is {MAX_KEYS}; remove unused ones")


def _first(error: ValidationError) -> str:
    """The first thing wrong, without the value: it may be a key that was pasted in the wrong place."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part != "frozenset")[:80]
    return f"{where + ': ' if where else ''}{first['msg'][:1].lower()}{first['msg'][1:200]}"


_LIST: TypeAdapter[tuple[Key, ...]] = TypeAdapter(tuple[Key, ...])
