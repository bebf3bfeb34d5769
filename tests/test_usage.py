"""What keys may ask: rates with a burst, a day's quota that outlives a restart, and counts that processes share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import OverQuota, OverRate
from service.keys import Keys, create
from service.usage import LINE_BYTES, Consumption, open_table, prepare_table


def keys(**limits: float | None) -> Keys:
    return Keys([create("shop", "predict", **limits)[1], create("free", "predict")[1]])


class Clock:
    """Stands still."""

    now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def refused(usage: Consumption) -> float | None:
    """For how long, if it is."""
    try:
        usage.admit("shop")
    except OverRate as error:
        return error.retry_after
    return None


@given(
    st.floats(0.1, 100), st.integers(1, 20), st.lists(st.floats(0, 2), min_size=1, max_size=200),
)  # fmt: skip
def test_no_stretch_of_time_has_more_than_the_burst_and_the_rate(rate: float, burst: int, pauses: list[float]) -> None:
    """And whoever waits as long as it was told is let in."""
    clock, taken = Clock(), list[float]()
    usage = Consumption(keys(rate=rate, burst=burst), clock=clock)
    for pause in pauses:
        clock.now += pause / rate
        if (wait := refused(usage)) is not None:
            assert 0 < wait <= 1 / rate + 1e-6
            clock.now += wait
            assert refused(usage) is None
        taken.append(clock.now)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + (taken[last] - start) * rate + 1e-3


def test_a_rate_without_a_burst_allows_one_seconds_worth_at_once() -> None:
    clock = Clock()
    usage = Consumption(keys(rate=2.5), clock=clock)
    for _ in range(3):
        usage.admit("shop")
    with pytest.raises(OverRate, match=r"key 'shop' may ask about 2\.5 pictures or clips a second, 3 at once"):
        usage.admit("shop")
    usage.admit("free")
    usage.admit("")


def test_many_at_once_come_through_when_rested_and_are_worked_off() -> None:
    clock = Clock()
    usage = Consumption(keys(rate=1, burst=2), clock=clock)
    usage.admit("shop", 10)
    with pytest.raises(OverRate) as refused:
        usage.admit("shop")
    assert refused.value.retry_after == pytest.approx(9)
    clock.now += 8.9
    with pytest.raises(OverRate):
        usage.admit("shop")
    clock.now += 0.2
    usage.admit("shop")


def test_a_quota_is_of_a_day_and_what_is_refused_does_not_count() -> None:
    clock, told = Clock(), Counter[tuple[str, str]]()

    def noted(holder: str, why: str, times: int) -> None:
        told[holder, why] += times

    usage = Consumption(keys(quota=5), clock=clock, refused=noted)
    usage.admit("shop", 4)
    with pytest.raises(OverQuota, match="5 pictures or clips a day.*has asked about 4 since midnight UTC") as refused:
        usage.admit("shop", 2)
    usage.admit("shop")
    with pytest.raises(OverQuota):
        usage.admit("shop")
    assert told == {("shop", "quota"): 2}
    assert refused.value.facts["field"] == "quota"
    clock.now += refused.value.retry_after
    usage.admit("shop", 5)


def test_a_clock_that_was_set_back_shuts_nobody_out() -> None:
    clock = Clock()
    usage = Consumption(keys(rate=1, quota=100), clock=clock)
    usage.admit("shop")
    clock.now -= 1_000_000
    usage.admit("shop")


def test_front_ends_share_the_counts_and_a_restart_keeps_them(tmp_path: Path) -> None:
    path, clock, limited = tmp_path / "usage", Clock(), keys(quota=3, rate=1000)
    prepare_table(path, limited)
    one, other = (Consumption(limited, open_table(path, limited), clock=clock) for _ in range(2))
    one.admit("shop")
    other.admit("shop")
    # Another key before it, and this one replaced: its name has the count.
    more = Keys([create("new", "predict", quota=1)[1], *keys(quota=3).all])
    prepare_table(path, more)
    again = Consumption(more, open_table(path, more), clock=clock)
    again.admit("shop")
    with pytest.raises(OverQuota):
        again.admit("shop")
    again.admit("new")
    assert path.stat().st_size == 2 * LINE_BYTES


@pytest.mark.parametrize("content", [b"", b"x" * 7, b"\xff" * LINE_BYTES, b"\xff" * 999])
def test_a_file_of_anything_else_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path, limited = tmp_path / "usage", keys(quota=1)
    path.write_bytes(content)
    prepare_table(path, limited)
    usage = Consumption(limited, open_table(path, limited))
    usage.admit("shop")
    with pytest.raises(OverQuota):
        usage.admit("shop")


def test_where_there_can_be_no_file_each_process_counts_for_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, limited = tmp_path / "away" / "usage", keys(quota=1)
    prepare_table(path, limited)
    assert open_table(path, limited) is None
    assert "this process counts for itself" in caplog.text
    usage = Consumption(limited)
    usage.admit("shop")
    with pytest.raises(OverQuota):
        usage.admit("shop")


def test_keys_without_limits_leave_no_file(tmp_path: Path) -> None:
    prepare_table(tmp_path / "usage", keys(weight=3))
    assert list(tmp_path.iterdir()) == []
    assert open_table(tmp_path / "usage", keys(weight=3)) is None
