"""Methods to compare with that no adapter file can hold: visual prompts (VPT), and tuning the whole backbone.

It knows what each one trains inside the backbone; it knows no data, files or reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.func import functional_call

from adapters.backbone import Backbone
from adapters.config import AdapterConfig
from adapters.errors import TrainingError
from adapters.training.model import AdaptedModel, FrozenTokens, HeadedModel
from adapters.training.recipe import Recipe

PROMPTS = 10
"""Prompt tokens in each block, unless a number is given."""
NO_FILE = {
    "vpt": "prompts are tokens in every block and no residual at a site",
    "full": "full tuning changes the backbone",
}
"""Method -> why there is no adapter file."""


def model_of(recipe: Recipe, backbone: Backbone, config: AdapterConfig, dropout: float = 0.0) -> HeadedModel:
    """What the recipe's method trains, with its random start. Raises TrainingError as ``check_method`` does."""
    check_method(recipe, backbone)
    if recipe.method == "vpt":
        return PromptedModel(backbone, config, recipe.prompts or PROMPTS, dropout=dropout)
    if recipe.method == "full":
        return TunedModel(backbone, config)
    return AdaptedModel(backbone, config, dropout=dropout)


def check_method(recipe: Recipe, backbone: Backbone) -> None:
    """Raise TrainingError where the method cannot train this backbone."""
    kinds = {type(block) for block in getattr(backbone.model, "blocks", [])}
    if recipe.method == "vpt" and kinds != {vision_transformer.Block}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "stages"
        raise TrainingError(
            f"method vpt puts its prompts between the tokens of a plain ViT, and {backbone.layout.model} is built of "
            f"{found}; take another method or a plain ViT", field="method", expected="Block", got=found,
        )  # fmt: skip


class PromptedModel(HeadedModel):
    """Deep visual prompts (Jia et al. 2022): every block sees its own trained tokens, which leave with its output.

    They stand after the prefix tokens and have no position; ``dropout`` acts on them. The backbone stays frozen.
    """

    def __init__(self, backbone: Backbone, config: AdapterConfig, prompts: int, *, dropout: float = 0.0) -> None:
        super().__init__(backbone, config)
        model: Any = backbone.model
        self._blocks = tuple(model.blocks)
        self._prefix = int(model.num_prefix_tokens)
        width = int(model.embed_dim)
        self.prompts = nn.Parameter(torch.empty(len(self._blocks), prompts, width))
        patch = math.prod(model.patch_embed.proj.weight.shape[1:])
        bound = math.sqrt(6 / (patch + width))  # the paper's: as the patch embedding would start
        nn.init.uniform_(self.prompts, -bound, bound)
        self.dropout = nn.Dropout(dropout)
        self.to(backbone.device)

    def pooled(self, images: Tensor | FrozenTokens) -> Tensor:
        assert isinstance(images, Tensor)  # its first block is trained
        with self._inserted():
            features = self.backbone.features(images)
        return self.backbone.pool(features, self.config.pool, self.config.norm)

    @contextmanager
    def _inserted(self) -> Iterator[None]:
        """Hooks for one forward pass, so that the backbone is bare again for whoever else uses it."""
        hooks = []
        try:
            for block, own in zip(self._blocks, self.prompts, strict=True):
                hooks += [
                    block.register_forward_pre_hook(self._insert(own)),
                    block.register_forward_hook(self._remove),
                ]
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _insert(self, own: Tensor) -> Any:
        def hook(_block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens = args[0]
            prompts = self.dropout(own).to(tokens.dtype).expand(len(tokens), -1, -1)
            return torch.cat([tokens[:, : self._prefix], prompts, tokens[:, self._prefix :]], dim=1), *args[1:]

        return hook

    def _remove(self, _block: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        after = self._prefix + self.prompts.shape[1]
        return torch.cat([out[:, : self._prefix], out[:, after:]], dim=1)


class TunedModel(HeadedModel):
    """Full tuning: every parameter of the backbone, as a float32 copy that takes its place during a forward pass.

    The backbone's own tensors stay as they are. Its last norm is trained with it, so the config's is ``frozen``.
    """

    def __init__(self, backbone: Backbone, config: AdapterConfig) -> None:
        super().__init__(backbone, config)
        names, tensors = zip(*backbone.model.named_parameters(), strict=True)
        self._names: tuple[str, ...] = tuple(f"model.{name}" for name in names)
        self.weights = nn.ParameterList(nn.Parameter(t.detach().float().clone()) for t in tensors)
        self.to(backbone.device)

    def pooled(self, images: Tensor | FrozenTokens) -> Tensor:
        weights = {name: w.to(self.backbone.dtype) for name, w in zip(self._names, self.weights, strict=True)}
        found: Tensor = functional_call(_Pooled(self.backbone, self.config), weights, (images,))
        return found


class _Pooled(nn.Module):
    """The backbone's forward pass and pooling as one module, for ``functional_call``."""

    def __init__(self, backbone: Backbone, config: AdapterConfig) -> None:
        super().__init__()
        self.model: nn.Module = backbone.model
        self._backbone, self._config = backbone, config

    def forward(self, images: Tensor) -> Tensor:
        return self._backbone.pool(self._backbone.features(images), self._config.pool, self._config.norm)
