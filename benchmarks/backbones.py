"""Which of timm's pretrained models can be adapted, and how: `python -m benchmarks.backbones` writes docs/BACKBONES.md.

Each architecture is built without memory, on torch's meta device, and wrapped as a server wraps it: its sites are those
whose hooks fire. No weights are loaded and nothing is computed, so all of timm takes minutes and one model's objects.
"""

from __future__ import annotations

import argparse
import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from rich.progress import track
from torch import nn
from torch.overrides import TorchFunctionMode

from adapters.backbone import Backbone
from adapters.backbone.checkpoint import compare
from adapters.backbone.families import blocks_of
from adapters.backbone.inputs import input_config
from adapters.backbone.refusals import shown
from adapters.backbone.sizes import patch_of
from adapters.backbone.tubelets import NAMES
from adapters.backbone.weights import Built
from adapters.config import MAX_SIDE, SiteName, Size, size_text
from adapters.errors import BackboneError

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent.parent / "docs" / "BACKBONES.md"
META = torch.device("meta")
FAMILIES = {
    "DINOv3": "dinov3", "DINOv2": "dinov2", "CLIP": "clip", "SigLIP": "siglip", "AIMv2": "aimv2", "NaFlexViT": "naflex",
    "DeiT": "^deit", "BEiT": "^beit", "EVA": "^eva", "Perception Encoder": "vit_pe_", "FlexiViT": "^flexivit",
    "ViTamin": "^vitamin", "ViT with relative positions": "relpos", "ViT with rotary positions": "rope",
    "Sapiens 2": "sapiens2", "SAM": "^samvit", "SAM 2": "^sam2_|^hieradet", "Hiera": "^hiera", "Swin V2": "^swinv2",
    "Swin": "^swin", "CaiT": "^cait", "XCiT": "^xcit", "Qwen3": "^qwen3", "DeepSeek": "^deepseek", "ViT": "",
}  # fmt: skip
"""By the names of architectures; the first that is found counts."""
ROW = re.compile(r"^(?:\| |- )`(?P<model>\w+)`(?: \| |: )(?P<tags>[\w.-]+(?:, [\w.-]+)*)", re.MULTILINE)
"""An architecture of either list, and the weights that timm has for it."""


@dataclass(frozen=True)
class Found:
    """An architecture. ``why`` it cannot be adapted, to follow its name; empty where it can, and the rest is filled."""

    model: str
    kind: str
    why: str = ""
    size: Size = (0, 0)
    sized: bool = False
    """Whether timm resamples its positions for pictures of other sizes, or needs none."""
    blocks: int = 0
    widths: tuple[int, ...] = ()
    pools: tuple[str, ...] = ()
    lacks: tuple[SiteName, ...] = ()

    def row(self, tags: Sequence[str]) -> str:
        """Its line in the page, of whichever list."""
        names = ", ".join(tags)
        if self.why:
            return f"- `{self.model}`: {names}"
        widths = " to ".join(str(width) for width in sorted({min(self.widths), max(self.widths)}))
        sites = f"all but {', '.join(self.lacks)}" if self.lacks else "all"
        other = "others too" if self.sized else "no other"
        cells = (f"`{self.model}`", names, f"{self._sizes(tags)}, {other}", f"{self.blocks} of {widths}",
                 ", ".join(self.pools), sites)  # fmt: skip
        return f"| {' | '.join(cells)} |"

    def _sizes(self, tags: Sequence[str]) -> str:
        """Most weights of an architecture are of its size; others are told."""
        told = [timm.get_pretrained_cfg(f"{self.model}.{tag}" if tag != "-" else self.model) for tag in tags]
        sizes = [size_text(cfg.input_size[1:]) if cfg else "" for cfg in told]
        many = set(sizes) - {""} | {size_text(self.size)}
        if len(many) == 1:
            return many.pop()
        return "; ".join(f"{size} ({tag})" for size, tag in zip(sizes, tags, strict=True))


def pretrained() -> dict[str, list[str]]:
    """The names of timm's weights by architecture, in timm's order."""
    tags = defaultdict[str, list[str]](list)
    for name in timm.list_pretrained():
        model, _, tag = name.partition(".")
        tags[model].append(tag or "-")
    return dict(tags)


def examine(model: str) -> Found:
    """Build an architecture without memory, open its sites, and run nothing through it."""
    try:
        built = _made(model)
        kind = shown(type(built))
        own = input_config(built)
        blocks_of(built, model)
        backbone = Backbone(Built(model, own, built, "", ""), META, torch.float32)
    except BackboneError as error:
        return Found(model, shown(type(built)), error.message.removeprefix(model).strip())
    layout = backbone.layout
    lacks = tuple(site for site in get_args(SiteName) if site not in layout.sites)
    widths = tuple(width for _, width in layout.sites["parallel"])
    sized = _takes_others(model, built, own.size)
    return Found(model, kind, "", own.size, sized, layout.blocks, widths, layout.pools, lacks)


def page(found: Iterable[tuple[Found, Sequence[str]]]) -> str:
    """The whole page."""
    lists, counts = defaultdict[tuple[str, str], list[str]](list), Counter[tuple[str, str]]()
    for one, tags in found:
        family = next(title for title, pattern in FAMILIES.items() if re.search(pattern, one.model))
        why = re.sub(rf"^\({one.kind}\) |; docs/.*$", "", one.why)
        group = (one.kind, why) if why else (family, "")
        lists[group].append(one.row(tags))
        counts[group] += len(tags)
    taken = [(family, "") for family in FAMILIES if (family, "") in lists]
    names = sum(counts[group] for group in taken)
    sites = ", ".join(f"`{site}`" for site in get_args(SiteName))
    models = sum(len(lists[group]) for group in taken)
    parts = [_HEAD.format(timm=timm.__version__, names=names, all=counts.total(), models=models, sites=sites)]
    parts.append(
        "\n".join(["| family | names |", "| --- | ---: |", *(f"| {one[0]} | {counts[one]} |" for one in taken)])
    )
    parts += [f"### {group[0]}\n\n{_COLUMNS}\n" + "\n".join(lists[group]) for group in taken]
    parts.append(clips())
    parts.append(f"## Those that cannot\n\n{counts.total() - names:,} names, with what the error says.")
    for group in sorted(lists.keys() - set(taken), key=lambda group: (-counts[group], group)):
        parts.append(f"### {group[0]}: {counts[group]}\n\nThe model {group[1]}.\n\n" + "\n".join(lists[group]))
    return "\n\n".join(parts) + "\n"


def clips() -> str:
    """The part on models that see clips and nothing else, which are not timm's own."""
    rows = []
    for model, (_, frames) in NAMES.items():
        found, tokens = examine(model), _made(model).patch_embed.num_patches
        sites = f"all but {', '.join(found.lacks)}" if found.lacks else "all"
        widths = " to ".join(str(width) for width in sorted({min(found.widths), max(found.widths)}))
        cells = (str(frames), f"`{model}`", size_text(found.size), f"{found.blocks} of {widths}", str(tokens),
                 ", ".join(found.pools), sites)  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return _CLIPS + "\n".join(rows)


def rows_of(text: str) -> Mapping[str, str]:
    """The page's line of each architecture."""
    return {row["model"]: text[row.start() : text.index("\n", row.start())] for row in ROW.finditer(text)}


def _made(model: str, **more: object) -> Any:
    with META, _NoValues(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about how timm resamples
        made: nn.Module = timm.create_model(model, pretrained=False, num_classes=0, **more)
    return made


class _NoValues(TorchFunctionMode):
    """Leaves out what only changes values, which the meta device has none of: most of a model's start."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if func in _VALUES and args[0].is_meta else func(*args, **kwargs or {})


def _takes_others(model: str, own: nn.Module, size: Size) -> bool:
    """Whether the weights of the own size fit at another one, half as large or twice."""
    patch = patch_of(own)
    for times in (0.5, 2):
        other = tuple(round(side * times / (8 * step)) * 8 * step for side, step in zip(size, patch, strict=True))
        if not min(other) or max(other) > MAX_SIDE or other == size:
            continue
        try:
            if compare(_made(model, img_size=other), own.state_dict()).fits:
                return True
        except Exception as error:  # any of timm's models may raise anything: it takes no other
            log.debug("%s at %s: %s", model, other, error)
    return False


_VALUES = {
    getattr(torch.Tensor, name)
    for name in ("normal_", "uniform_", "fill_", "zero_", "mul_", "add_", "div_", "clamp_", "erfinv_", "copy_")
}
_COLUMNS = """| model | weights | pixels | blocks | pools | sites |
| --- | --- | --- | --- | --- | --- |"""
_HEAD = """# Backbones

Made by `python -m benchmarks.backbones` with timm {timm}: {names:,} of its {all:,} pretrained names can be adapted,
those of {models} architectures. A name is `model.weights`, such as `vit_base_patch16_224.augreg2_in21k_ft_in1k`.

- **Sites** are {sites}.
  `adapters/config.py` says what each is. A site is there if it is in every block. Class tokens that join behind the
  blocks (CaiT, XCiT) have layers of their own, which stay frozen.
- **Pixels** that the weights were made for, and whether `--image-size` can choose others. Patches, and Swin's windows,
  set which: the error names sizes near the one that was asked for.
- **Blocks** and their width, from the first to the last stage.
- **Pools**: `backbone` is the model's own way from tokens to a vector, timm's `forward_head` before the classifier.
- **Video**: all of them. A clip's frames are rows of one batch, and adapters mix them in time at any site.
- **CUDA graphs**: all but SAM, whose tables of positions are read by numbers that timm makes on the host.
- **Weights** that are behind a licence or a login are listed too: whether you may load them is not known here.

## Those that can"""


_CLIPS = """## Those that see clips

VideoMAE's ViT, which timm does not have: a token for each tubelet of two frames and 16x16 pixels, fixed positions, no
class token. Such a backbone sees all frames of a clip together, so a server of it serves clips and refuses pictures;
adapters that mix frames in time, and heads that see them one by one, are refused. Weights are VideoMAE's own files
([IMPORTING.md](IMPORTING.md#a-backbone-of-clips)). They do not tell how many frames they see, so the name does.

| frames | model | pixels | blocks | tokens | pools | sites |
| ---: | --- | --- | --- | ---: | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=PAGE, help="where the page goes")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # of timm, about what it resamples
    names = pretrained()
    found = [(examine(model), tags) for model, tags in track(names.items(), description="architectures")]
    arguments.out.write_text(page(found))
    print(f"{arguments.out}: {sum(len(tags) for one, tags in found if not one.why)} of {sum(map(len, names.values()))}")


if __name__ == "__main__":
    main()
