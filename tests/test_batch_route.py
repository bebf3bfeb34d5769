"""Batch calls: many pictures or clips in one body, a line an item in order, whatever the body is."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.archives import FORMS, archive, body
from tests.batches import BATCH, GOOD, asked, home, left_behind, lines_of, send
from tests.houses import House, photograph, problem, scores_of
from tests.media_samples import clip

__all__ = ["home"]


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
