"""Which frames stand for a clip, as plain numbers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.media.timeline import Sampling, Timeline


@pytest.mark.parametrize(
    ("count", "frames", "expected"),
    [(10, 5, [1, 3, 5, 7, 9]), (10, 1, [5]), (2, 4, [0, 0, 1, 1]), (1, 3, [0, 0, 0]), (8, 8, list(range(8)))],
)
def test_even(count: int, frames: int, expected: list[int]) -> None:
    assert Timeline.even(count).uniform(frames) == expected


def test_a_long_frame_stands_for_its_time() -> None:
    assert Timeline.of([0, 10, 20, 30, 1000], 10).uniform(2) == [3, 3]
    assert Timeline.of([5, 1000], 0).end == 1995


@given(
    gaps=st.lists(st.integers(1, 10**6), min_size=1, max_size=40),
    start=st.integers(-(10**9), 10**9),
    frames=st.integers(1, 128),
)
def test_uniform_is_the_frame_on_screen(gaps: list[int], start: int, frames: int) -> None:
    times = [start + sum(gaps[:i]) for i in range(len(gaps))]
    chosen = Timeline.of(times, gaps[-1]).uniform(frames)
    ends = [*times[1:], times[-1] + gaps[-1]]
    for part, index in enumerate(chosen):
        middle = times[0] + Fraction(2 * part + 1, 2 * frames) * (ends[-1] - times[0])
        assert times[index] <= middle < ends[index]


@pytest.mark.parametrize(
    ("count", "frames", "stride", "views", "expected"),
    [
        (20, 4, 3, 1, [5, 8, 11, 14]),
        (20, 4, 3, 3, [0, 3, 6, 9, 5, 8, 11, 14, 10, 13, 16, 19]),
        (21, 2, 1, 2, [0, 1, 19, 20]),
        (10, 4, 3, 2, [0, 3, 6, 9] * 2),  # fits exactly
        (5, 4, 3, 1, [0, 3, 4, 4]),  # the last repeats
        (1, 3, 9, 2, [0] * 6),
        (7, 1, 4, 1, [3]),
    ],
)
def test_dense(count: int, frames: int, stride: int, views: int, expected: list[int]) -> None:
    assert Timeline.even(count).chosen(Sampling(frames, "dense", stride, views)) == expected
    uneven = Timeline.of([index**2 for index in range(count)], 1000)
    assert uneven.chosen(Sampling(frames, "dense", stride, views)) == expected


@given(count=st.integers(1, 300), frames=st.integers(1, 32), stride=st.integers(1, 20), views=st.integers(1, 9))
def test_dense_views_are_those_of_the_papers_loaders(count: int, frames: int, stride: int, views: int) -> None:
    """mmaction's span and middle in testing, VideoMAE's starts of several, and its repetition of the last frame."""
    most = max(count - ((frames - 1) * stride + 1), 0)
    starts = [most // 2] if views == 1 else [int(Fraction(most, views - 1) * view) for view in range(views)]
    expected = [start + stride * step for start in starts for step in range(frames)]
    found = Timeline.even(count).chosen(Sampling(frames, "dense", stride, views))
    assert found == [min(index, count - 1) for index in expected]
    if views > 1:
        assert (found[0], found[-1]) == (0, min(max(count - 1, 0), most + (frames - 1) * stride))


def test_uniform_views_lie_between_each_other() -> None:
    """As VideoMAE's ``buffer[chunk::segments]``."""
    even = Timeline.even(24)
    assert even.chosen(Sampling(4, views=3)) == [1, 7, 13, 19, 3, 9, 15, 21, 5, 11, 17, 23]
    assert even.chosen(Sampling(4)) == even.uniform(4) == [3, 9, 15, 21]
