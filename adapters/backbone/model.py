"""The one frozen timm model: load it, fingerprint it, and open the places where residuals are added.

It knows nothing of adapter files, banks or batches: an ``Operator`` passed to ``features`` decides
what is added where. Residuals enter through module hooks, so timm's own forward runs unchanged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.backbone.families import linear_sites, prepare, trunk_of
from adapters.backbone.operator import Features, Operator, Probe
from adapters.backbone.placement import resolve_device, resolve_dtype
from adapters.backbone.tubelets import frames_of
from adapters.backbone.weights import Built, build_model
from adapters.config import SiteName, Size, size_of, size_text
from adapters.errors import BackboneError
from adapters.layout import Layout

_AT_OUTPUT = ("attn", "sequential")
"""Sites of a submodule's output; others of submodules tap what goes in."""


class Backbone:
    """A frozen model with hooks. One thread at a time may run it; a second one gets an error."""

    def __init__(self, built: Built, device: torch.device, dtype: torch.dtype) -> None:
        self.model: Any = built.model.to(device).eval().requires_grad_(False)
        self.input = built.input
        self.dtype = dtype
        self.last_step = 0.0
        """When the latest block was computed, or on CUDA put into the queue; on the monotonic clock."""
        self.model.to(dtype)
        prepare(self.model)
        self._trunk = trunk_of(self.model, built.name)
        self._blocks = self._trunk.blocks
        self._operator: Operator | None = None
        self._rows = 0
        self._taps: dict[int, Tensor] = {}
        self._raw: Tensor | None = None
        self._busy = threading.Lock()
        self._seen: dict[tuple[SiteName, int], tuple[int, int]] | None = None
        self._open_sites()
        self.layout = self._measure(built)

    @property
    def device(self) -> torch.device:
        return cast(torch.device, next(iter(self.model.parameters())).device)

    @property
    def norm_eps(self) -> float:
        """Epsilon of the last LayerNorm."""
        norm = self._trunk.norm
        known = isinstance(norm, nn.LayerNorm) or self._trunk.pools_first
        return float(getattr(norm, "eps", 1e-6)) if known else 1e-6

    def features(self, images: Tensor, operator: Operator | None = None) -> Features:
        """Run normalised images (rows, 3, height, width) through the frozen blocks and the operator's residuals.

        A backbone of clips takes (rows, frames, 3, height, width), as many as ``layout.frames``.
        Rows that the operator lets join come behind these, in the order of their blocks. There may be no images at all
        where it does: blocks that no row has come to compute nothing.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("two threads ran one backbone at the same time; give it one owner")
        try:
            self._operator, self._rows = operator, images.shape[0]
            if not self._rows:  # DINOv3 cannot embed none; this one is gone before the first block
                images = images.new_zeros(1, *images.shape[1:])
            normed = self.model.forward_features(images.to(self.dtype))
            raw = cast(Tensor, self._raw)
            return Features(raw=raw, normed=normed)
        finally:
            self._operator, self._raw = None, None
            self._taps.clear()
            self._busy.release()

    def pool(self, features: Features, pool: str, norm: str) -> Tensor:
        """One vector (rows, width) per row, as the adapter's ``pool`` and ``norm`` say (see AdapterConfig).

        Of ``cls+avg`` it is (rows, 2 width).
        """
        if pool == "cls+avg":
            return torch.cat([self.pool(features, one, norm) for one in ("cls", "avg")], 1)
        if pool == "backbone":
            return cast(Tensor, self.model.forward_head(features.normed, pre_logits=True))
        tokens = features.normed if norm == "frozen" else features.raw
        if self._trunk.channels_first:
            tokens = tokens.movedim(1, -1)
        tokens = tokens.flatten(1, -2)
        prefix = getattr(self.model, "num_prefix_tokens", 0)
        vector = tokens[:, 0] if pool == "cls" else tokens[:, prefix:].mean(1)
        if norm == "frozen" and self._trunk.pools_first:
            vector = cast(nn.Module, self._trunk.norm)(vector)
        return vector

    def normalise_vector(self, vector: Tensor) -> Tensor:
        """LayerNorm without its affine part, in float32; the trained norm's weight and bias follow."""
        return F.layer_norm(vector.float(), vector.shape[-1:], eps=self.norm_eps)

    def _open_sites(self) -> None:
        for index, block in enumerate(self._blocks):
            block.module.forward = _unless_empty(block.module.forward)
            block.module.register_forward_pre_hook(self._enter(index))
            block.module.register_forward_pre_hook(self._input(index))
            block.before_mlp.register_forward_pre_hook(self._before_mlp(index))
            block.module.attn.register_forward_hook(self._site("attn", index))
            block.module.mlp.register_forward_hook(self._site("sequential", index))
            block.module.register_forward_hook(self._block_end(index))
            for site, (linear, part) in linear_sites(block.module).items():
                linear.register_forward_hook(self._site(site, index, part))
        if self._trunk.end is not None:
            self._trunk.end.register_forward_pre_hook(self._enter(len(self._blocks)))
            self._trunk.end.register_forward_pre_hook(self._keep_raw)
        else:
            self._blocks[-1].module.register_forward_hook(self._last_end)

    def _keep_raw(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._raw = args[0]

    def _last_end(self, module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        entered = self._enter(len(self._blocks))(module, (out,))
        self._raw = out if entered is None else cast(Tensor, entered[0])
        return self._raw

    def _enter(self, index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self._operator is None:
                return None
            here = args[0] if self._rows else args[0][:0]
            tokens = self._operator.enter(index, here)
            if tokens is args[0]:
                return None
            self._rows = tokens.shape[0]
            return tokens, *args[1:]

        return hook

    def _input(self, index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self._operator is None or self._rows == 0 or "input" not in self._operator.active:
                return None
            return self._add("input", index, args[0], args[0]), *args[1:]

        return hook

    def _before_mlp(self, index: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._operator is None:
                return
            if "pre_mlp" in self._operator.active:
                # x' is a sum that only this block holds, so what is written there goes along the skip too. A gradient
                # needs what was there before.
                tap = args[0].clone() if torch.is_grad_enabled() else args[0]
                args[0].copy_(self._add("pre_mlp", index, tap, tap))
            if "parallel" in self._operator.active:
                self._taps[index] = args[0]

        return hook

    def _block_end(self, index: int) -> Any:
        def hook(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor | None:
            self.last_step = time.monotonic()
            if self._operator is None or self._rows == 0:
                return None
            if "parallel" in self._operator.active:
                out = self._add("parallel", index, self._taps.pop(index), out)
            if "output" in self._operator.active:
                out = self._add("output", index, out, out)
            return out

        return hook

    def _site(self, site: SiteName, index: int, part: tuple[int, int] | None = None) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
            if self._operator is None or site not in self._operator.active:
                return None
            tap = out if site in _AT_OUTPUT else args[0]
            if part is None:
                return self._add(site, index, tap, out)
            before, changed, after = out.tensor_split(part, dim=-1)
            return torch.cat([before, self._add(site, index, tap, changed), after], dim=-1)

        return hook

    def _add(self, site: SiteName, index: int, tap: Tensor, out: Tensor) -> Tensor:
        # Swin, SAM and others call Linears with (rows * windows, tokens, width), rows outermost, and blocks with NHWC.
        tap3 = tap.reshape(self._rows, -1, tap.shape[-1])
        out3 = out.reshape(self._rows, -1, out.shape[-1])
        if self._seen is not None:
            self._seen[site, index] = (tap3.shape[-1], out3.shape[-1])
        return cast(Operator, self._operator).add(site, index, tap3, out3).view(out.shape)

    def _measure(self, built: Built) -> Layout:
        """Run one blank picture or clip: a site exists only if its hook fires in every block.

        One of timm's models may read a Linear's weight without calling it; a hook there would be silently skipped, and
        the bare backbone would answer in an adapter's place.
        """
        self._seen = {}
        frames = frames_of(self.model)
        blank = torch.zeros(1, *((frames,) if frames > 1 else ()), 3, *self.input.size, device=self.device)
        with torch.inference_mode():
            features = self.features(blank, Probe())
            width = self.pool(features, "backbone", "frozen").shape[-1]
        seen, self._seen = self._seen, None
        depth = len(self._blocks)
        sites: dict[SiteName, tuple[tuple[int, int], ...]] = {
            site: tuple(seen[site, b] for b in range(depth))
            for site in get_args(SiteName)
            if all((site, b) in seen for b in range(depth))
        }
        pools = ["backbone"]
        if self._trunk.norm is not None and features.normed.shape[1 if self._trunk.channels_first else -1] == width:
            pools += ["cls", "avg", "cls+avg"] if getattr(self.model, "cls_token", None) is not None else ["avg"]
        return Layout(
            built.name, built.fingerprint, sum(p.numel() for p in self.model.parameters()), width, self.input.size,
            depth, sites, tuple(pools), self._trunk.prefix, built.resampled, frames,
        )  # fmt: skip


def _unless_empty(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's forward, left out where no row has come to it."""

    @wraps(forward)
    def call(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(tokens, *args, **kwargs) if tokens.shape[0] else tokens

    return call


def load_backbone(
    name: str = "demo",
    weights: str = "",
    device: str = "auto",
    dtype: str = "auto",
    image_size: int | str | Size | None = None,
) -> Backbone:
    """Load and freeze a timm model, or one of transformers as the timm model that computes the same.

    ``name``: ``demo``, a timm model name, a folder in timm's hub layout or of transformers, or ``hf-hub:owner/name``.
    ``weights``: empty for the model's own pretrained weights, a ``.safetensors`` or ``.pth`` file in timm's,
    transformers' or another known project's names, or ``random:SEED`` (tests and benchmarks only).
    ``device``: ``auto`` takes CUDA where there is one. ``dtype``: see ``resolve_dtype``. ``image_size``: 224, or height
    and width as ``(196, 322)`` or ``"196x322"``; the model's own where it is empty or None. Raises BackboneError.
    """
    place = resolve_device(device)
    precision = resolve_dtype(dtype, place)
    built = build_model(name, weights, _resolve_size(image_size))
    try:
        return Backbone(built, place, precision)
    except torch.OutOfMemoryError as error:
        raise BackboneError(f"{name} does not fit on {place}: {error}", device=str(place)) from error
    except (AttributeError, TypeError, ValueError, IndexError, KeyError, AssertionError, RuntimeError) as error:
        # One of timm's thousand models may have our blocks, and a forward that is unlike those we know.
        why = next(iter(str(error).strip().splitlines()), "")
        at = f" for {size_text(built.input.size)} pixels" if image_size else ""
        raise BackboneError(f"{name} cannot be adapted{at} ({type(error).__name__}: {why})", model=name) from error


def _resolve_size(given: int | str | Size | None) -> Size | None:
    try:
        return None if given is None or given == "" else size_of(given)
    except ValueError as error:
        raise BackboneError(f"image size: {error}", field="image_size") from error
