"""AdapterMeta: what a batch must know of an adapter, as plain numbers and names. It knows no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.config import (
    Activation,
    AdapterConfig,
    BaseModelConfig,
    HeadKind,
    InputConfig,
    Pool,
    SiteName,
    VideoConfig,
)
from adapters.errors import WrongModality
from adapters.heads import class_pages, group_pages, groups_of
from adapters.layout import Layout

BARE_FRAMES = 8
"""Of a clip, for the bare backbone, unless others are asked."""


def bare_config(layout: Layout, seen: InputConfig, frames: int | None) -> AdapterConfig:
    """What the bare backbone takes, as an adapter would say it: a picture, or a clip of so many frames.

    Of one that sees clips alone it is a clip in any case, of its own number of frames. Raises WrongModality for
    another number.
    """
    if layout.frames > 1:
        frames = layout.frames if frames is None else frames
        _check_seen(layout, frames)
    return AdapterConfig(
        task="backbone",
        modality="image" if frames is None else "video",
        labels=("backbone",),
        base=BaseModelConfig(model=layout.model, fingerprint=layout.fingerprint),
        input=seen,
        video=None if frames is None else VideoConfig(frames=frames),
    )


def _check_seen(layout: Layout, frames: int) -> None:
    if layout.frames not in (1, frames):
        raise WrongModality(
            f"{layout.model} sees clips of {layout.frames} frames, {frames} were asked; leave 'frames' out",
            field="frames", expected=layout.frames, got=frames,
        )  # fmt: skip


@dataclass(frozen=True)
class AdapterMeta:
    """What the engine must know of a resident adapter, without its tensors.

    ``first`` is the first block that it adapts, the number of blocks if it adapts none; ``normalisation`` is the mean
    and the standard deviation per channel. ``groups``: of pages that make a clip's vector of its frames, for a ``head``
    that sees time. ``patches``: the sites that leave out tokens that the backbone has.
    """

    digest: str
    modality: str
    frames: int
    classes: int
    score: str
    pool: Pool
    norm: str
    acts: Mapping[SiteName, Activation]
    temporal: frozenset[SiteName]
    parameters: int
    first: int = 0
    normalisation: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    head: HeadKind = "mean"
    groups: int = 0
    patches: frozenset[SiteName] = frozenset()

    @property
    def twice(self) -> bool:
        """Whether the head takes two vectors, ``cls`` and ``avg``."""
        return self.pool == "cls+avg"

    @property
    def class_pages(self) -> int:
        """Pages of the head's last map."""
        return class_pages(self.classes)

    @property
    def pages(self) -> int:
        """All pages of the head: those of the classes, for each of its vectors, and then those of the groups."""
        return self.class_pages * (2 if self.twice else 1) + self.groups * group_pages(self.head, self.frames)

    @classmethod
    def bare(cls, layout: Layout, seen: InputConfig, frames: int = 1, pool: Pool = "backbone") -> AdapterMeta:
        """Of no adapter: the backbone's own pooled vector of what it ``seen`` as it was trained to.

        Raises WrongModality where a backbone of clips would see another number of frames than its own.
        """
        _check_seen(layout, frames)
        return cls(
            "", "image", frames, 1, "softmax", pool, "frozen", {}, frozenset(), 0,
            first=layout.blocks, normalisation=(*seen.mean, *seen.std),
        )  # fmt: skip

    @classmethod
    def of(cls, config: AdapterConfig, layout: Layout, *, digest: str, parameters: int) -> AdapterMeta:
        """Of an adapter that fits the layout."""
        return cls(
            digest=digest,
            modality=config.modality,
            frames=config.frames,
            classes=len(config.labels),
            score=config.score,
            pool=config.pool,
            norm=config.norm,
            acts={s.site: s.act for s in config.sites},
            temporal=frozenset(s.site for s in config.sites if s.temporal),
            parameters=parameters,
            first=min((min(site.blocks) for site in config.sites), default=layout.blocks),
            normalisation=(*config.input.mean, *config.input.std),
            head=config.head,
            groups=groups_of(config),
            patches=frozenset(s.site for s in config.sites if s.tokens == "patches" and layout.prefix_tokens),
        )
