"""Bring an adapter into the exact form that a slot holds: transposed, padded to the slot's rank, scale folded in.

Packing happens on a loader thread, so that filling a slot is a few plain copies. It knows no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.config import SiteConfig, SiteName
from adapters.file import Adapter
from adapters.heads import PAGE, VALUES, class_pages, groups_of
from adapters.layout import Layout
from adapters.meta import AdapterMeta
from adapters.sites import SlotWeights


@dataclass(frozen=True)
class Plane:
    """How one site's tensors of all blocks lie in one slot: ``elements`` numbers, block after block."""

    site: SiteName
    rank: int
    widths: tuple[tuple[int, int], ...]

    @property
    def elements(self) -> int:
        return sum(sum(self._sizes(*w)) for w in self.widths)

    def views(self, flat: Tensor) -> tuple[SlotWeights, ...]:
        """Each block's tensors as views of ``flat`` (slots, elements)."""
        blocks, slots, rank = [], flat.shape[0], self.rank
        pieces = iter(torch.split(flat, [n for w in self.widths for n in self._sizes(*w)], dim=1))
        for width_in, width_out in self.widths:
            down, down_bias, up, up_bias, time = (next(pieces) for _ in range(5))
            blocks.append(
                SlotWeights(
                    down=down.view(slots, width_in, rank),
                    down_bias=down_bias,
                    up=up.view(slots, rank, width_out),
                    up_bias=up_bias,
                    time=time.view(slots, 3, rank),
                )
            )
        return tuple(blocks)

    def _sizes(self, width_in: int, width_out: int) -> tuple[int, int, int, int, int]:
        return width_in * self.rank, self.rank, self.rank * width_out, width_out, 3 * self.rank


@dataclass(frozen=True)
class PackedAdapter:
    """A host copy ready for a slot.

    ``planes[site]`` (elements,) in the compute dtype; ``vector`` (6 + 2 width,) float32: mean, std, norm weight,
    norm bias; ``pages`` (pages, PAGE, width) and ``page_bias`` (pages, PAGE) float32: the head, first the pages of its
    classes, then those of its second vector or of its groups (``heads.py``).
    """

    meta: AdapterMeta
    planes: Mapping[SiteName, Tensor]
    vector: Tensor
    pages: Tensor
    page_bias: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.planes.values(), self.vector, self.pages, self.page_bias))


def plane_of(layout: Layout, site: SiteName, rank: int) -> Plane:
    return Plane(site, rank, layout.sites[site])


def pack(adapter: Adapter, layout: Layout, rank: int, dtype: torch.dtype, *, pinned: bool = False) -> PackedAdapter:
    """Pack an adapter that ``read_adapter`` accepted. ``rank`` is the slot's, at least the adapter's.

    Padding is exact: the padded columns of ``up`` are zero, and every activation is finite.
    """
    config = adapter.config
    planes: dict[SiteName, Tensor] = {}
    for site in config.sites:
        plane = plane_of(layout, site.site, rank)
        flat = torch.zeros(1, plane.elements, dtype=torch.float32)
        _fill(plane.views(flat), site, adapter.tensors)
        planes[site.site] = flat[0].to(dtype)
    pages, bias = _head(adapter, layout.width)
    packed = PackedAdapter(
        AdapterMeta.of(config, layout, digest=adapter.digest, parameters=adapter.parameters), planes,
        _vector(adapter, layout), pages, bias,
    )  # fmt: skip
    if not pinned:
        return packed
    return PackedAdapter(
        packed.meta, {k: v.pin_memory() for k, v in planes.items()},
        packed.vector.pin_memory(), packed.pages.pin_memory(), packed.page_bias.pin_memory(),
    )  # fmt: skip


def _fill(blocks: tuple[SlotWeights, ...], site: SiteConfig, tensors: Mapping[str, Tensor]) -> None:
    for block in site.blocks:
        prefix, slot = f"{site.site}.{block}", blocks[block]
        slot.down[0, :, : site.rank] = tensors[f"{prefix}.down.weight"].float().T
        slot.down_bias[0, : site.rank] = tensors[f"{prefix}.down.bias"].float()
        slot.up[0, : site.rank] = tensors[f"{prefix}.up.weight"].float().T * site.scale
        slot.up_bias[0] = tensors[f"{prefix}.up.bias"].float() * site.scale
        if site.temporal:
            slot.time[0, :, : site.rank] = tensors[f"{prefix}.time.weight"].float()[:, 0].T
    if not site.temporal:
        for slot in blocks:
            slot.time[0, 1] = 1.0


def _vector(adapter: Adapter, layout: Layout) -> Tensor:
    config = adapter.config
    weight, bias = torch.ones(layout.width), torch.zeros(layout.width)
    if config.norm == "trained":
        weight, bias = adapter.tensors["norm.weight"].float(), adapter.tensors["norm.bias"].float()
    return torch.cat([torch.tensor(config.input.mean), torch.tensor(config.input.std), weight, bias])


def _head(adapter: Adapter, width: int) -> tuple[Tensor, Tensor]:
    """Pages (pages, PAGE, width) and their bias (pages, PAGE)."""
    config, weight = adapter.config, adapter.tensors["head.weight"].float()
    groups, classes = groups_of(config), len(config.labels)
    made = torch.empty(0, PAGE, width)
    if config.head == "frames":
        down = adapter.tensors.get("head.down.weight")
        if down is None:  # a clip's vector is its logits
            down, weight = weight, torch.eye(classes)
        made = _lines(down.float().reshape(len(down), config.frames, width), groups, PAGE).transpose(1, 2).flatten(0, 1)
    elif config.head == "attention":
        made = _attentions(adapter.tensors, groups, width)
        weight = F.pad(F.pad(weight, (0, groups * VALUES - weight.shape[1])).view(classes, groups, VALUES), (1, 0))
        weight = weight.flatten(1)
    own = class_pages(classes)
    if config.twice:
        weight, second = weight.tensor_split([width], 1)
        made = F.pad(second, (0, 0, 0, own * PAGE - classes)).view(own, PAGE, width)
    last = F.pad(weight, (0, width - weight.shape[1], 0, own * PAGE - classes)).view(own, PAGE, width)
    pages, bias = torch.cat([last, made]), torch.zeros(own + len(made), PAGE)
    bias.view(-1)[:classes] = adapter.tensors["head.bias"].float()
    return pages, bias


def _attentions(tensors: Mapping[str, Tensor], groups: int, width: int) -> Tensor:
    """Two pages for each attention (2 * groups, PAGE, width).

    The first is multiplied with every frame: its score, and then its values. The second holds in each frame's column
    what the frame's position adds to the lines of the first.
    """
    weight, position = (
        torch.cat([score.float().unsqueeze(1), _lines(value.float(), groups, VALUES)], 1)
        for score, value in (
            (tensors["head.score.weight"], tensors["head.value.weight"]),
            (tensors["head.score.position"].T, tensors["head.value.position"].T),
        )
    )
    return torch.stack([weight, F.pad(position, (0, width - position.shape[2]))], 1).flatten(0, 1)


def _lines(rows: Tensor, groups: int, each: int) -> Tensor:
    """Rows (rows, ...) as (groups, each, ...), zeros behind the last."""
    made = rows.new_zeros(groups * each, *rows.shape[1:])
    made[: len(rows)] = rows
    return made.view(groups, each, *rows.shape[1:])
