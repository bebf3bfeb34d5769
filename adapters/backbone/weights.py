"""Build a timm model with the weights asked for: from a name, a folder or a file, with or without a network.

It knows names and folders; what a checkpoint holds is ``checkpoint``'s, what a folder of transformers says is
``transformers_config``'s, adapters are others'.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import Tensor, nn

from adapters.backbone.checkpoint import Comparison, compare, fingerprint_of, load
from adapters.backbone.families import blocks_of
from adapters.backbone.inputs import input_config
from adapters.backbone.reading import read
from adapters.backbone.sizes import patch_of, refuse_part_of_a_patch, refused, resample_as_given, squares_near
from adapters.backbone.source import Source, create, file_in, first_line, not_loaded, resolve
from adapters.backbone.transformers_config import manner_beside
from adapters.backbone.tubelets import frames_of
from adapters.config import InputConfig, Size
from adapters.errors import BackboneError

GUESS_S = 3.0
"""Time to look for the architecture that a refused checkpoint fits."""
_MODULES = (
    "vision_transformer", "deit", "eva", "beit", "swin_transformer", "swin_transformer_v2", "vision_transformer_relpos",
    "naflexvit", "vitamin",
)  # fmt: skip
_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so", 1280: "huge"}


class Built(NamedTuple):
    """What a timm model without classifier goes by, its preprocessing, itself, and its fingerprints (see Layout)."""

    name: str
    input: InputConfig
    model: nn.Module
    fingerprint: str
    resampled: str


class _Loaded(NamedTuple):
    model: nn.Module
    fingerprint: str
    resampled: str


class _Plan(NamedTuple):
    """What is to be built. ``own``: the model without memory, at its own size. ``size``: another one, or None."""

    name: str
    source: Source
    own: nn.Module
    size: Size | None

    @property
    def own_size(self) -> Size:
        return input_config(self.own).size

    def at(self, size: Size | None) -> nn.Module:
        """The model without memory, for pictures of that size. Raises BackboneError."""
        with torch.device("meta"):
            return create(self.name, self.source, size)


def build_model(name: str, weights: str, size: Size | None = None) -> Built:
    """See ``load_backbone``. Raises BackboneError."""
    source, label = resolve(name)
    seed = re.fullmatch(r"random:(\d{1,9})", weights)
    if not seed and weights.startswith("random"):
        raise BackboneError(f"weights '{weights}' must be random:SEED with a whole number", weights=weights)
    path = Path(weights) if weights and not seed else None
    if path and path.is_dir():
        path = file_in(path, path.name)
    if path and not source.manner:
        source = source._replace(manner=manner_beside(path))
    plan = _planned(label, source, size or (source.told.size if source.told else None))
    if seed:
        label = f"{label}+random:{seed[1]}"
        loaded = _random(plan, int(seed[1]), label)
    elif path or source.folder:
        path = path or file_in(cast(Path, source.folder), label)
        loaded = _filled(plan, read(path), label, path)
    else:
        loaded = _pretrained(plan)
    return Built(label, input_config(loaded.model, plan.size), *loaded)


def _planned(name: str, source: Source, size: Size | None) -> _Plan:
    """Build the model without memory, so that nobody downloads what cannot be adapted, or cannot run at that size."""
    with torch.device("meta"):
        model = create(name, source)
    blocks_of(model, name)
    try:
        own = input_config(model).size
    except (KeyError, TypeError, ValueError) as error:  # a config.json by hand
        raise not_loaded(name, f"its preprocessing cannot be read: {first_line(error)}") from error
    if size is None or size == own:
        return _Plan(name, source, model, None)
    plan = _Plan(name, source, model, size)
    if frames_of(model) > 1:
        raise refused(name, own, size, "its positions are numbers of tokens, which mean other places there")
    refuse_part_of_a_patch(name, model, own, size)
    try:
        plan.at(size)
    except BackboneError as error:
        why = error.__cause__ if isinstance(error.__cause__, Exception) else error
        told = f"timm makes no such model ({type(why).__name__}: {first_line(why)})"
        raise refused(name, own, size, told) from error
    return plan


def _random(plan: _Plan, seed: int, label: str) -> _Loaded:
    """Random weights of the model's own size, resampled as others are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create(plan.name, plan.source)
    return _filled(plan, model.state_dict(), label) if plan.size else _Loaded(model, fingerprint_of(model), "")


def _pretrained(plan: _Plan) -> _Loaded:
    """timm's own weights at a size. Raises BackboneError."""
    model = create(plan.name, plan.source, pretrained=True)
    whole = fingerprint_of(model)
    if plan.size is None:
        return _Loaded(model, whole, "")
    found = compare(plan.at(plan.size), model.state_dict())
    if not found.fits:
        raise _unfit(plan, found, model.state_dict(), plan.name, None)
    del model  # there is room for one of them
    model = create(plan.name, plan.source, plan.size, pretrained=True)
    here = fingerprint_of(model)
    return _Loaded(model, whole, "" if whole == here else here)


def _filled(plan: _Plan, state: Mapping[str, Any], label: str, path: Path | None = None) -> _Loaded:
    """A model with a whole checkpoint in it, and its fingerprints; positions are resampled as timm does it.

    Raises BackboneError with what is missing and what would be left over, or with sizes that the weights can run at.
    """
    model = create(plan.name, plan.source, plan.size)
    found = compare(model, state)
    if not found.fits:
        raise _unfit(plan, found, state, label, path)
    load(model, found, path.name if path else label)
    given = _given(plan, found, state)
    if found.stretched and plan.source.told and plan.source.told.antialias is not None:
        resample_as_given(model, state, antialias=plan.source.told.antialias)
    here = fingerprint_of(model)
    whole = fingerprint_of(*given) if given else here
    return _Loaded(model, whole, "" if whole == here else here)


def _given(plan: _Plan, found: Comparison, state: Mapping[str, Any]) -> tuple[nn.Module, Mapping[str, Tensor]] | None:
    """The model without memory at the size that a checkpoint is for, and its tensors, with none of them resampled.

    None where that is the model as it was built, or nothing tells.
    """
    if not (found.stretched or plan.size):
        return None
    own = compare(plan.own, state)
    if own.fits and not own.stretched:
        return plan.own, own.tensors
    with suppress(BackboneError):
        native = plan.at(own.native or found.native)
        first = compare(native, state)
        if first.fits and not first.stretched:
            return native, first.tensors
    return None


def _unfit(plan: _Plan, found: Comparison, state: Mapping[str, Any], label: str, path: Path | None) -> BackboneError:
    own = compare(plan.own, state) if plan.size else found
    if plan.size and own.fits:
        return refused(label, plan.own_size, plan.size, f"its weights: {found}", _sizes_that_fit(plan, state))
    fitting = _architecture_of(state, label)
    name = path.name if path else label
    return BackboneError(
        f"weights file '{name}' {own}; it belongs to another architecture than {label}"
        + (f" and fits {fitting}" if fitting else ""),
        weights=str(path or label), tensor=(*own.missing, *own.left, "")[0],
    )  # fmt: skip


def _sizes_that_fit(plan: _Plan, state: Mapping[str, Any]) -> list[Size]:
    """At most two squares near the size that was refused."""
    found, end = list[Size](), time.monotonic() + GUESS_S
    for size in squares_near(plan.size or plan.own_size, patch_of(plan.own)):
        if len(found) == 2 or time.monotonic() > end:
            break
        with suppress(BackboneError):
            if size != plan.own_size and compare(plan.at(size), state).fits:
                found.append(size)
    return found


def _architecture_of(state: Mapping[str, Any], near: str) -> str:
    """A timm model that takes the whole checkpoint; empty if none is found in time.

    Likely ones first: of the same kind of blocks, patches and width, and of names like ``near``.
    """
    kernels = [v for n, v in state.items() if n.endswith("patch_embed.proj.weight")]
    kernel: tuple[int, ...] = tuple(getattr(kernels[0], "shape", ())) if kernels else ()
    patch, size = (f"patch{kernel[-1]}", _SIZES.get(kernel[0], "")) if len(kernel) in (4, 5) else ("", "")
    swin = any(n.startswith("layers.") for n in state)
    modules = ("tubelets",) if len(kernel) == 5 else [m for m in _MODULES if m.startswith("swin") == swin]
    names = [n for module in modules for n in timm.list_models(module=module)]
    names = [n for n in names if patch in n or "patch" not in n]
    alike = difflib.SequenceMatcher(b=near, autojunk=False)

    def likely(name: str) -> tuple[bool, float]:
        alike.set_seq1(name)
        return size not in name, -alike.ratio()

    names.sort(key=likely)
    end = time.monotonic() + GUESS_S
    for name in map(str, names):
        if time.monotonic() > end:
            break
        with suppress(BackboneError), torch.device("meta"):
            found = compare(create(name, Source(name)), state)
            if found.fits and not found.stretched:
                return name
    return ""
