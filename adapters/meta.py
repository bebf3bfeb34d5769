"""AdapterMeta: what a batch must know of an adapter, as plain numbers and names. It knows no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.config import Activation, AdapterConfig, Pool, SiteName
from adapters.layout import Layout


@dataclass(frozen=True)
class AdapterMeta:
    """What the engine must know of a resident adapter, without its tensors.

    ``first`` is the first block that it adapts, the number of blocks if it adapts none; ``normalisation`` is the mean
    and the standard deviation per channel. ``patches``: the sites that leave out tokens that the backbone has.
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
    patches: frozenset[SiteName] = frozenset()

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
            patches=frozenset(s.site for s in config.sites if s.tokens == "patches" and layout.prefix_tokens),
        )
