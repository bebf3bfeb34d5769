"""Downloads over real sockets: ranges, tags, and files that are deleted meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRange
from service.web.routes.download import CHUNK, byte_range
from tests.houses import House, Kit, house, problem, sites
from tests.models import Spec

PATH = "/v1/tasks/pets/versions/1/adapter"


@pytest.fixture(scope="module")
def content(kit: Kit) -> bytes:
    """A file of several chunks."""
    made = kit.file(1, Spec(sites(), 9000, "avg", "trained"))[0]
    assert len(made) > 2 * CHUNK
    return made


@pytest.fixture(scope="module")
def home(kit: Kit, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = kit.settings(data_dir=tmp_path_factory.mktemp("data"), max_classes=9000)
    with house(settings) as made:
        made.put("pets", content).raise_for_status()
        yield made


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0), ("bytes=0-99", 0, 99), ("bytes=100-", 100, -1), ("bytes=-100", -100, -1),
        ("bytes=-999999999", 0, -1), ("bytes=5-999999999999", 5, -1), ("Bytes=1-2", 1, 2), ("bytes= 3-4", 3, 4),
        (f"bytes={CHUNK - 1}-{CHUNK}", CHUNK - 1, CHUNK), (f"bytes=1-{2 * CHUNK + 7}", 1, 2 * CHUNK + 7),
    ],
)  # fmt: skip
def test_a_range_is_sent(home: House, content: bytes, asked: str, first: int, last: int) -> None:
    size = len(content)
    first, last = first % size, last % size
    part = home.client.get(PATH, headers={"Range": asked})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert int(part.headers["content-length"]) == len(part.content)
    assert part.content == content[first : last + 1]
    assert part.headers["etag"] == home.client.head(PATH).headers["etag"]


@pytest.mark.parametrize("asked", ["bytes={size}-", "bytes=9999999999-", "bytes={size}-{size}", "bytes=-0"])
def test_a_range_of_nothing_is_416(home: House, content: bytes, asked: str) -> None:
    refused = home.client.get(PATH, headers={"Range": asked.format(size=len(content))})
    problem(refused, 416)
    assert refused.headers["content-range"] == f"bytes */{len(content)}"


@pytest.mark.parametrize(
    "asked",
    [
        "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-4", "bytes=0-1,5-6", "pages=1-2", "bytes=0-1-2",
        "bytes=--5", "bytes=+1-2", "bytes=1_0-20", "bytes=" + "9" * 5000 + "-",
    ],
)  # fmt: skip
def test_what_is_no_single_range_gets_the_whole(home: House, content: bytes, asked: str) -> None:
    whole = home.client.get(PATH, headers={"Range": asked})
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["accept-ranges"] == "bytes"


def test_a_range_of_what_was_there_before(home: House, content: bytes) -> None:
    tag = home.client.head(PATH).headers["etag"]
    for given_tag, status in ((tag, 206), (f"W/{tag}", 200), ('"other"', 200), ("Wed, 25 Nov 2026 10:00:00 GMT", 200)):
        answer = home.client.get(PATH, headers={"Range": "bytes=1-2", "If-Range": given_tag})
        assert answer.status_code == status
        assert answer.content == (content[1:3] if status == 206 else content)


def test_what_the_caller_has_is_not_sent(home: House) -> None:
    tag = home.client.head(PATH).headers["etag"]
    bare = tag.strip('"')
    for have in (tag, f"W/{tag}", "*", f'"a", {tag}', f'W/"a",W/{tag} , "b"', f'"a"\t,{tag}'):
        for more in ({}, {"Range": "bytes=0-1"}, {"Range": "bytes=9999999999-"}):
            answer = home.client.get(PATH, headers={"If-None-Match": have, **more})
            assert (answer.status_code, answer.content) == (304, b""), have
            assert answer.headers["etag"] == tag
    for have in ('"a"', "", bare, f'"x{bare}"', f'"{bare}x"', f"{tag[:-1]}", '"*"'):
        assert home.client.get(PATH, headers={"If-None-Match": have}).status_code == 200, have
    two = home.client.get(PATH, headers=[("If-None-Match", '"a"'), ("If-None-Match", tag)])
    assert two.status_code == 304


def test_a_version_that_is_deleted_meanwhile_is_sent_whole(home: House, content: bytes) -> None:
    home.put("leaving", content).raise_for_status()
    for asked, expected in (({}, content), ({"Range": "bytes=7-"}, content[7:])):
        version = home.put("leaving", content).json()["version"]
        with home.client.stream("GET", f"/v1/tasks/leaving/versions/{version}/adapter", headers=asked) as answer:
            home.client.delete("/v1/tasks/leaving").raise_for_status()
            assert b"".join(answer.iter_bytes()) == expected


@given(st.text(max_size=40) | st.from_regex(r"bytes=\d{0,6}-\d{0,6}", fullmatch=True), st.integers(1, 2000))
def test_any_range_lies_within_the_file(header: str, size: int) -> None:
    with suppress(BadRange):
        part = byte_range(header, size)
        assert part is None or 0 <= part[0] < part[1] <= size
