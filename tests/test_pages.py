"""Pages of a sorted list: every key exactly once under any limit, also while others come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.web.pages import page, starting_with

NAMES = st.text("ab-1", min_size=1, max_size=5)


@given(st.sets(NAMES), st.integers(1, 7), NAMES | st.just(""))
def test_every_name_comes_exactly_once(names: set[str], limit: int, prefix: str) -> None:
    wanted = sorted(name for name in names if name.startswith(prefix))
    found: list[str] = []
    after: str | None = None
    for _ in range(len(wanted) // limit + 1):
        shown = page(starting_with(sorted(names), prefix), after, limit)
        assert shown.count == len(wanted)
        assert len(shown.items) <= limit
        found += shown.items
        after = shown.next
        if after is None:
            break
    assert found == wanted
    assert after is None


@given(st.sets(NAMES, min_size=1), st.lists(st.sets(NAMES), min_size=50, max_size=50), st.integers(1, 7))
def test_what_stays_comes_exactly_once_while_others_come_and_go(
    kept: set[str], others: list[set[str]], limit: int
) -> None:
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        now = kept | others.pop() if others else kept
        shown = page(sorted(now), after, limit)
        found += shown.items
        after = shown.next
    assert [name for name in found if name in kept] == sorted(kept)
    assert found == sorted(set(found))


@given(st.sets(st.integers(1, 50)), st.integers(1, 7))
def test_numbers_are_paged_too(numbers: set[int], limit: int) -> None:
    found: list[int] = []
    after: int | None = None
    while shown := page(sorted(numbers), after, limit):
        found += shown.items
        after = shown.next
        if after is None:
            break
    assert found == sorted(numbers)


def test_a_key_that_is_gone_still_says_where_to_go_on() -> None:
    assert page(["a", "c", "d"], "b", 1).items == ["c"]
    assert page(["a", "c", "d"], "d", 1).items == []
    assert page((), None, 5).next is None
    assert page([1, 2], None, 2).next is None  # a full last page is the last
