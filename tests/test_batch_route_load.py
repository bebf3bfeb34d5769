"""Batch calls under load: a window, turns and a deadline; who leaves or reads nothing; failures and kills midway."""

from __future__ import annotations

import json
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import EngineLost
from service.messages import Item
from tests.archives import archive
from tests.batches import BATCH, GOOD, asked, home, left_behind, lines_of, send
from tests.houses import WAIT, House, Kit, Process, house, photograph, problem, sites, until
from tests.models import Spec
from tests.test_app_load import Held

__all__ = ["home"]


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
