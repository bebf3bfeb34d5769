"""Two servers over HTTP on one store: what is published, activated or deleted at one is so at the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.houses import House, Kit, house, photograph, until
from tests.s3 import Bucket, options, s3

POLL_S = 0.1
GENERATION = "X-AdaptServe-Generation"


@pytest.fixture(scope="module")
def shared(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bucket, House, House]]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        bucket, url = stack.enter_context(s3())
        for name, value in options(url).items():
            patch.setenv(name, value)
        homes = [
            stack.enter_context(
                house(kit.settings(
                    data_dir=tmp_path_factory.mktemp(name), store="s3://bucket/a/b", store_poll_s=POLL_S,
                    store_timeout_s=1.0,
                ))
            )
            for name in "ab"
        ]  # fmt: skip
        yield bucket, homes[0], homes[1]


def test_published_at_one_is_answered_at_the_other(shared: tuple[Bucket, House, House], kit: Kit) -> None:
    _, a, b = shared
    content, adapter = kit.file(1)
    assert a.put("one", content).status_code == 201
    began = time.monotonic()
    assert until(lambda: b.ask("one", photograph()).status_code == 200)
    assert time.monotonic() - began < 1
    assert b.ask("one", photograph()).json()["digest"] == adapter.digest
