"""A task's head: the tensors that a file holds of each kind, how large training makes it, and the pages it takes.

``mean``: a linear map of the mean over a clip's frames. ``frames``: one of all frames' vectors side by side, through
``head_rank`` numbers where that is not 0. ``attention``: for every ``VALUES`` numbers of ``head_width`` a softmax over
the frames, of a score with a learnt position, weighs values with learnt positions; then a linear map. That is one class
token's attention over the projected frames (STEP, arXiv 2503.24298), its constant query multiplied into the keys.

It knows no torch. A bank holds every head in pages of ``PAGE`` lines as wide as the pooled vector: those of the
classes, and behind them, for a head that sees time, groups of pages that make a job's vector of its frames. A head of
two vectors, of pool ``cls+avg``, has behind its pages for the first as many for the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.errors import BrokenAdapter

if TYPE_CHECKING:
    from adapters.config import AdapterConfig, HeadKind
    from adapters.layout import Shape

PAGE = 16
"""Lines of a page. A head of C classes takes ceil(C / PAGE) pages, the last one zero-padded."""
VALUES = PAGE - 1
"""Values that share one attention over the frames: with its score they fill a page."""
HEAD_SHARE = 0.005
"""Of the backbone's parameters, for a head over frames of few classes: with an adapter of 1.4 % it is below 2 %."""


def head_shapes(config: AdapterConfig, width: int) -> dict[str, Shape]:
    """Name and shape of every tensor of the head. Raises BrokenAdapter where the backbone's ``width`` is too small."""
    classes, frames, video = len(config.labels), config.frames, config.video
    shapes: dict[str, Shape] = {}
    into = 2 * width if config.twice else width
    if video is not None and video.head == "frames":
        _check("video.head_rank" if video.head_rank else "labels", video.head_rank or classes, width)
        into = frames * width
        if video.head_rank:
            shapes["head.down.weight"] = (video.head_rank, into)
            into = video.head_rank
    elif video is not None and video.head == "attention":
        _check("video.frames", frames, width)
        _check("video.head_width", video.head_width, width // PAGE * VALUES)
        into = video.head_width
        attentions = -(-into // VALUES)
        shapes["head.score.weight"] = (attentions, width)
        shapes["head.score.position"] = (frames, attentions)
        shapes["head.value.weight"] = (into, width)
        shapes["head.value.position"] = (frames, into)
    return shapes | {"head.weight": (classes, into), "head.bias": (classes,)}


def _check(field: str, value: int, limit: int) -> None:
    if value > limit:
        what = f"{value} labels need a head_rank" if field == "labels" else f"{field} is {value}"
        raise BrokenAdapter(
            f"{what}: a head over frames has at most {limit} on a backbone of this width",
            field=field, expected=limit, got=value,
        )  # fmt: skip


def class_pages(classes: int) -> int:
    """Pages of a head's last map."""
    return -(-classes // PAGE)


def groups_of(config: AdapterConfig) -> int:
    """Groups of pages that make a job's vector of its frames; none where it is their mean."""
    video = config.video
    if video is None or video.head == "mean":
        return 0
    if video.head == "attention":
        return -(-video.head_width // VALUES)
    return class_pages(video.head_rank or len(config.labels))


def group_pages(head: HeadKind, frames: int) -> int:
    """Pages of a group: one for each frame, or one for all frames and one of their positions."""
    return frames if head == "frames" else 2


def pages_of(config: AdapterConfig) -> int:
    """All pages of a task's head."""
    own = class_pages(len(config.labels))
    return (2 * own if config.twice else own) + groups_of(config) * group_pages(config.head, config.frames)


def rank_of_head(width: int, frames: int, classes: int, parameters: int) -> int:
    """The ``head_rank`` of a ``frames`` head within its share of a backbone's ``parameters``; 0 where it needs none."""
    budget = _budget(width, classes, parameters)
    if classes <= width and classes * (frames * width + 1) <= budget:
        return 0
    return min(width, classes, max(1, int((budget - classes) / (frames * width + classes))))


def width_of_head(width: int, frames: int, classes: int, parameters: int) -> int:
    """The largest ``head_width``, in whole attentions, that keeps an ``attention`` head within its share."""
    attention = (VALUES + 1) * (width + frames) + VALUES * classes
    count = int((_budget(width, classes, parameters) - classes) / attention)
    return VALUES * min(max(1, count), width // PAGE)


def _budget(width: int, classes: int, parameters: int) -> float:
    """Parameters of a head over frames; of many classes, half of what a head of the mean would have."""
    return max(HEAD_SHARE * parameters, classes * width / 2)
