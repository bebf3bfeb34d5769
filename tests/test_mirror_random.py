"""Three writers at random over a store that fails at random: nothing acknowledged is lost, and all see the same."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import Conflict, StoreAway, UnknownTask, UnknownVersion
from service.store.manifest import TaskInfo
from service.store.truth import Truth
from tests.houses import until
from tests.mirrors import Server, bucket, empty, objects, server
from tests.replaying import check_history
from tests.s3 import Bucket, Fault

__all__ = ["bucket", "empty"]
WRITERS = 3
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "stage", "activate", "delete", "drop"]),
        st.sampled_from(["t", "u"]),
        st.integers(0, 5),
    ),
    max_size=12,
)


@dataclass
class Account:
    """What one writer was told."""

    created: dict[tuple[str, int], str] = field(default_factory=dict)
    dropped: set[tuple[str, int]] = field(default_factory=set)
    """Versions that it deleted, or may have."""
    deleted: set[str] = field(default_factory=set)
    """Tasks that it deleted, or may have."""

    def run(self, at: Server, changes: list[tuple[str, str, int]]) -> None:
        for what, task, number in changes:
            with suppress(UnknownTask, UnknownVersion, Conflict, StoreAway):
                if what in ("put", "stage"):
                    content = bytes([number])
                    made, new = at.put(task, content, activate=what == "put")
                    if new:
                        assert (task, made) not in self.created
                        self.created[task, made] = hashlib.sha256(content).hexdigest()
                elif what == "activate":
                    at.mirror.activate(task, number + 1)
                elif what == "drop":
                    self.dropped.add((task, number + 1))
                    at.mirror.delete_version(task, number + 1)
                else:
                    self.deleted.add(task)
                    at.mirror.delete_task(task)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGES, min_size=WRITERS, max_size=WRITERS), seed=st.integers(0, 1000))
def test_nothing_acknowledged_is_lost_whatever_fails(
    empty: Bucket, tmp_path_factory: pytest.TempPathFactory, changes: list[list[tuple[str, str, int]]], seed: int
) -> None:
    empty.objects.clear()
    empty.fault = lambda method, key: None
    dice = random.Random(seed)
    faults: list[Fault | None] = ["cut", "lost", "500", *[None] * 17]
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("mirrors")
        servers = [server(stack, folder / str(number)) for number in range(WRITERS)]
        empty.fault = lambda method, key: dice.choice(faults)
        accounts = [Account() for _ in servers]
        with ThreadPoolExecutor(WRITERS) as pool:
            for done in [pool.submit(a.run, at, todo) for a, at, todo in zip(accounts, servers, changes, strict=True)]:
                done.result()
        empty.fault = lambda method, key: None
        truth = Truth(objects())
        found = {name: truth.task(name) for name, _ in truth.marks()}
        check(found, accounts, empty)
        alive = {name: task for name, task in found.items() if task is not None and task.versions}
        for one in servers:
            assert until(lambda: {task.name: task for task in one.mirror.tasks()} == alive)  # noqa: B023
        past = {name: task for name, task in found.items() if task is not None}
        first = servers[0].mirror
        assert until(lambda: all(first.generation(name) == task.generation for name, task in past.items()))
        check_history(first.past, past)


def check(found: dict[str, TaskInfo | None], accounts: list[Account], bucket: Bucket) -> None:
    created: dict[tuple[str, int], str] = {}
    for account in accounts:
        assert not created.keys() & account.created.keys(), "a number was given twice"
        created |= account.created
    dropped = {version for account in accounts for version in account.dropped}
    deleted = {task for account in accounts for task in account.deleted}
    for (name, number), digest in created.items():
        task = found[name]
        assert task is not None
        assert task.next > number
        if (name, number) not in dropped and name not in deleted:
            assert task.versions[number].digest == digest
    for task in found.values():
        assert task is not None
        assert task.active is None or task.active in task.versions
        for version in task.versions.values():
            assert created.get((task.name, version.number), version.digest) == version.digest
            content = bucket.objects[f"tasks/blobs/{version.digest}"].content
            assert hashlib.sha256(content).hexdigest() == version.digest
