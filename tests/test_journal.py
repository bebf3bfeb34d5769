"""The journal: what it tells is whole and in order, or it says that it cannot tell; over threads and processes too."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.store.journal import NAME_BYTES, RING, Journal

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=NAME_BYTES)


def made() -> Journal:
    return Journal(bytearray(Journal.SIZE))


def test_a_new_one_has_nothing_to_tell() -> None:
    journal = made()
    assert (journal.generation, journal.doubtful, journal.begun) == (0, 0, "")
    assert journal.since(0) == (0, set())


@settings(max_examples=50, deadline=None)
@given(st.lists(NAMES, max_size=50), st.data())
def test_it_tells_what_changed_after_a_generation(names: list[str], data: st.DataObject) -> None:
    journal = made()
    for name in names:
        journal.append(name)
    seen = data.draw(st.integers(0, len(names)))
    assert journal.since(seen) == (len(names), set(names[seen:]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3 * RING), st.integers(0, 3 * RING))
def test_it_reaches_back_as_far_as_its_ring(changes: int, seen: int) -> None:
    journal = made()
    for number in range(changes):
        journal.append(f"task-{number}")
    now, names = journal.since(seen)
    assert now == changes
    assert names == ({f"task-{n}" for n in range(seen, changes)} if 0 <= changes - seen <= RING else None)


def test_a_change_that_was_begun_is_known_until_it_is_appended_or_given_up() -> None:
    journal = made()
    journal.begin("a" * NAME_BYTES)
    assert (journal.begun, journal.generation) == ("a" * NAME_BYTES, 0)
    journal.append("a" * NAME_BYTES)
    assert (journal.begun, journal.since(0)) == ("", (1, {"a" * NAME_BYTES}))
    journal.begin("b")
    journal.begin("")
    assert (journal.begun, journal.generation) == ("", 1)


def test_a_change_in_doubt_is_marked() -> None:
    journal = made()
    for number in range(1, 6):
        journal.append("a", confirmed=number != 3)
    assert journal.doubtful == 3


@pytest.mark.parametrize("at", range(0, 80, 7))
def test_an_entry_that_is_not_whole_says_so(at: int) -> None:
    buffer = bytearray(Journal.SIZE)
    journal = Journal(buffer)
    journal.append("dogs")
    buffer[128 + at] ^= 0x20  # as of a write that another processor sees half
    assert journal.since(0) == ((1, None) if at < 76 else (1, {"dogs"}))


@pytest.mark.parametrize("name", ["a" * 65, "ä"])
def test_what_is_no_name_is_refused(name: str) -> None:
    journal = made()
    for work in (journal.begin, journal.append):
        with pytest.raises(ValueError, match=r"64 characters|ascii"):
            work(name)
    assert journal.since(0) == (0, set())


@pytest.mark.parametrize("buffer", [bytearray(100), memoryview(bytearray(Journal.SIZE + 8))[1:]])
def test_a_buffer_that_will_not_do_is_refused(buffer: bytearray | memoryview) -> None:
    with pytest.raises(ValueError, match="writable bytes"):
        Journal(buffer)


def name_of(number: int) -> str:
    """Names of many lengths: an entry that is half of two changes would be neither's."""
    return f"{number}-" + "x" * (number * 7 % 50)


def check(journal: Journal, last: int) -> int:
    """Follow the changes 1 to ``last``, each of which changed ``name_of`` its own number; how often too far behind."""
    seen = lost = 0
    while seen < last:
        now, names = journal.since(seen)
        assert now >= seen
        if names is None:
            lost += 1
        else:
            assert names == {name_of(n) for n in range(seen + 1, now + 1)}
        seen = now
    return lost


LAST = 60_000


def write(journal: Journal) -> None:
    for number in range(1, LAST + 1):
        journal.append(name_of(number))


def test_readers_on_threads_see_whole_entries_while_it_is_written() -> None:
    journal, failures = made(), []

    def read() -> None:
        try:
            check(journal, LAST)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for reader in readers:
            reader.start()
        write(journal)
        for reader in readers:
            reader.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


@contextmanager
def shared(path: Path) -> Iterator[Journal]:
    """A journal over a file that other processes map too."""
    if not path.exists():
        path.write_bytes(bytes(Journal.SIZE))
    with path.open("r+b") as file:
        yield Journal(mmap(file.fileno(), Journal.SIZE))


READER = """
import sys
from pathlib import Path
from tests.test_journal import LAST, check, shared
with shared(Path(sys.argv[1])) as journal:
    print("ready", flush=True)
    print(check(journal, LAST), flush=True)
"""


def test_readers_in_other_processes_see_whole_entries_while_it_is_written(tmp_path: Path) -> None:
    with shared(tmp_path / "journal") as journal:
        command = [sys.executable, "-c", READER, str(tmp_path / "journal")]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        write(journal)
        for reader in readers:
            said, _ = reader.communicate(timeout=60)
            assert reader.returncode == 0
            assert int(said) >= 0  # how often it was too far behind, and knew
