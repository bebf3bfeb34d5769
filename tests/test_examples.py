"""Labelled examples on disk: deduplicated, bounded, seen by every process at once, and never half there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.errors import NoRoom
from service.errors import BadTaskName, Draining, StorageFailed, UnknownExample
from service.store.examples import ExampleDraft, ExampleLimits, Examples
from service.store.repository import Repository
from tests.houses import until
from tests.test_repository_faults import CALLS, ERRORS, MODES, STORAGE, failing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder as a server has it."""
    Repository(tmp_path / "data").close()
    return tmp_path / "data"


@pytest.fixture
def store(root: Path) -> Examples:
    return Examples(root)


def draft(label: str, data: bytes) -> ExampleDraft:
    return ExampleDraft(label, "image", "image/png", data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def recovered(root: Path) -> list[str]:
    with closing(Repository(root)) as repository:
        return repository.recover()


def whole(root: Path, task: str = "t") -> dict[str, bytes]:
    """Labels and bytes of what the index names, all of which must be there; and nothing else is."""
    found = Examples(root).of(task)
    for example in found.items:
        data = example.path.read_bytes()
        assert (digest(data), len(data)) == (example.digest, example.bytes)
    folder = root / "examples" / task / "files"
    assert {path.name for path in folder.iterdir()} == {e.digest for e in found.items} if folder.is_dir() else True
    return {example.label: example.path.read_bytes() for example in found.items}


def left_over(root: Path) -> list[Path]:
    return list((root / "staging").iterdir())


def test_examples_are_kept_by_their_bytes(store: Examples, root: Path) -> None:
    tally = store.add("t", [draft("cat", b"1"), draft("dog", b"2"), draft("dog", b"1"), draft("dog", b"2")])
    assert (tally.added, tally.duplicates, tally.moved) == (2, 1, 1)
    assert tally.digests == [digest(b"1"), digest(b"2"), digest(b"1"), digest(b"2")]
    assert store.of("t").counts == {"dog": 2}
    assert store.add("t", [draft("cat", b"1")]).moved == 1
    for one in (store, Examples(root)):  # here, and after a restart
        found = one.of("t")
        assert [(e.label, e.path.read_bytes(), e.number) for e in found.items] == [("cat", b"1", 1), ("dog", b"2", 2)]
        assert (found.bytes, found.get(digest(b"2")), found.get("0" * 64)) == (2, found.items[1], None)
    assert store.of("none").items == ()
    assert left_over(root) == []


def test_what_one_process_changes_the_others_see_at_once(store: Examples, root: Path) -> None:
    other = Examples(root)
    for number in range(40):  # faster than most clocks of file systems tick
        store.add("t", [draft(f"label {number % 3}", b"same")])
        assert other.of("t").counts == {f"label {number % 3}": 1}
    store.clear("t")
    assert other.of("t").items == ()


def test_removing(store: Examples, root: Path) -> None:
    store.add("t", [draft("cat", b"1"), draft("cat", b"2"), draft("dog", b"3"), draft("cow", b"4")])
    assert store.remove("t", digest=digest(b"1")) == 1
    assert store.remove("t", label="cow") == 1
    assert whole(root) == {"cat": b"2", "dog": b"3"}
    for gone in ({"digest": digest(b"1")}, {"label": "cow"}, {"digest": "../index.json"}):
        with pytest.raises(UnknownExample):
            store.remove("t", **gone)
    assert store.add("t", [draft("cow", b"5")]).examples.items[-1].number == 5  # as versions, numbers only grow
    assert store.clear("t")
    assert not store.clear("t")
    assert not (root / "examples" / "t").exists()
    assert until(lambda: not left_over(root))
    store.add("t", [draft("last", b"1")])
    assert store.remove("t", label="last") == 1
    assert not store.has("t")


@pytest.mark.parametrize("name", ["../t", "a/b", "", "A", ".", "x" * 65, "a\0"])
def test_no_name_is_a_path(store: Examples, root: Path, name: str) -> None:
    for call in (store.of, store.clear, store.adding, lambda task: store.remove(task, label="x")):
        with pytest.raises(BadTaskName):
            call(name)
    with pytest.raises(UnknownExample):
        store.read("t", "../../manifest.json")


BOUNDS = {
    "max_examples": 3,
    "max_examples_bytes": 30,
    "max_example_labels": 2,
    "examples_total_bytes": 40,
    "max_tasks": 2,
}


@pytest.mark.parametrize(
    ("field", "drafts"),
    [
        ("max_examples", [draft("a", b"%d" % n) for n in range(4)]),
        ("max_examples_bytes", [draft("a", b"%d" % n * 15) for n in range(3)]),
        ("max_example_labels", [draft("abc"[n], b"%d" % n) for n in range(3)]),
        ("examples_total_bytes", [draft("a", b"x" * 21)]),
    ],
)
def test_bounds_are_refused_in_words_and_nothing_is_added(root: Path, field: str, drafts: list[ExampleDraft]) -> None:
    store = Examples(root, ExampleLimits(**BOUNDS))
    Examples(root).add("other", [draft("a", b"y" * 20)])
    with pytest.raises(NoRoom, match=rf"\({field}\); delete some, or allow more") as refused:
        store.add("t", drafts)
    assert refused.value.facts["field"] == field
    assert refused.value.facts["value"] > refused.value.facts["limit"] == BOUNDS[field]
    assert store.of("t").items == ()
    assert not (root / "examples" / "t").exists()
    assert left_over(root) == []


def test_full_is_no_hindrance_to_what_makes_it_no_fuller(root: Path) -> None:
    store = Examples(root, ExampleLimits(**BOUNDS))
    Examples(root).add("t", [draft(f"{n}", b"%d" % n * 20) for n in range(5)])  # as before the settings were changed
    assert [store.add("t", [draft("0", data * 20)]).moved for data in (b"0", b"1", b"2")] == [0, 1, 1]
    with pytest.raises(NoRoom):
        store.add("t", [draft("0", b"new")])
    few = Examples(root, ExampleLimits(max_tasks=2))
    few.add("second", [draft("a", b"z")])
    with pytest.raises(NoRoom, match="3 tasks would have examples"):
        few.add("third", [draft("a", b"z")])


def done(change: Callable[[], object]) -> bool:
    """Whether a change was made, by what the caller hears: a storage error may say that it was."""
    try:
        change()
    except STORAGE as error:
        return bool(error.facts.get("changed"))
    return True


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("code", ERRORS)
def test_a_disk_that_fails_at_any_step(tmp_path: Path, code: int, mode: str) -> None:
    """All is as before or, where the error says so, as after; recovery leaves what the index names, and no more."""
    for at in range(1, 100):
        root = tmp_path / f"{at}"
        Repository(root).close()
        store = Examples(root)
        store.add("t", [draft("old", b"old")])
        expected = {"old": b"old"}
        with failing(at, code, mode) as disk:
            changed = done(lambda store=store: store.add("t", [draft("new", b"new"), draft("more", b"more")]))
        added = {"new": b"new", "more": b"more"} if changed else {}
        assert {e.label for e in store.of("t").items} == (expected | added).keys(), (at, disk.calls)
        recovered(root)
        assert whole(root) == expected | added
        assert left_over(root) == []
        if not disk.failed:
            assert len(disk.calls) > 8
            assert set(disk.calls) <= {*CALLS, "write"}
            return
    pytest.fail("it has no end")


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_that_fails_while_some_are_removed(tmp_path: Path, mode: str) -> None:
    for at in range(1, 100):
        root = tmp_path / f"{at}"
        Repository(root).close()
        store = Examples(root)
        store.add("t", [draft("a", b"a"), draft("b", b"b")])
        with failing(at, errno.ENOSPC, mode) as disk:
            gone = done(lambda store=store: store.remove("t", label="a"))
        assert set(store.of("t").counts) == ({"b"} if gone else {"a", "b"}), (at, disk.calls)
        recovered(root)
        assert whole(root) == ({"b": b"b"} if gone else {"a": b"a", "b": b"b"})
        if not disk.failed:
            return
    pytest.fail("it has no end")


def test_a_full_disk_and_a_broken_index_do_not_keep_all_from_being_removed(
    store: Examples, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("t", [draft("a", b"a")])
    (root / "examples" / "t" / "index.json").write_bytes(b'{"next": 1, "examples": {"../x": {}}}')
    with pytest.raises(StorageFailed, match="the index of the examples of 't' cannot be read"):
        store.of("t")
    assert store.add("other", [draft("a", b"a")]).added == 1  # no other task's business

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert store.clear("t")
    assert store.of("t").items == ()


def test_times_that_cannot_be_set_lose_nothing(store: Examples, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They only say where recovery need not look."""
    inner = os.utime

    def refuse(path: Path, **how: tuple[int, int]) -> None:
        if path.name == "files":
            raise OSError(errno.EPERM, "no")
        inner(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refuse)
        store.add("t", [draft("a", b"a")])
    assert recovered(root) == []
    assert whole(root) == {"a": b"a"}


def test_whoever_gives_up_leaves_nothing(store: Examples, root: Path) -> None:
    with store.adding("t") as adding:
        adding.put(0, draft("a", b"a"))
    with pytest.raises(Draining):
        adding.put(1, draft("a", b"b"))
    assert (store.of("t").items, left_over(root)) == ((), [])


def test_recovery(store: Examples, root: Path) -> None:
    store.add("t", [draft("a", b"a"), draft("b", b"b"), draft("c", b"c")])
    store.add("fine", [draft("a", b"a")])
    files = root / "examples" / "t" / "files"
    (files / digest(b"a")).unlink()
    (files / digest(b"b")).write_bytes(b"longer")
    (files / ("0" * 64)).write_bytes(b"never acknowledged")
    (root / "examples" / "begun" / "files").mkdir(parents=True)
    (root / "examples" / "broken").mkdir()
    (root / "examples" / "broken" / "index.json").write_text("no JSON")
    (root / "examples" / "No Task").mkdir()
    (root / "recent").mkdir()
    (root / "recent" / "1-2").write_bytes(b"an input of somebody")
    said = "\n".join(recovered(root))
    for words in (
        "left out 2 examples of 't'", f"no example of 't': {'0' * 64}", "removed examples of 'begun'",
        "set aside examples/broken: the index of the examples of 'broken' cannot be read", "set aside examples/No Task",
        "removed an input that was kept for feedback",
    ):  # fmt: skip
        assert words in said
    assert "fine" not in said
    assert [e.label for e in Examples(root).of("t").items] == ["c"]
    assert sorted(path.name for path in (root / "examples").iterdir()) == ["fine", "t"]
    assert recovered(root) == []


def test_ten_thousand_are_read_quickly_and_once(store: Examples, root: Path) -> None:
    store.add("t", [draft("a", b"a")])
    (one,) = store.of("t").items
    many = [replace(one, number=n, digest=digest(b"%d" % n), label=f"label {n % 50}") for n in range(1, 10_001)]
    told = {
        e.digest: {
            "number": e.number, "label": e.label, "modality": e.modality, "media_type": e.media_type, "bytes": e.bytes,
            "added": e.added,
        }
        for e in many
    }  # fmt: skip
    path = root / "examples" / "t" / "index.json"
    path.write_text(json.dumps({"next": 10_001, "bytes": 10_000, "examples": told}))
    found = store.of("t")
    assert (len(found.items), len(found.counts)) == (10_000, 50)
    assert store.of("t") is found


ADDER = """
import sys
from pathlib import Path
from service.store.examples import ExampleDraft, Examples
root, name = Path(sys.argv[1]), sys.argv[2]
store = Examples(root, owner=name)
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    data = f"{name} {number}".encode()
    store.add("t", [ExampleDraft(name, "image", "image/png", some) for some in (data, data + b"!")])
    print(number, flush=True)
"""


def adder(root: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ADDER, str(root), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_several_processes_add_at_once(root: Path) -> None:
    adders = [adder(root, name, 15) for name in ("one", "two")]
    assert [one.wait(60) for one in adders if one.communicate(timeout=60)] == [0, 0]
    found = Examples(root).of("t")
    assert found.counts == {"one": 30, "two": 30}
    assert sorted(e.number for e in found.items) == list(range(1, 61))


def test_a_process_that_is_killed_in_the_middle(root: Path) -> None:
    """What it acknowledged is there, each addition is there whole or not at all, and nothing else is left."""
    chance = random.Random(7)
    for turn in range(4):
        name = f"p{turn}"
        process = adder(root, name, 10_000)
        assert process.stdout is not None
        timer = threading.Timer(0, process.kill)
        last = -1
        for line in process.stdout:
            if line == "ready\n":
                timer = threading.Timer(0.05 + 0.1 * chance.random(), process.send_signal, [signal.SIGKILL])
                timer.start()
            else:
                with suppress(ValueError):
                    last = int(line)
        process.stdout.close()
        assert process.wait(60) == -signal.SIGKILL
        timer.cancel()
        recovered(root)
        assert left_over(root) == []
        whole(root)
        count = Examples(root).of("t").counts.get(name, 0)
        assert count in (2 * (last + 1), 2 * (last + 2))


def test_threads_share_one(store: Examples) -> None:
    def add(name: int) -> None:
        for number in range(5):
            store.add("t", [draft(f"{name}", b"%d %d" % (name, number))])

    threads = [threading.Thread(target=add, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.of("t").counts == {f"{name}": 5 for name in range(4)}
