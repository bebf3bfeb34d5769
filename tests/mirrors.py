"""Servers' mirrors of one store in S3, whose faults a test chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.store.follower import Follower
from service.store.mirror import Mirror
from service.store.objects import Objects, open_objects
from service.store.truth import Truth
from tests.s3 import Bucket, options, s3

URL = "s3://bucket/tasks"


@dataclass
class Server:
    """A mirror with its follower; ``put`` publishes bytes."""

    mirror: Mirror
    follower: Follower

    def put(self, task: str, content: bytes, *, activate: bool = True) -> tuple[int, bool]:
        staging = self.mirror.open_staging(10**6)
        try:
            staging.write(content)
            info, created = self.mirror.publish(task, staging, activate=activate)
        finally:
            staging.discard()
        assert info.digest == hashlib.sha256(content).hexdigest()
        return info.number, created


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with s3() as (bucket, url), pytest.MonkeyPatch.context() as patch:
        for name, value in options(url).items():
            patch.setenv(name, value)
        yield bucket


@pytest.fixture
def empty(bucket: Bucket) -> Bucket:
    bucket.objects.clear()
    bucket.fault = lambda method, key: None
    bucket.asked.clear()
    return bucket


def objects(retries: int = 1) -> Objects:
    return open_objects(URL, timeout_s=5, retries=retries)


def server(stack: ExitStack, folder: Path, url: str = URL, **more: Any) -> Server:
    truth = Truth(open_objects(url, timeout_s=5, retries=1))
    mirror = stack.enter_context(closing(Mirror(folder, truth, owner="a", **more)))
    mirror.recover()
    follower = stack.enter_context(closing(Follower(mirror, truth, every_s=0.02)))
    follower.start()
    return Server(mirror, follower)
