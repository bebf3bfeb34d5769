"""Build a timm model with the weights asked for: from a name, a folder or a file, with or without a network.

It knows names and folders; what a checkpoint holds is ``checkpoint``'s, what a folder of transformers says is
``transformers_config``'s, adapters are others'.
"""

from __future__ import annotations

import difflib
import re
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import Tensor, nn

from adapters.backbone import hub
from adapters.backbone.checkpoint import Comparison, compare, fingerprint_of, load, read
from adapters.backbone.families import blocks_of
from adapters.backbone.files import file_in, not_loaded
from adapters.backbone.inputs import input_config
from adapters.backbone.sizes import patch_of, refuse_part_of_a_patch, refused, resample_as_given, squares_near
from adapters.backbone.source import Source, hint, in_folder
from adapters.backbone.transformers_config import manner_beside
from adapters.config import InputConfig, Size
from adapters.errors import BackboneError

DEMO_BACKBONE = Path(__file__).parent.parent / "demo" / "backbone"
REACH_S = 2.0
"""Time for the hub's first answer, unless HF_HUB_ETAG_TIMEOUT is set. Downloads have no such bound."""
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
            return _create(self.name, self.source, size)


def build_model(name: str, weights: str, size: Size | None = None) -> Built:
    """See ``load_backbone``. Raises BackboneError."""
    source, label = _resolve(name)
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


def _resolve(name: str) -> tuple[Source, str]:
    """Where a name leads, and what the backbone is called. Raises BackboneError."""
    if name == "demo":
        return Source(f"local-dir:{DEMO_BACKBONE}", DEMO_BACKBONE), name
    folder = Path(name.removeprefix("local-dir:"))
    if (folder / "config.json").is_file():
        return in_folder(folder, folder.name or folder.resolve().name)
    # A published timm model is the same by either name, and so is what timm makes of it.
    of_timm = re.fullmatch(r"(?:hf[-_]hub:)?timm/([\w.-]+)", name)
    if of_timm and timm.is_model(of_timm[1].split(".")[0]):
        name = of_timm[1]
    elif on_hub := re.fullmatch(r"hf[-_]hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name):
        try:
            return in_folder(hub.fetched(on_hub[1], on_hub[2], REACH_S), on_hub[1])
        except hub.OutOfReach as error:
            raise BackboneError(
                f"{name} could not be loaded ({error}); give a local folder with its config.json and "
                "model.safetensors, or use the shipped demo", model=name,
            ) from error  # fmt: skip
    if not timm.is_model(name.split(".")[0]):
        raise BackboneError(f"'{name}' is neither a timm model nor a folder with a config.json{hint(name)}", model=name)
    return Source(name), name


def _planned(name: str, source: Source, size: Size | None) -> _Plan:
    """Build the model without memory, so that nobody downloads what cannot be adapted, or cannot run at that size."""
    with torch.device("meta"):
        model = _create(name, source)
    blocks_of(model, name)
    try:
        own = input_config(model).size
    except (KeyError, TypeError, ValueError) as error:  # a config.json by hand
        raise not_loaded(name, f"its preprocessing cannot be read: {_first_line(error)}") from error
    if size is None or size == own:
        return _Plan(name, source, model, None)
    plan = _Plan(name, source, model, size)
    refuse_part_of_a_patch(name, model, own, size)
    try:
        plan.at(size)
    except BackboneError as error:
        why = error.__cause__ if isinstance(error.__cause__, Exception) else error
        told = f"timm makes no such model ({type(why).__name__}: {_first_line(why)})"
        raise refused(name, own, size, told) from error
    return plan


def _create(name: str, source: Source, size: Size | None = None, *, pretrained: bool = False) -> nn.Module:
    try:
        with hub.within_reach(name, REACH_S) if pretrained else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about how timm resamples
            return source.create(size, pretrained=pretrained)
    except hub.OutOfReach as error:
        raise not_loaded(name, str(error)) from error
    except Exception as error:  # timm, torch and the hub's client raise many kinds; each means: not this model, here
        raise not_loaded(name, f"{type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _random(plan: _Plan, seed: int, label: str) -> _Loaded:
    """Random weights of the model's own size, resampled as others are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(plan.name, plan.source)
    return _filled(plan, model.state_dict(), label) if plan.size else _Loaded(model, fingerprint_of(model), "")


def _pretrained(plan: _Plan) -> _Loaded:
    """timm's own weights at a size. Raises BackboneError."""
    model = _create(plan.name, plan.source, pretrained=True)
    whole = fingerprint_of(model)
    if plan.size is None:
        return _Loaded(model, whole, "")
    found = compare(plan.at(plan.size), model.state_dict())
    if not found.fits:
        raise _unfit(plan, found, model.state_dict(), plan.name, None)
    del model  # there is room for one of them
    model = _create(plan.name, plan.source, plan.size, pretrained=True)
    here = fingerprint_of(model)
    return _Loaded(model, whole, "" if whole == here else here)


def _filled(plan: _Plan, state: Mapping[str, Any], label: str, path: Path | None = None) -> _Loaded:
    """A model with a whole checkpoint in it, and its fingerprints; positions are resampled as timm does it.

    Raises BackboneError with what is missing and what would be left over, or with sizes that the weights can run at.
    """
    model = _create(plan.name, plan.source, plan.size)
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
    patch, size = (f"patch{kernel[-1]}", _SIZES.get(kernel[0], "")) if len(kernel) == 4 else ("", "")
    swin = any(n.startswith("layers.") for n in state)
    names = [n for module in _MODULES if module.startswith("swin") == swin for n in timm.list_models(module=module)]
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
            found = compare(_create(name, Source(name)), state)
            if found.fits and not found.stretched:
                return name
    return ""
