"""Batch calls: many pictures or clips in one body, a line an item in order, bounded on every side."""

from __future__ import annotations

import io
import json
import random
import signal
import socket
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service.errors import EngineLost
from service.messages import Item
from tests.archives import FORMS, Files, archive, body
from tests.houses import CLIP, WAIT, House, Kit, Process, house, photograph, problem, scores_of, sites, until
from tests.media_samples import clip
from tests.models import Spec
from tests.test_app_load import Held

BATCH = "/v1/tasks/t/batch"
GOOD = [(f"{place}.jpg", photograph(place)) for place in range(5)]


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server with a window of four rows, so that even small batches are longer than it."""
    folder = tmp_path_factory.mktemp("data")
    bounds = {
        "max_items_per_batch": 30, "max_batch_bytes": 400_000, "max_body_bytes": 100_000, "batch_window_rows": 4,
        "max_batches": 2, "batch_timeout_s": 60.0, "max_queue_rows": 64, "max_batch_rows": 8, "send_timeout_s": 60.0,
    }  # fmt: skip
    with house(kit.settings(data_dir=folder, **bounds)) as made:
        for task, content in {"t": kit.file(1)[0], "other": kit.file(2)[0], "clips": kit.file(3, CLIP)[0]}.items():
            made.put(task, content).raise_for_status()
        yield made


def send(home: House, content: bytes, kind: str | None = None, task: str = "t", **params: Any) -> httpx.Response:
    headers = {} if kind is None else {"Content-Type": kind}
    path = f"/v1/tasks/{task}/batch"
    return home.client.post(path, content=content, headers=headers, params={"top_k": 5} | params)


def lines_of(response: httpx.Response) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items' lines, which are in order, and the last line."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    *items, last = [json.loads(line) for line in response.text.splitlines()]
    assert [item["index"] for item in items] == list(range(len(items)))
    assert last["failed"] == sum("problem" in item for item in items)
    return items, last


def asked(home: House, files: Files, form: str, **params: Any) -> list[dict[str, Any]]:
    items, last = lines_of(send(home, *body(files, form), **params))
    assert last == {"done": True, "items": len(items), "failed": last["failed"]}
    return items


def left_behind(home: House) -> bool:
    """Whether anything is still held: a place, rows, pixels, a decode."""
    built = home.built
    memory = built.answers._decoder._memory
    return bool(built.batches.running or home.local.engine.queued_rows or memory.held)


@pytest.mark.parametrize("form", FORMS)
def test_each_item_has_the_answer_that_predict_gives(home: House, form: str) -> None:
    files = [*GOOD, ("notes.txt", b"no picture at all"), ("empty.jpg", b""), ("ä ö/猫 1.png", photograph(7, "PNG"))]
    items = asked(home, files, form)
    assert [item["name"] for item in items] == [name for name, _ in files]
    for item, (_, content) in zip(items, files, strict=True):
        alone = home.ask("t", content, top_k=5)
        if alone.status_code == 200:
            np.testing.assert_allclose(scores_of(item), scores_of(alone.json()), atol=1e-5)
            assert {*alone.json(), "index", "name"} == set(item)
        else:
            assert item["problem"] | {"instance": "", "request_id": ""} == alone.json() | {
                "instance": "", "request_id": "",
            }  # fmt: skip
    assert not left_behind(home)


def test_parameters_are_those_of_predict(home: House) -> None:
    content, kind = body(GOOD[:2], "zip")
    assert [len(item["predictions"]) for item in lines_of(send(home, content, kind, top_k=2))[0]] == [2, 2]
    for item in lines_of(send(home, content, kind, min_score=1, abstain=0, embedding=True))[0]:
        assert (item["predictions"], item["accepted"]) == ([], True)
        assert len(item["embedding"]) == home.local.backbone.layout.width
    clips = lines_of(send(home, *body([("a.mp4", clip(count=24))], "zip"), task="clips", window=0.4))[0]
    alone = home.ask("clips", clip(count=24), window=0.4).json()
    assert clips[0]["windows"] == alone["windows"]
    assert problem(send(home, content, kind, version=9), 404)
    assert problem(send(home, content, kind, task="nosuch"), 404)
    assert "topk" in str(problem(send(home, content, kind, topk=2), 400)["detail"])
    late = home.client.post(BATCH, content=content, headers={"X-Deadline-Ms": "9999999"})
    assert "batch_timeout_s" in str(problem(late, 400)["detail"])


def test_clips_are_answered_too(home: House) -> None:
    items = asked(
        home, [("a.mp4", clip(count=24)), ("b.jpg", photograph()), ("c.mp4", clip(count=12))], "tar", task="clips"
    )
    assert [item.get("modality") for item in items] == ["video", None, "video"]
    assert items[1]["problem"]["status"] == 422


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [None, "application/octet-stream", "application/zip", "image/jpeg"])
def test_what_a_body_is_shows_in_its_bytes(home: House, form: str, kind: str | None) -> None:
    content, _ = body(GOOD[:2], form)
    assert lines_of(send(home, content, kind))[1] == {"done": True, "items": 2, "failed": 0}


def test_what_is_no_batch_is_refused_as_a_whole(home: House) -> None:
    assert "one at least" in str(problem(send(home, b""), 400)["detail"])
    for form in ("zip", "tar", "tar.gz"):
        assert "one at least" in str(problem(send(home, archive([], form)), 400)["detail"])
    assert "/predict" in str(problem(send(home, photograph()), 415)["detail"])
    assert "no tar" in str(problem(send(home, zlib.compress(photograph(), wbits=31)), 415)["detail"])
    assert "xz" in str(problem(send(home, b"\xfd7zXZ\0" + bytes(600)), 415)["detail"])
    cut = archive(GOOD, "zip")
    assert "whole" in str(problem(send(home, cut[:-30], "application/zip"), 422)["detail"])
    assert "zip" in str(problem(send(home, b"junk" * 200, "application/zip"), 422)["detail"])
    assert problem(send(home, b"junk" * 200, "application/x-tar"), 422)
    content, kind = body(GOOD, "form")
    assert "boundary" in str(problem(send(home, content[:-40], kind), 400)["detail"])
    field = home.client.post(BATCH, files=[("a", ("a.jpg", photograph())), ("top_k", (None, b"3"))])
    assert "address" in str(problem(field, 400)["detail"])
    assert not left_behind(home)


@pytest.mark.parametrize("form", FORMS)
def test_bounds_of_the_whole_name_their_setting(home: House, form: str) -> None:
    many = [(str(place), b"x") for place in range(31)]
    assert problem(send(home, *body(many, form)), 413)["field"] == "max_items_per_batch"
    assert lines_of(send(home, *body(many[:30], form)))[1] == {"done": True, "items": 30, "failed": 30}
    large = [(str(place), random.Random(place).randbytes(90_000)) for place in range(5)]
    assert problem(send(home, *body(large, form)), 413)["field"] == "max_batch_bytes"
    assert not left_behind(home)


@pytest.mark.parametrize("form", FORMS)
def test_a_large_item_is_a_bad_one(home: House, form: str) -> None:
    items = asked(home, [("a", photograph(1)), ("big", bytes(150_000)), ("b", photograph(2))], form)
    assert [item.get("problem", {}).get("field") for item in items] == [None, "max_body_bytes", None]


def test_bombs_cost_what_they_may(home: House) -> None:
    """However small they come: a member beyond its bound, all beyond theirs, a size that lies, gzip without an end."""
    bomb = archive([("a.jpg", bytes(50_000_000)), ("b.jpg", photograph())], "zip")
    assert len(bomb) < 60_000
    assert [item.get("problem", {}).get("status") for item in asked_raw(home, bomb)] == [413, None]
    assert problem(send(home, archive([(str(n), bytes(90_000)) for n in range(5)], "zip")), 413)
    assert problem(send(home, zlib.compress(bytes(50_000_000), wbits=31)), 413)["field"] == "max_batch_bytes"
    lying = bytearray(archive([("a.jpg", bytes(5_000_000)), ("b.jpg", photograph())], "zip"))
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", lying, lying.index(signature) + place, 5000)
    assert [item.get("problem", {}).get("status") for item in asked_raw(home, bytes(lying))] == [422, None]
    endless = bytearray(tarfile.BLOCKSIZE) + archive([("a.jpg", b"x")], "tar")
    long_header = tarfile.TarInfo("x")
    long_header.type, long_header.size = tarfile.XHDTYPE, 300_000
    assert "headers" in str(problem(send(home, long_header.tobuf() + bytes(300_544)), 422)["detail"])
    assert problem(send(home, bytes(endless), "application/x-tar"), 400)  # it begins with its end


def asked_raw(home: House, content: bytes) -> list[dict[str, Any]]:
    return lines_of(send(home, content))[0]


def test_members_that_are_no_plain_files(home: House) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for name, kind in [
            ("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE),
            ("fifo", tarfile.FIFOTYPE), ("device", tarfile.CHRTYPE),
            (".hidden/a.jpg", tarfile.REGTYPE), ("a/.DS_Store", tarfile.REGTYPE),
            ("a/._b.jpg", tarfile.REGTYPE), ("../out.jpg", tarfile.REGTYPE), ("/etc/passwd", tarfile.REGTYPE),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            packed.addfile(info)
        sparse = tarfile.TarInfo("holes.jpg")
        sparse.type = tarfile.GNUTYPE_SPARSE
        packed.addfile(sparse)
        good = tarfile.TarInfo("./a/b.jpg")
        good.size = len(photograph())
        packed.addfile(good, io.BytesIO(photograph()))
    items = asked_raw(home, out.getvalue())
    names = ["link", "hard", "fifo", "device", "../out.jpg", "/etc/passwd", "holes.jpg", "./a/b.jpg"]
    assert [item["name"] for item in items] == names
    assert [item["problem"]["status"] for item in items[:-1]] == [415, 415, 415, 415, 422, 422, 415]
    assert "predictions" in items[-1]


def test_members_of_a_zip_that_are_not_read(home: House) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.mkdir("folder")
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
        packed.writestr("bz.jpg", photograph(), zipfile.ZIP_BZIP2)
        packed.writestr("lz.jpg", photograph(), zipfile.ZIP_LZMA)
        packed.writestr("__MACOSX/._a.jpg", b"x")
        packed.writestr("inner.zip", archive(GOOD, "zip"))
        packed.writestr("C:\\x\\a.jpg", photograph())
        packed.writestr("secret.jpg", photograph())
        packed.writestr("wrong.jpg", photograph())
    content = bytearray(out.getvalue())
    content[content.rindex(b"secret.jpg") - 46 + 8] |= 1  # the flag of a password, in the directory
    content[content.index(photograph(), content.index(b"wrong.jpg")) + 30] ^= 1
    items = asked_raw(home, bytes(content))
    found = {item["name"]: item.get("problem", {}).get("status") for item in items}
    expected = {"link.jpg": 415, "bz.jpg": 415, "lz.jpg": 415, "inner.zip": 415, "C:\\x\\a.jpg": 422}
    assert found == expected | {"secret.jpg": 415, "wrong.jpg": 422}
    assert "lzma" in items[2]["problem"]["detail"]


def test_names_of_zips_that_do_not_say_how_they_are_written(home: House) -> None:
    content = archive([("猫.jpg", photograph())], "zip")
    plain = bytearray(content)
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        plain[plain.index(signature) + place + 1] &= ~8  # the flag of UTF-8
    assert [item["name"] for item in asked_raw(home, bytes(plain))] == ["猫.jpg"]


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
def test_what_came_of_a_tar_that_breaks_off_is_answered(home: House, form: str) -> None:
    content = archive(GOOD, "tar")[: 512 * 2 + len(GOOD[0][1]) // 512 * 512 + 512 + 700]
    cut = content if form == "tar" else zlib.compress(content, wbits=31)
    items = asked_raw(home, cut)
    assert "predictions" in items[0]
    assert items[-1]["name"] == ""
    assert "breaks off" in items[-1]["problem"]["detail"]
    whole = archive(GOOD[:2], "tar.gz")
    damaged = asked_raw(home, whole[:-6] + b"\0" + whole[-5:])  # its check sum
    assert ["problem" in item for item in damaged] == [False, False, True]
    assert ["problem" in item for item in asked_raw(home, whole + bytes(1024))] == [False, False]  # as tapes are


def test_two_gzips_one_after_the_other_are_one_tar(home: House) -> None:
    content = archive(GOOD, "tar")
    two = b"".join(zlib.compress(part, wbits=31) for part in (content[:3000], content[3000:]))
    assert lines_of(send(home, two))[1] == {"done": True, "items": 5, "failed": 0}


def test_it_is_counted_and_logged(home: House, caplog: pytest.LogCaptureFixture) -> None:
    counted = [home.client.get("/v1/tasks/t").json()["requests"]]
    with caplog.at_level("INFO", "adaptserve.request"):
        asked(home, [*GOOD, ("x", b"x")], "zip")
        assert until(lambda: "6 items" in caplog.text or "of 6" in caplog.text)
    assert "5 items answered and 1 failed of 6" in caplog.text
    counted.append(home.client.get("/v1/tasks/t").json()["requests"])
    assert [counted[1][name] - counted[0][name] for name in ("answered", "failed")] == [5, 1]
    assert 'adaptserve_batch_call_items_total{outcome="answered"}' in home.metrics()


def test_no_more_than_the_window_is_under_way_and_others_pass(home: House) -> None:
    """While the device computes nothing, a batch has four rows in the queue and no more; another task is taken."""
    files = [(str(place), photograph(place)) for place in range(20)]
    found: list[httpx.Response] = []
    with Held(home) as held:
        batch = threading.Thread(target=lambda: found.append(httpx.post(
            home.url + BATCH, content=archive(files, "tar"), timeout=WAIT)))  # fmt: skip
        batch.start()
        assert until(lambda: home.local.engine.queued_rows == 4)
        other = threading.Thread(target=lambda: found.append(home.ask("other", photograph())))
        other.start()
        assert until(lambda: home.local.engine.queued_rows == 5)
        assert home.built.answers._decoder._memory.held == 5
        held.gate.set()
        other.join(WAIT)
        batch.join(WAIT)
    assert [response.status_code for response in found] == [200, 200]
    assert lines_of(next(r for r in found if "ndjson" in r.headers["content-type"]))[1]["failed"] == 0
    assert not left_behind(home)


def test_a_third_batch_waits_its_turn_elsewhere(home: House) -> None:
    with Held(home) as held:
        threads = [threading.Thread(target=send, args=(home, archive(GOOD, "zip"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert until(lambda: home.built.batches.running == 2)
        refused = send(home, archive(GOOD, "zip"))
        assert problem(refused, 429)["field"] == "max_batches"
        assert int(refused.headers["retry-after"]) >= 1
        held.gate.set()
        for thread in threads:
            thread.join(WAIT)
    assert not left_behind(home)


def test_a_full_queue_makes_a_batch_wait(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path / "data", max_queue_rows=4, deadline_s=20)) as made:
        made.put("t", kit.file(1)[0]).raise_for_status()
        with Held(made) as held:
            others = [threading.Thread(target=made.ask, args=("t", photograph(n))) for n in range(4)]
            for other in others:
                other.start()
            assert until(lambda: made.local.engine.queued_rows == 4)
            found: list[httpx.Response] = []
            batch = threading.Thread(target=lambda: found.append(send(made, archive(GOOD, "zip"))))
            batch.start()
            assert until(lambda: made.built.batches.running == 1)
            held.gate.set()
            for thread in (batch, *others):
                thread.join(WAIT)
        assert lines_of(found[0])[1] == {"done": True, "items": 5, "failed": 0}


def test_a_deadline_is_of_the_whole(home: House) -> None:
    with Held(home) as held:
        response = home.client.post(BATCH, content=archive(GOOD, "zip"), headers={"X-Deadline-Ms": "300"})
        held.gate.set()
    items, last = lines_of(response)
    assert items == []
    assert (last["done"], last["items"], last["problem"]["status"]) == (False, 5, 504)
    assert until(lambda: not left_behind(home))


def raw(home: House, content: bytes, top_k: int = 5) -> socket.socket:
    """A connection on which a batch was asked for and nothing is read."""
    host, port = home.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(WAIT)
    connection.connect((host, int(port)))
    head = f"POST {BATCH}?top_k={top_k} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_a_client_that_leaves_in_the_middle_frees_all(home: House) -> None:
    with Held(home):
        connection = raw(home, archive(GOOD, "tar"))
        assert until(lambda: home.local.engine.queued_rows == 4)
        connection.close()
        assert until(lambda: home.built.batches.running == 0)
    assert until(lambda: not left_behind(home))
    half = raw(home, b"")  # and in the middle of the body
    half.sendall(b"POST /v1/tasks/t/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\nPK\x03\x04")
    assert until(lambda: home.built.batches.running == 1)
    half.close()
    assert until(lambda: not left_behind(home))


def test_an_answer_that_nobody_reads_holds_little(kit: Kit, tmp_path: Path) -> None:
    """With labels by the thousand the answers are larger than the sockets' buffers, and the work stops there."""
    labels = [f"label {place} {'x' * 100}" for place in range(800)]

    spec = Spec(sites(), len(labels), "avg", "trained")
    with house(kit.settings(data_dir=tmp_path / "data", batch_window_rows=4, send_timeout_s=60.0)) as made:
        made.put("t", kit.file(1, spec)[0]).raise_for_status()
        content = archive([(str(place), photograph()) for place in range(200)], "tar")
        connection = raw(made, content, top_k=800)
        assert until(lambda: made.client.get("/v1/tasks/t").json()["requests"]["answered"] > 0)

        def stands() -> bool:
            before = made.client.get("/v1/tasks/t").json()["requests"]["answered"]
            threading.Event().wait(0.3)
            return bool(before == made.client.get("/v1/tasks/t").json()["requests"]["answered"] < 180)

        assert until(stands)
        assert made.local.engine.queued_rows == 0
        assert made.built.answers._decoder._memory.held == 0
        assert made.ask("t", photograph()).status_code == 200
        connection.close()
        assert until(lambda: made.built.batches.running == 0)


def test_a_lost_item_is_asked_again(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that ends under way is asked again when there is one; what it fails of itself is the item's problem."""

    link, losses = home.built.answers._engine, [EngineLost("the engine's process ended before it had answered")] * 2
    inner = link.ask

    def ask(items: list[Item], *rest: Any, **more: Any) -> Any:
        if losses:
            raise losses.pop()
        return inner(items, *rest, **more)

    monkeypatch.setattr(link, "ask", ask)
    assert [("problem" in item) for item in asked(home, GOOD, "zip")] == [False] * 5
    losses += [EngineLost("the engine's process ended before it had answered")] * 1000
    items = asked(home, GOOD[:2], "zip")
    assert [item["problem"]["status"] for item in items] == [503, 503]


def test_our_own_mistake_is_the_items_and_the_log_has_it(
    home: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(home.built.answers, "_compute", wrong)
    items = asked(home, GOOD[:2], "zip")
    assert [item["problem"]["status"] for item in items] == [500, 500]
    assert "ZeroDivisionError" in caplog.text


@examples(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.text(min_size=1, max_size=12), st.sampled_from([b"", b"x", GOOD[0][1]])), max_size=4),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
def test_whatever_is_packed_and_damaged_has_lines_or_a_problem(
    home: House, form: str, files: list[tuple[str, bytes]], flips: list[tuple[int, int]], cut: int
) -> None:
    named = {name.encode("utf-8", "replace").decode().replace("\0", "0"): content for name, content in files}
    clean = list(named.items())
    content, kind = body(clean, form)
    damaged = bytearray(content[: len(content) - cut] if cut < len(content) and cut % 3 == 0 else content)
    for place, value in flips:
        if damaged:
            damaged[place % len(damaged)] = value
    response = send(home, bytes(damaged), kind)
    if response.status_code == 200:
        items, last = lines_of(response)
        assert last["done"] is True
        assert last["items"] == len(items)
        assert all(item.get("problem", {"status": 422})["status"] in (413, 415, 422) for item in items)
    else:
        assert response.status_code in (400, 413, 415, 422), response.text
        assert len(response.json()["detail"]) > 15
    assert not left_behind(home)


@pytest.mark.parametrize(
    "kill", [False, pytest.param(True, marks=[pytest.mark.torture, pytest.mark.timeout(600)])], ids=["well", "killed"]
)
def test_a_family_answers_in_order_while_another_task_is_asked(kit: Kit, tmp_path: Path, kill: bool) -> None:
    """With real processes: a body sent bit by bit, the answer read as it comes, and an engine that is killed midway."""
    backbone = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--device", "cpu"]
    arguments = [*backbone, "--data-dir", str(tmp_path / "data"), "--front-ends", "1"]
    files = [(f"{place}.jpg", photograph(place % 7)) for place in range(200)]
    files.insert(70, ("bad.txt", b"x"))
    content = archive(files, "tar")
    with Process(arguments, tmp_path / "log") as server:
        for task in ("t", "other"):
            server.client.put(f"/v1/tasks/{task}/adapter", content=kit.file(1)[0]).raise_for_status()
        names: list[str] = []
        parts = (content[at : at + 100_000] for at in range(0, len(content), 100_000))
        with (
            httpx.Client(base_url=server.url, timeout=300) as client,
            client.stream("POST", BATCH, content=parts, headers={"Content-Type": "application/x-tar"}) as response,
        ):
            assert response.status_code == 200
            for line in response.iter_lines():
                item = json.loads(line)
                names.append(item.get("name"))
                if len(names) in (20, 60):
                    server.client.post("/v1/tasks/other/predict", content=photograph()).raise_for_status()
                if len(names) == 100 and kill:
                    server.family("service.engine.process")[0].send_signal(signal.SIGKILL)
        assert item == {"done": True, "items": 201, "failed": 1}
        assert names[:-1] == [name for name, _ in files]
        assert server.stop(signal.SIGTERM) == 0
    assert "Traceback" not in server.output
