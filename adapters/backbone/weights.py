"""Build a timm model with the weights asked for: from a name, a folder or a file, with or without a network.

It knows timm's names, folders and hub; what a checkpoint holds is ``checkpoint``'s, adapters are others'.
"""

from __future__ import annotations

import difflib
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from torch import nn

from adapters.backbone.checkpoint import compare, load, read
from adapters.backbone.families import blocks_of
from adapters.backbone.inputs import input_config
from adapters.config import InputConfig
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
_FOLDER_FILES = (
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
_ADVICE = "give a local file with --weights, or use the shipped demo"


def build_model(name: str, weights: str) -> tuple[nn.Module, str, InputConfig]:
    """The model without classifier, the name it goes by, and its preprocessing. See ``load_backbone``."""
    source, label = _resolve(name)
    _refuse_other_families(name, source)
    seed = re.fullmatch(r"random:(\d{1,9})", weights)
    if seed:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed[1]))
            model = _create(name, source)
        label = f"{label}+random:{seed[1]}"
    elif weights.startswith("random"):
        raise BackboneError(f"weights '{weights}' must be random:SEED with a whole number", weights=weights)
    elif weights or source != name:
        model = _create(name, source)
        _fill(model, Path(weights) if weights else _file_in(Path(source.removeprefix("local-dir:"))), label)
    else:
        model = _pretrained(name)
    return model, label, input_config(model)


def _resolve(name: str) -> tuple[str, str]:
    folder = DEMO_BACKBONE if name == "demo" else Path(name)
    if name == "demo" or (folder / "config.json").is_file():
        return f"local-dir:{folder}", name if name == "demo" else folder.name
    if not timm.is_model(name.split(".")[0]):
        close = timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]
        hint = f"; close: {', '.join(close)}" if close else "; see timm.list_models()"
        raise BackboneError(f"'{name}' is neither a timm model nor a folder with a config.json{hint}", model=name)
    return name, name


def _refuse_other_families(name: str, source: str) -> None:
    """Build the model without memory, so that nobody downloads what cannot be adapted."""
    with torch.device("meta"):
        model = _create(name, source)
    blocks_of(model, name)
    try:
        input_config(model)
    except (KeyError, TypeError, ValueError) as error:  # a config.json by hand
        raise _not_loaded(name, f"its preprocessing cannot be read: {_first_line(error)}") from error


def _create(name: str, source: str, *, pretrained: bool = False) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(source, pretrained=pretrained, num_classes=0)
    except Exception as error:  # timm, torch and the hub's client raise many kinds; each means: not this model, here
        raise _not_loaded(name, f"{type(error).__name__}: {_first_line(error)}") from error
    return model


def _not_loaded(name: str, why: str) -> BackboneError:
    return BackboneError(f"{name} could not be loaded ({why}); {_ADVICE}", model=name)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _file_in(folder: Path) -> Path:
    """The checkpoint in a folder of timm's hub layout, or the only one in it."""
    known = [folder / name for name in _FOLDER_FILES if (folder / name).is_file()]
    others = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".pth", ".bin")]
    if not known and len(others) != 1:
        count = f"{len(others)} checkpoints and none" if others else "no checkpoint"
        raise _not_loaded(folder.name, f"the folder has {count} with a name such as {_FOLDER_FILES[0]}")
    return (known or others)[0]


def _fill(model: nn.Module, path: Path, name: str) -> None:
    """Load a local checkpoint whole, or raise BackboneError with what is missing and what would be left over."""
    state = read(path)
    found = compare(model, state)
    if not found.fits:
        fitting = _architecture_of(state, name)
        raise BackboneError(
            f"weights file '{path.name}' {found}; it belongs to another architecture than {name}"
            + (f" and fits {fitting}" if fitting else ""),
            weights=str(path), tensor=(*found.missing, *found.left, "")[0],
        )  # fmt: skip
    load(model, found, path.name)


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
            found = compare(_create(name, name), state)
            if found.fits and not found.stretched:
                return name
    return ""


def _pretrained(name: str) -> nn.Module:
    """timm's own weights, from the hub or its cache. Without a network the hub's client would retry for a minute."""
    hub = huggingface_hub.constants
    config = timm.get_pretrained_cfg(name)
    if not (config and config.has_weights):
        raise _not_loaded(name, "timm has no pretrained weights for it")
    # Set by its user, the hub's time for a first answer counts; ten seconds as it comes are too long here.
    bound = REACH_S if hub.HF_HUB_ETAG_TIMEOUT == hub.DEFAULT_ETAG_TIMEOUT else float(hub.HF_HUB_ETAG_TIMEOUT)
    address = hub.ENDPOINT if config.hf_hub_id else config.url
    if hub.HF_HUB_OFFLINE or _reachable(address, bound):
        return _create(name, name, pretrained=True)
    if not _is_cached(config):
        raise _not_loaded(
            name,
            f"{address} cannot be reached in {bound:g} s, and its weights are not in the local cache; "
            "the environment's HF_HUB_ETAG_TIMEOUT gives a slow network more seconds",
        )
    with _offline():
        return _create(name, name, pretrained=True)


def _is_cached(config: Any) -> bool:
    """Whether the hub's client has anything of the model's repository, or torch's has the file of an address."""
    if not config.hf_hub_id:
        return (Path(torch.hub.get_dir()) / "checkpoints" / Path(config.url).name).is_file()
    try:
        huggingface_hub.snapshot_download(config.hf_hub_id, local_files_only=True)
    except Exception:  # of a kind for each thing that may be missing
        return False
    return True


def _reachable(address: str, bound: float) -> bool:
    """Whether anything answers there in ``bound`` seconds, by the hub's own client with its proxies and certificates.

    In a thread, since a name server that does not answer heeds no timeout of a client.
    """
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            huggingface_hub.get_session().head(address, timeout=bound)
        except Exception:  # of the client, of TLS or of a proxy: there is no way there
            answers.put(False)
        else:
            answers.put(True)

    threading.Thread(target=ask, name="hub", daemon=True).start()
    try:
        return answers.get(timeout=bound)
    except queue.Empty:
        return False


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's client takes what is in its cache and asks nobody."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
