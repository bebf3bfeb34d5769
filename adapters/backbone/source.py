"""Where a backbone's name leads: timm, a folder of timm's or of transformers, the hub; and timm's model from there.

It knows names, folders and the hub; it knows no tensors.
"""

from __future__ import annotations

import re
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import nn

from adapters.backbone import hub
from adapters.backbone.transformers_config import Described, Manner, described
from adapters.config import Size
from adapters.errors import BackboneError

DEMO_BACKBONE = Path(__file__).parent.parent / "demo" / "backbone"
REACH_S = 2.0
"""Time for the hub's first answer, unless HF_HUB_ETAG_TIMEOUT is set. Downloads have no such bound."""
_FOLDER_FILES = (
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ADVICE = "give a local file with --weights, or use the shipped demo"


class Source(NamedTuple):
    """What timm is asked for: its ``name`` of a model, or of a ``folder``, in which the weights are.

    ``told``: what the folder says of its model where that is not timm's own, and ``manner`` how it computes.
    """

    name: str
    folder: Path | None = None
    told: Described | None = None
    manner: Manner | None = None

    def create(self, size: Size | None, *, pretrained: bool) -> nn.Module:
        """Raises whatever timm raises."""
        args: dict[str, Any] = {"img_size": size} if size else {}
        if self.told:
            args = {**self.told.args, **args, "pretrained_cfg_overlay": dict(self.told.seen)}
        model: nn.Module = timm.create_model(self.name, pretrained=pretrained, num_classes=0, **args)
        if self.manner:
            self.manner.give(model)
        return model


def resolve(name: str) -> tuple[Source, str]:
    """Where a name leads, and what the backbone is called. Raises BackboneError."""
    if name == "demo":
        return Source(f"local-dir:{DEMO_BACKBONE}", DEMO_BACKBONE), name
    folder = Path(name.removeprefix("local-dir:"))
    if (folder / "config.json").is_file():
        return _in_folder(folder, folder.name or folder.resolve().name)
    # A published timm model is the same by either name, and so is what timm makes of it.
    of_timm = re.fullmatch(r"(?:hf[-_]hub:)?timm/([\w.-]+)", name)
    if of_timm and timm.is_model(of_timm[1].split(".")[0]):
        name = of_timm[1]
    elif on_hub := re.fullmatch(r"hf[-_]hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name):
        try:
            return _in_folder(hub.fetched(on_hub[1], on_hub[2], REACH_S), on_hub[1])
        except hub.OutOfReach as error:
            raise BackboneError(
                f"{name} could not be loaded ({error}); give a local folder with its config.json and "
                "model.safetensors, or use the shipped demo", model=name,
            ) from error  # fmt: skip
    if not timm.is_model(name.split(".")[0]):
        raise BackboneError(
            f"'{name}' is neither a timm model nor a folder with a config.json{_hint(name)}", model=name
        )
    return Source(name), name


def _hint(name: str) -> str:
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return f"; on the Hugging Face hub it would be hf-hub:{name}"
    close = timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]
    return f"; close: {', '.join(close)}" if close else "; see timm.list_models()"


def _in_folder(folder: Path, label: str) -> tuple[Source, str]:
    told = described(folder, label)
    if told is None:
        return Source(f"local-dir:{folder}", folder), label
    return Source(told.architecture, folder, told, told.manner), label


def create(name: str, source: Source, size: Size | None = None, *, pretrained: bool = False) -> nn.Module:
    try:
        with hub.within_reach(name, REACH_S) if pretrained else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about how timm resamples
            return source.create(size, pretrained=pretrained)
    except hub.OutOfReach as error:
        raise not_loaded(name, str(error)) from error
    except Exception as error:  # timm, torch and the hub's client raise many kinds; each means: not this model, here
        raise not_loaded(name, f"{type(error).__name__}: {first_line(error)}") from error


def not_loaded(name: str, why: str) -> BackboneError:
    return BackboneError(f"{name} could not be loaded ({why}); {_ADVICE}", model=name)


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def file_in(folder: Path, label: str) -> Path:
    """The checkpoint in a folder of timm's or transformers' layout, or its parts' index, or the only one in it.

    Raises BackboneError.
    """
    known = [folder / name for name in (*_FOLDER_FILES, *_INDICES) if (folder / name).is_file()]
    others = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".pth", ".bin")]
    if not known and len(others) != 1:
        count = f"{len(others)} checkpoints and none" if others else "no checkpoint"
        raise not_loaded(label, f"the folder has {count} with a name such as {_FOLDER_FILES[0]}")
    return (known or others)[0]
