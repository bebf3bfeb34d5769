"""Manifests: what is written is read back, old and newer ones are read, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.manifest import About, TaskInfo, VersionInfo, parse, render

VERSION = {"digest": "d" * 64, "size": 5, "created": "2026-11-25T17:00:00+00:00"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def tasks(draw: st.DrawFn) -> TaskInfo:
    numbers = draw(st.sets(st.integers(1, 2000), max_size=5))
    versions = {n: VersionInfo("dogs", n, draw(st.text("0af", min_size=1)), n, "2026-11-25") for n in sorted(numbers)}
    active = draw(st.none() | st.sampled_from(sorted(numbers))) if numbers else None
    about = draw(st.none() | st.dictionaries(st.text().filter(lambda k: k != "digest"), JSON, max_size=3))
    told = None if about is None else About("d1", json.dumps(about))
    return TaskInfo("dogs", versions, active, max(numbers, default=0) + draw(st.integers(1, 3)), told)


@given(tasks())
def test_what_is_written_is_read_back(task: TaskInfo) -> None:
    assert parse("dogs", render(task)) == task


def test_manifests_from_before_and_after_this_release_are_read() -> None:
    old = {"next": 3, "active": 2, "versions": {"1": VERSION, "2": VERSION}}
    found = parse("dogs", json.dumps(old).encode())
    assert (found.active, found.next, list(found.versions), found.about) == (2, 3, [1, 2], None)
    assert found.told is None
    newer = {"next": 3, "active": 2, "versions": {"1": VERSION | {"more": 1}, "2": VERSION}, "more": [1], "about": 7}
    assert parse("dogs", json.dumps(newer).encode()) == found
    assert parse("dogs", json.dumps(old | {"next": 1}).encode()).next == 3  # a number is never given twice


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        parse("dogs", raw)


@pytest.mark.parametrize(
    "changes",
    [{"versions": []}, {"versions": {"x": VERSION}}, {"versions": {"1": {}}}, {"versions": {"1": 5}}, {"next": None},
     {"next": "x"}, {"active": []}, {"versions": {"1": VERSION | {"size": None}}}],
)  # fmt: skip
def test_a_manifest_with_something_wrong_is_refused(changes: dict[str, Any]) -> None:
    fine = {"next": 2, "active": 1, "versions": {"1": VERSION}}
    assert parse("dogs", json.dumps(fine).encode())
    with pytest.raises(ValueError, match="."):
        parse("dogs", json.dumps(fine | changes).encode())


def test_what_is_told_is_of_the_version_shown() -> None:
    versions = {n: VersionInfo("dogs", n, f"d{n}", 5, "2026") for n in (1, 2)}
    about = About("d1", "{}")
    assert TaskInfo("dogs", versions, 1, 3, about).told == "{}"
    assert TaskInfo("dogs", versions, 2, 3, about).told is None
    assert TaskInfo("dogs", versions, None, 3, about).shown.number == 2
