"""Fill a timm model from a checkpoint: every tensor of both has its place, or the checkpoint is refused.

timm's converters know the spellings of other projects, but they also stretch what does not fit, and its loader drops
what is left over. So both sides are compared here, by name and shape, before anything is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adapters.backbone.sizes import TABLE, grids_of, native_size
from adapters.config import Size
from adapters.errors import BackboneError

log = logging.getLogger(__name__)

SHOWN = 3
"""Names of one kind in a sentence."""
UNUSED = re.compile(
    r"(head|head_dist|classifier|lm_head|pooler|pre_logits|projectors|local_cls_norm|dino_head|ibot_head)\..*"
    r"|optimizer|scheduler|lr_scheduler|scaler|mask_token|decoder_(embed|blocks|norm|pred)\..*|decoder_pos_embed"
    r"|(encoder_to_)?decoder\..*"
    r"|(.*\.)?(relative_position_index|relative_coords_table|attn_mask|num_batches_tracked|periods|bias_mask)"
)
"""What no feature needs: classifiers, the mask token and decoder of masked training, the heads of self-supervised
training, a training's own state, and buffers that timm computes itself."""
_COUNTER = re.compile(r"\.num_batches_tracked$")


@dataclass(frozen=True)
class Comparison:
    """A checkpoint beside a model: the tensors to load, by the model's names, and all that does not fit.

    ``missing``: of the model. ``left``: of the checkpoint, without a place. ``unused``: likewise, but needed by no
    feature. ``unfit``: sentences, such as other shapes. ``stretched``: empty, or how positions were resampled.
    ``native``: the size of pictures that the checkpoint's positions are for, where they tell.
    """

    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    unused: tuple[str, ...]
    unfit: tuple[str, ...]
    stretched: str
    native: Size | None

    @property
    def fits(self) -> bool:
        return not (self.missing or self.left or self.unfit)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"lacks {len(self.missing)} tensors of the model, such as {_some(self.missing)}")
        if self.left:
            parts.append(f"holds {len(self.left)} tensors that the model has no place for, such as {_some(self.left)}")
        return "; ".join((*parts, *self.unfit))


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifier's tensors, such as ``head.``; empty strings never."""
    names: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{n}." for n in ([names] if isinstance(names, str) else names))


def fingerprint_of(model: nn.Module, tensors: Mapping[str, Tensor] | None = None) -> str:
    """sha256 over the tensors' names, shapes and fp32 bytes in name order, classifier excluded.

    ``tensors``: a checkpoint's that fit the model, in place of its own; it may be on ``meta``.
    """
    digest = hashlib.sha256()
    skip = classifier_names(model)
    for name, own in sorted(model.state_dict().items()):
        if not name.startswith(skip):
            tensor = own if tensors is None else tensors.get(name, torch.zeros(own.shape))  # a counter may be missing
            digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def load(model: nn.Module, found: Comparison, source: str) -> None:
    """Give the model the values of a checkpoint that fits; what was resampled or set aside is told in the log.

    Raises BackboneError for values that are no numbers.
    """
    broken = next((n for n, t in found.tensors.items() if not bool(t.isfinite().all())), None)
    if broken:
        raise BackboneError(f"weights file '{source}' holds NaN or infinite values in {broken}", tensor=broken)
    if found.stretched:
        log.info("%s: %s", source, found.stretched)
    if found.unused:
        log.info("%s: %d tensors are not needed, such as %s", source, len(found.unused), _some(found.unused))
    model.load_state_dict(found.tensors, strict=False)


def compare(model: nn.Module, state: Mapping[str, Any]) -> Comparison:
    """Lay the entries of a checkpoint beside the model's tensors, which may be on ``meta``. Changes neither."""
    raw = dict(_flat(state))
    converted = _timm_names(model, state)
    wanted, skip = model.state_dict(), classifier_names(model)
    tensors: dict[str, Tensor] = {}
    left: list[str] = []
    unused: list[str] = []
    shapes: list[str] = []
    for name, value in converted.items():
        if name not in wanted:
            plain = not isinstance(value, Tensor | Mapping | list | tuple)  # an epoch, a name
            (unused if plain or _is_unused(model, name, skip) else left).append(name)
        elif not _is_alike(value, wanted[name]):
            shapes.append(f"{name} {_shown(value)}, expected {_shown(wanted[name])}")
        else:
            tensors[name] = value
    missing = [n for n in wanted if n not in converted and not n.startswith(skip or "\0") and not _COUNTER.search(n)]
    stretched, no_grid = _grid(model, raw)
    if any(n.endswith(TABLE) and n in wanted and v.shape != wanted[n].shape for n, v in raw.items()):
        stretched = stretched or "tables of position biases were resampled, for pictures of another size"
    unfit = [*_other_patches(model, raw), *_other_windows(model, raw), *_lost_biases(model, raw), *no_grid]
    if shapes:
        unfit.append(f"has {len(shapes)} tensors of another shape or type, such as {shapes[0]}")
    return Comparison(
        tensors, tuple(missing), tuple(left), tuple(unused), tuple(unfit), stretched, native_size(model, raw)
    )  # fmt: skip


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """All tensors, those of inner dictionaries too, under their inner names."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield str(name), value  # an optimizer's are numbers
        elif isinstance(value, Mapping):
            yield from _flat(value)


def _timm_names(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The checkpoint as timm's converter for this kind of model spells it; as it is where the converter gives up."""
    convert = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return state
    # DeiT III's authors spell layer scale as other models do here, so that timm renames it for DeiT alone.
    more = {"adapt_layer_scale": True} if _architecture(model).startswith("deit") else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it prints what it drops
            warnings.simplefilter("ignore")  # of torch, about how timm resamples
            converted: Mapping[str, Any] = convert(dict(state), model, **more)
    except Exception as error:  # it expects its own kind of model; the comparison says what does not fit
        log.debug("timm's converter: %s: %s", type(error).__name__, error)
        return state
    return converted


def _is_unused(model: nn.Module, name: str, classifier: tuple[str, ...]) -> bool:
    if UNUSED.fullmatch(name) or (classifier and name.startswith(classifier)):
        return True
    # timm fills SigLIP models that pool otherwise from files with SigLIP's attention pooling.
    return name.startswith("attn_pool.") and "siglip" in _architecture(model)


def _architecture(model: nn.Module) -> str:
    return getattr(model, "pretrained_cfg", {}).get("architecture") or ""


def _is_alike(value: object, wanted: Tensor) -> bool:
    """Of one shape, and fractions where fractions are wanted; their precision may differ."""
    if not isinstance(value, Tensor) or value.shape != wanted.shape:
        return False
    return value.is_floating_point() == wanted.is_floating_point()


def _other_patches(model: Any, raw: Mapping[str, Tensor]) -> Iterator[str]:
    """timm resamples kernels of another patch size; every token then sees another part of the picture."""
    projection = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d):
        return
    ours = projection.weight.shape
    for value in raw.values():
        if value.ndim == 4 and value.shape[:2] == ours[:2] and value.shape[2:] != ours[2:]:
            yield f"cuts patches of {_shown(value[0, 0])} pixels, the model those of {ours[2]}x{ours[3]}"
            return


def _other_windows(model: Any, raw: Mapping[str, Tensor]) -> Iterator[str]:
    """A table of position biases may be resampled where it spans the whole picture, not where it spans a window.

    Windows of Swin that span the picture are cut to it: only from a larger one is theirs a matter of size.
    """
    for name, value in raw.items():
        if not name.endswith(TABLE):
            continue
        try:
            module: Any = model.get_submodule(name.removesuffix(TABLE))
            block: Any = model.get_submodule(name.removesuffix(TABLE).rpartition(".")[0])
        except AttributeError:
            continue  # it is named among the tensors without a place
        ours = getattr(module, TABLE[1:], None)
        if ours is None or ours.shape == value.shape:
            continue
        stage = getattr(block, "input_resolution", None)
        spans = tuple(module.window_size) == tuple(stage or model.patch_embed.grid_size)
        if not spans or (stage and len(value) < len(ours)):
            yield f"has other windows of attention: {name} {_shown(value)}, expected {_shown(ours)}"
            return


def _lost_biases(model: nn.Module, raw: Mapping[str, Tensor]) -> Iterator[str]:
    """timm drops the attention's biases of DINOv3 for models without them: right only where they are zero."""
    if "storage_tokens" not in raw or any(n.endswith("q_bias") for n, _ in model.named_parameters()):
        return
    lost = [n for n, v in raw.items() if n.endswith("attn.qkv.bias") and any(v.chunk(3)[i].any() for i in (0, 2))]
    if lost:
        yield f"has biases in its attention, such as {lost[0]}, and the model has none"


def _grid(model: Any, raw: Mapping[str, Tensor]) -> tuple[str, list[str]]:
    """How the grid of positions is resampled, if it is; and why it cannot be."""
    grids = grids_of(model, raw)
    if grids is None or grids[0] == grids[1]:
        return "", []
    old, new = grids
    if old is None:
        count = next(v.shape[1] for n, v in raw.items() if re.fullmatch(r"(\w+\.)*pos_embed", n) and v.ndim == 3)
        if count == model.pos_embed.shape[1]:
            return "", []  # not square, and as they are
        return "", [f"has {count} positions, which make no square grid after the other tokens'"]
    theirs, mine = f"{old[0]}x{old[1]}", f"{new[0]}x{new[1]}"
    return f"the grid of positions was resampled from {theirs} to {mine}, for pictures of another size", []


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN])


def _shown(value: object) -> str:
    return "x".join(map(str, value.shape)) or "scalar" if isinstance(value, Tensor) else type(value).__name__
