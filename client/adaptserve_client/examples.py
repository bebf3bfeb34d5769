"""Labelled pictures and clips of a task: what is sent, how it is read, and both clients' methods for it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from adaptserve_client.answers import read
from adaptserve_client.calls import Request, json_of, page_of, task_path
from adaptserve_client.errors import ProblemError, problem_of
from adaptserve_client.portions import MAX_BYTES, MAX_ITEMS, Item
from adaptserve_client.sources import File, Stream, content_of, stream_of

T = TypeVar("T")

Examples = File | Iterable[Item]
"""A folder with a folder for each label, a file, or paths and names with bytes."""
TIMEOUT_S = 600.0
HIDDEN = (".", "__MACOSX")


@dataclass(frozen=True)
class LabelledExample:
    """One labelled picture or clip; ``digest`` is the sha256 of its bytes, ``thumbnail`` an address of the server."""

    digest: str
    label: str
    modality: str
    media_type: str
    bytes: int
    added: str
    thumbnail: str
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def time(self) -> datetime:
        """When it was added."""
        return datetime.fromisoformat(self.added.replace("Z", "+00:00"))


@dataclass(frozen=True)
class Addition:
    """What an addition came to. ``moved``: bytes that were there under another label; ``rejected``: names and why."""

    task: str
    added: int
    duplicates: int
    moved: int
    counts: Mapping[str, int]
    bytes: int
    rejected: tuple[tuple[str, ProblemError], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def after(self, before: Addition | None) -> Addition:
        """Both together."""
        if before is None:
            return self
        return replace(
            self, added=before.added + self.added, duplicates=before.duplicates + self.duplicates,
            moved=before.moved + self.moved, rejected=(*before.rejected, *self.rejected),
        )  # fmt: skip


@dataclass(frozen=True)
class Feedback:
    """The example that a correction has made, and how many of each label there are now."""

    task: str
    digest: str
    label: str
    counts: Mapping[str, int]
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


class ExampleMethods:
    """Those of ``Client``."""

    _send: Callable[[Request[Any]], Any]
    _pages: Callable[[Callable[[Any], Request[Any]]], Iterator[Any]]

    def add_examples(self, source: Examples, *, task: str, label: str | None = None) -> Addition:
        """Add labelled pictures or clips: a folder with a folder for each label, an archive, a file, or several.

        Without ``label`` each has the name of its folder. What was sent before an error stays added.
        """
        total: Addition | None = None
        for request in adding(source, task, label):
            told: Addition = self._send(request)
            total = told.after(total)
        return _some(total)

    def examples(self, task: str, label: str | None = None) -> Iterator[LabelledExample]:
        """A task's examples, of one label or all, in the order of adding."""
        return self._pages(lambda after: listed(task, label, after))

    def delete_examples(self, task: str, *, label: str | None = None, digest: str | None = None) -> None:
        """Remove one example, those of a label, or all of a task."""
        self._send(deleted(task, label, digest))

    def feedback(self, file: File | None = None, *, task: str, label: str, request_id: str | None = None) -> Feedback:
        """Say what is right for a picture or clip, or for that of a request where the server keeps inputs."""
        told: Feedback = self._send(corrected(None if file is None else content_of(file), task, label, request_id))
        return told


class AsyncExampleMethods:
    """Those of ``AsyncClient``; arguments and answers are the same."""

    _send: Callable[[Request[Any]], Any]
    _pages: Callable[[Callable[[Any], Request[Any]]], AsyncIterator[Any]]

    async def add_examples(self, source: Examples, *, task: str, label: str | None = None) -> Addition:
        """Add labelled pictures or clips."""
        total: Addition | None = None
        requests = adding(source, task, label)
        while (request := await asyncio.to_thread(next, requests, None)) is not None:
            told: Addition = await self._send(request)
            total = told.after(total)
        return _some(total)

    def examples(self, task: str, label: str | None = None) -> AsyncIterator[LabelledExample]:
        """A task's examples, of one label or all, in the order of adding."""
        return self._pages(lambda after: listed(task, label, after))

    async def delete_examples(self, task: str, *, label: str | None = None, digest: str | None = None) -> None:
        """Remove one example, those of a label, or all of a task."""
        await self._send(deleted(task, label, digest))

    async def feedback(
        self, file: File | None = None, *, task: str, label: str, request_id: str | None = None
    ) -> Feedback:
        """Say what is right for a picture or clip, or for that of a request where the server keeps inputs."""
        content = None if file is None else await asyncio.to_thread(content_of, file)
        told: Feedback = await self._send(corrected(content, task, label, request_id))
        return told


def adding(source: Examples, task: str, label: str | None) -> Iterator[Request[Addition]]:
    """The requests that add them; a file goes as it is, others as zips, each of which is in memory. Raises OSError."""
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        items: Iterable[Item] = _below(Path(source))
    elif isinstance(source, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(source, "read"):
        yield _add(stream_of(cast("File", source)), task, label, {})
        return
    else:
        items = source
    taken: list[tuple[str, bytes]] = []
    size = 0
    for item in items:
        name, content = _loaded(item)
        if taken and (len(taken) >= MAX_ITEMS or size + len(content) > MAX_BYTES):
            yield _zipped(taken, task, label)
            taken, size = [], 0
        taken.append((name, content))
        size += len(content)
    if taken:
        yield _zipped(taken, task, label)


def listed(task: str, label: str | None, after: Any) -> Request[tuple[list[LabelledExample], Any]]:
    """A page of the list, and where it goes on."""
    return page_of(task_path(task, "examples"), "examples", LabelledExample, {"label": label, "after": after})


def deleted(task: str, label: str | None, digest: str | None) -> Request[None]:
    """One example, those of a label, or all; again would be 404."""
    path = task_path(task, "examples") if digest is None else task_path(task, "examples", digest)
    params = {} if label is None or digest is not None else {"label": label}
    return Request("DELETE", path, lambda _: None, params=params, repeatable=False)


def corrected(content: bytes | None, task: str, label: str, request_id: str | None) -> Request[Feedback]:
    """The right label of a picture or clip. Raises TypeError unless it is given in one way."""
    if (content is None) == (request_id is None):
        raise TypeError("feedback needs the picture or clip, or the request_id of its answer")
    if content is not None:
        return Request(
            "POST", task_path(task, "feedback"), lambda r: read(Feedback, json_of(r)), params={"label": label},
            content=content,
        )  # fmt: skip
    document = json.dumps({"request_id": request_id, "label": label}).encode()
    return Request(
        "POST", task_path(task, "feedback"), lambda r: read(Feedback, json_of(r)),
        headers={"Content-Type": "application/json"}, content=document, repeatable=False,
    )  # fmt: skip


def _below(folder: Path) -> Iterator[Item]:
    """The files of each label's folder, wherever they lie in it, named by the label."""
    number = 0
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN)):
        for path in sorted(inner.rglob("*")):
            if path.is_file() and not any(part.startswith(HIDDEN) for part in path.relative_to(inner).parts):
                number += 1
                yield f"{inner.name}/{number:06}-{path.name}", path.read_bytes()


def _loaded(item: Item) -> tuple[str, bytes]:
    if isinstance(item, tuple):
        return item[0], bytes(item[1])
    path = Path(item)
    return "/".join(path.parts[-2:]).lstrip("./"), path.read_bytes()


def _zipped(taken: list[tuple[str, bytes]], task: str, label: str | None) -> Request[Addition]:
    """By places where one label is for all, since names may be the same or lead anywhere."""
    out, names = io.BytesIO(), dict[str, str]()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
        for place, (name, content) in enumerate(taken):
            sent = name if label is None else f"{place:06}"
            names[sent] = name
            packed.writestr(zipfile.ZipInfo(sent), content)
    return _add(out.getvalue(), task, label, names)


def _add(content: bytes | Stream, task: str, label: str | None, names: Mapping[str, str]) -> Request[Addition]:
    def told(document: dict[str, Any]) -> Addition:
        rejected = tuple(
            (names.get(one["name"], one["name"]), problem_of(one["problem"])) for one in document.pop("rejected", ())
        )
        return read(Addition, document, rejected=rejected)

    return Request(
        "POST", task_path(task, "examples"), lambda r: told(json_of(r)),
        params={} if label is None else {"label": label}, content=content, timeout=TIMEOUT_S,
    )  # fmt: skip


def _some(total: Addition | None) -> Addition:
    if total is None:
        raise FileNotFoundError("there is no file to add; a folder must have a folder for each label")
    return total
