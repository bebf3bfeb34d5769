"""Jobs: records on disk, who may change them when; which examples are held out; and the calls about them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import TrainingError
from adaptserve_client import AsyncClient, BadRequestError, Client, NotFoundError
from service.errors import QueueFull, UnknownJob
from service.keys import create, dump
from service.store.example_index import ExampleFile, ExampleSet
from service.teach.jobs import Jobs, Stopped
from service.teach.keeper import Keeper
from service.teach.records import TrainingJob
from service.teach.split import SHARE, check_examples, held_out
from service.teach.telling import JobTeller
from tests.houses import House, Kit, house, problem
from tests.teaching import refused, send, start


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    (tmp_path / "staging").mkdir()
    return Jobs(tmp_path, max_waiting=2, max_kept=3)


def add(jobs: Jobs, task: str = "t") -> TrainingJob:
    return jobs.add(task, "auto", {"a": 2, "b": 2}, epochs=None, activate=True)


def test_a_job_from_its_first_word_to_its_last(jobs: Jobs) -> None:
    job = add(jobs)
    assert jobs.get(job.id) == job
    assert (job.state, job.started, jobs.work(0), jobs.work(7)) == ("waiting", None, True, True)
    mine = jobs.claim(0)
    assert mine is not None
    assert (mine.id, mine.state, jobs.work(0), jobs.work(1)) == (job.id, "running", True, False)
    assert jobs.claim(1) is None
    jobs.update(mine, progress=0.5, stage="adapter")
    jobs.place(mine, "linear").write_bytes(b"x")
    jobs.finish(mine, "good")
    done = jobs.get(job.id)
    assert (done.state, done.progress, done.stage, done.verdict) == ("done", 1.0, None, "good")
    assert not jobs.place(mine, "linear").exists()
    assert not jobs.work(0)
    assert jobs.cancel(job.id) == done  # it is over
    with pytest.raises(Stopped):
        jobs.update(mine, progress=0.7)


def test_a_stop_is_heard_by_whoever_is_at_it_before_anything_is_published(jobs: Jobs) -> None:
    add(jobs)
    mine = jobs.claim(0)
    assert mine is not None
    assert jobs.cancel(mine.id).state == "cancelled"
    for call in (lambda: jobs.update(mine, progress=1.0), lambda: jobs.finish(mine, ""), lambda: jobs.fail(mine, {})):
        with pytest.raises(Stopped):
            call()
    with pytest.raises(Stopped), jobs.publishing(mine):
        raise AssertionError("nothing may be published")


def test_a_trainer_finds_its_own_job_again_and_its_deaths_are_counted(jobs: Jobs) -> None:
    first, second = add(jobs), add(jobs)
    for slot, job, deaths in ((0, first, 1), (1, second, 1), (0, first, 2), (0, first, 3)):
        claimed = jobs.claim(slot)
        assert claimed is not None
        assert (claimed.id, claimed.deaths) == (job.id, deaths)
    jobs.rest()
    assert [job.deaths for job in jobs.all()] == [0, 0]
    jobs.recover(slots=1)
    assert [(job.state, job.slot) for job in jobs.all()] == [("waiting", None), ("running", 0)]


def test_waiting_and_kept_jobs_are_bounded(jobs: Jobs) -> None:
    for _ in range(3):  # one of them as good as runs
        add(jobs)
    with pytest.raises(QueueFull, match=r"limit is 2 \(max_jobs_waiting\)"):
        add(jobs)
    ids = [job.id for job in jobs.all()]
    assert ids == sorted(ids, reverse=True)
    for job_id in ids:
        jobs.cancel(job_id)
    newest = [add(jobs).id for _ in range(2)]
    assert [job.id for job in jobs.all()] == [*reversed(newest), *ids[:2]]
    assert sorted(path.name for path in jobs.folder.iterdir() if path.is_dir()) == sorted([*newest, *ids[:2]])


def test_what_is_no_id_is_no_path(jobs: Jobs) -> None:
    add(jobs)
    for job_id in ("", ".", "..", "../jobs", "/etc", "20260101-000000000-zzzzzz", "a" * 5000, "writing"):
        with pytest.raises(UnknownJob):
            jobs.get(job_id)


def test_what_a_task_leaves_is_removed_and_so_is_what_no_record_tells_of(jobs: Jobs) -> None:
    mine, other = add(jobs, "mine"), add(jobs, "other")
    jobs.forget("mine")
    assert [job.id for job in jobs.all()] == [other.id]
    folder = jobs.folder / mine.id
    assert not folder.exists()
    folder.mkdir()
    (folder / "adaptformer.safetensors.resume").write_bytes(b"x")
    jobs.recover(1)
    assert not folder.exists()
    (jobs.folder / other.id / "job.json").write_text("{")
    assert jobs.all() == []
    assert not jobs.work(0)


def test_a_teller_writes_stages_curves_and_the_time_that_is_left(jobs: Jobs) -> None:
    add(jobs)
    job = jobs.claim(0)
    assert job is not None
    now = [0.0]
    teller = JobTeller(jobs, job, "adaptformer", (0.2, 1.0), clock=lambda: now[0])
    seen = []
    for stage, share in (
        ("reading 9 files", 0.5),
        ("the best linear head", 1.0),
        ("training", 0.0),
        ("training", 0.5),
        ("publish", 1.0),
    ):
        now[0] += 10
        teller.at(stage, share)
        seen.append((jobs.get(job.id).stage, jobs.get(job.id).progress, jobs.get(job.id).seconds_left))
    assert [stage for stage, _, _ in seen] == ["features", "head", "adapter", "adapter", "publish"]
    assert [progress for _, progress, _ in seen] == sorted(progress for _, progress, _ in seen)
    assert [left for _, _, left in seen] == [None, None, None, 10.0, None]
    line = {"epoch": 3, "loss": 0.5, "held_out_loss": 0.4, "accuracy": 0.75}
    teller.scored([line], 9)
    told = jobs.get(job.id)
    assert (told.epoch, told.epochs, told.curves.accuracy, told.curves.train_loss) == (3, 9, [0.75], [0.5])


def examples(counts: dict[str, int], modality: Any = "image") -> ExampleSet:
    digests = iter(range(10**6))
    items = [
        ExampleFile(1, f"{(next(digests) * 2654435761) % 2**32:064x}", label, modality, "image/png", 1, "", Path("x"))
        for label, count in counts.items()
        for _ in range(count)
    ]
    return ExampleSet("t", Path("x"), tuple(items))


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(2, 60), min_size=2))
def test_a_fifth_of_each_label_is_held_out_the_same_every_time(counts: dict[str, int]) -> None:
    given_set = examples(counts)
    apart = held_out(given_set)
    for label, count in counts.items():
        held = sum(one.digest in apart for one in given_set.items if one.label == label)
        assert 1 <= held < count
        assert abs(held - SHARE * count) <= 1
    turned = ExampleSet("t", Path("x"), tuple(reversed(given_set.items)))
    assert held_out(turned) == apart


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "0 labels (none yet)"), ({"a": 5}, "1 labels (of the label 'a' alone)"),
        ({"a": 5, "b": 1}, "one example alone of 'b'"), ({"a": 2, "b": 2, "c": 2, "d": 2}, "may have 3 here"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_told(counts: dict[str, int], said: str) -> None:
    with pytest.raises(TrainingError) as raised:
        check_examples(examples(counts), 3)
    assert said in raised.value.message


def test_pictures_among_clips_are_told() -> None:
    mixed = ExampleSet("t", Path("x"), (*examples({"a": 2}).items, *examples({"b": 2}, "video").items))
    with pytest.raises(TrainingError, match="2 pictures and 2 clips"):
        check_examples(mixed, 3)


def test_a_keeper_starts_a_trainer_for_work_and_again_where_it_died(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.teach.keeper.PAUSE_S", 0.01)

    class Ended:
        name = "trainer"

        def __init__(self, code: int) -> None:
            self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self.ended.set_result(code)
            self.channel = self

        def send(self, *_: object) -> None: ...

    async def run() -> list[int]:
        codes, done = [-9, 1, 0], asyncio.Event()
        started: list[int] = []

        async def begin(slot: int) -> Any:
            code = codes[len(started) % 3]
            started.append(code)
            if code == 0:
                for job in jobs.all():
                    jobs.cancel(job.id)
                done.set()
            return Ended(code)

        keeper = Keeper(0, jobs, begin)
        running = asyncio.ensure_future(keeper.run())
        await asyncio.sleep(0.05)
        assert started == []  # no work, no trainer
        for _ in range(2):
            await asyncio.to_thread(add, jobs)
            keeper.wake()
            await asyncio.wait_for(done.wait(), 20)
            done.clear()
        running.cancel()
        return started

    assert asyncio.run(run()) == [-9, 1, 0, -9, 1, 0]


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings = kit.settings(data_dir=tmp_path_factory.mktemp("data"), max_jobs_waiting=3, max_classes=4)
    with house(settings) as made:
        send(made.client, "shapes", 2)
        yield made


def test_a_training_is_refused_at_once_where_nothing_can_come_of_it(home: House) -> None:
    assert "examples of 0 labels" in refused(home.client, "none", 422)
    send(home.client, "one", 2, ["disc"])
    assert "'disc' alone" in refused(home.client, "one", 422)
    for asked in ({"method": "magic"}, {"epochs": 0}, {"epochs": 10**6}, {"rate": 1}, {"activate": "perhaps"}):
        assert next(iter(asked)) in refused(home.client, "shapes", 400, **asked)
    for body in (b"[]", b"{", b"\xff", b'{"epochs": 1' + b"0" * 3000 + b"}"):
        assert problem(home.client.post("/v1/tasks/shapes/training", content=body), 400)
    assert problem(home.client.post("/v1/tasks/shapes/training", content=b"{" + b" " * 5000 + b"}"), 413)
    assert problem(home.client.post("/v1/tasks/NO/training"), 400)
    assert home.client.get("/v1/jobs").json() == {"jobs": [], "count": 0, "next": None}


def test_jobs_are_listed_page_by_page_newest_first_and_stopped(home: House) -> None:
    body = {"method": "linear", "epochs": 3}
    ids = [start(home.client, "shapes", **body)["id"] for _ in range(3)]
    curl = home.client.post(
        "/v1/tasks/shapes/training", content=b'{"method":"lora"}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    assert curl.json()["method"] == "lora"
    ids.append(curl.json()["id"])
    answer = home.client.post("/v1/tasks/shapes/training")
    assert "max_jobs_waiting" in str(problem(answer, 429)["detail"])
    assert int(answer.headers["retry-after"]) > 0
    first = home.client.get("/v1/jobs", params={"limit": 3}).json()
    assert ([job["id"] for job in first["jobs"]], first["count"]) == (ids[:0:-1], 4)
    last = home.client.get("/v1/jobs", params={"limit": 3, "after": first["next"]}).json()
    assert ([job["id"] for job in last["jobs"]], last["next"]) == (ids[:1], None)
    assert home.client.delete(f"/v1/jobs/{ids[0]}").status_code == 204
    assert home.client.get(f"/v1/jobs/{ids[0]}").json()["state"] == "cancelled"
    found = home.client.get("/v1/jobs", params={"state": "cancelled", "task": "shapes"}).json()["jobs"]
    assert [job["id"] for job in found] == [ids[0]]
    assert home.client.get("/v1/jobs", params={"task": "other"}).json()["count"] == 0
    assert set(found[0]) == set(
        home.client.get("/openapi.json").json()["components"]["schemas"]["JobAnswer"]["properties"]
    )
    for path in (f"/v1/jobs/{ids[0]}/reports/1", "/v1/jobs/nosuch", "/v1/jobs/..%2F..", "/v1/jobs/nosuch/reports/1"):
        problem(home.client.get(path), 404)
    problem(home.client.delete("/v1/jobs/nosuch"), 404)
    for state in ("over", ""):
        problem(home.client.get("/v1/jobs", params={"state": state}), 400)


def test_both_clients_begin_look_at_and_stop_trainings(home: House) -> None:
    for job in home.built.jobs.all():
        home.built.jobs.cancel(job.id)
    with Client(home.url) as client:
        job = client.train_task("shapes", "linear", activate=False)
        assert (job.state, job.method, job.over, job.published) == ("waiting", "linear", False, ())
        assert job.examples == {"bar": 2, "box": 2, "disc": 2}
        client.cancel(job.id)
        assert client.job(job.id).over
        assert next(client.jobs("shapes")).id == job.id
        with pytest.raises(NotFoundError):
            client.job("../tasks")
        with pytest.raises(BadRequestError):
            client.train_task("shapes", "magic")

    async def ask() -> list[str]:
        async with AsyncClient(home.url) as client:
            job = await client.train_task("shapes", epochs=4)
            await client.cancel(job.id)
            assert (await client.job(job.id)).state == "cancelled"
            return [one.id async for one in client.jobs(state="cancelled") if one.id == job.id]

    assert len(asyncio.run(ask())) == 1


def test_a_server_may_train_nothing(kit: Kit, tmp_path: Path) -> None:
    with house(kit.settings(data_dir=tmp_path, max_trainings=0)) as made:
        send(made.client, "shapes", 2)
        assert "max_trainings is 0" in refused(made.client, "shapes", 409)


def test_a_key_sees_the_jobs_of_its_tasks_alone(kit: Kit, tmp_path: Path) -> None:
    made = {
        "boss": create("boss", "admin"),
        "keeper": create("keeper", "admin", ["mine"]),
        "app": create("app", "predict"),
    }
    (tmp_path / "keys.json").write_text(dump(key for _, key in made.values()))
    headers = {name: {"Authorization": f"Bearer {secret}"} for name, (secret, _) in made.items()}
    with house(kit.settings(data_dir=tmp_path / "data", keys_file=str(tmp_path / "keys.json"))) as guarded:
        client = guarded.client
        client.headers.update(headers["boss"])
        for task in ("mine", "other"):
            send(client, task, 2)
        mine, other = (start(client, task) for task in ("mine", "other"))
        client.headers.update(headers["keeper"])
        assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [mine["id"]]
        problem(client.get("/v1/jobs", params={"task": "other"}), 403)
        problem(client.post("/v1/tasks/other/training"), 403)
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/reports/1")):
            problem(client.request(method, f"/v1/jobs/{other['id']}{path}"), 404)
        assert client.get(f"/v1/jobs/{mine['id']}").status_code == 200
        client.headers.update(headers["app"])
        for method, path in (
            ("POST", "/v1/tasks/mine/training"),
            ("GET", "/v1/jobs"),
            ("GET", f"/v1/jobs/{mine['id']}"),
        ):
            problem(client.request(method, path), 403)
        client.headers.update(headers["boss"])
        assert client.get("/v1/jobs").json()["count"] == 2
        assert client.get(f"/v1/jobs/{other['id']}").json()["state"] == "waiting"
