"""AdapterConfig: all that an adapter file says of itself, as frozen and validated values.

It does not know tensors or files; ``layout.py`` turns it into tensor names and shapes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

TASK_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_RANK = 1024
MAX_CLASSES = 65_536
MAX_LABEL_CHARS = 256
MAX_BLOCKS = 256
MAX_FRAMES = 128

SiteName = Literal[
    "parallel", "sequential", "output", "input", "pre_mlp", "qkv", "q", "k", "v", "proj", "fc1", "fc2"
]  # fmt: skip
Activation = Literal["none", "relu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
"""In the order of the numbers that a batch's table has for them."""
Tokens = Literal["all", "patches"]
Modality = Literal["image", "video"]
Pool = Literal["backbone", "cls", "avg"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    ``parallel`` taps what ``pre_mlp`` made of it.
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
    """Preprocessing, in the terms of timm's eval transform."""

    size: Annotated[int, Field(ge=8, le=2048)]
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
