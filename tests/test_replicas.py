"""Three servers on one store, changed at all of them at random under load, while the store goes away and servers die.

The short form has its servers in this process; `make torture` has real families of processes, and kills them.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.houses import House, Kit, Process, client_of, house, pages, until
from tests.replicas import Replicas
from tests.s3 import options, s3

SERVERS = 3
CHANGES, CUTS, CUT_S, KILLS = 1000, 2, 20.0, 4


def told(run: Replicas) -> str:
    seen = sorted(run.seen_after)
    found = {"p50": seen[len(seen) // 2], "p99": seen[int(0.99 * len(seen))], "worst": seen[-1]} if seen else {}
    return json.dumps(
        {"changes": run.changes, "looks": len(seen), "everywhere_after_s": {k: round(v, 3) for k, v in found.items()}}
        | dict(sorted(run.counts.items()))
    )


def all_there(run: Replicas, client: httpx.Client) -> bool:
    """Whether a server has every version that was acknowledged and not deleted, and says so of their digests."""
    for task in run.tasks:
        answer = client.get(f"/v1/tasks/{task.name}/versions")
        listed = pages(client, f"/v1/tasks/{task.name}/versions", "versions") if answer.status_code == 200 else []
        found = {version["version"]: version["digest"] for version in listed}
        if any(found.get(number) != digest for number, digest in task.versions.items()):
            return False
    return True


@contextmanager
def busy(run: Replicas, changes: int, writers: int, readers: int) -> Iterator[None]:
    """Writers for as long as the block lasts, and until so many changes are made; readers beside them.

    What went wrong with one is raised.
    """
    with ThreadPoolExecutor(writers + readers) as pool:
        writing = [pool.submit(run.write) for _ in range(writers)]
        reading = [pool.submit(run.read) for _ in range(readers)]
        try:
            yield
            run.wanted = changes
            for one in writing:
                one.result(600)
        finally:
            run.stop()
        for one in reading:
            one.result(60)


def test_three_servers_agree_while_the_store_goes_away(kit: Kit, tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        bucket, url = stack.enter_context(s3())
        for name, value in options(url).items():
            patch.setenv(name, value)
        homes: list[House] = [
            stack.enter_context(house(kit.settings(data_dir=tmp_path / str(n), store="s3://bucket/x")))
            for n in range(SERVERS)
        ]
        run = Replicas(kit, [lambda home=home: home.url for home in homes], seed=1, tasks=4)
        with busy(run, 60, writers=3, readers=2):
            assert until(lambda: run.changes > 20)
            run.store_away(bucket.away, 1.0)
        print(told(run))
        assert run.wrong == []
        for home in homes:
            assert until(lambda: all_there(run, home.client))  # noqa: B023
        assert run.counts["answered"] > 20
        assert sorted(run.seen_after)[len(run.seen_after) // 2] < 1
        assert run.counts["publish 503"] > 0, "nobody tried while the store was away"


class Family:
    """One server that is killed and started again on its folder; it may have no address for a while."""

    def __init__(self, kit: Kit, folder: Path) -> None:
        self._kit, self._folder, self._lives = kit, folder, 0
        self.process: Process | None = None
        self.start()

    def start(self) -> None:
        self._lives += 1
        given = ["--backbone", str(self._kit.folder / "vit"), "--weights", "random:0", "--threads", "1"]
        given += ["--store", "s3://bucket/x", "--data-dir", str(self._folder), "--front-ends", "2"]
        self.process = Process(given, self._folder.parent / f"{self._folder.name}-{self._lives}.log")

    def url(self) -> str | None:
        process = self.process
        return process.url if process is not None else None

    def kill(self) -> None:
        process, self.process = self.process, None
        assert process is not None
        assert process.stop(signal.SIGKILL) == -signal.SIGKILL


@contextmanager
def s3_process() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.s3", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_three_servers_are_killed_and_lose_nothing(tmp_path: Path) -> None:
    kit, dice = Kit(tmp_path), random.Random(1)
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        url = stack.enter_context(s3_process())
        for name, value in options(url).items():
            patch.setenv(name, value)
        families = [Family(kit, tmp_path / f"server-{number}") for number in range(SERVERS)]
        for family in families:
            stack.callback(lambda family=family: family.process and family.process.stop(signal.SIGKILL))
        run = Replicas(kit, [family.url for family in families], seed=1, tasks=12)

        def cut(seconds: float) -> None:
            httpx.post(f"{url}/bucket/-/away?seconds={seconds}")

        with busy(run, CHANGES, writers=4, readers=3):
            events = ["cut"] * CUTS + ["kill"] * KILLS
            dice.shuffle(events)
            for event in events:
                before = run.changes
                assert until(lambda: run.changes > before + CHANGES / 10, 600), told(run)  # noqa: B023
                if event == "cut":
                    run.store_away(cut, CUT_S)
                else:
                    family = dice.choice(families)
                    time.sleep(dice.random() * 0.2)
                    family.kill()
                    family.start()
        print(told(run))
        assert run.wrong == []
        assert run.counts["publish 503"] > 0
        for family in families:
            assert family.process is not None
            with client_of(family.process.url) as client:
                assert until(lambda: all_there(run, client))
        assert len(run.seen_after) > 50
        assert sorted(run.seen_after)[int(0.99 * len(run.seen_after))] < 1
