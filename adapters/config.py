"""AdapterConfig: all that an adapter file says of itself, as frozen and validated values.

It does not know tensors or files; ``layout.py`` turns it into tensor names and shapes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

TASK_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_RANK = 1024
MAX_CLASSES = 65_536
MAX_LABEL_CHARS = 256
MAX_BLOCKS = 256
MAX_FRAMES = 128
MIN_SIDE, MAX_SIDE = 8, 2048
"""Pixels along each side of what a backbone takes."""

SiteName = Literal["parallel", "sequential", "output", "qkv", "q", "k", "v", "proj", "fc1", "fc2"]
Activation = Literal["none", "relu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
"""In the order of the numbers that a batch's table has for them."""
Modality = Literal["image", "video"]
Pool = Literal["backbone", "cls", "avg"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


Size = tuple[int, int]
"""Height and width in pixels."""


def size_of(given: object) -> Size:
    """Height and width from 224, ``"224"``, ``"196x322"`` (height x width) or a pair. Raises ValueError."""
    match given:
        case str():
            found = re.fullmatch(r"\s*(\d{1,5})(?:\s*[x×]\s*(\d{1,5}))?\s*", given, re.IGNORECASE)
            size = (int(found[1]), int(found[2] or found[1])) if found else None
        case bool():
            size = None
        case int():
            size = (given, given)
        case [int(height), int(width)]:
            size = (height, width)
        case _:
            size = None
    if size is None:
        raise ValueError(f"{given!r:.80} is no size in pixels; give 224 for a square, or height x width as 196x322")
    return _within(size)


def _within(size: Size) -> Size:
    if not (min(size) >= MIN_SIDE and max(size) <= MAX_SIDE):
        raise ValueError(f"{size_text(size)} pixels are out of range; each side may have {MIN_SIDE} to {MAX_SIDE}")
    return size


def size_text(size: Size) -> str:
    """``224``, or ``196x322`` where it is not square: as ``size_of`` and ``--image-size`` read it."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def size_json(size: Size) -> int | list[int]:
    """As files and problems write it: one number for a square, else [height, width]."""
    height, width = size
    return height if height == width else [height, width]


def _pair(value: object) -> object:
    return value if isinstance(value, tuple | list) else (value, value)


def is_task_name(name: str) -> bool:
    """True for a public task name: lower case, digits, ``.``, ``_``, ``-``; never a path."""
    return re.fullmatch(TASK_PATTERN[1:-1], name) is not None


def task_name(file: str) -> str:
    """A task name from a file's: lower case, other characters as ``-``; ``task`` where nothing is left."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", file.removesuffix(".safetensors").lower()).strip("._-")
    return plain[:64] or "task"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class BaseModelConfig(_Frozen):
    """The backbone that the adapter was trained on."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SiteConfig(_Frozen):
    """One kind of residual, in some blocks.

    ``parallel``: tap the block's input to norm2, add to the block's output (AdaptFormer, eq. 2 and 3).
    ``sequential``: tap and add at the MLP's output. ``output``: tap and add at the block's output.
    ``qkv``, ``q``, ``k``, ``v``, ``proj``, ``fc1``, ``fc2``: LoRA on that Linear.
    """

    site: SiteName
    blocks: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=MAX_BLOCKS)], ...], Field(min_length=1, max_length=MAX_BLOCKS)
    ]
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
    act: Activation = "relu"
    scale: Finite = 0.1
    temporal: bool = False

    @model_validator(mode="after")
    def _blocks_ascend(self) -> Self:
        if any(b <= a for a, b in zip(self.blocks, self.blocks[1:], strict=False)):
            raise ValueError("blocks must be ascending and without repeats")
        return self


class InputConfig(_Frozen):
    """Preprocessing, in the terms of timm's eval transform.

    ``size`` is (height, width); it is given and written as one number where it is square.
    """

    size: Annotated[Size, BeforeValidator(_pair), AfterValidator(_within), PlainSerializer(size_json)]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = "bicubic"
    crop_pct: Annotated[float, Field(gt=0.1, le=1.0, allow_inf_nan=False)] = 1.0
    crop_mode: Literal["center", "squash", "border"] = "center"


class VideoConfig(_Frozen):
    """How many frames stand for a clip, and which: ``uniform`` takes the middles of equal parts."""

    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] = 8
    sampling: Literal["uniform"] = "uniform"


class AdapterConfig(_Frozen):
    """The JSON under the metadata key ``adaptserve``.

    ``pool``: how tokens become one vector. ``backbone`` is timm's own ``forward_head`` before the
    classifier; ``cls`` and ``avg`` (mean of the patch tokens) choose it. ``norm``: ``frozen`` pools
    after the backbone's last norm; ``trained`` pools before it and applies the file's own LayerNorm.
    """

    format: Literal[1] = 1
    task: Annotated[str, Field(pattern=TASK_PATTERN)]
    modality: Modality = "image"
    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)], ...],
        Field(min_length=1, max_length=MAX_CLASSES),
    ]
    score: Literal["softmax", "sigmoid"] = "softmax"
    base: BaseModelConfig
    sites: Annotated[tuple[SiteConfig, ...], Field(max_length=16)] = ()
    pool: Pool = "backbone"
    norm: Literal["frozen", "trained"] = "frozen"
    input: InputConfig
    video: VideoConfig | None = None
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        if (self.modality == "video") != (self.video is not None):
            raise ValueError("'video' must be given for modality 'video', and only then")
        if len({s.site for s in self.sites}) != len(self.sites):
            raise ValueError("each site may be listed once")
        if self.modality == "image" and any(s.temporal for s in self.sites):
            raise ValueError("'temporal' sites need modality 'video'")
        if self.norm == "trained" and self.pool == "backbone":
            raise ValueError("norm 'trained' needs pool 'cls' or 'avg'")
        return self

    @property
    def frames(self) -> int:
        """Rows that one input takes in a batch: 1 for an image, T for a clip."""
        return self.video.frames if self.video else 1
