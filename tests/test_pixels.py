"""Rows of pixels: taken once, whoever asks, and free again when nobody refers to them."""

from __future__ import annotations

import gc
import random
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import memory
from service.engine.pixels import Held, PixelMemory, array_of, gathered, row_bytes
from service.errors import QueueFull

SIZE = (8, 12)


@given(st.lists(st.integers(1, 6), max_size=40), st.randoms())
def test_no_row_is_taken_twice_and_all_come_back(wanted: list[int], dice: random.Random) -> None:
    rows = PixelMemory.private(16, SIZE)
    held: list[Held] = []
    for frames in wanted:
        try:
            held.append(rows.take(frames))
        except QueueFull:
            assert rows.held + frames > 16
        if held and dice.random() < 0.4:
            held.pop(dice.randrange(len(held)))
        taken = [number for one in held for number in one.numbers]
        assert len(taken) == len(set(taken)) == rows.held
    held.clear()
    assert rows.held == 0


def test_frames_are_written_where_the_other_side_reads_them() -> None:
    descriptor = memory.create(5 * row_bytes(SIZE) + 7)
    ours, theirs = (array_of(memory.mapped(descriptor), SIZE) for _ in range(2))
    rows = PixelMemory(ours)
    keep = rows.take(1)
    clip = rows.take(3)
    for frame in range(3):
        clip[frame][...] = frame + 1
    assert np.array_equal(gathered(theirs, clip.numbers), clip.array)
    assert [int(frame[0, 0, 0]) for frame in clip.array] == [1, 2, 3]
    assert keep.numbers != clip.numbers[:1]


def test_rows_apart_are_gathered_in_their_order() -> None:
    rows = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), np.uint8)
    assert gathered(rows, [1, 2, 3]).base is not None  # a view
    assert gathered(rows, [5, 0, 3])[:, 0, 0, 0].tolist() == [5, 0, 3]


def test_the_digest_is_that_of_the_frames_in_order() -> None:
    rows = PixelMemory.private(8, SIZE)
    one, other = rows.take(2), rows.take(2)
    for held in (one, other):
        held[0][...], held[1][...] = 1, 2
    assert one.digest() == other.digest()
    other[0][...], other[1][...] = 2, 1
    assert one.digest() != other.digest()


def test_an_input_is_held_as_long_as_one_of_its_views() -> None:
    rows = PixelMemory.private(8, SIZE)
    whole = rows.take(6)
    for frame in range(6):
        whole[frame][...] = frame
    assert whole.views(6) == [whole]
    views = whole.views(2)
    assert [view.array[:, 0, 0, 0].tolist() for view in views] == [[0, 1], [2, 3], [4, 5]]
    last = views.pop()
    del whole, views
    assert rows.held == 6
    del last
    assert rows.held == 0


def test_rows_that_come_back_within_a_collection_hold_nobody_up() -> None:
    """A cycle holds rows; whoever takes others may be the one whose allocation has it collected."""
    rows = PixelMemory.private(64, SIZE)

    class Cycle:
        pass

    def work() -> None:
        for _ in range(300):
            cycle = Cycle()
            cycle.held, cycle.me = rows.take(1), cycle  # type: ignore[attr-defined]
            del cycle
            gc.collect(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    gc.collect()
    assert rows.held == 0


def test_more_than_there_is_takes_nothing() -> None:
    rows = PixelMemory.private(2, SIZE)
    with pytest.raises(QueueFull):
        rows.take(3)
    assert rows.held == 0
