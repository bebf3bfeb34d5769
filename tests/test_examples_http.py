"""Labelled examples and feedback over HTTP: every form of body, a bad file among good ones, bounds, who sees them."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image

from adapters.limits import MediaLimits
from service.errors import BadLabel
from service.keys import create, dump
from service.store.example_index import ExampleIndex
from service.web.archives import Entry
from service.web.intake import checked_label, labelled, thumbnail
from tests.archives import FORMS, archive, body
from tests.houses import House, Kit, house, pages, photograph, problem, until
from tests.media_samples import clip

BOUNDS = {
    "max_examples": 30, "max_examples_bytes": 300_000, "max_example_labels": 4, "examples_total_bytes": 400_000,
    "max_body_bytes": 100_000, "max_batch_bytes": 200_000, "max_items_per_batch": 25, "max_page_items": 20_000,
}  # fmt: skip
PHOTO = [photograph(seed) for seed in range(40)]
TREE = [
    ("pictures/cat/1.jpg", PHOTO[0]),
    ("pictures/cat/deep/er/2.jpg", PHOTO[1]),
    ("pictures/dog/1.jpg", PHOTO[2]),
    ("pictures/dog/notes.txt", b"no picture"),
    ("pictures/readme.md", b"hello"),
    ("pictures/dog/again.jpg", PHOTO[2]),
]


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = kit.settings(data_dir=tmp_path_factory.mktemp("data"), keep_recent=5, keep_recent_bytes=20_000, **BOUNDS)
    with house(settings) as made:
        made.put("known", kit.file(1)[0]).raise_for_status()
        yield made


@pytest.fixture(autouse=True)
def clean(home: House) -> Iterator[None]:
    yield
    for task in ("t", "other", "known"):
        home.client.delete(f"/v1/tasks/{task}/examples").raise_for_status()
    assert until(lambda: not list((home.settings.data_dir / "staging").iterdir()))


def add(
    home: House, content: bytes, label: str | None = None, kind: str | None = None, task: str = "t"
) -> httpx.Response:
    headers = {} if kind is None else {"Content-Type": kind}
    params = {} if label is None else {"label": label}
    return home.client.post(f"/v1/tasks/{task}/examples", content=content, params=params, headers=headers)


def counts(home: House, task: str = "t") -> dict[str, int]:
    found: dict[str, int] = home.client.get(f"/v1/tasks/{task}/examples").raise_for_status().json()["counts"]
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_for_each_label(home: House, form: str) -> None:
    content, kind = body(TREE, form)
    answer = add(home, content, kind=kind)
    told = answer.json()
    assert answer.status_code == 201, answer.text
    assert (told["task"], told["added"], told["duplicates"], told["moved"]) == ("t", 3, 1, 0)
    assert told["counts"] == counts(home) == {"cat": 2, "dog": 1}
    assert told["bytes"] == sum(len(PHOTO[n]) for n in range(3))
    assert [(r["name"], r["problem"]["status"]) for r in told["rejected"]] == [
        ("pictures/dog/notes.txt", 415), ("pictures/readme.md", 400)
    ]  # fmt: skip


def test_one_label_for_all_and_one_alone(home: House) -> None:
    assert add(home, archive(TREE, "zip"), "pet").json()["counts"] == {"pet": 3}
    told = add(home, PHOTO[2], "dog").json()
    assert (told["added"], told["duplicates"], told["moved"], told["counts"]) == (0, 0, 1, {"dog": 1, "pet": 2})
    assert add(home, PHOTO[2], "dog").json()["duplicates"] == 1
    form = {"a": ("1.jpg", PHOTO[5]), "b": ("2.mp4", clip())}
    answer = home.client.post("/v1/tasks/t/examples", params={"label": "new"}, files=form)
    assert answer.json()["counts"]["new"] == 2


def test_the_same_bytes_under_two_labels_of_one_call(home: House) -> None:
    for _ in range(3):  # however the workers are dealt, the later one wins
        told = add(home, archive([("b/1.jpg", PHOTO[0]), ("a/1.jpg", PHOTO[0]), ("a/2.jpg", PHOTO[1])], "zip")).json()
        assert told["counts"] == {"a": 2}


def test_lists_pictures_and_deletes(home: House) -> None:
    files = [(f"{'cat' if n % 2 else 'dog'}/{n}.jpg", PHOTO[n]) for n in range(9)]
    add(home, archive([*files, ("clip/a.mp4", clip())], "tar")).raise_for_status()
    every = pages(home.client, "/v1/tasks/t/examples", "examples", limit=4)
    assert [e["digest"] for e in every] == [hashlib.sha256(data).hexdigest() for _, data in files] + [
        every[-1]["digest"]
    ]
    cats = home.client.get("/v1/tasks/t/examples", params={"label": "cat", "limit": 2}).json()
    assert ([e["label"] for e in cats["examples"]], cats["count"]) == (["cat"] * 2, 4)
    for example, data in [(every[0], PHOTO[0]), (every[-1], clip())]:
        kept = home.client.get(f"/v1/tasks/t/examples/{example['digest']}")
        assert (kept.content, kept.headers["content-type"]) == (data, example["media_type"])
        assert kept.headers["content-disposition"].startswith("attachment; filename=")
        assert kept.headers["x-content-type-options"] == "nosniff"
        small = home.client.get(example["thumbnail"])
        assert small.headers["content-type"] == "image/jpeg"
        assert min(Image.open(io.BytesIO(small.content)).size) <= 96
        again = home.client.get(example["thumbnail"], headers={"If-None-Match": small.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    part = home.client.get(f"/v1/tasks/t/examples/{every[0]['digest']}", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, PHOTO[0][2:6])

    delete = home.client.delete
    assert delete(f"/v1/tasks/t/examples/{every[0]['digest']}").status_code == 204
    problem(delete(f"/v1/tasks/t/examples/{every[0]['digest']}"), 404)
    problem(home.client.get(every[0]["thumbnail"]), 404)
    assert delete("/v1/tasks/t/examples", params={"label": "cat"}).status_code == 204
    assert counts(home) == {"clip": 1, "dog": 4}
    assert "'cat'" in str(problem(delete("/v1/tasks/t/examples", params={"label": "cat"}), 404)["detail"])
    assert delete("/v1/tasks/t/examples").status_code == 204
    assert home.client.get("/v1/tasks/t/examples").json()["examples"] == []


LABELS = {
    "🐈‍⬛ cat": "🐈‍⬛ cat", "a/b\\c": "a/b\\c", "../../etc": "../../etc", " cat ": "cat", "cafe\u0301": "caf\u00e9",
    "x" * 256: "x" * 256, "می‌خواهم": "می‌خواهم", "'; DROP": "'; DROP", "<b>&": "<b>&",
}  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
def test_odd_labels(home: House, label: str) -> None:
    assert add(home, PHOTO[0], label).json()["counts"] == {LABELS[label]: 1}
    assert home.client.get("/v1/tasks/t/examples", params={"label": label}).json()["count"] == 1
    assert home.client.delete("/v1/tasks/t/examples", params={"label": label}).status_code == 204


@pytest.mark.parametrize("label", ["", "   ", "a\0b", "a\nb", "x" * 257, "\u200d", "\u202eright to left", b"\xff"])
def test_labels_that_are_none(home: House, label: str | bytes) -> None:
    answer = home.client.post(f"/v1/tasks/t/examples?label={quote(label)}", content=PHOTO[0])
    assert problem(answer, 400)["type"] == "urn:adaptserve:problem:bad-label"
    assert counts(home) == {}
    text = label if isinstance(label, str) else label.decode("utf-8", "replace")
    with pytest.raises(BadLabel):
        checked_label(text)


def test_labels_from_folders() -> None:
    def of(*names: str) -> list[str | None]:
        found = labelled([Entry(name, bytes) for name in names], None)
        return [label if isinstance(label, str) else None for _, label in found]

    assert of("cat/1", "dog/2") == ["cat", "dog"]
    assert of("cat/1", "cat/2") == ["cat", "cat"]
    assert of("a/b/cat/1", "a/b/dog/2", "a/readme") == ["cat", "dog", None]
    assert of("data/train/cat/1", "data/val/dog/2") == ["cat", "dog"]
    assert of("train/cat/1", "train/dog/1") == ["cat", "dog"]
    assert of("test/1", "other/2") == ["test", "other"]
    assert of("c\\1", "d\\2", "./e/3", "4") == ["c", "d", "e", None]
    assert of("cat/1", "x" * 300 + "/2", "  /3") == ["cat", None, None]
    assert of() == []


def test_nothing_good_is_the_first_ones_problem(home: House) -> None:
    assert problem(add(home, b"nonsense", "cat"), 415)
    assert problem(add(home, PHOTO[0]), 400)["type"] == "urn:adaptserve:problem:bad-label"
    assert problem(add(home, archive([("cat/1.jpg", PHOTO[0][:200]), ("cat/2", b"")], "zip")), 422)
    problem(add(home, b"", "cat"), 400)
    assert problem(add(home, b"x" * 150_000, "cat"), 413)["field"] == "max_body_bytes"
    assert problem(add(home, b"x" * 250_000, "cat"), 413)["field"] == "max_batch_bytes"
    problem(add(home, PHOTO[0], "cat", task="Not_A_Task"), 400)
    assert counts(home) == {}


def test_archives_that_mean_harm(home: House) -> None:
    many = archive([("cat/bomb.jpg", b"\0" * 90_000), ("cat/1.jpg", PHOTO[0])], "zip")
    assert add(home, many).json()["added"] == 1
    problem(add(home, archive([(f"cat/{n}", b"\0" * 90_000) for n in range(3)], "zip")), 413)
    lying = bytearray(archive([("cat/1.jpg", b"\0" * 90_000)], "zip"))
    at = lying.rfind(b"PK\x01\x02")
    lying[at + 24 : at + 28] = (10).to_bytes(4, "little")  # the directory says 10 bytes
    problem(add(home, bytes(lying)), 422)
    names = ["../../cat/1.jpg", "/etc/cat/1.jpg", "C:\\cat\\1.jpg", "cat/../../1.jpg"]
    problem(add(home, archive([(name, PHOTO[1]) for name in names], "zip")), 422)
    problem(add(home, zlib.compress(b"\0" * 10_000_000, wbits=31)), 413)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        link = zipfile.ZipInfo("cat/link.jpg")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    problem(add(home, out.getvalue()), 415)
    assert counts(home) == {"cat": 1}


def test_bounds(home: House) -> None:
    add(home, archive([(f"cat/{n}.jpg", PHOTO[n]) for n in range(20)], "zip")).raise_for_status()
    refused = problem(add(home, archive([(f"cat/{n}.jpg", PHOTO[n]) for n in range(15, 35)], "zip")), 507)
    assert (refused["field"], refused["limit"], refused["value"]) == ("max_examples", 30, 35)
    assert counts(home) == {"cat": 20}  # all or none
    refused = problem(add(home, archive([(f"{n}/{n}.jpg", PHOTO[20 + n]) for n in range(4)], "zip")), 507)
    assert refused["field"] == "max_example_labels"
    assert problem(add(home, archive([(f"{n}.jpg", b"") for n in range(26)], "zip"), "cat"), 413)["limit"] == 25


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_in_the_middle(home: House, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    add(home, PHOTO[0], "old").raise_for_status()
    inner, left = os.fsync, [3]

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        inner(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = add(home, archive([(f"cat/{n}.jpg", PHOTO[n]) for n in range(10)], "zip"))
    problem(answer, 507 if code == errno.ENOSPC else 503)
    assert counts(home) == {"old": 1}
    assert home.ask("known", PHOTO[0]).status_code == 200


def test_many_at_once_lose_nothing(home: House) -> None:
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda n: again(home, PHOTO[n], f"label {n % 4}"), range(24)))
    assert {answer.status_code for answer in answers} == {201}
    assert counts(home) == {f"label {n}": 6 for n in range(4)}


def again(home: House, content: bytes, label: str) -> httpx.Response:
    """Until there is a place: max_batches at a time."""
    while (answer := add(home, content, label)).status_code == 429:
        time.sleep(0.01)
    return answer


def test_deleting_a_task_takes_them_along(home: House, kit: Kit) -> None:
    home.put("both", kit.file(2)[0]).raise_for_status()
    for task in ("both", "t"):
        add(home, PHOTO[0], "cat", task=task).raise_for_status()
        assert home.client.delete(f"/v1/tasks/{task}").status_code == 204
        assert counts(home, task) == {}
        problem(home.client.delete(f"/v1/tasks/{task}"), 404)
    assert not list((home.settings.data_dir / "examples").iterdir())


def test_ten_thousand_in_pages(home: House) -> None:
    add(home, PHOTO[0], "cat").raise_for_status()
    index, store = ExampleIndex(home.settings.data_dir), home.built.examples
    old = store.of("t")
    (one,) = old.items
    many = [type(one)(n, f"{n:064x}", f"label {n % 50}", "image", "image/jpeg", 1, one.added, one.folder)
            for n in range(1, 10_001)]  # fmt: skip
    index.write(type(old)("t", old.folder, tuple(many), 10_001))
    start = time.perf_counter()
    found = pages(home.client, "/v1/tasks/t/examples", "examples", limit=500)
    of_label = pages(home.client, "/v1/tasks/t/examples", "examples", label="label 7")
    seconds = time.perf_counter() - start
    assert [e["digest"] for e in found] == [e.digest for e in many]
    assert len(of_label) == 200
    assert seconds < 10, f"22 pages took {seconds:.1f} s"  # about 0.5 s on an idle machine


def test_feedback_with_the_picture(home: House) -> None:
    answer = home.client.post("/v1/tasks/known/feedback", params={"label": " cat "}, content=PHOTO[0])
    assert (answer.status_code, answer.json()) == (
        201, {"task": "known", "digest": hashlib.sha256(PHOTO[0]).hexdigest(), "label": "cat", "counts": {"cat": 1}}
    )  # fmt: skip
    files = {"file": ("x.jpg", PHOTO[0])}
    assert home.client.post("/v1/tasks/known/feedback", params={"label": "dog"}, files=files).json()["counts"] == {
        "dog": 1
    }
    problem(home.client.post("/v1/tasks/known/feedback", content=PHOTO[0]), 400)
    problem(home.client.post("/v1/tasks/known/feedback", params={"label": "a"}, content=b"nonsense"), 415)


def test_feedback_by_request_and_what_was_least_sure(home: House) -> None:
    client, path = home.client, "/v1/tasks/known/uncertain"

    def kept() -> list[dict[str, Any]]:
        told = client.get(path).json()
        assert told["kept"]
        items: list[dict[str, Any]] = told["items"]
        return items

    asked = []
    for n in range(7):
        asked.append(home.ask("known", PHOTO[n]).headers["x-request-id"])
        assert until(lambda: asked[-1] in [item["request_id"] for item in kept()])
    assert {item["request_id"] for item in kept()} == set(asked[-5:])  # keep_recent
    sure = [item["predictions"][0]["score"] for item in kept()]
    assert sure == sorted(sure)
    small = client.get(kept()[0]["thumbnail"])
    assert (small.status_code, small.headers["content-type"]) == (200, "image/jpeg")

    answer = client.post("/v1/tasks/known/feedback", json={"request_id": asked[6], "label": "cat"})
    assert answer.status_code == 201, answer.text
    digest = answer.json()["digest"]
    assert client.get(f"/v1/tasks/known/examples/{digest}").content == PHOTO[6]
    assert asked[6] not in [item["request_id"] for item in kept()]
    for wrong in ({"request_id": asked[6], "label": "cat"}, {"request_id": asked[0], "label": "cat"}):
        assert "send the picture" in str(problem(client.post("/v1/tasks/known/feedback", json=wrong), 404)["detail"])
    problem(client.post("/v1/tasks/t/feedback", json={"request_id": asked[5], "label": "cat"}), 404)
    for broken in (
        b"{",
        b'{"label": "a"}',
        b'{"request_id": "x", "label": "a", "more": 1}',
        b'{"request_id": "x", "label": " "}',
    ):
        problem(client.post("/v1/tasks/known/feedback", content=broken), 400)
    large = photograph(50, "BMP", (100, 100))
    home.ask("known", large).raise_for_status()  # 30 kB, more than keep_recent_bytes
    home.ask("known", PHOTO[8]).raise_for_status()
    assert until(lambda: len(kept()) == 5)
    sizes = [file.stat().st_size for file in (home.settings.data_dir / "recent").iterdir()]
    assert sum(sizes) <= 20_000


def test_without_the_setting_no_input_is_kept(kit: Kit, tmp_path: Path) -> None:
    """With keys, too: whoever may not put adapters may neither see nor give examples."""
    boss, app = create("boss", "admin", ["known"]), create("app", "predict")
    (tmp_path / "keys").write_text(dump([boss[1], app[1]]))
    with house(kit.settings(data_dir=tmp_path / "data", keys_file=str(tmp_path / "keys"))) as made:
        client = made.client
        client.headers["X-API-Key"] = boss[0]
        made.put("known", kit.file(1)[0]).raise_for_status()
        asked = made.ask("known", PHOTO[0]).headers["x-request-id"]
        assert client.get("/v1/tasks/known/uncertain").json() == {"kept": False, "items": []}
        told = {"request_id": asked, "label": "cat"}
        refused = problem(client.post("/v1/tasks/known/feedback", json=told), 404)
        assert "keep_recent" in str(refused["detail"])
        assert not (tmp_path / "data" / "recent").exists()
        problem(client.get("/v1/tasks/other/examples"), 403)
        client.headers["X-API-Key"] = app[0]
        for method, path in [
            ("POST", "examples"), ("GET", "examples"), ("DELETE", "examples"), ("GET", f"examples/{'0' * 64}"),
            ("GET", f"examples/{'0' * 64}/thumbnail"), ("DELETE", f"examples/{'0' * 64}"), ("POST", "feedback"),
            ("GET", "uncertain"), ("GET", f"uncertain/{'0' * 32}/thumbnail"),
        ]:  # fmt: skip
            problem(client.request(method, f"/v1/tasks/known/{path}"), 403)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (8, 8), (640, 480), (97, 500)])
def test_thumbnails_are_small(size: tuple[int, int]) -> None:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, "PNG")
    small = Image.open(io.BytesIO(thumbnail(out.getvalue(), MediaLimits())))
    assert min(small.size) <= 96
    assert max(small.size) <= 4 * 96
    assert min(small.size) == min(96, *size)


def test_a_restart_keeps_them_and_removes_what_was_cut_short(kit: Kit, tmp_path: Path) -> None:
    settings = kit.settings(data_dir=tmp_path / "data", keep_recent=5)
    with house(settings) as home:
        home.put("known", kit.file(1)[0]).raise_for_status()
        home.ask("known", PHOTO[0]).raise_for_status()
        add(home, archive([(f"cat/{n}.jpg", PHOTO[n]) for n in range(5)], "zip")).raise_for_status()
        before = pages(home.client, "/v1/tasks/t/examples", "examples")
        assert until(lambda: len(home.client.get("/v1/tasks/known/uncertain").json()["items"]) == 1)
    files = tmp_path / "data" / "examples" / "t" / "files"
    (tmp_path / "data" / "staging" / "front-end-0.left.part").write_bytes(b"half a picture")
    (files / ("0" * 64)).write_bytes(b"half a picture")
    with house(settings) as home:
        assert pages(home.client, "/v1/tasks/t/examples", "examples") == before
        assert home.client.get("/v1/tasks/known/uncertain").json() == {"kept": True, "items": []}
        assert not list((tmp_path / "data" / "staging").iterdir())
        assert len(list(files.iterdir())) == 5
