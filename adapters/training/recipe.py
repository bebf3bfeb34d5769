"""What to train: a method and its options -> the AdapterConfig that the file will carry.

It knows methods by name and a backbone's layout; it knows no data beyond labels and modality.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from pydantic import ValidationError

from adapters.backbone import Backbone
from adapters.config import (
    MAX_CLASSES,
    MAX_FRAMES,
    MAX_RANK,
    AdapterConfig,
    BaseModelConfig,
    HeadKind,
    Modality,
    Pool,
    SiteConfig,
    SiteName,
    Tokens,
    VideoConfig,
)
from adapters.errors import TrainingError
from adapters.heads import rank_of_head, width_of_head
from adapters.layout import Layout
from adapters.training.fit import FitConfig
from adapters.training.names import Method

SITELESS: dict[str, str] = {"linear": "the head alone", "vpt": "prompts and the head", "full": "the whole backbone"}
"""Methods without residuals -> what they train."""
SHARE = 0.014
"""Of the backbone's parameters, unless a rank is given; rank 64 on ViT-B, as in AdaptFormer."""
BATCHES = ((300, 32), (100, 16), (0, 8))
"""From so many examples on, so many in a step; half as many clips."""
STEPS, CLIP_STEPS = 1000, 600
LEAST_EPOCHS, MOST_EPOCHS = 4, 100
SCORES = 12
"""At most, on held-out data, in a training."""
RATES: dict[str, float] = {
    "adaptformer": 5e-3, "lora": 3e-3, "st-adapter": 1e-3, "linear": 1e-3, "vpt": 1e-2, "full": 1e-4,
}  # fmt: skip
"""The highest learning rate of each method."""
CROP = 0.8
"""The smallest share of a picture's area that a random crop leaves, unless another is given."""
FRAMES = 8
STRIDE = 4
"""Of dense frames, as in VideoMAE."""
LORA_SITES: tuple[SiteName, ...] = ("q", "v")
ST_SITES: tuple[SiteName, ...] = ("input", "pre_mlp")
LINEAR_LAYERS: tuple[SiteName, ...] = ("qkv", "q", "k", "v", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class Recipe:
    """Options as a person gives them; None leaves the choice to the method.

    ``site``: comma-separated. ``blocks``: ``all``, or such as ``0-3,8``. ``frames``, ``temporal``, ``sampling``,
    ``stride``, ``views``, ``crops`` and ``head`` are for clips, ``prompts`` for vpt. ``epochs``, ``batch`` and ``lr``
    fit the data where they are not given; ``lr`` may be ``auto``.
    """

    task: str
    method: Method = "adaptformer"
    rank: int | None = None
    scale: float | None = None
    blocks: str = "all"
    site: str | None = None
    pool: Pool | None = None
    frames: int | None = None
    temporal: bool | None = None
    sampling: Literal["uniform", "dense"] | None = None
    stride: int | None = None
    views: int | None = None
    crops: int | None = None
    prompts: int | None = None
    head: HeadKind | None = None
    tokens: Tokens | None = None
    epochs: int | None = None
    batch: int | None = None
    lr: float | Literal["auto"] | None = None


def config_of(recipe: Recipe, backbone: Backbone, modality: Modality, labels: tuple[str, ...]) -> AdapterConfig:
    """The config, checked against the backbone and what a file can hold; a server may take less.

    Raises TrainingError for options that contradict each other, AdapterError for those the backbone cannot do.
    """
    layout = backbone.layout
    if modality == "image" and layout.frames > 1:
        raise TrainingError(
            f"{layout.model} sees clips of {layout.frames} frames and nothing else, and the data holds pictures; train "
            "them on a backbone of pictures", field="backbone", expected="video", got="image",
        )  # fmt: skip
    if layout.frames > 1 and recipe.method == "st-adapter":
        raise TrainingError(
            f"method st-adapter mixes the frames of clips, which {layout.model} sees together; take adaptformer",
            field="method",
        )  # fmt: skip
    if modality == "image" and recipe.method == "st-adapter":
        raise TrainingError(
            "method st-adapter mixes the frames of clips, and the data holds pictures; take adaptformer", field="method"
        )
    if modality == "image" and (recipe.frames or recipe.temporal or _sampling(recipe)):
        given = ", ".join(_sampling(recipe)) or "frames and temporal"
        raise TrainingError(f"{given} are for clips, and the data holds pictures", field="frames")
    if modality == "image" and recipe.head:
        raise TrainingError("head is for clips, and the data holds pictures", field="head")
    if recipe.prompts and recipe.method != "vpt":
        raise TrainingError(f"prompts are for method vpt; leave them out with {recipe.method}", field="prompts")
    pool = pools_of(recipe, layout)[-1]
    try:
        video = _video(recipe, layout, len(labels)) if modality == "video" else None
        config = AdapterConfig(
            task=recipe.task,
            modality=modality,
            labels=labels,
            base=BaseModelConfig(model=layout.model, fingerprint=layout.fingerprint),
            sites=_sites(recipe, layout, modality),
            pool=pool,
            input=backbone.input,
            video=video,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "options"
        raise TrainingError(
            f"{field}: {first['msg']} (got {str(first['input'])[:80]!r}); change that option", field=field
        ) from error
    layout.check(config, max_rank=MAX_RANK, max_classes=MAX_CLASSES, max_frames=MAX_FRAMES)
    return config


def _sampling(recipe: Recipe) -> dict[str, str | int]:
    """What is asked of it."""
    given = {name: getattr(recipe, name) for name in ("sampling", "stride", "views", "crops")}
    return {name: value for name, value in given.items() if value is not None}


def pools_of(recipe: Recipe, layout: Layout) -> tuple[Pool, ...]:
    """The ways of pooling to choose from; that of two vectors is for those who ask for it."""
    one = cast("list[Pool]", [pool for pool in layout.pools if pool != "cls+avg"])
    return (recipe.pool,) if recipe.pool else tuple(one)


def heads_of(recipe: Recipe, modality: Modality, layout: Layout) -> tuple[HeadKind | None, ...]:
    """The heads to choose from: a clip's frames may matter in their order, or not; a backbone of clips has seen it."""
    if modality == "image" or recipe.head:
        return (recipe.head,)
    return ("mean", "frames") if (recipe.frames or FRAMES) > 1 and layout.frames == 1 else ("mean",)


def fit_of(recipe: Recipe, fit: FitConfig, examples: int, frames: int) -> FitConfig:
    """What was not given, as it suits so many examples: steps count, not epochs, and few make small batches."""
    batch = recipe.batch or next(size for least, size in BATCHES if examples >= least) // (1 if frames == 1 else 2)
    steps = -(-examples // batch)
    epochs = recipe.epochs or min(MOST_EPOCHS, max(LEAST_EPOCHS, round((STEPS if frames == 1 else CLIP_STEPS) / steps)))
    lr = RATES[recipe.method] if recipe.lr in (None, "auto") else float(recipe.lr)
    return replace(fit, batch=batch, epochs=epochs, lr=lr, every=-(-epochs // SCORES))


def parse_blocks(text: str, count: int) -> tuple[int, ...]:
    """``all``, or numbers and ranges such as ``0-3,8``, both ends counted. Raises TrainingError."""
    if text == "all":
        return tuple(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < count:
            raise TrainingError(
                f"blocks '{text}': '{part}' is no block or range of the backbone's 0 to {count - 1}, like 0-3,8",
                field="blocks", got=text,
            )  # fmt: skip
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def rank_for(layout: Layout, sites: tuple[SiteName, ...], blocks: tuple[int, ...]) -> int:
    """The rank at which the residuals together are about ``SHARE`` of the backbone, at least 1."""
    if sites == ("parallel",) and len(blocks) == layout.blocks:
        return layout.default_rank(SHARE)
    per_rank = sum(sum(layout.sites[site][block]) for site in sites for block in blocks)
    return min(MAX_RANK, max(1, round(SHARE * layout.parameters / per_rank)))


def _video(recipe: Recipe, layout: Layout, classes: int) -> VideoConfig:
    """A head that sees time is as large as its share of the backbone allows."""
    own = layout.frames if layout.frames > 1 else FRAMES
    frames, head = recipe.frames or own, recipe.head or "mean"
    sizes = layout.width, frames, classes, layout.parameters
    usual = {"stride": STRIDE} if recipe.sampling == "dense" else {}
    return VideoConfig.model_validate({
        "frames": frames,
        "head": head,
        "head_rank": rank_of_head(*sizes) if head == "frames" else 0,
        "head_width": width_of_head(*sizes) if head == "attention" else 0,
        **usual,
        **_sampling(recipe),
    })  # fmt: skip


def _sites(recipe: Recipe, layout: Layout, modality: Modality) -> tuple[SiteConfig, ...]:
    if recipe.method in SITELESS:
        given = [n for n in ("rank", "scale", "site", "temporal", "tokens") if getattr(recipe, n)]
        if given or recipe.blocks != "all":
            raise TrainingError(
                f"method {recipe.method} trains {SITELESS[recipe.method]}; leave out {', '.join(given) or 'blocks'}, "
                "or take adaptformer",
                field="method",
            )  # fmt: skip
        return ()
    lora, st_adapter = recipe.method == "lora", recipe.method == "st-adapter"
    linear = lora or st_adapter
    names = _site_names(recipe, layout)
    blocks = parse_blocks(recipe.blocks, layout.blocks)
    rank = recipe.rank or rank_for(layout, names, blocks)
    mixes = modality == "video" and not lora and layout.frames == 1
    temporal = mixes if recipe.temporal is None else recipe.temporal
    scale = recipe.scale if recipe.scale is not None else 1.0
    tokens: Tokens = recipe.tokens or ("patches" if st_adapter else "all")
    return tuple(
        SiteConfig(
            site=name, blocks=blocks, rank=rank, act="none" if linear else "relu", scale=scale, temporal=temporal,
            tokens=tokens,
        )
        for name in names
    )  # fmt: skip


def _site_names(recipe: Recipe, layout: Layout) -> tuple[SiteName, ...]:
    """The sites asked for, or the method's own; LoRA takes Linear layers only, and ``qkv`` where q and v are one."""
    lora = recipe.method == "lora"
    if recipe.site is None and not lora:
        return ST_SITES if recipe.method == "st-adapter" else ("parallel",)
    if recipe.site is None:
        usual: tuple[SiteName, ...] = LORA_SITES if all(s in layout.sites for s in LORA_SITES) else ("qkv",)
        if not all(s in layout.sites for s in usual):
            known = ", ".join(s for s in LINEAR_LAYERS if s in layout.sites)
            raise TrainingError(
                f"{layout.model} has no q, v or qkv for LoRA; give --site, one or more of {known}", field="site"
            )
        return usual
    names = tuple(name.strip() for name in recipe.site.split(","))
    allowed = LINEAR_LAYERS if lora else get_args(SiteName)
    for name in names:
        if name not in allowed or name not in layout.sites:
            known = ", ".join(s for s in allowed if s in layout.sites)
            raise TrainingError(
                f"site '{name[:80]}' is none that method {recipe.method} can use on {layout.model}; it has {known}",
                field="site", expected=known, got=name[:80],
            )  # fmt: skip
    return tuple(cast(SiteName, name) for name in names)
