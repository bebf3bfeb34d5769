"""One adapter on the frozen backbone, with gradients: the model that training fits and a file is exported from.

It knows the operator and the config; it knows no data, optimiser, file or other method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.backbone.inputs import normalise
from adapters.config import AdapterConfig, SiteName
from adapters.sites import LowRankResidual
from adapters.training.heads import head_for
from adapters.training.linear import Scale, Solved

MOST_WRITTEN_OUT = 256
"""Tokens of an attention that may be written out."""


@dataclass(frozen=True)
class FrozenTokens:
    """What the frozen blocks before the first adapted one make of images: tokens (items * frames, ..., width).

    Here and below, a backbone of clips sees an item's frames as one: there are as many rows as items.
    """

    tokens: Tensor


class HeadedModel(nn.Module):
    """What every method shares: features of the backbone, pooled as the config says, and a head of its own.

    The head looks at standardised vectors: ``start`` takes mean and deviation from those of the training data, which
    stay what they are (AdaptFormer's official code has BatchNorm there, whose batches of few examples are noise). A
    head that sees time has them of every frame's vector, of all frames together. The backbone is no submodule:
    parameters are what is trained. A subclass says in ``pooled`` what happens inside the backbone.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: Backbone, config: AdapterConfig) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        layout = backbone.layout
        self._rows = layout.rows_of(config)
        self.norm = nn.LayerNorm(layout.width, eps=backbone.norm_eps) if config.norm == "trained" else None
        width = layout.width * (2 if config.twice else 1)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.head = head_for(config, layout.width)

    @torch.no_grad()
    def start(self, vectors: Tensor, solved: Solved | None = None) -> None:
        """From what ``vectors`` gives for the training data, and from the best linear head on them, where known."""
        scale = Scale.of(vectors.flatten(0, -2))
        self.mean.copy_(scale.mean)
        self.deviation.copy_(scale.deviation)
        if solved is not None:
            frames = vectors[0].numel() // len(scale.mean)
            weight = solved.weight * scale.deviation.repeat(frames)
            self.head.begin(weight, solved.bias + solved.weight @ scale.mean.repeat(frames))

    def pooled(self, images: Tensor | FrozenTokens) -> Tensor:
        """Normalised images (rows, 3, height, width), or their prefix -> one vector (rows, width) each."""
        raise NotImplementedError

    @property
    def first_block(self) -> int:
        """Of those that are trained; what is before it need not be computed twice."""
        return 0

    @property
    def pools_alike(self) -> bool:
        """Whether nothing that is trained comes before ``pooled_items``, so that it need not be computed twice."""
        return False

    def pooled_items(self, images: Tensor | FrozenTokens) -> Tensor:
        """Normalised images (items * frames, 3, height, width) -> what the head looks at.

        The mean over each item's frames (items, width), or (items, frames, width) where the head sees time.
        """
        pooled = self.pooled(images).float()
        seen: Tensor = self.head.seen(pooled.view(-1, self._rows, pooled.shape[-1]))
        return seen

    def vectors(self, images: Tensor | FrozenTokens) -> Tensor:
        """Normalised images, or what ``pooled_items`` made of them -> the latter, after the own norm if any."""
        pooled = images if isinstance(images, Tensor) and images.ndim <= 3 else self.pooled_items(images)
        return pooled if self.norm is None else self.norm(pooled)

    def forward(self, images: Tensor | FrozenTokens) -> Tensor:
        """What ``vectors`` takes -> logits (items, classes) float32."""
        logits: Tensor = self.head((self.vectors(images) - self.mean) / self.deviation)
        return logits


class AdaptedModel(HeadedModel):
    """The backbone's operator for one adapter. Only residuals, own norm and head are parameters.

    ``tensors`` folds what standardises vectors into the head. Nothing before the first adapted site enters the graph,
    since nothing there needs a gradient.
    """

    def __init__(
        self, backbone: Backbone, config: AdapterConfig, *, dropout: float = 0.0, learn_scale: bool = False
    ) -> None:
        layout = backbone.layout
        # Made before the head, so that a seed means what it meant when the demo's files were trained.
        residuals = {
            f"{site.site}_{block}": LowRankResidual(
                site, *layout.sites[site.site][block], dropout=dropout, learn_scale=learn_scale
            )
            for site in config.sites
            for block in site.blocks
        }
        super().__init__(backbone, config)
        self._learn_scale = learn_scale
        self.active = frozenset[str](site.site for site in config.sites)
        self._spared = {site.site: layout.prefix_tokens or 0 for site in config.sites if site.tokens == "patches"}
        self.residuals = nn.ModuleDict(residuals)
        self._first = min((block for site in config.sites for block in site.blocks), default=0)
        self._joining: Tensor | None = None
        self.to(backbone.device)

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        """All rows are there from the beginning, or join where their prefix ends."""
        return self._joining if block == self._first and self._joining is not None else tokens

    def add(self, site: SiteName, block: int, tap: Tensor, out: Tensor) -> Tensor:
        """The backbone calls it at every site; see ``Operator``."""
        key = f"{site}_{block}"
        if key not in self.residuals:
            return out
        spared = self._spared.get(site, 0)
        with torch.autocast(tap.device.type, tap.dtype, enabled=tap.dtype != torch.float32):
            update: Tensor = self.residuals[key](tap[:, spared:], self._rows)
        if spared:
            update = F.pad(update, (0, 0, spared, 0))
        return out + update.to(out.dtype)

    @property
    def pools_alike(self) -> bool:
        return not self.active

    @property
    def first_block(self) -> int:
        return self._first

    def pooled(self, images: Tensor | FrozenTokens) -> Tensor:
        self._joining = None
        if isinstance(images, FrozenTokens):
            self._joining = images.tokens
            images = in_rows(images.tokens.new_empty(0, 3, *self.config.input.size), self.backbone.layout.frames)
        features = self.backbone.features(images, self if self.active else None)
        return self.backbone.pool(features, self.config.pool, self.config.norm)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """What the adapter file holds, on the CPU: standardising folded into the head, a learnt scale into ``up``."""
        found: dict[str, Tensor] = {}
        for key, residual in self.residuals.items():
            assert isinstance(residual, LowRankResidual)
            prefix = ".".join(key.rsplit("_", 1))
            factor = residual.scale if self._learn_scale else 1.0
            found[f"{prefix}.down.weight"] = residual.down.weight
            found[f"{prefix}.down.bias"] = residual.down.bias
            found[f"{prefix}.up.weight"] = residual.up.weight * factor
            found[f"{prefix}.up.bias"] = residual.up.bias * factor
            if residual.time is not None:
                found[f"{prefix}.time.weight"] = residual.time
        if self.norm is not None:
            found["norm.weight"], found["norm.bias"] = self.norm.weight, self.norm.bias
        found |= self.head.tensors(self.mean, 1 / self.deviation)
        return {name: t.detach().float().cpu().clone() for name, t in found.items()}

    def exported_config(self) -> AdapterConfig:
        """The config that belongs to ``tensors``: a learnt scale is 1 in the file."""
        if not self._learn_scale:
            return self.config
        sites = tuple(site.model_copy(update={"scale": 1.0}) for site in self.config.sites)
        return self.config.model_copy(update={"sites": sites})


@contextmanager
def written_out_attention(backbone: Backbone) -> Iterator[None]:
    """In bfloat16 on a CPU, short attention as plain matrix products while it is open.

    torch's fused one has a backward pass there that takes half of a training's time. Written out, it keeps a weight
    for every pair of tokens, so attention over many tokens stays fused.
    """
    patches = getattr(getattr(backbone.model, "patch_embed", None), "num_patches", MOST_WRITTEN_OUT + 1)
    changed = []
    if backbone.device.type == "cpu" and backbone.dtype == torch.bfloat16:
        changed = [
            module
            for module in backbone.model.modules()
            if getattr(module, "fused_attn", False) and getattr(module, "window_area", patches) <= MOST_WRITTEN_OUT
        ]
    try:
        for module in changed:
            module.fused_attn = False
        yield
    finally:
        for module in changed:
            module.fused_attn = True


class _Stops:
    """An operator that keeps the tokens right before a block, where all rows leave."""

    active = frozenset[str]()

    def __init__(self, block: int) -> None:
        self._block = block
        self.tokens = torch.empty(0)

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        if block != self._block:
            return tokens
        self.tokens = tokens
        return tokens[:0]

    def add(self, site: SiteName, block: int, tap: Tensor, out: Tensor) -> Tensor:  # noqa: ARG002
        return out


@torch.no_grad()
def prefix_of(model: HeadedModel, images: Tensor) -> Tensor:
    """Normalised images -> tokens (rows, ..., width) right before the first block that is trained."""
    stops = _Stops(model.first_block)
    model.backbone.features(images, stops)
    return stops.tokens


def images_of(model: HeadedModel, pixels: Tensor) -> Any:
    """What ``normalised`` makes of pixels for the model's config; vectors stay, other tensors are ``FrozenTokens``."""
    here = pixels.to(model.backbone.device)
    if here.dtype == torch.uint8:
        return normalised(here, model.config, model.backbone)
    return here if here.ndim <= 3 else FrozenTokens(here.flatten(0, 1))


def normalised(pixels: Tensor, config: AdapterConfig, backbone: Backbone) -> Tensor:
    """Pixels (items, frames, 3, size, size) uint8 -> rows (items * frames, 3, size, size), ready for the backbone."""
    device, told = backbone.device, config.input
    rows = in_rows(pixels.flatten(0, 1).to(device), backbone.layout.frames)
    mean, std = (torch.tensor([v], device=device).expand(len(rows), 3) for v in (told.mean, told.std))
    return normalise(rows, mean, std)


def in_rows(images: Tensor, frames: int) -> Tensor:
    """Frames (items * frames, 3, size, size) as the backbone's rows: themselves, or so many of them together."""
    return images if frames == 1 else images.reshape(len(images) // frames, frames, *images.shape[1:])
