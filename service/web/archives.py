"""Archives on a spool -> the files in them, in order, each with what is wrong with it, if anything is.

Zip and tar are read by Python's libraries, which believe what an archive says of itself; the bounds are here. A name is
text for the answer: nothing is unpacked to a path, and an archive in an archive is a file like others.
"""

from __future__ import annotations

import re
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, cast

from adapters.errors import AdaptError, BrokenMedia, MediaTooLarge, UnsupportedMedia
from service.errors import BodyTooLarge
from service.settings import Settings
from service.web.spool import Spool, SpoolFile

DIRECTORY_BYTES, DIRECTORY_BYTES_PER_ITEM = 128 * 1024, 1024
"""What the directory of a zip may have: it is read whole, and takes several times its bytes in memory."""
MEMBERS_PER_ITEM, OTHER_MEMBERS = 4, 1000
"""Entries of a tar that are looked at, folders and hidden files among them."""
TAR_HEADER_BYTES = 64 * 1024
BLOCK = tarfile.BLOCKSIZE
ENCRYPTED = 0x1 | 0x40
PACKED_BEYOND = 64 * 1024
"""Bytes by which a file that does not shrink may grow when it is packed."""
METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 98: "ppmd"}
HIDDEN = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini"))
_SEPARATORS = re.compile(r"[/\\]+")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, ArithmeticError, LookupError, ValueError, TypeError,
    RuntimeError, EOFError, AttributeError, OSError, struct.error,
)  # fmt: skip
"""What the libraries raise on archives that are none; neither promises to raise its own errors alone."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a batch: ``read`` gives its bytes, on a worker, and raises an AdaptError; ``wrong`` is known now."""

    name: str
    read: Callable[[], bytes]
    wrong: AdaptError | None = None


def bad(name: str, wrong: AdaptError) -> Entry:
    """A file that cannot be read."""
    return Entry(name, bytes, wrong)


def check_count(count: int, settings: Settings) -> None:
    """Raises BodyTooLarge for more files than a batch may have."""
    limit = settings.max_items_per_batch
    if count > limit:
        raise BodyTooLarge(
            f"the batch has over {limit} pictures or clips, the limit (max_items_per_batch); split it",
            field="max_items_per_batch", limit=limit, value=count,
        )  # fmt: skip


def too_large(size: int, settings: Settings) -> MediaTooLarge:
    """The problem of one file of so many bytes or more."""
    limit = settings.max_body_bytes
    return MediaTooLarge(
        f"the file has {size} bytes or more, the limit is {limit} (max_body_bytes); send a smaller one",
        field="max_body_bytes", limit=limit, value=size,
    )  # fmt: skip


def is_tar(head: bytes) -> bool:
    """Whether a file begins as one, by its first 512 bytes; an empty one has zeros alone."""
    if len(head) < BLOCK:
        return False
    block = head[:BLOCK]
    if not any(block):
        return True
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except BROKEN:
        return False
    return True


def of_zip(spool: Spool, settings: Settings) -> list[Entry]:
    """The files of a zip. Raises BrokenMedia where it cannot be opened, BodyTooLarge past a bound of all together."""
    reader = SpoolFile(spool, DIRECTORY_BYTES + DIRECTORY_BYTES_PER_ITEM * settings.max_items_per_batch)
    reader.left = 4 * reader.most
    try:
        archive = zipfile.ZipFile(cast("IO[bytes]", reader))
    except BROKEN as error:
        raise BrokenMedia(
            f"the zip cannot be opened ({_said(error)}): its directory, which is at its end, must be whole; "
            "check that the whole file was sent",
            field="body",
        ) from error
    except BrokenMedia as error:
        raise BrokenMedia(f"the zip cannot be opened: {error.message}", field="body") from error
    reader.most, reader.left = settings.max_body_bytes + PACKED_BEYOND, sys.maxsize  # from here on a bound a read
    entries, unpacked = list[Entry](), 0
    for info in archive.infolist():
        name = _zip_name(info)
        if info.is_dir() or _left_out(name):
            continue
        check_count(len(entries) + 1, settings)
        wrong = _leads_out(name) or _not_read(info, settings)
        entries.append(bad(name, wrong) if wrong else Entry(name, partial(_unzipped, archive, info)))
        unpacked += 0 if wrong else info.file_size
    if unpacked > settings.max_batch_bytes:
        raise BodyTooLarge(
            f"the zip has {unpacked} bytes once it is unpacked, the limit is {settings.max_batch_bytes} "
            "(max_batch_bytes); split it",
            field="max_batch_bytes", limit=settings.max_batch_bytes, value=unpacked,
        )  # fmt: skip
    return entries


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """One file's bytes: as many as the directory says, or it is broken. Raises BrokenMedia."""
    try:
        with archive.open(info) as member:
            # With a number, no more than that is unpacked at once, whatever the packed bytes hold.
            found = member.read(info.file_size + 1)
    except BROKEN as error:
        raise BrokenMedia(f"this file of the zip cannot be unpacked ({_said(error)}); pack it again") from error
    if len(found) != info.file_size:
        raise BrokenMedia(
            f"this file of the zip has {len(found)} bytes, and the directory says {info.file_size}; pack it again"
        )
    return found


def _not_read(info: zipfile.ZipInfo, settings: Settings) -> AdaptError | None:
    if stat.S_ISLNK(info.external_attr >> 16):
        return UnsupportedMedia("this entry is a link, which is not followed; pack the file itself")
    if info.flag_bits & ENCRYPTED:
        return UnsupportedMedia("this file is encrypted; pack it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = METHODS.get(info.compress_type, f"number {info.compress_type}")
        return UnsupportedMedia(f"this file is packed by a method that is not read ({method}); use deflate, or none")
    if info.file_size > settings.max_body_bytes:
        return too_large(info.file_size, settings)
    if info.compress_size > settings.max_body_bytes + PACKED_BEYOND:
        return too_large(info.compress_size, settings)
    return None


def _zip_name(info: zipfile.ZipInfo) -> str:
    """UTF-8 where it is that: many packers write it without saying so, and the library takes it for DOS's letters."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return text_of(name)


def of_tar(spool: Spool, settings: Settings) -> list[Entry]:
    """The files of a tar. One that breaks off has what came before, and says so in an entry of its own at the end.

    Raises BrokenMedia where it cannot be opened, BodyTooLarge past a bound of all together.
    """
    entries = list[Entry]()
    try:
        for info in _members(spool, settings):
            name = text_of(info.name)
            if info.isdir() or _left_out(name):
                continue
            check_count(len(entries) + 1, settings)
            wrong = _leads_out(name) or _no_file(info, spool, settings)
            read = partial(spool.read, info.offset_data, info.size)
            entries.append(bad(name, wrong) if wrong else Entry(name, read))
    except BrokenMedia as error:
        if not entries:
            raise BrokenMedia(f"the tar cannot be read: {error.message}", field="body") from error
        entries.append(bad("", BrokenMedia(f"the tar breaks off here: {error.message}. What came before is answered")))
    return entries


def _members(spool: Spool, settings: Settings) -> Iterator[tarfile.TarInfo]:
    """Raises BrokenMedia where it does not end as a tar does."""
    reader = SpoolFile(spool, TAR_HEADER_BYTES)
    most = OTHER_MEMBERS + MEMBERS_PER_ITEM * settings.max_items_per_batch
    try:
        archive = tarfile.TarFile(fileobj=cast("IO[bytes]", reader), encoding="utf-8", errors="surrogateescape")
        while (info := archive.next()) is not None:
            yield info
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
            reader.left = TAR_HEADER_BYTES
            most -= 1
            if not most:
                raise BrokenMedia("it has far more folders and hidden files than others; pack the pictures alone")
        end = spool.read(archive.offset, BLOCK)
    except BROKEN as error:
        raise BrokenMedia(f"{_said(error)}; check that the whole file was sent") from error
    if len(end) < BLOCK or any(end):
        raise BrokenMedia("it has no end; check that the whole file was sent")


def _no_file(info: tarfile.TarInfo, spool: Spool, settings: Settings) -> AdaptError | None:
    if info.issym() or info.islnk():
        return UnsupportedMedia("this entry is a link, which is not followed; pack the file itself (tar --dereference)")
    if info.issparse():
        return UnsupportedMedia("this file is packed as one with holes, which is not read; pack it without --sparse")
    if not info.isreg():
        return UnsupportedMedia("this entry is no file; pack pictures and clips alone")
    if info.size > settings.max_body_bytes:
        return too_large(info.size, settings)
    if info.size < 0 or info.offset_data < 0 or info.offset_data + info.size > spool.size:
        return BrokenMedia("the archive ends within this file; check that the whole archive was sent")
    return None


def text_of(name: str) -> str:
    """A name as JSON can hold it: bytes that are no text, which Python keeps as half characters, are marks instead."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if not name.isascii() else name


def parts_of(name: str) -> list[str]:
    """The folders in a name, from the outermost on, and the file's own name."""
    return [part for part in _SEPARATORS.split(name) if part not in ("", ".", "..")]


def _left_out(name: str) -> bool:
    """Hidden files, and what systems put beside the files of their owner."""
    parts = parts_of(name)
    return not parts or any(part.startswith(".") or part in HIDDEN for part in parts)


def _leads_out(name: str) -> AdaptError | None:
    if _ABSOLUTE.match(name) or ".." in _SEPARATORS.split(name):
        return BrokenMedia("the name leads out of the archive; pack files by names within one folder")
    return None


def _said(error: BaseException) -> str:
    """One line of a library's words."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
