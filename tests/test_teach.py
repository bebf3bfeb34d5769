"""Trainings carried out: what is published and when, and that a job that fails says why and leaves nothing behind."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from adapters.config import Pool
from adapters.training.fit import FitConfig
from adapters.training.plan import TrainingPlan
from adapters.training.progress import Teller
from adapters.training.recipe import Recipe, config_of, pools_of
from adapters.training.run import read_data
from adapters.training.start import frozen
from adaptserve_client import Client
from service.teach import auto, telling
from service.teach.asking import Asking
from service.teach.judge import Judged, listing_of
from service.teach.split import held_out
from tests.houses import House, Kit, house, problem, until
from tests.media_samples import clip
from tests.models import close
from tests.teaching import SHAPES, Trainer, send, shape, start, trainer


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        yield made


@pytest.fixture(scope="module")
def worker(home: House) -> Iterator[Trainer]:
    with trainer(home) as made:
        yield made


def files(home: House) -> set[str]:
    """All that lies in the data folder, without what is made on the way."""
    root = home.settings.data_dir
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def answers(client: httpx.Client, task: str, version: int, held: dict[str, bytes]) -> dict[str, str]:
    """What the endpoint says of each held-out file, one by one."""
    found = {}
    for digest, body in held.items():
        answer = client.post(f"/v1/tasks/{task}/predict", params={"version": version}, content=body)
        found[digest] = answer.raise_for_status().json()["predictions"][0]["label"]
    return found


def held_of(home: House, task: str) -> tuple[dict[str, str], dict[str, bytes]]:
    """Of the held-out examples: their labels, and their bytes."""
    examples = home.built.examples.of(task)
    chosen = [one for one in examples.items if one.digest in held_out(examples)]
    return {one.digest: one.label for one in chosen}, {one.digest: one.path.read_bytes() for one in chosen}


def test_auto_publishes_a_head_and_then_an_adapter_by_what_held_out_examples_say(home: House, worker: Trainer) -> None:
    send(home.client, "shapes", 10)
    job = start(home.client, "shapes", method="auto", epochs=2)
    assert (job["state"], job["examples"]) == ("waiting", dict.fromkeys(SHAPES, 10))
    worker.work()
    done = home.client.get(f"/v1/jobs/{job['id']}").json()
    assert (done["state"], done["problem"], done["progress"]) == ("done", None, 1.0)
    head, adapter = done["published"]
    assert (head["method"], head["version"], head["active"], head["held_out"]) == ("linear", 1, True, 6)
    assert (adapter["method"], adapter["version"]) == ("adaptformer", 2)
    assert done["verdict"] == adapter["verdict"]
    with Client(home.url) as client:
        told = client.job(job["id"])
        assert (told.over, [one.version for one in told.published]) == (True, [1, 2])
        assert told.published[0].accuracy == head["accuracy"]
    assert "better than version 1 on 6 held-out examples" in adapter["verdict"]
    assert home.client.get("/v1/tasks/shapes").json()["version"] == (2 if adapter["active"] else 1)
    assert (done["epoch"], done["epochs"], done["curves"]["epochs"]) == (2, 2, [1, 2])
    assert len(done["curves"]["train_loss"]) == len(done["curves"]["accuracy"]) == 2
    kept = {path.removeprefix(f"jobs/{done['id']}/") for path in files(home) if done["id"] in path}
    reports = {f"{m}.safetensors.report/{f}" for m in ("adaptformer", "linear") for f in ("index.html", "metrics.json")}
    assert kept == {"job.json"} | reports


def test_what_is_promised_is_what_the_endpoint_answers(home: House, worker: Trainer) -> None:
    """Of both versions, file by file; and the report says the same."""
    done = home.client.get("/v1/jobs", params={"task": "shapes"}).json()["jobs"][0]
    labels, held = held_of(home, "shapes")
    assert len(held) == 6
    for one in done["published"]:
        found = answers(home.client, "shapes", one["version"], held)
        right = sum(labels[digest] == found[digest] for digest in held) / len(held)
        assert right == one["accuracy"]
        page = home.client.get(one["report"])
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "sandbox" in policy
        told = json.loads((worker.jobs.report(done["id"], one["version"]).parent / "metrics.json").read_text())
        assert told["training"]["held_out_accuracy"] == pytest.approx(right, abs=1e-4)
        assert {line["path"].split("/")[1]: line["predicted"] for line in told["held_out"]} == {
            digest[:12]: label for digest, label in found.items()
        }
        config = home.client.get(f"/v1/tasks/shapes/versions/{one['version']}/config").json()
        assert config["training"]["held_out_accuracy"] == pytest.approx(right, abs=1e-4)


def test_vectors_from_the_engine_are_the_backbones_own(home: House, worker: Trainer, kit: Kit) -> None:
    listing = listing_of(home.built.examples.of("shapes"))
    recipe = Recipe("shapes", "linear")
    plan = TrainingPlan(Path("x"), Path("x.safetensors"), recipe, FitConfig())
    config = config_of(recipe, kit.backbone, listing.modality, listing.labels)
    _, (train, _), _ = read_data(plan, listing, config, Teller())
    pools: tuple[Pool, ...] = pools_of(recipe, kit.backbone.layout)
    asking: Asking = worker.teaching._asking
    ours, theirs = asking.frozen(config, pools, train, 0, lambda _: None), frozen(kit.backbone, config, pools, train)
    assert set(ours.vectors) == set(theirs.vectors) == {"cls", "avg"}
    assert torch.equal(ours.labels, theirs.labels)
    for pool, vectors in theirs.vectors.items():
        close(ours.vectors[pool], vectors)


def test_one_method_alone_and_staged(home: House, worker: Trainer) -> None:
    before = home.client.get("/v1/tasks/shapes").json()["version"]
    job = start(home.client, "shapes", method="lora", epochs=1, activate=False)
    worker.work()
    done = home.client.get(f"/v1/jobs/{job['id']}").json()
    (one,) = done["published"]
    assert (one["method"], one["active"]) == ("lora", False)
    assert "kept staged, as was asked" in one["verdict"]
    assert home.client.get("/v1/tasks/shapes").json()["version"] == before


def test_clips_are_taught_as_pictures_are(home: House, worker: Trainer) -> None:
    for label, seeds in (("slow", range(3)), ("fast", range(3, 6))):
        for seed in seeds:
            body = clip(count=10 + seed)
            home.client.post("/v1/tasks/moves/examples", params={"label": label}, content=body).raise_for_status()
    start(home.client, "moves", method="linear")
    done = worker.work()
    assert done.state == "done", done.problem
    labels, held = held_of(home, "moves")
    found = answers(home.client, "moves", 1, held)
    assert done.published[0].accuracy == sum(labels[d] == found[d] for d in held) / len(held)


def test_labels_may_be_any_text(home: House, worker: Trainer) -> None:
    odd = ["</style><b>x", 'Füße; "a,b"', "../../etc"]
    send(home.client, "odd", 2, odd)
    start(home.client, "odd", method="linear")
    done = worker.work()
    assert (done.state, done.problem) == ("done", None)
    assert home.client.get("/v1/tasks/odd").json()["labels"] == sorted(odd)
    assert "<b>x" not in home.client.get(done.published[0].report).text


def test_examples_that_went_meanwhile_end_it_in_words(home: House, worker: Trainer) -> None:
    send(home.client, "gone", 3)
    start(home.client, "gone", method="linear")
    home.client.delete("/v1/tasks/gone/examples", params={"label": "disc"}).raise_for_status()
    home.client.delete("/v1/tasks/gone/examples", params={"label": "box"}).raise_for_status()
    before = files(home)
    done = worker.work()
    assert (done.state, done.published) == ("failed", [])
    assert done.problem is not None
    assert "examples of 1 labels" in done.problem["detail"]
    assert files(home) == before
    problem(home.client.get("/v1/tasks/gone"), 404)


def test_a_file_that_is_broken_on_the_disk_is_left_out(home: House, worker: Trainer) -> None:
    send(home.client, "broken", 4)
    examples = home.built.examples.of("broken")
    victim = next(one for one in examples.items if one.digest not in held_out(examples))
    victim.path.write_bytes(b"no picture any more")
    start(home.client, "broken", method="linear")
    done = worker.work()
    assert done.state == "done", done.problem
    assert home.client.get("/v1/tasks/broken/versions/1/config").json()["training"]["bad_files"] == 1


@pytest.mark.parametrize(
    ("kind", "said"), [(OSError(errno.ENOSPC, "No space left on device"), "disk with the data folder is full"),
                       (OSError(errno.EIO, "Input/output error"), "disk failed"), (MemoryError(), "memory"),
                       (ValueError("x"), "a mistake of the server's own (ValueError)")],
    ids=["full", "broken", "memory", "mistake"],
)  # fmt: skip
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    home: House, worker: Trainer, monkeypatch: pytest.MonkeyPatch, kind: Exception, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise kind

    job = start(home.client, "shapes", method="linear")
    before, served = files(home), home.client.get("/v1/tasks/shapes/versions").json()
    with monkeypatch.context() as patch:
        patch.setattr("adapters.training.run.write_adapter", fail)
        patch.setattr(auto.log, "error", lambda *_, **__: None)
        done = worker.work()
    assert (done.state, done.published) == ("failed", [])
    assert done.problem is not None
    assert said in done.problem["detail"]
    assert str(home.settings.data_dir) not in json.dumps(done.problem)
    assert files(home) == before
    assert home.client.get("/v1/tasks/shapes/versions").json() == served
    assert home.ask("shapes", shape("disc", 1)).status_code == 200
    assert home.client.get(f"/v1/jobs/{job['id']}").json()["problem"] == done.problem


def test_a_stop_is_heard_while_it_trains_and_what_was_published_stays(
    home: House, worker: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(home.client, "stopped", 3)
    job = start(home.client, "stopped", method="auto", epochs=500)
    monkeypatch.setattr(telling, "EVERY_S", 0.0)
    step = worker.teaching._step

    def stop() -> None:
        assert home.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        step()

    monkeypatch.setattr(worker.teaching, "_step", stop)
    worker.work()
    done = home.client.get(f"/v1/jobs/{job['id']}").json()
    assert (done["state"], len(done["published"]), done["stage"]) == ("cancelled", 1, None)
    assert home.client.get("/v1/tasks/stopped").json()["version"] == 1
    assert not [path for path in files(home) if job["id"] in path and path.endswith(("safetensors", "resume"))]


def test_deleting_a_task_stops_its_training_and_takes_all_of_it_along(
    home: House, worker: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(home.client, "deleted", 3)
    job = start(home.client, "deleted", method="auto", epochs=500)
    monkeypatch.setattr(telling, "EVERY_S", 0.0)
    monkeypatch.setattr(worker.teaching, "_step", lambda: home.client.delete("/v1/tasks/deleted"))
    worker.teaching.carry_out(worker.claim())
    problem(home.client.get(f"/v1/jobs/{job['id']}"), 404)
    problem(home.client.get("/v1/tasks/deleted"), 404)
    gone = job["id"], "examples/deleted", "staging/"
    assert until(lambda: not any(word in path for path in files(home) for word in gone))  # removed beside what follows


def test_a_trainer_that_died_goes_on_where_it_was(
    home: House, worker: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First in the middle of the adapter, then right before its file is published."""

    class Killed(BaseException):
        pass

    job = start(home.client, "shapes", method="adaptformer", epochs=6)
    counted = []

    def die(*_: Any) -> None:
        counted.append(1)
        if len(counted) == 15:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(worker.teaching, "_step", die)
        with pytest.raises(Killed):
            worker.teaching.carry_out(worker.claim())
    half = home.client.get(f"/v1/jobs/{job['id']}").json()
    assert half["state"] == "running"
    assert 0 < half["epoch"] < 6

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(worker.teaching, "_publish", killed)
        with pytest.raises(Killed):
            worker.teaching.carry_out(worker.claim())
    assert home.client.get(f"/v1/jobs/{job['id']}").json()["curves"]["epochs"] == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr("service.teach.auto.train", killed)  # not again
    done = worker.work()
    assert (done.state, len(done.published)) == ("done", 1)


def test_a_job_that_ends_its_trainer_again_and_again_is_given_up(home: House, worker: Trainer) -> None:
    start(home.client, "shapes", method="linear")
    for _ in range(auto.MOST_DEATHS):
        worker.claim()
    done = worker.work()
    assert done.state == "failed"
    assert done.problem is not None
    assert "ended 3 times in a row" in done.problem["detail"]


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        ([0.1] * 6, [0.5] * 6, True), ([0.5] * 6, [0.5] * 6, False), ([0.1, 0.9], [0.9, 0.1], False),
        ([0.4] * 5 + [3.0], [0.5] * 6, False), ([0.1] * 5 + [0.6], [0.5] * 6, True), ([0.1], [0.5], False),
    ],
)  # fmt: skip
def test_better_is_more_than_chance(new: list[float], old: list[float], better: bool) -> None:
    one, other = (Judged(np.array(losses), 1.0, 1.0) for losses in (new, old))
    assert one.better_than(other) is better
    assert not Judged(np.array(new), 0.5, 0.5).better_than(other)
