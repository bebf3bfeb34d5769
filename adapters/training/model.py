"""One adapter on the frozen backbone, with gradients: the model that training fits and a file is exported from.

It knows the operator and the config; it knows no data, optimiser, file or other method.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.config import AdapterConfig, SiteName
from adapters.sites import LowRankResidual

HEAD_BN_EPS = 1e-6


class HeadedModel(nn.Module):
    """What every method shares: features of the backbone, pooled as the config says, and a head of its own.

    The head is BatchNorm without affine and a Linear (AdaptFormer's official code). The backbone is no submodule:
    parameters are what is trained. A subclass says in ``pooled`` what happens inside the backbone.
    """

    def __init__(self, backbone: Backbone, config: AdapterConfig) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        layout = backbone.layout
        self.norm = nn.LayerNorm(layout.width, eps=backbone.norm_eps) if config.norm == "trained" else None
        self.head_norm = nn.BatchNorm1d(layout.width, affine=False, eps=HEAD_BN_EPS)
        self.head = nn.Linear(layout.width, len(config.labels))
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def pooled(self, images: Tensor) -> Tensor:
        """Normalised images (rows, 3, height, width) -> one vector (rows, width) each."""
        raise NotImplementedError

    @property
    def pools_alike(self) -> bool:
        """Whether nothing that is trained comes before ``pooled_items``, so that it need not be computed twice."""
        return False

    def pooled_items(self, images: Tensor) -> Tensor:
        """Normalised images (items * frames, 3, height, width) -> the mean over each item's frames (items, width)."""
        pooled = self.pooled(images).float()
        return pooled.view(-1, self.config.frames, pooled.shape[-1]).mean(1)

    def vectors(self, images: Tensor) -> Tensor:
        """Normalised images, or what ``pooled_items`` made of them -> one vector (items, width) each."""
        pooled = images if images.ndim == 2 else self.pooled_items(images)
        return pooled if self.norm is None else self.norm(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """What ``vectors`` takes -> logits (items, classes) float32."""
        logits: Tensor = self.head(self.head_norm(self.vectors(images)))
        return logits


class AdaptedModel(HeadedModel):
    """The backbone's operator for one adapter. Only residuals, own norm and head are parameters.

    ``tensors`` folds the head's BatchNorm into its Linear. Nothing before the first adapted site enters the graph,
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
        self.residuals = nn.ModuleDict(residuals)
        self.to(backbone.device)

    def enter(self, block: int, tokens: Tensor) -> Tensor:  # noqa: ARG002
        """All rows are there from the beginning."""
        return tokens

    def add(self, site: SiteName, block: int, tap: Tensor, out: Tensor) -> Tensor:
        """The backbone calls it at every site; see ``Operator``."""
        key = f"{site}_{block}"
        if key not in self.residuals:
            return out
        update: Tensor = self.residuals[key](tap.float(), self.config.frames)
        return out + update.to(out.dtype)

    @property
    def pools_alike(self) -> bool:
        return not self.active

    def pooled(self, images: Tensor) -> Tensor:
        features = self.backbone.features(images, self if self.active else None)
        return self.backbone.pool(features, self.config.pool, self.config.norm)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """What the adapter file holds, on the CPU: BatchNorm folded into the head, a learnt scale into ``up``."""
        found: dict[str, Tensor] = {}
        for key, residual in self.residuals.items():
            assert isinstance(residual, LowRankResidual)
            prefix = key.replace("_", ".")
            factor = residual.scale if self._learn_scale else 1.0
            found[f"{prefix}.down.weight"] = residual.down.weight
            found[f"{prefix}.down.bias"] = residual.down.bias
            found[f"{prefix}.up.weight"] = residual.up.weight * factor
            found[f"{prefix}.up.bias"] = residual.up.bias * factor
            if residual.time is not None:
                found[f"{prefix}.time.weight"] = residual.time
        if self.norm is not None:
            found["norm.weight"], found["norm.bias"] = self.norm.weight, self.norm.bias
        mean, variance = self.head_norm.running_mean, self.head_norm.running_var
        assert mean is not None
        assert variance is not None
        weight = self.head.weight * (variance + HEAD_BN_EPS).rsqrt()
        found["head.weight"], found["head.bias"] = weight, self.head.bias - weight @ mean
        return {name: t.detach().float().cpu().clone() for name, t in found.items()}

    def exported_config(self) -> AdapterConfig:
        """The config that belongs to ``tensors``: a learnt scale is 1 in the file."""
        if not self._learn_scale:
            return self.config
        sites = tuple(site.model_copy(update={"scale": 1.0}) for site in self.config.sites)
        return self.config.model_copy(update={"sites": sites})
