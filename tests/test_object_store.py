"""Two servers over HTTP on one store: what is published, activated or deleted at one is so at the other.

The store is ``tests.s3``, with its faults; ``tests/test_torture_store.py`` does it with processes and kills.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from adaptserve_client import Client
from service.cli.main import app
from tests.houses import House, Kit, house, photograph, problem, until
from tests.s3 import Bucket, options, s3

POLL_S = 0.1
GENERATION = "X-AdaptServe-Generation"
PREFIX = "a/b/"
Shared = tuple[Bucket, House, House]


@pytest.fixture(scope="module")
def shared(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        bucket, url = stack.enter_context(s3())
        for name, value in options(url).items():
            patch.setenv(name, value)
        homes = [
            stack.enter_context(
                house(
                    kit.settings(
                        data_dir=tmp_path_factory.mktemp(name), store="s3://bucket/a/b", store_poll_s=POLL_S,
                        store_timeout_s=1.0, host_cache_bytes=0, slots=16, store_cache_bytes=150_000,
                    )
                )
            )
            for name in "ab"
        ]  # fmt: skip
        yield bucket, homes[0], homes[1]


@pytest.fixture(autouse=True)
def well(shared: Shared) -> Iterator[None]:
    """No test leaves a fault to the next."""
    yield
    bucket, a, b = shared
    bucket.fault = lambda method, key: None
    bucket.away_until = 0.0
    assert until(lambda: all(home.front.catalogue.repository.store_age < 1 for home in (a, b)))


def digest_of(answer: httpx.Response) -> str | None:
    return answer.json()["digest"] if answer.status_code == 200 else None


def test_what_one_does_the_other_answers_within_a_second(shared: Shared, kit: Kit) -> None:
    _, a, b = shared
    (first, one), (second, two) = kit.file(1), kit.file(2)
    for home, other, content, adapter in ((a, b, first, one), (b, a, second, two)):
        assert home.put("follow", content).status_code == 201
        began = time.monotonic()
        assert until(lambda: digest_of(other.ask("follow", photograph())) == adapter.digest)  # noqa: B023
        assert time.monotonic() - began < 1
    assert a.client.post("/v1/tasks/follow/versions/1/activate").status_code == 200
    assert until(lambda: digest_of(b.ask("follow", photograph())) == one.digest, 1)
    assert b.client.delete("/v1/tasks/follow").status_code == 204
    assert until(lambda: a.ask("follow", photograph()).status_code == 404, 1)
    again = a.put("follow", first).json()
    assert again["version"] == 3, "the numbers of a deleted task go on growing"


def test_whoever_names_the_version_or_sends_the_generation_sees_it_at_once(shared: Shared, kit: Kit) -> None:
    bucket, a, b = shared
    bucket.fault = lambda method, key: "slow" if "/log/" in key and method == "GET" else None  # followers are late
    for seed in range(10, 14):
        content, adapter = kit.file(seed)
        put = a.put("once", content)
        named = b.ask("once", photograph(), version=put.json()["version"])
        assert digest_of(named) == adapter.digest
    content, adapter = kit.file(14)
    put = a.put("once", content)
    headers = {GENERATION: put.headers[GENERATION]}
    answer = b.client.post("/v1/tasks/once/predict", content=photograph(), headers=headers)
    assert digest_of(answer) == adapter.digest
    gone = b.client.delete("/v1/tasks/once", headers=headers)
    assert int(gone.headers[GENERATION]) > int(headers[GENERATION])
    answer = a.client.get("/v1/tasks/once", headers={GENERATION: gone.headers[GENERATION]})
    problem(answer, 404)


class Balancer(httpx.BaseTransport):
    """Uploads go to one server, all else to another."""

    def __init__(self, a: House, b: House) -> None:
        self._to = {True: httpx.URL(a.url), False: httpx.URL(b.url)}
        self._http = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        to = self._to[request.method == "PUT"]
        request.url = request.url.copy_with(port=to.port)
        return self._http.handle_request(request)

    def close(self) -> None:
        self._http.close()


def test_a_client_sees_its_own_changes_through_any_balancer(shared: Shared, kit: Kit) -> None:
    _, a, b = shared
    with Client(a.url, transport=Balancer(a, b)) as client:
        for seed in range(15, 19):
            content, adapter = kit.file(seed)
            client.upload(content, task="own")
            assert client.predict(photograph(), task="own").digest == adapter.digest


@pytest.mark.parametrize("value", ["-1", "x", "1" * 40, "9" * 16])
def test_a_generation_that_no_answer_had_is_refused(shared: Shared, value: str) -> None:
    _, a, _ = shared
    assert GENERATION in str(problem(a.client.get("/v1/tasks", headers={GENERATION: value}), 400))


def test_the_store_away_what_is_known_is_served_and_nothing_is_put(shared: Shared, kit: Kit) -> None:
    bucket, a, b = shared
    content, adapter = kit.file(20)
    generation = a.put("away", content).headers[GENERATION]
    assert digest_of(b.client.post("/v1/tasks/away/predict", content=photograph(), headers={GENERATION: generation}))
    bucket.away(60)
    for home in (a, b):
        assert digest_of(home.ask("away", photograph())) == adapter.digest
        refused = home.put("away", kit.file(21)[0])
        assert "store" in str(problem(refused, 503)["detail"])
        assert refused.headers["Retry-After"]
        problem(home.client.post("/v1/tasks/away/versions/1/activate"), 503)
        problem(home.client.delete("/v1/tasks/away"), 503)
        assert home.client.get("/readyz").status_code == 200
    assert until(lambda: age(b) > 1)
    bucket.away_until = 0.0
    assert until(lambda: age(b) < 1)
    assert a.put("away", kit.file(21)[0]).status_code in (200, 201)


def test_examples_are_the_servers_own_and_lie_beside_the_mirror(shared: Shared) -> None:
    _, a, b = shared
    assert a.client.post("/v1/tasks/taught/examples?label=cat", content=photograph()).status_code == 201
    assert a.client.get("/v1/tasks/taught/examples").json()["counts"] == {"cat": 1}
    assert b.client.get("/v1/tasks/taught/examples").json()["counts"] == {}
    assert a.client.delete("/v1/tasks/taught").status_code == 204


def test_the_age_of_the_view_is_told(shared: Shared) -> None:
    _, a, _ = shared
    told = a.client.get("/v1/stats").json()["store"]
    assert told["age_s"] < 5
    assert told["generation"] == a.front.catalogue.repository.store_seen
    done = CliRunner().invoke(app, ["top", "--once", "--url", a.url, "--interval", "0.1"])
    assert re.search(r"^store: answered \d\.\d s ago, known up to change \d+$", done.output, re.MULTILINE), done.output


def age(home: House) -> float:
    lines = home.client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("adaptserve_store_age_seconds")).split()[1])


def test_other_bytes_than_the_digest_says_are_never_served(shared: Shared, kit: Kit) -> None:
    bucket, a, b = shared
    content, adapter = kit.file(30)
    generation = a.put("wrong", content).headers[GENERATION]
    bucket.fault = lambda method, key: "wrong" if "/blobs/" in key and method == "GET" else None
    ask = {"content": photograph(), "headers": {GENERATION: generation}}
    said = problem(b.client.post("/v1/tasks/wrong/predict", **ask), 503)
    assert "digest" in str(said["detail"])
    bucket.fault = lambda method, key: None
    assert digest_of(b.client.post("/v1/tasks/wrong/predict", **ask)) == adapter.digest
    # What goes wrong on the server's own disk is fetched again.
    file = b.settings.data_dir / "mirror/blobs" / adapter.digest
    for seed in range(60, 76):
        b.put(f"other-{seed}", kit.file(seed)[0])
        assert b.ask(f"other-{seed}", photograph()).status_code == 200
    file.write_bytes(bytes(len(content)))
    assert digest_of(b.ask("wrong", photograph())) == adapter.digest
    assert hashlib.sha256(file.read_bytes()).hexdigest() == adapter.digest


def test_files_at_hand_are_bounded_and_come_back_when_asked_for(shared: Shared, kit: Kit) -> None:
    _, a, b = shared
    folder = b.settings.data_dir / "mirror/blobs"
    size = len(kit.file(40)[0])
    count = 2 * b.settings.store_cache_bytes // size + 1
    digests = {}
    for seed in range(40, 40 + count):
        content, adapter = kit.file(seed)
        digests[f"many-{seed}"] = adapter.digest
        generation = a.put(f"many-{seed}", content).headers[GENERATION]
    b.client.get("/v1/tasks", headers={GENERATION: generation})
    for _ in range(2):
        for task, digest in digests.items():
            assert digest_of(b.ask(task, photograph())) == digest
            assert sum(f.stat().st_size for f in folder.iterdir()) <= b.settings.store_cache_bytes


def test_a_slow_fetch_is_in_nobodys_way(shared: Shared, kit: Kit) -> None:
    bucket, a, b = shared
    content, adapter = kit.file(90)
    generation = a.put("quick", content).headers[GENERATION]
    ask = {"content": photograph(), "headers": {GENERATION: generation}}
    assert b.client.post("/v1/tasks/quick/predict", **ask).status_code == 200
    slow = [f"slow-{seed}" for seed in range(12)]
    for seed, task in enumerate(slow):
        generation = a.put(task, kit.file(91 + seed)[0]).headers[GENERATION]
    b.client.get("/v1/tasks", headers={GENERATION: generation})
    bucket.fault = lambda method, key: "slow" if "/blobs/" in key else None
    with ThreadPoolExecutor(len(slow)) as pool:
        waiting = [pool.submit(b.ask, task, photograph()) for task in slow]
        worst = 0.0
        while not all(one.done() for one in waiting):
            began = time.monotonic()
            assert digest_of(b.ask("quick", photograph())) == adapter.digest
            worst = max(worst, time.monotonic() - began)
        assert all(one.result().status_code == 200 for one in waiting)
    assert worst < 0.3, "another task's request waited for a fetch"


def test_a_server_starts_from_what_it_knew_while_the_store_is_away(shared: Shared, kit: Kit, tmp_path: Path) -> None:
    bucket, a, _ = shared
    content, adapter = kit.file(110)
    a.put("kept", content)
    settings = a.settings.model_copy(update={"data_dir": tmp_path})
    with house(settings) as c:
        assert digest_of(c.ask("kept", photograph())) == adapter.digest
    bucket.away(60)
    with house(settings) as c:
        assert digest_of(c.ask("kept", photograph())) == adapter.digest
        problem(c.put("kept", kit.file(111)[0]), 503)
        bucket.away_until = 0.0
        assert until(lambda: c.put("kept", kit.file(111)[0]).status_code in (200, 201))
