"""Where a backbone can be adapted, as plain numbers, and the tensors an adapter must therefore hold.

It does not know torch or timm: ``backbone.py`` makes a Layout from a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapters.config import MAX_CLIP_ROWS, AdapterConfig, SiteName, Size, size_json, size_text
from adapters.errors import AdapterTooLarge, BrokenAdapter, WrongBase
from adapters.heads import PAGE, class_pages, head_shapes, pages_of
from adapters.limits import raised, variable

Shape = tuple[int, ...]
MIN_SLOT_RANK = 16
PAPER_RANK = 64
"""AdaptFormer's, on any width. Slots have it where it costs little: from a width of 384 on."""
WIDTH_PER_RANK = 6
"""Of a sixth of the width, a block's residual is a 36th of its own work."""


@dataclass(frozen=True)
class Layout:
    """A backbone's name, fingerprint and sizes.

    ``sites[site][block]`` is (width at the tap, width where it is added). ``width`` is that of the
    pooled feature, ``input_size`` the height and width of the input in pixels, ``parameters`` the count
    without a classifier. ``prefix_tokens`` come before those of the patches: the class token and registers; None where
    that is not known. ``frames``: of a clip, that it sees together as one row, where it sees nothing but clips; 1 for a
    backbone of pictures, which sees a clip's frames one by one. ``fingerprint`` is that of the weights as they were
    given, at whatever size they run here; ``resampled`` that of the tensors as they are here, where positions were
    resampled for this size: files that were made before sizes could be chosen may hold it.
    """

    model: str
    fingerprint: str
    parameters: int
    width: int
    input_size: Size
    blocks: int
    sites: Mapping[SiteName, tuple[tuple[int, int], ...]]
    pools: tuple[str, ...] = ("backbone", "cls", "avg")
    prefix_tokens: int | None = None
    resampled: str = ""
    frames: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", MappingProxyType(dict(self.sites)))

    def rows_of(self, config: AdapterConfig) -> int:
        """Rows that the backbone sees of one view of an input: its frames, or the clip as one."""
        return config.frames // self.frames

    def default_rank(self, share: float = 0.014) -> int:
        """The multiple of 8 whose ``parallel`` residuals come closest to ``share`` of the backbone: 64 on ViT-B."""
        widths = sum(width_in + width_out for width_in, width_out in self.sites["parallel"])
        return max(8, round(share * self.parameters / widths / 8) * 8)

    def slot_rank(self, max_rank: int = 0) -> int:
        """The rank of a server's slots, and so the largest it takes: ``max_rank``, or what fits the backbone.

        On ViT-S that is 64, where 1.4 % of it would be 32, and on ViT-Ti 32: a wider slot costs every row of a batch.
        """
        narrowest = min(width_in for width_in, _ in self.sites["parallel"])
        return max_rank or max(MIN_SLOT_RANK, self.default_rank(), min(PAPER_RANK, narrowest // WIDTH_PER_RANK))

    def check(
        self, config: AdapterConfig, *, max_rank: int, max_classes: int, max_frames: int, max_rows: int = MAX_CLIP_ROWS
    ) -> None:
        """Raise WrongBase, BrokenAdapter or AdapterTooLarge unless the config fits this backbone."""
        if config.base.fingerprint not in (self.fingerprint, self.resampled):
            raise WrongBase(
                f"the adapter was made for {config.base.model} with fingerprint {config.base.fingerprint[:12]}, "
                f"the backbone here is {self.model} with fingerprint {self.fingerprint[:12]}; "
                "train it on this one, or load that one",
                field="base.fingerprint", expected=self.fingerprint, got=config.base.fingerprint,
            )  # fmt: skip
        if config.input.size != self.input_size:
            ours, theirs = size_text(self.input_size), size_text(config.input.size)
            raise BrokenAdapter(
                f"input.size is {theirs}, the backbone takes {ours} pixels; it takes this adapter when started with "
                f"--image-size {theirs} ({variable('image_size')}), or make the adapter with --image-size {ours}",
                field="input.size", expected=size_json(self.input_size), got=size_json(config.input.size),
            )  # fmt: skip
        if config.pool not in self.pools:
            raise BrokenAdapter(
                f"pool '{config.pool}' does not exist on {self.model}; it has {', '.join(self.pools)}",
                field="pool", expected=list(self.pools), got=config.pool,
            )  # fmt: skip
        self._check_clips(config)
        for site in config.sites:
            if site.site not in self.sites:
                raise BrokenAdapter(
                    f"site '{site.site}' does not exist on {self.model}; it has {', '.join(self.sites)}",
                    field="sites.site", expected=list(self.sites), got=site.site,
                )  # fmt: skip
            if site.blocks[-1] >= self.blocks:
                raise BrokenAdapter(
                    f"site '{site.site}' names block {site.blocks[-1]}, {self.model} has blocks 0 to {self.blocks - 1}",
                    field="sites.blocks", expected=self.blocks - 1, got=site.blocks[-1],
                )  # fmt: skip
            if site.tokens == "patches" and self.prefix_tokens is None:
                raise BrokenAdapter(
                    f"site '{site.site}' adapts the tokens of patches alone, and which ones these are on {self.model} "
                    "is not known; only tokens 'all' can be served on it",
                    field="sites.tokens", expected="all", got=site.tokens,
                )  # fmt: skip
        head_shapes(config, self.width)  # raises where the head asks too much of the backbone
        for refusal in oversized(
            config, max_rank=max_rank, max_classes=max_classes, max_frames=max_frames, max_rows=max_rows
        ):
            raise refusal

    def _check_clips(self, config: AdapterConfig) -> None:
        """Raise BrokenAdapter unless the config is for the clips that this backbone sees, or it is one of pictures."""
        if self.frames == 1:
            return
        sees = f"{self.model} sees clips of {self.frames} frames"
        if config.video is None:
            raise BrokenAdapter(
                f"{sees} and nothing else, the adapter is for pictures; a backbone of pictures serves both",
                field="modality", expected="video", got=config.modality,
            )  # fmt: skip
        if config.frames != self.frames:
            raise BrokenAdapter(
                f"{sees}, the adapter takes {config.frames} of one; load the backbone for so many frames, or make the "
                f"adapter with {self.frames}", field="video.frames", expected=self.frames, got=config.frames,
            )  # fmt: skip
        if config.head != "mean":
            raise BrokenAdapter(
                f"{sees} and makes one vector of them, so there are no frames for video.head '{config.head}'; only "
                "'mean' can be served on it", field="video.head", expected="mean", got=config.head,
            )  # fmt: skip
        if temporal := next((site.site for site in config.sites if site.temporal), None):
            raise BrokenAdapter(
                f"{sees} together, so there are no frames beside each other for site '{temporal}' to mix; only sites "
                "that are not temporal can be served on it", field="sites.temporal", expected=False, got=True,
            )  # fmt: skip

    def tensors(self, config: AdapterConfig) -> dict[str, Shape]:
        """Name and shape of every tensor the file must hold, and of none besides."""
        shapes: dict[str, Shape] = {}
        for site in config.sites:
            for block in site.blocks:
                width_in, width_out = self.sites[site.site][block]
                prefix = f"{site.site}.{block}"
                shapes[f"{prefix}.down.weight"] = (site.rank, width_in)
                shapes[f"{prefix}.down.bias"] = (site.rank,)
                shapes[f"{prefix}.up.weight"] = (width_out, site.rank)
                shapes[f"{prefix}.up.bias"] = (width_out,)
                if site.temporal:
                    shapes[f"{prefix}.time.weight"] = (site.rank, 1, 3)
        if config.norm == "trained":
            shapes["norm.weight"] = shapes["norm.bias"] = (self.width,)
        shapes.update(head_shapes(config, self.width))
        return shapes


def oversized(
    config: AdapterConfig, *, max_rank: int, max_classes: int, max_frames: int, max_rows: int
) -> Iterator[AdapterTooLarge]:
    """Why a server with these bounds would refuse the config; nothing where it would not."""
    rank = max((site.rank for site in config.sites), default=0)
    head: tuple[str, str, int, int] = ("labels", "{} classes", len(config.labels), max_classes)
    if config.head != "mean" or config.twice:  # in the memory that a server's largest plain head takes
        field = "pool" if config.twice else "video.head"
        head = (field, "a head as large as one of {} classes", PAGE * pages_of(config), PAGE * class_pages(max_classes))
    views, clip = config.views, ("max_clip_frames",)
    for field, what, value, limit, settings in (
        ("sites.rank", "rank {}", rank, max_rank, ("max_rank",)),
        (*head, ("max_classes",)),
        ("video.views", f"{{}} frames in {views} views", config.rows if views > 1 else 0, max_rows, clip),
        # All frames of a view go in one batch.
        ("video.frames", "{} frames", config.frames, max_frames, (*(clip if views == 1 else ()), "max_batch_rows")),
    ):
        if value > limit:
            yield AdapterTooLarge(
                f"the adapter has {what.format(value)}, this server takes at most {limit}; it takes this one when "
                f"started with {raised(settings, value)}",
                field=field, limit=limit, value=value, settings=list(settings),
            )  # fmt: skip
