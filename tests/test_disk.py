"""A disk that is full or read-only, over real HTTP: 507 or 503, nothing half-written, and what is there is served."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.store import files as files_module
from tests.houses import House, Kit, house, photograph, problem, until


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        made.put("kept", kit.file(1)[0]).raise_for_status()
        made.put("kept", kit.file(2)[0]).raise_for_status()
        yield made


def files(home: House) -> set[Path]:
    """Everything in the data folder, uploads under way too."""
    return set(home.settings.data_dir.rglob("*"))


def at_mkstemp(patch: pytest.MonkeyPatch, fail: Callable[..., None]) -> None:
    patch.setattr(tempfile, "mkstemp", fail)


def at_write(patch: pytest.MonkeyPatch, fail: Callable[..., None]) -> None:
    _with_file(patch, type("Full", (io.BufferedWriter,), {"write": fail}))


def at_flush(patch: pytest.MonkeyPatch, fail: Callable[..., None]) -> None:
    _with_file(patch, type("Full", (io.BufferedWriter,), {"flush": fail}))


def _with_file(patch: pytest.MonkeyPatch, kind: type[io.BufferedWriter]) -> None:
    inner = os.fdopen
    patch.setattr(os, "fdopen", lambda fd, mode: kind(io.FileIO(fd, mode)) if mode == "wb" else inner(fd, mode))


def at_fsync(patch: pytest.MonkeyPatch, fail: Callable[..., None]) -> None:
    patch.setattr(os, "fsync", fail)


def at_mkdir(patch: pytest.MonkeyPatch, fail: Callable[..., None]) -> None:
    patch.setattr(Path, "mkdir", fail)


def at_rename(patch: pytest.MonkeyPatch, fail: Callable[..., None]) -> None:
    patch.setattr(Path, "replace", fail)


def at_manifest(patch: pytest.MonkeyPatch, fail: Callable[..., None]) -> None:
    """The adapter's own file is in its place by then."""
    inner = Path.replace
    patch.setattr(Path, "replace", lambda p, to: fail() if Path(to).name == "manifest.json" else inner(p, to))


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [(errno.ENOSPC, 507, "full"), (errno.EDQUOT, 507, "full"), (errno.EROFS, 503, "cannot be written")],
    ids=["full", "quota", "read-only"],
)
@pytest.mark.parametrize("seam", [at_mkstemp, at_write, at_flush, at_fsync, at_mkdir, at_rename, at_manifest])
@pytest.mark.parametrize("task", ["kept", "new"])
def test_an_upload_that_the_disk_refuses_leaves_nothing(
    home: House, kit: Kit, monkeypatch: pytest.MonkeyPatch, task: str, seam: Callable[..., None], code: int,
    status: int, words: str,
) -> None:  # fmt: skip
    before = files(home)
    digest, content = kit.file(2)[1].digest, kit.file(3)[0]

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        seam(patch, fail)
        refused = home.put(task, content)
        assert home.ask("kept", photograph()).json()["digest"] == digest
    assert words in str(problem(refused, status)["detail"])
    assert until(lambda: files(home) == before), files(home) ^ before
    assert home.ask("kept", photograph()).json()["digest"] == digest
    assert home.client.get("/v1/tasks/new").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "versions/1/activate"), ("DELETE", "versions/1"), ("DELETE", "")]
)
def test_a_change_that_the_disk_refuses_changes_nothing(
    home: House, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = home.client.get("/v1/tasks/kept/versions").json()
    with monkeypatch.context() as patch:
        at_mkstemp(patch, fail)
        problem(home.client.request(method, f"/v1/tasks/kept/{path}".rstrip("/")), 503)
    assert home.client.get("/v1/tasks/kept/versions").json() == before
    assert home.ask("kept", photograph(), version=1).status_code == 200


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [(errno.ENOSPC, 507, "full"), (errno.EROFS, 503, "cannot be written"), (errno.EIO, 503, "disk failed")],
    ids=["full", "read-only", "broken"],
)
def test_what_the_disk_did_not_confirm_is_there_and_the_answer_says_so(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, status: int, words: str
) -> None:
    content, adapter = kit.file(4)
    inner = files_module.sync_folder

    def sync(folder: Path) -> None:
        if folder.name == "new":  # the task's own folder, which holds the manifest
            raise OSError(code, os.strerror(code))
        inner(folder)

    with house(kit.settings(data_dir=tmp_path)) as made:
        made.put("new", kit.file(5)[0]).raise_for_status()
        with monkeypatch.context() as patch:
            patch.setattr(files_module, "sync_folder", sync)
            document = problem(made.put("new", content), status)
            assert document["changed"] is True
            assert words in str(document["detail"])
            assert "ask for it again" in str(document["detail"])
            assert made.ask("new", photograph()).json()["digest"] == adapter.digest
            for later in (content, kit.file(6)[0]):
                assert "changed" not in problem(made.put("new", later), status)
        again = made.put("new", content)
        assert (again.status_code, again.json()["version"], again.json()["active"]) == (200, 2, True)
    with house(kit.settings(data_dir=tmp_path)) as made:
        assert made.ask("new", photograph()).json()["digest"] == adapter.digest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"may not mount a file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_a_real_disk_that_fills_up_and_turns_read_only(kit: Kit, small_disk: Path) -> None:
    settings, body, digests = kit.settings(data_dir=small_disk / "data"), photograph(), []
    with house(settings) as made:
        for number in range(200):
            content, adapter = kit.file(number)
            answer = made.put(f"t{number}", content)
            if answer.status_code != 201:
                break
            digests.append(adapter.digest)
        problem(answer, 507)
        assert len(digests) > 3
        assert until(lambda: not list((small_disk / "data/staging").iterdir()))
        assert [made.ask(f"t{i}", body).json()["digest"] for i in range(len(digests))] == digests
        # Where not one block is free a deletion still works: it spends the reserve, and later ones fill it again.
        freed = 0
        while made.put("t0", kit.file(0)[0]).status_code not in (200, 201):
            assert made.client.delete(f"/v1/tasks/t{freed}").status_code == 204
            freed += 1
        assert 0 < freed < len(digests)
        kept = {"t0": digests[0]} | {f"t{i}": digests[i] for i in range(freed, len(digests))}
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=20)
    with house(settings) as made:
        assert {name: made.ask(name, body).json()["digest"] for name in kept} == kept
        assert "read-only" in str(problem(made.put("t0", kit.file(1)[0]), 503)["detail"]).lower()
        problem(made.client.delete("/v1/tasks/t0"), 503)
        assert made.client.get("/readyz").status_code == 200
