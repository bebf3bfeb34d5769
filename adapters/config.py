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
MAX_STRIDE = 1024
MAX_VIEWS = 64
MAX_CLIP_ROWS = 512
"""Rows of all views of one clip; the frames of one view go in one batch, those of others in others."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
MIN_SIDE, MAX_SIDE = 8, 2048
"""Pixels along each side of what a backbone takes."""

SiteName = Literal[
    "parallel", "sequential", "output", "input", "pre_mlp", "qkv", "q", "k", "v", "proj", "fc1", "fc2", "attn"
]  # fmt: skip
Activation = Literal["none", "relu", "gelu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
"""In the order of the numbers that a batch's table has for them."""
Tokens = Literal["all", "patches"]
Modality = Literal["image", "video"]
Pool = Literal["backbone", "cls", "avg", "cls+avg"]
Norm = Literal["frozen", "trained", "none"]
HeadKind = Literal["mean", "frames", "attention"]
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
    ``input``: tap and add at the block's input. ``pre_mlp``: tap and add at the stream between attention and MLP.
    Both change the stream itself, for the layers and for the skip around them (ST-Adapter, Pan et al. 2022), and
    ``parallel`` taps what ``pre_mlp`` made of it. ``attn``: tap and add at the attention's output (Houlsby et
    al. 2019).
    ``qkv``, ``q``, ``k``, ``v``, ``proj``, ``fc1``, ``fc2``: LoRA on that Linear.

    ``tokens``: ``patches`` leaves the class token and registers as they are.
    """

    site: SiteName
    blocks: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=MAX_BLOCKS)], ...], Field(min_length=1, max_length=MAX_BLOCKS)
    ]
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
    act: Activation = "relu"
    scale: Finite = 0.1
    temporal: bool = False
    tokens: Annotated[Tokens, Field(exclude_if=lambda tokens: tokens == "all")] = "all"

    @model_validator(mode="after")
    def _blocks_ascend(self) -> Self:
        if any(b <= a for a, b in zip(self.blocks, self.blocks[1:], strict=False)):
            raise ValueError("blocks must be ascending and without repeats")
        return self

    @property
    def manner(self) -> str:
        """For people, behind other words: that it mixes over time, that it changes patches only."""
        return f"{', over time' if self.temporal else ''}{', patches only' if self.tokens == 'patches' else ''}"


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


def _is_one(value: object) -> bool:
    """Left out of what is written, so that the file of a clip that is seen once stays as it was before views."""
    return value == 1


class VideoConfig(_Frozen):
    """How many frames stand for a clip, which, and what the classes are computed from.

    ``uniform`` takes the middles of equal parts of its time; ``dense`` every ``stride``-th of its frames, as they are
    stored, around its middle, and repeats the last where it ends before. With ``views`` the clip is seen so many
    times, at other times, and with ``crops`` 3 each time at both ends and in the middle of its longer side; the scores
    are averaged. ``Timeline.chosen`` has the exact frames.

    ``head``: the ``mean`` of the frames' vectors or the vectors in their order (``heads.py``). ``head_rank`` is that of
    a ``frames`` head, 0 for a full one; ``head_width`` the number of values of an ``attention`` head.
    """

    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] = 8
    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = Field(1, ge=1, le=MAX_STRIDE, exclude_if=_is_one)
    views: int = Field(1, ge=1, le=MAX_VIEWS, exclude_if=_is_one)
    crops: Literal[1, 3] = Field(1, exclude_if=_is_one)
    head: Annotated[HeadKind, Field(exclude_if=lambda head: head == "mean")] = "mean"
    head_rank: Annotated[int, Field(ge=0, le=MAX_RANK, exclude_if=lambda rank: rank == 0)] = 0
    head_width: Annotated[int, Field(ge=0, le=MAX_RANK, exclude_if=lambda width: width == 0)] = 0

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.sampling == "uniform" and self.stride != 1:
            raise ValueError("'stride' is for sampling 'dense'; 'uniform' spreads its frames over the whole clip")
        if self.frames * self.views * self.crops > MAX_CLIP_ROWS:
            raise ValueError(f"frames times views times crops must be at most {MAX_CLIP_ROWS}")
        if self.head_rank and self.head != "frames":
            raise ValueError("'head_rank' is for head 'frames'")
        if (self.head_width > 0) != (self.head == "attention"):
            raise ValueError("'head_width' must be given for head 'attention', and only then")
        return self


class AdapterConfig(_Frozen):
    """The JSON under the metadata key ``adaptserve``.

    ``pool``: how tokens become one vector. ``backbone`` is timm's own ``forward_head`` before the
    classifier; ``cls`` and ``avg`` (mean of the patch tokens) choose it. ``cls+avg`` is both, one behind the other,
    for a head of twice the width, as Hugging Face's classifier on DINOv2 is. ``norm``: ``frozen`` pools
    after the backbone's last norm; ``trained`` pools before it and applies the file's own LayerNorm; ``none`` pools
    before it and applies nothing, as Hugging Face's classifier on CLIP does.

    ``temperature``: what logits are divided by before they become scores, so that these say how often they are right
    (Guo et al. 2017); it never changes the order of a picture's labels. ``abstain``: the best label's score below which
    an answer is not to be relied on; None where the file takes no stand.
    """

    format: Literal[1] = 1
    task: Annotated[str, Field(pattern=TASK_PATTERN)]
    modality: Modality = "image"
    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARS)], ...],
        Field(min_length=1, max_length=MAX_CLASSES),
    ]
    score: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = Field(1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, allow_inf_nan=False, exclude_if=_is_one)
    abstain: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    base: BaseModelConfig
    sites: Annotated[tuple[SiteConfig, ...], Field(max_length=16)] = ()
    pool: Pool = "backbone"
    norm: Norm = "frozen"
    input: InputConfig
    video: VideoConfig | None = None
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be unique")
        if (self.modality == "video") != (self.video is not None):
            raise ValueError("'video' must be given for modality 'video', and only then")
        if self.video is not None and self.video.crops > 1 and self.input.crop_mode != "center":
            raise ValueError("video.crops 3 needs input.crop_mode 'center': another leaves nothing beside the middle")
        if len({s.site for s in self.sites}) != len(self.sites):
            raise ValueError("each site may be listed once")
        if self.modality == "image" and any(s.temporal for s in self.sites):
            raise ValueError("'temporal' sites need modality 'video'")
        if self.norm != "frozen" and self.pool == "backbone":
            raise ValueError(f"norm '{self.norm}' needs pool 'cls' or 'avg'")
        if self.norm == "trained" and self.twice:
            raise ValueError("pool 'cls+avg' needs norm 'frozen' or 'none'")
        if self.head != "mean" and self.twice:
            raise ValueError(f"video.head '{self.head}' needs a pool of one vector, not 'cls+avg'")
        return self

    @property
    def twice(self) -> bool:
        """Whether the head takes two vectors of the backbone's width."""
        return self.pool == "cls+avg"

    @property
    def frames(self) -> int:
        """Rows that one view of an input takes in a batch: 1 for an image, T for a clip."""
        return self.video.frames if self.video else 1

    @property
    def head(self) -> HeadKind:
        """What the classes are computed from; ``mean`` also of a picture's one vector."""
        return self.video.head if self.video else "mean"

    @property
    def views(self) -> int:
        """How many times an input is seen, the scores of which are averaged: in time and in space."""
        return self.video.views * self.video.crops if self.video else 1

    @property
    def crops(self) -> int:
        """Those of ``views`` that differ in space alone."""
        return self.video.crops if self.video else 1

    @property
    def rows(self) -> int:
        """Rows that all views of one input take."""
        return self.frames * self.views

    def seen_once(self) -> AdapterConfig:
        """The same for one view of an input alone, as in training: that in the middle of time and space."""
        if self.video is None or self.views == 1:
            return self
        return self.model_copy(update={"video": self.video.model_copy(update={"views": 1, "crops": 1})})
