"""Several writers on one store that fails in its ways, each by itself: what one changes, the others heed and see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.errors import NoRoom
from service.errors import Conflict, StorageFailed, StoreRefused, UnknownTask, UnknownVersion
from service.store.manifest import render
from service.store.objects import Mark, open_objects
from service.store.truth import Truth
from tests.houses import until
from tests.mirrors import URL, Server, bucket, empty, objects, server
from tests.s3 import Bucket, Fault

__all__ = ["bucket", "empty"]


@pytest.fixture(params=["s3", "file"])
def pair(request: pytest.FixtureRequest, empty: Bucket, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    url = URL if request.param == "s3" else f"file://{tmp_path}/shared"
    with ExitStack() as stack:
        yield server(stack, tmp_path / "a", url), server(stack, tmp_path / "b", url)


def same(one: Server, other: Server) -> bool:
    return one.mirror.tasks() == other.mirror.tasks()


def commit(truth: Truth, name: str, number: int) -> None:
    """Make what was announced under that number: the task answers no more."""
    task = truth.task(name)
    assert task is not None
    assert task.mark is not None
    new = replace(task, active=None, log=(*task.log, number), mark=None)
    truth.objects.replace(f"tasks/{name}.json", render(new), Mark(*task.mark))


def test_both_publish_the_same_task_and_both_versions_are_there(pair: tuple[Server, Server]) -> None:
    a, b = pair
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(which.put, "t", bytes([number])) for number in range(20) for which in pair]
        done = [one.result() for one in sent]
    numbers = sorted(number for number, created in done if created)
    assert numbers == list(range(1, 21)), "each once, and no number twice"
    assert until(lambda: same(a, b) and len(a.mirror.task("t").versions) == 20)
    a.mirror.delete_task("t")
    assert until(lambda: b.mirror.names == ())
    assert b.put("t", b"again") == (21, True)


def test_what_the_other_has_changed_is_heeded_before_it_is_seen(pair: tuple[Server, Server]) -> None:
    a, b = pair
    a.put("t", b"1")
    assert until(lambda: b.mirror.had("t"))
    b.follower.close()
    a.put("t", b"2")
    assert b.mirror.activate("t", 2).number == 2
    a.mirror.activate("t", 1)
    with pytest.raises(Conflict, match="is active"):
        b.mirror.delete_version("t", 1)
    assert b.mirror.delete_version("t", 2).number == 2
    with pytest.raises(UnknownVersion):
        a.mirror.activate("t", 2)
    a.mirror.delete_task("t")
    for refused in (b.mirror.delete_task, b.mirror.deactivate):
        with pytest.raises(UnknownTask):
            refused("t")
    assert b.put("t", b"1") == (3, True), "not what it was before the deletion"


def test_a_change_that_was_announced_and_not_made_holds_up_nothing(pair: tuple[Server, Server]) -> None:
    a, b = pair
    a.put("t", b"1")
    a.mirror.truth.announce("t", 1)  # and killed
    a.mirror.truth.announce("never", 2)
    a.put("u", b"2")
    assert until(lambda: b.mirror.had("u"))
    assert b.mirror.store_seen < 4, "the announced change may still come"
    b.mirror.see(4)
    assert b.mirror.sees(4)


def test_a_change_that_is_under_way_at_a_servers_start_is_seen_when_it_is_made(empty: Bucket, tmp_path: Path) -> None:
    with ExitStack() as stack:
        a = server(stack, tmp_path / "a")
        a.put("t", b"1")
        a.put("u", b"1")
        number = a.mirror.truth.announce("t", 2)
        a.put("u", b"2")
        b = server(stack, tmp_path / "b")
        assert b.mirror.store_seen < number
        commit(a.mirror.truth, "t", number)
        assert until(lambda: b.mirror.task("t").active is None, 2)
        assert until(lambda: b.mirror.store_seen == 4)


@pytest.mark.parametrize("following", [False, True])
def test_a_change_that_is_made_after_a_later_one_is_seen_by_its_number(
    pair: tuple[Server, Server], following: bool
) -> None:
    a, b = pair
    a.put("t", b"1")
    a.put("u", b"1")
    assert until(lambda: b.mirror.had("u"))
    if not following:
        b.follower.close()
    number = a.mirror.truth.announce("t", 2)
    a.put("u", b"2")
    b.mirror.see(number + 1)
    assert b.mirror.task("u").active == 2
    assert b.mirror.sees(number + 1)
    assert not b.mirror.sees(number)
    commit(a.mirror.truth, "t", number)
    b.mirror.see(number)
    assert b.mirror.task("t").active is None


def test_two_changes_of_a_task_that_are_under_way_are_both_waited_for(pair: tuple[Server, Server]) -> None:
    a, b = pair
    a.put("t", b"1")
    first = a.mirror.truth.announce("t", 1)
    second = a.mirror.truth.announce("t", first)
    a.put("u", b"1")
    assert until(lambda: b.mirror.had("u"))
    assert not b.mirror.sees(first), "the second one's number hides nothing"
    commit(a.mirror.truth, "t", first)
    assert until(lambda: b.mirror.sees(first))
    assert b.mirror.task("t").active is None
    assert not b.mirror.sees(second)


@pytest.mark.parametrize("fault", ["lost", "cut", "500"])
def test_an_answer_that_is_lost_is_not_a_change_that_is_made_twice(empty: Bucket, tmp_path: Path, fault: Fault) -> None:
    with ExitStack() as stack:
        a = server(stack, tmp_path / "a")
        a.put("t", b"0")
        left = [1]

        def once(method: str, key: str) -> Fault | None:
            if method == "PUT" and "/tasks/t" in key and left and left.pop():
                return fault
            return None

        empty.fault = once
        assert a.put("t", b"1") == (2, True)
        left.append(1)
        a.mirror.delete_version("t", 1)
        assert sorted(a.mirror.task("t").versions) == [2]


@pytest.mark.parametrize("known", [0, 1, 5, 1000])
@pytest.mark.parametrize("numbers", [0, 1, 2, 3, 7, 8, 9, 100])
def test_the_logs_end_is_found_in_few_looks(empty: Bucket, known: int, numbers: int) -> None:
    truth = Truth(objects())
    for number in range(known + 1, known + numbers + 1):
        empty.put(f"tasks/log/{number:016}", b"t")
    if numbers:
        assert truth.last() == known + numbers
    assert truth.last(known) == (known + numbers if known or numbers else 0)
    assert sum(empty.asked.values()) < 60
    assert truth.announce("t", known) == known + numbers + 1


def test_a_store_without_conditions_is_refused(empty: Bucket, tmp_path: Path) -> None:
    empty.fault = lambda method, key: "ignore"
    with ExitStack() as stack, pytest.raises(StoreRefused, match="does not heed conditions"):
        server(stack, tmp_path)


@pytest.mark.parametrize(
    ("url", "said"),
    [("ftp://x/y", "no store that is known"), ("s3://", "cannot be used"), ("http://x", "no store that is known")],
)
def test_what_is_no_store_is_refused_in_words(url: str, said: str) -> None:
    with pytest.raises(StoreRefused, match=said):
        open_objects(url, timeout_s=1, retries=0)


def test_the_mirror_of_another_store_is_forgotten(empty: Bucket, tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number in range(3):
            server(stack, tmp_path / str(number)).put("old", bytes([number]))
    empty.objects.clear()
    with ExitStack() as stack:
        server(stack, tmp_path / "other").put("old", b"new")
        a = server(stack, tmp_path / "2")
        assert [(task.name, task.generation, task.next) for task in a.mirror.tasks()] == [("old", 1, 2)]
        assert list((tmp_path / "2/blobs").iterdir()) == []
        with pytest.raises(StoreRefused, match="start the server again"):
            a.mirror.is_of("another", serving=True)


def test_a_manifest_with_a_path_for_a_digest_is_not_believed(empty: Bucket, tmp_path: Path) -> None:
    with ExitStack() as stack:
        a = server(stack, tmp_path)
        a.put("t", b"1")
        whole = empty.objects["tasks/tasks/t.json"].content
        digest = hashlib.sha256(b"1").hexdigest().encode()
        empty.put("tasks/tasks/t.json", whole.replace(digest, b"../../../etc/passwd"))
        with pytest.raises(StorageFailed, match="without a digest"):
            a.mirror.look("t")


def test_manifests_that_came_or_went_by_hand_are_seen_at_the_next_start(empty: Bucket, tmp_path: Path) -> None:
    with ExitStack() as stack:
        a = server(stack, tmp_path)
        a.put("gone", b"1")
        a.put("there", b"2")
        a.put("broken", b"3")
    whole = empty.objects.pop("tasks/tasks/gone.json")
    empty.put("tasks/tasks/new.json", whole.content)
    empty.put("tasks/tasks/broken.json", b"{")
    empty.put("tasks/tasks/No Name.json", b"{}")
    with ExitStack() as stack:
        a = server(stack, tmp_path)
        assert a.mirror.names == ("broken", "new", "there"), "what cannot be read is as it was known"
        with pytest.raises(StorageFailed, match="cannot be read"):
            a.put("broken", b"4")
        assert a.put("new", b"5")[0] == 2


def test_a_file_that_the_store_lost_is_put_there_again(empty: Bucket, tmp_path: Path) -> None:
    with ExitStack() as stack:
        a, b = server(stack, tmp_path / "a"), server(stack, tmp_path / "b")
        a.put("t", b"1")
        assert until(lambda: b.mirror.had("t"))
        del empty.objects[next(key for key in empty.objects if "/blobs/" in key)]
        with pytest.raises(StorageFailed, match="upload it again"):
            b.mirror.bring_now(b.mirror.version("t"))
        assert b.put("t", b"1") == (1, False)
        a.mirror.bring_now(a.mirror.version("t"))


def test_an_idle_server_asks_one_small_thing_at_a_time(empty: Bucket, tmp_path: Path) -> None:
    with ExitStack() as stack:
        a = server(stack, tmp_path)
        a.put("t", b"1")
        assert until(lambda: a.mirror.store_seen == 1)

        def quiet() -> bool:
            empty.asked.clear()
            assert until(lambda: sum(empty.asked.values()) > 10)
            return list(empty.asked) == [f"GET tasks/log/{2:016}"]

        assert until(quiet)


def test_bounds_hold_at_every_server(empty: Bucket, tmp_path: Path) -> None:
    with ExitStack() as stack:
        a, b = (server(stack, tmp_path / name, max_tasks=2, max_versions=2) for name in "ab")
        a.put("t", b"1")
        b.put("t", b"2")
        with pytest.raises(NoRoom, match="max_versions_per_task"):
            a.put("t", b"3")
        b.put("u", b"1")
        assert until(lambda: a.mirror.had("u"))
        with pytest.raises(NoRoom, match="max_tasks"):
            a.put("v", b"1")
