"""LoRA and AdaLoRA folders that PEFT saved, on Hugging Face's or timm's transformers: read and convert.

The folder holds no backbone, so whether it is the right one cannot be checked here. It knows no command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters.backbone import Backbone
from adapters.backbone.processor import Processor
from adapters.config import Norm, Pool, SiteName
from adapters.errors import ImportRefused
from adapters.importers.common import MAX_SOURCE_BYTES, Imported, ImportTerms, Residual, check_head, config_of, site_of
from adapters.importers.families import (
    TIMM,
    UNUSED,
    Family,
    Place,
    base_told,
    blocks_by_place,
    clips_for,
    family_of,
    place,
    seen_by,
)
from adapters.importers.peft_config import CONFIG, PeftSettings, read_settings

TENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_LORA = re.compile(r"(.+)\.lora_([ABE])(?:\.default)?(?:\.weight)?")
_WHOLE = re.compile(r"(.+?)(?:\.modules_to_save)?(?:\.default)?\.(weight|bias)")
_HEADS = re.compile(r"classifier|(?:timm_model\.)?head(?:\.fc)?")
_TIMM_NORMS: Mapping[str, tuple[str, Pool]] = {"norm": ("token", "cls"), "fc_norm": ("avg", "avg")}
"""timm's last norms -> the global pooling with which they stand right before or behind it, and that pooling here."""
_SAVED = {"classifier", "head", "fc", "score"}  # PEFT adds 'score' by itself
Layer = tuple[SiteName, Place]


@dataclass(frozen=True)
class LoraFolder:
    """A folder taken apart: residuals by site and place with their scale in ``up``, and the head.

    ``families`` are those that its layers' names belong to. ``norms``: last norms that were trained, by name.
    ``foreign``: layers with LoRA that have no site here.
    """

    name: str
    settings: PeftSettings
    families: frozenset[Family]
    residuals: Mapping[Layer, Residual]
    modules: Mapping[Layer, str]
    head: tuple[Tensor, Tensor]
    norms: Mapping[str, Mapping[str, Tensor]]
    foreign: tuple[str, ...]

    @property
    def on_hugging_face(self) -> bool:
        """Whether an image processor of Hugging Face's own stands before the model; timm's wrapped ones have timm's."""
        return TIMM not in self.families

    @property
    def classes(self) -> int:
        return self.head[0].shape[0]


def read_folder(folder: Path) -> LoraFolder:
    """Read what ``save_pretrained`` wrote. Raises ImportRefused, OSError."""
    settings = read_settings(folder / CONFIG)
    pairs: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _tensors(folder).items():
        name = key.removeprefix(_PREFIX)
        if lora := _LORA.fullmatch(name):
            pairs.setdefault(lora[1], {})[lora[2]] = tensor.float()
        elif (match := _WHOLE.fullmatch(name)) and (_HEADS.fullmatch(match[1]) or "norm" in match[1].split(".")[-1]):
            whole.setdefault(match[1], {})[match[2]] = tensor.float()
        else:
            raise ImportRefused(f"tensor {key[:200]} is neither LoRA on a layer that can be served nor the classifier",
                                tensor=key[:200])  # fmt: skip
    heads = {name: whole.pop(name) for name in list(whole) if _HEADS.fullmatch(name)}
    _refuse_other_modules(settings, whole)
    families, residuals, modules, foreign = set[Family](), dict[Layer, Residual](), dict[Layer, str](), list[str]()
    for module, pair in pairs.items():
        if UNUSED.fullmatch(module):
            continue
        found = place(module)
        if found is None:
            foreign.append(module[:200])
            continue
        family, *_ = found
        families.add(family)
        layer: Layer = found[1:]
        if layer in modules:
            raise ImportRefused(f"{module[:200]} comes twice, under two naming schemes", tensor=module[:200])
        modules[layer] = module[:200]
        if (residual := _residual(module, pair, settings)) is not None:
            residuals[layer] = residual
    if not pairs:
        raise ImportRefused(f"{TENSORS} holds no LoRA tensors", field=TENSORS)
    return LoraFolder(
        folder.name, settings, frozenset(families), residuals, modules, _only_head(heads), whole, tuple(foreign)
    )


def convert(
    source: LoraFolder, backbone: Backbone, terms: ImportTerms, *, processor: Processor | None = None,
    skip: bool = False,
) -> Imported:  # fmt: skip
    """The adapter's config and tensors for ``backbone``. Raises ImportRefused.

    ``skip``: go on without the layers that cannot be adapted here. ``processor``: what the training's pictures went
    through; without one it is what the family's published ones do, with the base's mean and std.
    """
    layout, settings = backbone.layout, source.settings
    if source.foreign and (not skip or not source.residuals):
        raise ImportRefused(
            f"LoRA on {source.foreign[0]} cannot be served; known are the attention and MLP layers of Hugging Face's "
            f"ViT, DeiT, BEiT, Swin, DINOv2, I-JEPA, CLIP and SigLIP and of timm's blocks{_and_skip(source.foreign)}",
            tensor=source.foreign[0],
        )  # fmt: skip
    family = family_of(set(source.families), settings.model_class, backbone)
    residuals, left_out = _placed(source, backbone, skip=skip)
    tensors = {"head.weight": source.head[0], "head.bias": source.head[1]}
    sites = []
    for name, of_blocks in sorted(residuals.items()):
        site, more = site_of(name, of_blocks, act="none", scale=1.0)
        sites.append(site)
        tensors |= more
    pool, norm, own = _before_the_head(source, family, backbone)
    seen, guess = seen_by(family, processor, backbone)
    granted = [base_told(settings.base_model_name_or_path, layout.model), *([guess] if guess else [])]
    if left_out:
        granted.append(f"without LoRA on {', '.join(left_out[:3])}{', …' if len(left_out) > 3 else ''}, so that scores "
                       "are not those of the training")  # fmt: skip
    told = {"imported_from": f"PEFT {'LoRA' if 'r' in type(settings).model_fields else 'AdaLoRA'}",
            "source": source.name, "trained_on": settings.base_model_name_or_path or "not told"}  # fmt: skip
    base_input = backbone.input.model_copy(update=seen)
    video, clips = clips_for(layout)
    config = config_of(terms, layout, base_input, tuple(sites), pool=pool, norm=norm, training=told, video=video)
    return Imported(config, tensors | own, (*granted, *clips))


def _placed(
    source: LoraFolder, backbone: Backbone, *, skip: bool
) -> tuple[dict[SiteName, dict[int, Residual]], list[str]]:
    """Residuals by site and block, and the layers that are left out."""
    blocks, layout = blocks_by_place(backbone), backbone.layout
    residuals: dict[SiteName, dict[int, Residual]] = {}
    lacking: list[str] = []
    for (site, where), residual in source.residuals.items():
        if where not in blocks:
            raise ImportRefused(
                f"{source.modules[site, where]} names block {'.'.join(map(str, where))}, which {layout.model} does not "
                f"have; it has {layout.blocks} blocks; name the training's own architecture with --base",
                field="sites.blocks", got=list(where),
            )  # fmt: skip
        if site in layout.sites:
            residuals.setdefault(site, {})[blocks[where]] = residual
        else:
            lacking.append(source.modules[site, where])
    if lacking and (not skip or not residuals):
        raise ImportRefused(
            f"LoRA on {lacking[0]} cannot be served on {layout.model}, which computes that layer where nothing can be "
            f"added; it has the sites {', '.join(layout.sites)}{_and_skip(lacking)}",
            tensor=lacking[0], expected=list(layout.sites),
        )  # fmt: skip
    return residuals, [*source.foreign, *lacking]


def _and_skip(layers: tuple[str, ...] | list[str]) -> str:
    return f"; --skip goes on without the {len(layers)} such layers, with other scores than the training's"


def _before_the_head(source: LoraFolder, family: Family, backbone: Backbone) -> tuple[Pool, Norm, dict[str, Tensor]]:
    """Pooling and norm before the classifier, and the norm's tensors where it was trained."""
    if not source.norms:
        return family.pool, family.norm, {}
    ((name, norm),) = source.norms.items()
    pool = family.norms.get(name)
    if family is TIMM:
        pooling, timm_pool = _TIMM_NORMS.get(name.removeprefix("timm_model."), ("", None))
        pool = timm_pool if getattr(backbone.model, "global_pool", None) == pooling else None
    if pool is None or norm.keys() != {"weight", "bias"}:
        raise ImportRefused(
            f"it trained '{name[:80]}' whole (modules_to_save), and beside LoRA only the classifier can be imported, "
            "and the last norm where it stands right before it", field="modules_to_save", got=name[:80],
        )  # fmt: skip
    return pool, "trained", {"norm.weight": norm["weight"], "norm.bias": norm["bias"]}


def _refuse_other_modules(settings: PeftSettings, norms: Mapping[str, object]) -> None:
    saved = {name.split(".")[-1] for name in settings.modules_to_save or ()}
    unknown = sorted(saved - _SAVED - {name.split(".")[-1] for name in norms})
    if unknown or len(norms) > 1:
        named = unknown[0] if unknown else min(norms)
        raise ImportRefused(f"it trained '{named[:80]}' whole (modules_to_save); beside LoRA only the classifier and "
                            "the last norm can be imported", field="modules_to_save", got=named[:80])  # fmt: skip


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS
    if not path.exists() and (folder / PICKLE).exists():
        raise ImportRefused(f"{PICKLE} is a pickle, which is not read; load it in PEFT and save it again with "
                            "save_pretrained(FOLDER, safe_serialization=True)", field=PICKLE)  # fmt: skip
    size = path.stat().st_size
    if size > MAX_SOURCE_BYTES:
        raise ImportRefused(f"{TENSORS} has {size} bytes, the limit is {MAX_SOURCE_BYTES}", limit=MAX_SOURCE_BYTES)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ImportRefused(f"{TENSORS} is not a whole safetensors file ({error})", field=TENSORS) from error


def _residual(module: str, pair: Mapping[str, Tensor], settings: PeftSettings) -> Residual | None:
    """None where AdaLoRA pruned all of it away. ``lora_E`` (rank, 1) of AdaLoRA is folded in."""
    rank, scale = settings.rank_and_scale(module)
    wanted = {"A", "B"} if rank is not None else {"A", "B", "E"}
    if pair.keys() != wanted:
        parts = " and ".join(f"lora_{part}" for part in sorted(wanted))
        raise ImportRefused(f"{module[:200]} has {'only one' if rank is not None else 'not all'} of {parts}",
                            tensor=module[:200])  # fmt: skip
    down, up = pair["A"], pair["B"] * scale
    if rank is not None and down.shape[:1] != (rank,):
        raise ImportRefused(
            f"{module[:200]} has lora_A of shape {list(down.shape)}, and {CONFIG} says rank {rank}",
            tensor=module[:200], expected=rank, got=list(down.shape),
        )  # fmt: skip
    if "E" in pair:
        if pair["E"].shape != (*down.shape[:1], 1):
            raise ImportRefused(f"{module[:200]} has lora_E of shape {list(pair['E'].shape)}, expected "
                                f"{[*down.shape[:1], 1]}", tensor=module[:200])  # fmt: skip
        down = down * pair["E"]
    if not down.shape[0]:
        return None
    return Residual(down, torch.zeros(down.shape[:1]), up, torch.zeros(up.shape[:1]))


def _only_head(heads: Mapping[str, Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(heads) != 1 or set(*heads.values()) != {"weight", "bias"}:
        raise ImportRefused(
            "it must hold one classifier with weight and bias, and without it there are no classes to answer with; "
            "train with modules_to_save=['classifier'] (Hugging Face) or ['head'] (timm)",
            field="modules_to_save", got=sorted(heads),
        )  # fmt: skip
    (pair,) = heads.values()
    check_head(pair["weight"], pair["bias"])
    return pair["weight"], pair["bias"]
