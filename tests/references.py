"""An adapter's answer written out in plain PyTorch, and a bench of filled slots whose answers are held against it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.bank import Slabs, pack
from adapters.config import SiteConfig
from adapters.file import Adapter
from adapters.forward.banked import BankedForward, Job
from adapters.heads import pages_of
from tests.forwards import FORWARDS, last_norm, norm_of_pooled
from tests.models import head_of, residual

NORMS = {"backbone": ("frozen",), "cls+avg": ("frozen", "none")}
"""Those that a pool can have, where not all."""


def pixels(backbone: Backbone, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = backbone.layout.input_size
    return torch.randint(0, 256, (frames, 3, *size), dtype=torch.uint8, generator=generator)


def normalised(backbone: Backbone, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.input.mean, backbone.input.std))
    return images.float().div(255).sub(mean).div(std)


class Bench:
    """Slots filled with adapters, and jobs for them."""

    def __init__(self, backbone: Backbone, adapters: list[Adapter], rank: int = 16) -> None:
        counts = [pages_of(adapter.config) for adapter in adapters]
        self.slabs = Slabs(
            backbone.layout, slots=len(adapters), rank=rank, pages=sum(counts),
            dtype=backbone.dtype, device=backbone.device,
        )  # fmt: skip
        self.forward = BankedForward(backbone, self.slabs)
        self.packed = []
        for slot, adapter in enumerate(adapters, 1):
            packed = pack(adapter, backbone.layout, rank, backbone.dtype)
            pages = tuple(range(1 + sum(counts[: slot - 1]), 1 + sum(counts[:slot])))
            self.slabs.write(slot, pages, packed)
            self.packed.append((slot, pages, packed.meta))

    def job(self, index: int, images: Tensor) -> Job:
        slot, pages, meta = self.packed[index]
        return Job(images.numpy(), slot, pages, meta)


def reference_tokens(backbone: Backbone, adapter: Adapter, images: Tensor) -> Tensor:
    """The backbone's forward with every block written out by hand; tokens before the last norm."""
    added = partial(residual, adapter, prefix=backbone.layout.prefix_tokens or 0)

    def rest(block: Any, index: int, x: Tensor, pre_norm: bool) -> Tensor:
        """From x' on: MLP with its sequential and LoRA sites, then the residuals at the block's end."""
        post = x.reshape(x.shape[0], -1, x.shape[-1])
        post = post + added("pre_mlp", index, post)
        branch = mlp(block.mlp, index, block.norm2(post) if pre_norm else post)
        branch = branch + added("sequential", index, branch)
        if not pre_norm:
            branch = block.norm2(branch)
        gamma = getattr(block, "gamma_2", getattr(block, "gamma2", None))
        branch = branch * gamma if gamma is not None else getattr(block, "ls2", nn.Identity())(branch)
        out = post + branch + added("parallel", index, post)
        out = out + added("output", index, out)
        return out.reshape(x.shape)

    def mlp(module: Any, index: int, x: Tensor) -> Tensor:
        hidden = module.fc1(x) + added("fc1", index, x)
        if type(module).__name__ == "GluMlp":
            gate, value = hidden.chunk(2, dim=-1)
            hidden = module.norm(module.act(gate) * value)
        else:
            assert type(module).__name__ == "Mlp"
            hidden = module.norm(module.act(hidden))
        return module.fc2(hidden) + added("fc2", index, hidden)

    model, x = backbone.model, images
    if forward := FORWARDS.get(type(model).__name__):
        return forward(model, x, added, partial(rest, pre_norm=True))
    x = model.patch_embed(x)
    kind = type(backbone._blocks[0].module).__name__
    if "Swin" in kind:
        index = 0
        for stage in model.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                normed_first = "V2" not in kind
                x = x + added("input", index, x)
                attended = block._attn(block.norm1(x) if normed_first else x)
                attended = attended + added("attn", index, attended)
                x = x + (attended if normed_first else block.norm1(attended))
                x = rest(block, index, x, normed_first)
                index += 1
        return x
    x, extra = tokens_of(model, x, kind)
    for index, block in enumerate(model.blocks):
        x = x + added("input", index, x)
        attended = block.attn(block.norm1(x), **extra)
        attended = attended + added("attn", index, attended)
        gamma = getattr(block, "gamma_1", None)
        attended = attended * gamma if gamma is not None else getattr(block, "ls1", nn.Identity())(attended)
        x = rest(block, index, x + attended, pre_norm=True)
    return x


def tokens_of(model: Any, x: Tensor, kind: str) -> tuple[Tensor, dict[str, Any]]:
    """From patches to what the first block takes, and what every block's attention is given beside it."""
    extra: dict[str, Any] = {}
    if kind == "EvaBlock":
        x, rope = model._pos_embed(x)
        extra = {"rope": rope}
        x = model.norm_pre(x)
    elif type(model).__name__ == "Beit":
        x = torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + model.pos_embed if model.pos_embed is not None else x
        extra = {"shared_rel_pos_bias": model.rel_pos_bias() if model.rel_pos_bias is not None else None}
    elif "RelPos" in kind:
        x = x if model.cls_token is None else torch.cat((model.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        shared = model.shared_rel_pos.get_bias() if model.shared_rel_pos is not None else None
        extra = {"shared_rel_pos": shared}
    else:
        x = model.norm_pre(model._pos_embed(x))
    return x, extra


def reference(backbone: Backbone, adapter: Adapter, images: Tensor) -> Tensor:
    """Logits of one adapter alone, in plain PyTorch."""
    model = backbone.model
    raw = reference_tokens(backbone, adapter, normalised(backbone, images))
    config = adapter.config
    if config.pool == "backbone":
        return head_of(backbone, adapter, model.forward_head(last_norm(model, raw), pre_logits=True))
    tokens = (last_norm(model, raw) if config.norm == "frozen" else raw).flatten(1, -2)
    prefix = getattr(model, "num_prefix_tokens", 0)
    pools = {"cls": tokens[:, 0], "avg": tokens[:, prefix:].mean(1)}
    parts = [pools[pool] for pool in config.pool.split("+")]
    if config.norm == "frozen" and (norm := norm_of_pooled(model)):
        parts = [norm(part) for part in parts]
    return head_of(backbone, adapter, torch.cat(parts, 1))


def all_sites(
    backbone: Backbone, name: str, temporal: bool = False, act: str = "relu", rank: int = 5, tokens: str = "all"
) -> SiteConfig:
    blocks = tuple(range(backbone.layout.blocks))
    return SiteConfig(site=name, blocks=blocks, rank=rank, act=act, scale=0.6, temporal=temporal, tokens=tokens)
