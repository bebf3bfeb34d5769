"""The memory itself: one slab per site with a row per slot, the heads in pages, and the write into a free slot.

It decides nothing: which slot is free, and who may be evicted, is ``bank.py``'s business.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from adapters.bank.pack import PackedAdapter, Plane, plane_of
from adapters.config import InputConfig, SiteName
from adapters.errors import NoRoom
from adapters.heads import PAGE
from adapters.layout import Layout
from adapters.sites import SlotWeights
from adapters.threads import one_thread


class Slabs:
    """Preallocated tensors for ``slots`` adapters of at most ``rank``; slot 0 and page 0 stay as they are.

    The slab of ``parallel`` is allocated at once, another site's when the first adapter that uses it arrives.
    ``vectors`` (slots + 1, 6 + 2 width), ``pages`` (pages + 1, PAGE, width) and ``page_bias`` are float32.
    """

    def __init__(
        self, layout: Layout, *, slots: int, rank: int, pages: int, dtype: torch.dtype, device: torch.device,
        seen: InputConfig | None = None,
    ) -> None:  # fmt: skip
        """``seen``: how pictures of slot 0, the bare backbone, are normalised; not at all without."""
        self.layout, self.rank, self.dtype, self.device = layout, rank, dtype, device
        self.slots, self.page_count = slots, pages
        self.weights: dict[SiteName, tuple[SlotWeights, ...]] = {}
        self._flat: dict[SiteName, Tensor] = {}
        self._opening = threading.Lock()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with self._loading():
            self.vectors = torch.zeros(slots + 1, 6 + 2 * layout.width, device=device)
            own = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0) if seen is None else (*seen.mean, *seen.std)
            self.vectors[0, :6] = torch.tensor(own, device=device)
            self.pages = torch.zeros(pages + 1, PAGE, layout.width, device=device)
            self.page_bias = torch.zeros(pages + 1, PAGE, device=device)
        self.open("parallel")

    def open(self, site: SiteName) -> None:
        """Allocate a site's slab if it has none. Raises NoRoom."""
        with self._opening:
            if site in self._flat:
                return
            plane: Plane = plane_of(self.layout, site, self.rank)
            try:
                with self._loading():
                    flat = torch.zeros(self.slots + 1, plane.elements, dtype=self.dtype, device=self.device)
            except RuntimeError as error:  # both torch's out-of-memory errors are RuntimeErrors
                raise NoRoom(
                    f"no memory for site '{site}' in {self.slots} slots of rank {self.rank}; lower slots or max_rank",
                    site=site,
                ) from error
            self._flat[site], self.weights[site] = flat, plane.views(flat)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self._flat.values(), self.vectors, self.pages, self.page_bias))

    def write(self, slot: int, pages: Sequence[int], packed: PackedAdapter) -> None:
        """Copy an adapter into a slot that nobody reads; returns when the device holds it.

        On CUDA the copies run on a stream of their own, so that they overlap with the engine's work. They wait for
        nothing of the engine's: a slot is free only when the last answer that read it has arrived on the host.
        """
        for site in packed.planes:
            self.open(site)
        with self._loading(), one_thread():
            self._copy(slot, pages, packed)

    def on_device(self) -> AbstractContextManager[object]:
        """Within it this thread's CUDA device is this one: what is pinned or allocated makes no context on another."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """On CUDA: on this device and on the loader's stream, and done with when it ends.

        A slab is filled with zeros on the same stream as its slots are, so that no zero overtakes a copy; and no other
        stream knows of a slab or a slot before the device has it, so the engine's need not wait for this one.
        """
        if self._stream is None:
            yield
            return
        with self.on_device(), torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def _copy(self, slot: int, pages: Sequence[int], packed: PackedAdapter) -> None:
        for site, row in packed.planes.items():
            self._flat[site][slot].copy_(row, non_blocking=True)
        self.vectors[slot].copy_(packed.vector, non_blocking=True)
        for number, page, bias in zip(pages, packed.pages, packed.page_bias, strict=True):
            self.pages[number].copy_(page, non_blocking=True)
            self.page_bias[number].copy_(bias, non_blocking=True)
