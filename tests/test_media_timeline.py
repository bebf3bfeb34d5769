"""Which frames stand for a clip, as plain numbers."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.media.timeline import Timeline


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
