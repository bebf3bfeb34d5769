"""Ray Serve without Ray: what it asks of a replica, who is refused, how many there should be.

`make replicas` runs the real one.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send
from typer.testing import CliRunner

from service.cli.main import app as command
from service.errors import BadRequest, Conflict, NotReady
from service.keys import Keys, create, dump
from service.ray import (
    BUSY,
    QUEUE_S,
    QueuePolicy,
    RaySettings,
    Replica,
    app,
    check,
    check_door,
    claimed,
    of_replicas,
    wanted,
)  # fmt: skip
from service.settings import Settings
from service.web.protocol import EXCHANGE
from service.web.proxied import Behind
from tests.houses import Kit, photograph

ROOT = Path(__file__).parent.parent
PICTURE = photograph()


def test_two_replicas_are_whole_servers_of_one_store(kit: Kit, tmp_path: Path) -> None:
    settings = kit.settings(data_dir=tmp_path / "data", store=f"file://{tmp_path / 'store'}", store_poll_s=0.05)

    async def journey() -> None:
        replicas = [Replica(settings.model_dump_json()) for _ in range(2)]
        apps = [await replica.begin(f"replica-{number}") for number, replica in enumerate(replicas)]
        try:
            one, other = (
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") for app in apps
            )
            async with one, other:
                content, adapter = kit.file(1)
                made = await one.put("/v1/tasks/pets/adapter", content=content, headers={"x-request-id": "mine"})
                assert (made.status_code, made.headers["x-adaptserve-replica"]) == (201, "replica-0")
                assert "x-request-id" not in made.headers  # Ray's proxy adds the one that it gave
                headers = {"X-AdaptServe-Generation": made.headers["X-AdaptServe-Generation"]}
                answer = await other.post("/v1/tasks/pets/predict", content=PICTURE, headers=headers)
                assert answer.json()["digest"] == adapter.digest
                assert answer.headers["x-adaptserve-replica"] == "replica-1"
                assert (await other.get("/v1/tasks", headers={"Host": "rebound.example"})).status_code == 421
            await replicas[0].check_health()
            told = replicas[0].record_autoscaling_stats()
            assert set(told) == {QUEUE_S, BUSY}
            assert told[QUEUE_S] == 0
            assert {path.name for path in (tmp_path / "data").iterdir()} == {"replica-0", "replica-1"}
        finally:
            for replica in replicas:
                await replica.end()

    asyncio.run(journey())


def test_keys_go_along_and_nobody_trains(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(dump([create("ops", "admin")[1]]))
    told = of_replicas(Settings(keys_file=str(tmp_path / "keys.json")))
    assert Keys.read(told.keys, told.keys_file).all[0].name == "ops"
    assert told.max_trainings == 0
    assert told.data_dir.is_absolute()


def test_health_is_that_of_readyz() -> None:
    class Engine:
        async def ready(self) -> None:
            raise NotReady("the device does not compute")

    replica = Replica(Settings().model_dump_json())
    asyncio.run(replica.check_health())  # it comes up
    replica._alone = type("Alone", (), {"engine": Engine()})()
    with pytest.raises(NotReady):
        asyncio.run(replica.check_health())


async def nothing() -> None: ...


def test_a_replica_ends_with_the_applications_life() -> None:
    said: list[Message] = []
    ended = asyncio.Event()

    async def end() -> None:
        assert [message["type"] for message in said] == ["lifespan.startup.complete"]
        ended.set()

    async def receive() -> Message:
        return {"type": "lifespan.startup" if not said else "lifespan.shutdown"}

    async def send(message: Message) -> None:
        said.append(message)

    asyncio.run(Behind(nothing, "r", end)({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]
    assert ended.is_set()
    assert said[-1]["type"] == "lifespan.shutdown.complete"


def asked(app: Any, headers: list[tuple[bytes, bytes]], receive: Receive, sent: list[Message]) -> Any:
    async def send(message: Message) -> None:
        sent.append(message)

    return Behind(app, "r", nothing)({"type": "http", "headers": headers}, receive, send)


def test_a_client_that_leaves_is_noticed_both_ways() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await scope["state"][EXCHANGE].departed
        await send({"type": "http.response.start", "status": 499, "headers": []})

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def coming() -> Message:
        return {"type": "http.request", "body": b"", "more_body": True}

    async def run() -> None:
        sent: list[Message] = []
        await asked(app, [], gone, sent)
        assert [message["status"] for message in sent] == [499]
        task = asyncio.create_task(asked(app, [], coming, sent))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [message["status"] for message in sent] == [499, 499]

    asyncio.run(run())


def test_a_request_id_that_was_not_sane_is_told_of_beside_rays() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"ours")]})

    sent: list[Message] = []
    asyncio.run(asked(app, [(b"x-request-id", b"not sane")], lambda: asyncio.sleep(0), sent))  # type: ignore[arg-type]
    assert (b"x-request-id", b"ours") in sent[0]["headers"]


@pytest.mark.parametrize(
    ("own", "others", "word"),
    [
        ({"replicas": 2}, {}, "store"),
        ({"max_replicas": 2}, {}, "store"),
        ({"replicas": 2}, {"data_dir": "/somewhere"}, "store"),
        ({}, {"device": "cuda:0,cuda:1"}, "num_gpus"),
        ({"num_gpus": 1}, {"device": "cpu"}, "num_gpus"),
    ],
)
def test_what_cannot_serve_the_same_is_refused(own: dict[str, Any], others: dict[str, Any], word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        check(RaySettings(**own), Settings(**others))


def test_what_can_is_not() -> None:
    check(RaySettings(replicas=2), Settings(store="file:///mnt/tasks"))
    check(RaySettings(num_gpus=0.5), Settings())


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(BadRequest, match="there is no setting replcias"):
        app({"replcias": 2})


def test_replicas_have_folders_of_their_own_and_take_over_those_that_were_left(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, store="file:///somewhere")
    with ExitStack() as stack:
        first = ExitStack()
        assert claimed(settings, first)[0].data_dir == tmp_path / "replica-0"
        assert claimed(settings, stack)[0].data_dir == tmp_path / "replica-1"
        first.close()
        assert claimed(settings, stack)[0].data_dir == tmp_path / "replica-0"


def test_without_a_store_there_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.ray.PATIENCE_S", 0.0)
    settings = Settings(data_dir=tmp_path, drain_s=0.0)
    with ExitStack() as stack:
        assert claimed(settings, stack)[0].data_dir == tmp_path
        with pytest.raises(Conflict):
            claimed(settings, ExitStack())


def test_nobody_listens_for_other_machines_without_keys() -> None:
    keys = dump([create("ops", "admin")[1]])
    check_door(Settings(), "127.0.0.1", ports=False)
    check_door(Settings(keys=keys), "0.0.0.0", ports=True)
    check_door(Settings(insecure=True), "0.0.0.0", ports=True)
    for host, ports in (("0.0.0.0", False), ("127.0.0.1", True), ("", False)):
        with pytest.raises(BadRequest, match="keys_file"):
            check_door(Settings(), host, ports)


@given(
    replicas=st.integers(1, 50), queue=st.floats(0, 100), busy=st.lists(st.floats(0, 1), min_size=1, max_size=50),
    bound=st.floats(0.01, 10),
)  # fmt: skip
def test_more_for_a_long_queue_and_never_fewer_than_can_carry_it(
    replicas: int, queue: float, busy: list[float], bound: float
) -> None:
    assume(not math.isclose(queue, bound))
    found = wanted(replicas, [queue] * len(busy), busy, bound)
    if queue > bound:
        assert replicas < found <= 2 * replicas
    else:
        assert 1 <= found <= replicas
        assert found == replicas or sum(busy) <= 0.8 * found + 1e-9


def test_nothing_told_changes_nothing() -> None:
    assert wanted(3, [], [], 0.1) == 3


def test_rays_autoscaler_is_answered() -> None:
    context = SimpleNamespace(
        target_num_replicas=2, aggregated_metrics={QUEUE_S: {"a": 0.3, "b": 0.0}, BUSY: {"a": 1, "b": 1}}
    )
    assert QueuePolicy(queue_s=0.1)(context) == (pytest.approx(3.0), {})
    context.aggregated_metrics = {}
    assert QueuePolicy(queue_s=0.1)(context) == (2, {})


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    refused = CliRunner().invoke(command, ["ray", "deploy", "--host", "0.0.0.0"])
    assert refused.exit_code == 2
    assert "keys create" in refused.output


def test_every_setting_of_ray_is_in_the_page() -> None:
    page = (ROOT / "docs/SCALE.md").read_text()
    for name, field in RaySettings.model_fields.items():
        assert f"| `{name}` | {field.default:g} | {field.description} |" in page, name
