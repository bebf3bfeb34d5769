"""Loading: adapter files, checked and brought into the form of this engine's slots.

It knows paths, which it is given; it does not know tasks, versions or who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters.bank import PackedAdapter, Slabs, pack
from adapters.errors import AdapterError, BrokenAdapter
from adapters.file import Adapter, read_adapter
from adapters.limits import FileLimits
from adapters.threads import one_thread
from service.errors import UnknownVersion


@dataclass(frozen=True)
class Load:
    """A load of one digest; where it looks makes no difference to who may share it."""

    loading: Loading
    digest: str
    files: tuple[str, ...] = field(compare=False)

    def __call__(self) -> PackedAdapter:
        return self.loading.load(self.digest, self.files)


class Loading:
    """Any thread may call; all methods block."""

    def __init__(self, slabs: Slabs, limits: FileLimits) -> None:
        self._slabs, self._limits = slabs, limits

    def read(self, path: Path, digest: str = "") -> Adapter:
        """A file checked against this engine's backbone and bounds. Raises an AdapterError or OSError.

        ``digest``: as ``read_adapter`` has it.
        """
        with one_thread():
            return read_adapter(path, self._slabs.layout, self._limits, digest=digest)

    def pack(self, adapter: Adapter) -> PackedAdapter:
        """The form that the slots take."""
        slabs = self._slabs
        with slabs.on_device(), one_thread():
            return pack(adapter, slabs.layout, slabs.rank, slabs.dtype, pinned=slabs.device.type == "cuda")

    def load(self, digest: str, files: Sequence[str]) -> PackedAdapter:
        """Read, check and pack whichever file holds the digest's bytes now, the first ones first.

        Raises UnknownVersion where none is left, else an AdapterError or OSError, which names no task.
        """
        failure: Exception = UnknownVersion("this version was deleted a moment ago")
        for file in files:
            try:
                adapter = self.read(Path(file))
            except FileNotFoundError:
                continue
            except (AdapterError, OSError) as error:
                failure = error.copy() if isinstance(error, AdapterError) else error
                continue
            if adapter.digest == digest:
                return self.pack(adapter)
            failure = _changed(digest, adapter.digest)
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame, which must not hold it


def _changed(expected: str, got: str) -> BrokenAdapter:
    return BrokenAdapter(
        "the file of this version has changed on the server's disk; upload it again", expected=expected, got=got
    )
