"""A watched folder: what is dropped there is checked, tried, published and active; what is wrong is told beside it."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.sources import folder
from tests.houses import House, Kit, house, photograph, problem, until
from tests.s3 import options, s3

EVERY_S = 0.05


@dataclass
class Watched:
    """A server and the folder that it watches."""

    kit: Kit
    home: House
    folder: Path

    def drop(self, name: str, content: bytes) -> Path:
        """As `mv` puts a file there: whole at once."""
        beside = self.folder.parent / "beside"
        beside.write_bytes(content)
        return beside.replace(self.folder / name)

    def task(self, name: str) -> dict[str, Any] | None:
        answer = self.home.client.get(f"/v1/tasks/{name}")
        return answer.json() if answer.status_code == 200 else None

    def active(self, name: str) -> int | None:
        found = self.task(name)
        return None if found is None else found["version"]

    def versions(self, name: str) -> list[int]:
        answer = self.home.client.get(f"/v1/tasks/{name}/versions").raise_for_status()
        return sorted(one["version"] for one in answer.json()["versions"])

    def told(self, name: str) -> str:
        beside = self.folder / f"{name}.error.txt"
        return beside.read_text() if beside.exists() else ""


@contextmanager
def watched(kit: Kit, data: Path, folder: Path, **changes: Any) -> Iterator[Watched]:
    folder.mkdir(exist_ok=True)
    settings = kit.settings(data_dir=data, watch_folder=str(folder), watch_every_s=EVERY_S, source_retry_s=0.3)
    with house(settings.model_copy(update=changes)) as home:
        yield Watched(kit, home, folder)


@pytest.fixture(scope="module")
def server(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    base = tmp_path_factory.mktemp("watched")
    with watched(kit, base / "data", base / "folder") as made:
        yield made


def test_a_file_is_a_task_and_its_next_state_the_next_version(server: Watched) -> None:
    content, _ = server.kit.file(1, task="other")
    path = server.drop("cats.safetensors", content)
    assert until(lambda: server.active("cats") == 1)
    answer = server.home.ask("cats", photograph())
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    path.write_bytes(server.kit.file(2)[0])  # in place, as `cp` writes
    assert until(lambda: server.active("cats") == 2)
    server.drop("cats.safetensors", content)  # the former bytes are wanted again
    assert until(lambda: server.active("cats") == 1)
    path.unlink()
    server.drop("dogs.safetensors", server.kit.file(3)[0])
    assert until(lambda: server.active("dogs") == 1)
    assert (server.active("cats"), server.versions("cats")) == (1, [1, 2])  # what is taken out stays served


def test_the_same_bytes_again_change_nothing(server: Watched) -> None:
    first, second = (server.kit.file(seed)[0] for seed in (4, 5))
    path = server.drop("same.safetensors", first)
    assert until(lambda: server.active("same") == 1)
    server.home.put("same", second).raise_for_status()
    assert server.active("same") == 2
    os.utime(path)
    server.drop("same.safetensors", first)
    server.drop("after.safetensors", first)
    assert until(lambda: server.active("after") == 1)
    assert (server.active("same"), server.versions("same")) == (2, [1, 2])


def test_a_file_that_comes_brings_back_what_the_task_had_before(server: Watched) -> None:
    first, second = (server.kit.file(seed)[0] for seed in (17, 18))
    for content in (first, second):
        server.home.put("former", content).raise_for_status()
    server.drop("former.safetensors", first)
    assert until(lambda: server.active("former") == 1)
    assert server.versions("former") == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("junk.safetensors", b"junk", "the file has 4 bytes, too few for safetensors"),
        ("Big Cats.safetensors", b"x", "is not named <task>.safetensors"),
        ("kätzchen.safetensors", b"x", "is not named <task>.safetensors"),
        (".safetensors", b"x", ""),
        (".hidden.safetensors", b"x", ""),
        ("-x.safetensors", b"x", "is not named <task>.safetensors"),
        ("UPPER.SAFETENSORS", b"x", "is not named <task>.safetensors"),
        ("line\nbreak.safetensors", b"x", "line?break.safetensors' is not named"),
        ("weights.pth", b"\x80\x02", "is named like a pickle"),
        ("README.md", b"x", ""),
        ("half.safetensors.part", b"x", ""),
        ("empty.safetensors", b"", "the file has 0 bytes"),
    ],
)
def test_what_is_wrong_is_told_beside_the_file(server: Watched, name: str, content: bytes, sentence: str) -> None:
    path = server.drop(name, content)
    if sentence:
        assert until(lambda: sentence in server.told(name)), sorted(server.folder.iterdir())
        assert server.told(name).count("\n") == 1
    else:
        server.drop("other.safetensors", b"junk")
        assert until(lambda: bool(server.told("other.safetensors")))
        assert not server.told(name)
    path.unlink()
    (server.folder / "other.safetensors").unlink(missing_ok=True)
    assert until(lambda: not list(server.folder.glob("*.error.txt")))  # nothing is wrong with what is not there


def test_the_sentence_is_that_of_an_upload_and_goes_when_the_file_is_right(server: Watched) -> None:
    broken = server.kit.file(6)[0][:-4]
    refused = server.home.put("mended", broken)
    path = server.drop("mended.safetensors", broken)
    assert until(lambda: server.told("mended.safetensors") == problem(refused, 422)["detail"] + "\n")
    path.write_bytes(server.kit.file(6)[0])
    assert until(lambda: server.active("mended") == 1)
    assert until(lambda: not server.told("mended.safetensors"))


def test_a_file_that_is_being_copied_is_not_taken(server: Watched) -> None:
    content = server.kit.file(7)[0]
    path, pause = server.folder / "slow.safetensors", threading.Event()
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), len(content) // 8):
            file.write(content[start : start + len(content) // 8])
            assert server.active("slow") is None
            pause.wait(EVERY_S)
    assert until(lambda: server.active("slow") == 1)
    assert server.versions("slow") == [1]
    assert until(lambda: not server.told("slow.safetensors"))


def test_links_folders_and_pipes(server: Watched) -> None:
    folder, content = server.folder, server.kit.file(8)[0]
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes(content)
    (folder / "out.safetensors").symlink_to(outside)
    (folder / "dead.safetensors").symlink_to(folder / "nowhere")
    (folder / "dir.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "..data").mkdir()  # as Kubernetes mounts a ConfigMap
    (folder / "..data/inner").write_bytes(content)
    (folder / "inner.safetensors").symlink_to("..data/inner")
    for name, sentence in {
        "out": "a link that leads out", "dead": "a link to a file that is not there", "dir": "is a folder",
        "pipe": "is a pipe",
    }.items():  # fmt: skip
        assert until(lambda name=name, sentence=sentence: sentence in server.told(f"{name}.safetensors")), name
        assert server.active(name) is None
    assert until(lambda: server.active("inner") == 1)
    for left in (folder / "dir.safetensors", folder / "..data"):
        shutil.rmtree(left)
    for name in ("out", "dead", "pipe", "inner"):
        (folder / f"{name}.safetensors").unlink()


def test_a_folder_that_takes_nothing_and_a_file_that_cannot_be_read(
    server: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def forbid(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "replacing", refuse)
        path = server.drop("quiet.safetensors", b"junk")
        assert until(lambda: "quiet.safetensors in the watched folder is not taken" in caplog.text)
        server.drop("after-quiet.safetensors", server.kit.file(19)[0])
        assert until(lambda: server.active("after-quiet") == 1)
        assert not server.told("quiet.safetensors")
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_open", forbid)
        path = server.drop("closed.safetensors", server.kit.file(19)[0])
        assert until(lambda: "cannot be read (Permission denied); let the server" in server.told("closed.safetensors"))
    os.utime(path)
    assert until(lambda: server.active("closed") == 1)


def test_a_file_beyond_the_bound_is_not_read(server: Watched) -> None:
    path = server.folder / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert until(lambda: "1099511627776 bytes" in server.told("huge.safetensors"))
    assert "max_adapter_bytes" in server.told("huge.safetensors")
    path.unlink()


def test_a_folder_that_goes_and_comes_back(server: Watched, caplog: pytest.LogCaptureFixture) -> None:
    aside = server.folder.with_name("aside")
    server.folder.rename(aside)
    assert until(lambda: "cannot be read (No such file or directory)" in caplog.text)
    aside.rename(server.folder)
    server.drop("back.safetensors", server.kit.file(9)[0])
    assert until(lambda: server.active("back") == 1)
    assert caplog.text.count("cannot be read") == 1


def test_a_restart_takes_nothing_twice_and_undoes_nothing(kit: Kit, tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "folder"
    first, second = (kit.file(seed)[0] for seed in (10, 11))
    with watched(kit, data, folder) as server:
        for name in ("changed", "deleted", "touched"):
            server.drop(f"{name}.safetensors", first)
            assert until(lambda name=name: server.active(name) == 1)
        server.home.put("changed", second).raise_for_status()
        for name in ("deleted", "touched"):
            server.home.client.delete(f"/v1/tasks/{name}").raise_for_status()
    os.utime(folder / "touched.safetensors")
    (folder / "new.safetensors").write_bytes(first)
    with watched(kit, data, folder) as server:
        assert until(lambda: server.active("new") == 1 and server.active("touched") == 2)
        assert (server.active("changed"), server.versions("changed")) == (2, [1, 2])
        assert server.active("deleted") is None
    shutil.rmtree(data / "sources")  # as a server that never saw the folder
    with watched(kit, data, folder) as server:
        server.drop("last.safetensors", first)
        assert until(lambda: server.active("last") == 1)
        assert (server.active("changed"), server.versions("changed")) == (2, [1, 2])
        assert server.active("deleted") is None  # it was, after its file had come
        assert (server.versions("new"), server.versions("touched")) == ([1], [2])


def test_what_others_did_after_a_file_came_is_not_undone(kit: Kit, tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "folder"
    folder.mkdir()
    (folder / "late.safetensors").write_bytes(kit.file(12)[0])
    (folder / "back.safetensors").write_bytes(kit.file(12)[0])
    with watched(kit, data, tmp_path / "empty") as server:
        server.home.put("late", kit.file(13)[0]).raise_for_status()
        for seed in (13, 14):
            server.home.put("back", kit.file(seed)[0]).raise_for_status()
        (folder / "now.safetensors").write_bytes(kit.file(12)[0])
        server.home.put("now", kit.file(13)[0]).raise_for_status()
        os.utime(folder / "now.safetensors")
        server.home.client.post("/v1/tasks/back/versions/1/activate").raise_for_status()
    with watched(kit, data, folder) as server:
        assert until(lambda: all(len(server.versions(name)) > 1 for name in ("late", "now")))
        assert until(lambda: server.versions("back") == [1, 2, 3])
        assert (server.active("late"), server.active("back"), server.active("now")) == (1, 1, 2)
        last = server.home.front.catalogue.repository.past.of("now", None, 1).events[0]
        assert (last.what, last.by.origin, last.by.key) == ("published", "sources", None)


def test_two_servers_on_one_store_watch_one_folder(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3() as (_, url), ExitStack() as stack:
        for name, value in options(url).items():
            monkeypatch.setenv(name, value)
        store = {"store": "s3://bucket/tasks", "store_poll_s": 0.1}
        a, b = (stack.enter_context(watched(kit, tmp_path / name, tmp_path / "folder", **store)) for name in ("a", "b"))
        a.drop("cats.safetensors", kit.file(14)[0])
        assert until(lambda: a.active("cats") == 1 and b.active("cats") == 1)
        a.drop("cats.safetensors", kit.file(15)[0])
        assert until(lambda: a.active("cats") == 2 and b.active("cats") == 2)
        assert a.versions("cats") == b.versions("cats") == [1, 2]
        assert not a.told("cats.safetensors")


def test_many_files_at_the_start(kit: Kit, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(60):
        (folder / f"bad-{number}.safetensors").write_bytes(b"junk")
    (folder / "good.safetensors").write_bytes(kit.file(16)[0])
    with watched(kit, tmp_path / "data", folder, max_tasks=50) as server:
        assert until(lambda: len(list(folder.glob("*.error.txt"))) >= 49)
        for left in folder.glob("bad-*.safetensors"):
            left.unlink()
        assert until(lambda: server.active("good") == 1)
