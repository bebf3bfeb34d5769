"""Names of layers in Hugging Face's and timm's models -> sites and blocks here, and what comes before their classifier.

It does not know how an adapter is stored. One table serves every importer of adapters on these models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.backbone import Backbone, transformers_names
from adapters.backbone.processor import CENTER, SQUASH, SQUASH_BICUBIC, Processor
from adapters.backbone.transformers_config import WRAPPER
from adapters.config import Norm, Pool, SiteName, VideoConfig
from adapters.errors import ImportRefused
from adapters.layout import Layout

LINEARS: Mapping[str, SiteName] = {
    **transformers_names.LINEARS,
    "attn.qkv": "qkv", "attn.q_proj": "q", "attn.k_proj": "k", "attn.v_proj": "v", "attn.proj": "proj",  # timm
}  # fmt: skip
STRIDE = 4
"""Frames from one that VideoMAE sees to the next, in its training on Kinetics."""
Place = tuple[int, ...]
"""A block's number; of Swin its stage's before it."""


@dataclass(frozen=True, eq=False)
class Family:
    """Models whose layers and classifier have the same names.

    ``layers``: how a layer's name begins, with a group for each number of its place; ``types``: the ``model_type`` in
    their config.json. ``pool`` and ``norm`` come before
    the classifier; ``norms``: a last norm that may be trained, and the pooling before it, which leaves the order of
    both free. ``seen``: preprocessing of its published image processors but mean and std.
    """

    name: str
    layers: str
    types: tuple[str, ...] = ()
    pool: Pool = "cls"
    norm: Norm = "frozen"
    norms: Mapping[str, Pool] = field(default_factory=dict)
    seen: Mapping[str, object] = field(default_factory=dict)


_LAYER = r"\.(?:encoder\.layer|layers)\.(\d{1,4})"
TIMM = Family("timm", r"(?:timm_model\.)?(?:layers\.(\d{1,4})\.)?blocks\.(\d{1,4})", (WRAPPER,), "backbone")
CLIP = Family(
    "CLIP", r"vision_model\.encoder\.layers\.(\d{1,4})", ("clip", "clip_vision_model"), "avg", "none",
    seen={**CENTER, "crop_pct": 1.0},
)  # fmt: skip
VIDEOMAE_SEEN: Mapping[str, object] = {**CENTER, "crop_pct": 1.0, "interpolation": "bilinear"}
SIGLIP = Family("SigLIP", CLIP.layers, ("siglip", "siglip_vision_model"), "avg", seen=SQUASH_BICUBIC)
FAMILIES = (
    Family("ViT", "vit" + _LAYER, ("vit", "vit_msn"), norms={"vit.layernorm": "cls"}, seen=SQUASH),
    Family("DeiT", "deit" + _LAYER, ("deit",), norms={"deit.layernorm": "cls"}, seen={**CENTER, "crop_mode": "squash"}),
    Family("BEiT", "beit" + _LAYER, ("beit",), "backbone", norms={"beit.pooler.layernorm": "avg"}, seen=SQUASH),
    Family("Data2Vec", "data2vec_vision" + _LAYER, ("data2vec-vision",), "backbone", seen=SQUASH),
    Family("I-JEPA", "ijepa" + _LAYER, ("ijepa",), "avg", seen=SQUASH),
    Family("Swin", r"swin\.encoder\.layers\.(\d{1,4})\.blocks\.(\d{1,4})", ("swin",), "backbone", seen=SQUASH_BICUBIC),
    Family(
        "DINOv2", r"dinov2(?:_with_registers)?" + _LAYER, ("dinov2", "dinov2_with_registers"), "cls+avg", seen=CENTER
    ),
    Family("VideoMAE", "videomae" + _LAYER, ("videomae",), "backbone", norms={"fc_norm": "avg"}, seen=VIDEOMAE_SEEN),
    CLIP,
    TIMM,
)
_TIMM_TAGS = {
    "google/vit-base-patch16-224-in21k": "vit_base_patch16_224.orig_in21k",
    "google/vit-large-patch16-224-in21k": "vit_large_patch16_224.orig_in21k",
    "google/vit-base-patch32-224-in21k": "vit_base_patch32_224.orig_in21k",
    "google/vit-large-patch32-224-in21k": "vit_large_patch32_224.orig_in21k",
    "google/vit-huge-patch14-224-in21k": "vit_huge_patch14_224.orig_in21k",
    "google/vit-base-patch16-224": "vit_base_patch16_224.orig_in21k_ft_in1k",
    "google/vit-base-patch16-384": "vit_base_patch16_384.orig_in21k_ft_in1k",
    "facebook/deit-base-patch16-224": "deit_base_patch16_224.fb_in1k",
    "facebook/deit-small-patch16-224": "deit_small_patch16_224.fb_in1k",
    "facebook/deit-tiny-patch16-224": "deit_tiny_patch16_224.fb_in1k",
    "facebook/dino-vitb16": "vit_base_patch16_224.dino",
    "facebook/dino-vits16": "vit_small_patch16_224.dino",
    "facebook/vit-mae-base": "vit_base_patch16_224.mae",
    "facebook/vit-mae-large": "vit_large_patch16_224.mae",
    "facebook/dinov2-small": "vit_small_patch14_dinov2.lvd142m",
    "facebook/dinov2-base": "vit_base_patch14_dinov2.lvd142m",
    "openai/clip-vit-base-patch16": "vit_base_patch16_clip_quickgelu_224.openai",
    "openai/clip-vit-base-patch32": "vit_base_patch32_clip_quickgelu_224.openai",
    "openai/clip-vit-large-patch14": "vit_large_patch14_clip_quickgelu_224.openai",
    "google/siglip-base-patch16-224": "vit_base_patch16_siglip_224.webli",
    "microsoft/beit-base-patch16-224-pt22k-ft22k": "beit_base_patch16_224.in22k_ft_in22k",
    "microsoft/swin-tiny-patch4-window7-224": "swin_tiny_patch4_window7_224.ms_in1k",
}
"""Hugging Face's names -> timm's of the same weights, by the names and the model cards alone."""


UNUSED = re.compile(r"vision_model\.head\..+")
"""Layers that an all-linear LoRA takes in, and that no classifier's answer depends on: SigLIP's own pooling."""


def place(module: str) -> tuple[Family, SiteName, Place] | None:
    """A Linear by its name; None for a layer that has no site."""
    for family in FAMILIES:
        match = re.fullmatch(rf"{family.layers}\.(.+)", module)
        if match and match[match.lastindex or 1] in LINEARS:
            numbers = [int(part) for part in match.groups()[:-1] if part is not None]
            return family, LINEARS[match[match.lastindex or 1]], tuple(numbers)
    return None


def family_of(found: set[Family], told: str | None, backbone: Backbone) -> Family:
    """The one family that layers were found in. ``told``: the class of the model, where it is known.

    CLIP and SigLIP name their layers alike; where nothing is told, the one with a class token is CLIP. Raises
    ImportRefused for several families.
    """
    if len(found) != 1:
        names = ", ".join(sorted(family.name for family in found))
        raise ImportRefused(f"its layers have the names of several families: {names}", field="target_modules")
    (family,) = found
    if family is CLIP:
        siglip = told.startswith("Siglip") if told else "cls" not in backbone.layout.pools
        family = SIGLIP if siglip else CLIP
    return family


def blocks_by_place(backbone: Backbone) -> Mapping[Place, int]:
    """Every block's number by its place: its stage's number and its own where the backbone has stages."""
    stages = getattr(backbone.model, "layers", None)
    if stages is None:
        return {(block,): block for block in range(backbone.layout.blocks)}
    places = [(stage, block) for stage, layers in enumerate(stages) for block in range(len(layers.blocks))]
    return {where: number for number, where in enumerate(places)}


def seen_by(family: Family, processor: Processor | None, backbone: Backbone) -> tuple[Mapping[str, object], str]:
    """What a training's pictures went through, as fields of InputConfig, and what of it is taken for granted.

    ``processor`` tells it; without one it is what the family's published ones do. Raises ImportRefused for a size that
    is not the backbone's.
    """
    if processor is not None:
        processor.check(backbone.layout.input_size)
        return {**family.seen, **processor.fields}, ""
    if family is TIMM:
        return {}, ""
    return family.seen, (
        f"pictures as {family.name}'s published image processors take them, with mean and std of "
        f"{backbone.layout.model}; --processor reads a preprocessor_config.json"
    )


def clips_for(layout: Layout) -> tuple[VideoConfig | None, tuple[str, ...]]:
    """Which frames a backbone of clips is shown where no file tells, and a sentence on it; nothing on another one."""
    if layout.frames == 1:
        return None, ()
    video = VideoConfig(frames=layout.frames, sampling="dense", stride=STRIDE)
    seen = f"{layout.frames} frames {STRIDE} apart, from the middle of a clip"
    return video, (f"clips as VideoMAE's published models see them: {seen}",)


def base_told(trained_on: str | None, base: str) -> str:
    """A sentence on whether a base has the weights of the model that a file names."""
    if trained_on and trained_on.rstrip("/").split("/")[-1] == base.split("/")[-1]:
        return f"it was trained on {trained_on}, and that {base} is the same is told by the name alone"
    told = f"it was trained on {trained_on or 'a model that it does not name'}; that {base} has the same weights "
    told += "cannot be seen from the file"
    tag = next((tag for name, tag in _TIMM_TAGS.items() if (trained_on or "").endswith(name.split("/")[1])), None)
    if tag is None or base == tag:
        return told
    return f"{told}. By its name it has those of timm's {tag}"
