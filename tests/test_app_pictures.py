"""Pictures over HTTP, by a real server on the demo: what is shown counts, refusals are true, the log stays clean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.houses import Kit, Process, house, problem, until
from tests.media_samples import clip, encode
from tests.test_media_heif import heic
from tests.test_media_jpeg import frame
from tests.test_media_quiet import many_channels
from tests.tiff_samples import BLACK_IS_ZERO, RGB, WHITE_IS_ZERO, tiff

NINE = Image.open(Path(__file__).parent.parent / "adapters/demo/samples/digits-9.png").convert("L")
GREY = np.asarray(NINE)[..., None].astype(np.uint16) * 257


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("server")
    with Process(["--data-dir", str(folder / "data")], folder / "log") as process:
        yield process


def ask(server: Process, body: bytes) -> httpx.Response:
    return server.client.post("/v1/tasks/digits/predict", content=body, params={"top_k": 10})


def ink(picture: Image.Image) -> Image.Image:
    """A grey picture as black ink on nothing; lighter is clearer."""
    return Image.merge("LA", (Image.new("L", picture.size), ImageOps.invert(picture))).convert("RGBA")


def test_what_a_viewer_shows_is_what_is_answered(server: Process) -> None:
    shown = ask(server, encode(NINE, "PNG")).json()["predictions"]
    assert shown[0]["label"] == "9"
    bodies = {
        "clear": encode(ink(NINE), "PNG"),
        "clear webp": encode(ink(NINE), "WEBP", lossless=True),
        "16 bits": tiff(GREY, BLACK_IS_ZERO),
        "white is zero": tiff(65535 - GREY, WHITE_IS_ZERO, order=">"),
        "planes": tiff(GREY.repeat(3, -1), RGB, planar=2),
        "with more behind": encode(NINE, "PNG") + clip(),
    }
    for name, body in bodies.items():
        assert ask(server, body).json()["predictions"] == shown, name


def test_vectors_come_from_the_engines_process(server: Process) -> None:
    """Through its messages: the backbone's, and a task's beside its labels."""
    body = encode(NINE, "PNG")
    bare = server.client.post("/v1/embed", content=body).raise_for_status().json()
    params = {"top_k": 10, "embedding": True}
    own = server.client.post("/v1/tasks/digits/predict", content=body, params=params).json()
    assert len(bare["embedding"]) == len(own["embedding"]) > 100
    assert np.corrcoef(bare["embedding"], own["embedding"])[0, 1] < 0.999
    assert own["predictions"] == ask(server, body).json()["predictions"]
    again = server.client.post("/v1/embed", content=body).json()
    assert bare == again


def test_a_motion_photograph_is_its_photograph(server: Process) -> None:
    photograph = encode(NINE.convert("RGB"), "JPEG", progressive=True)
    alone = ask(server, photograph).json()["predictions"]
    assert ask(server, photograph + clip() + b"\xff\xda" * 9_000).json()["predictions"] == alone


@pytest.mark.parametrize("name", ["AVIF", "HEIC"])
def test_pictures_of_phones(server: Process, name: str) -> None:
    large = NINE.convert("RGB").resize((128, 128))
    body = heic(large) if name == "HEIC" else encode(large, name, quality=90)
    assert ask(server, body).json()["predictions"][0]["label"] == "9"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (frame(0xC1, bits=12), "12 bits"),
        (tiff(np.ones((4, 4, 3), np.float32), RGB), "floating-point"),
        (many_channels(), "65535 channels"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_whole_files_that_are_not_read_are_not_called_broken(server: Process, body: bytes, reason: str) -> None:
    detail = str(problem(ask(server, body), 415)["detail"])
    assert reason in detail
    assert "whole file" not in detail


def test_the_log_has_a_line_for_each_request_and_no_other(server: Process) -> None:
    ask(server, many_channels())
    ask(server, encode(NINE, "TIFF")[:-200])
    end = re.compile(r"POST \S+ digits 422 in [^\n]*\n$")
    assert until(lambda: end.search(server.output) is not None)
    lines = server.output.split("\n")
    started = next(i for i, line in enumerate(lines) if line.startswith("try "))
    assert [line for line in lines[started + 1 :] if line and "INFO adaptserve.request: " not in line] == []


def test_the_background_is_a_setting(kit: Kit, tmp_path: Path) -> None:
    black, white = (encode(Image.new("L", NINE.size, level), "PNG") for level in (0, 255))
    for background, body in (("black", black), ("#ffffff", white)):
        settings = kit.settings(data_dir=tmp_path / background[-5:], transparent_background=background)
        with house(settings) as home:
            home.put("pets", kit.file(1)[0])
            shown = home.ask("pets", body).json()["predictions"]
            assert home.ask("pets", encode(Image.new("RGBA", NINE.size), "PNG")).json()["predictions"] == shown
