"""The OpenAPI document against the server, by schemathesis: each answer is one that the document foretells.

What it makes up is the same in every run. Requests that once failed become tests of the module they failed in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.store.examples import ExampleDraft
from service.store.recents import key_of
from service.teach.records import PublishedVersion
from tests.archives import archive
from tests.houses import CLIP, House, Kit, house, photograph, until
from tests.media_samples import clip

OPERATIONS = [
    "POST /v1/tasks/{task}/predict", "POST /v1/predict", "POST /v1/tasks/{task}/batch",
    "PUT /v1/tasks/{task}/adapter", "GET /v1/tasks",
    "GET /v1/tasks/{task}", "DELETE /v1/tasks/{task}", "GET /v1/tasks/{task}/versions",
    "GET /v1/tasks/{task}/versions/{version}", "DELETE /v1/tasks/{task}/versions/{version}",
    "GET /v1/tasks/{task}/versions/{version}/adapter", "POST /v1/tasks/{task}/versions/{version}/activate",
    "GET /v1/tasks/{task}/versions/{version}/config",
    "POST /v1/tasks/{task}/examples", "GET /v1/tasks/{task}/examples", "DELETE /v1/tasks/{task}/examples",
    "GET /v1/tasks/{task}/examples/{digest}", "DELETE /v1/tasks/{task}/examples/{digest}",
    "GET /v1/tasks/{task}/examples/{digest}/thumbnail", "POST /v1/tasks/{task}/feedback",
    "GET /v1/tasks/{task}/uncertain", "GET /v1/tasks/{task}/uncertain/{key}/thumbnail",
    "POST /v1/tasks/{task}/training", "GET /v1/jobs", "GET /v1/jobs/{job}", "DELETE /v1/jobs/{job}",
    "GET /v1/jobs/{job}/reports/{version}",
    "GET /v1/tasks/{task}/traffic", "PUT /v1/tasks/{task}/traffic", "DELETE /v1/tasks/{task}/traffic",
    "PUT /v1/tasks/{task}/shadow", "DELETE /v1/tasks/{task}/shadow", "GET /v1/tasks/{task}/agreement",
    "GET /v1/tasks/{task}/history", "GET /v1/history",
    "GET /livez", "GET /readyz", "GET /metrics", "GET /v1/stats", "GET /v1/key", "POST /v1/embed",
]  # fmt: skip
OTHERS = [
    "GET /", "GET /v1/models", "GET /v1/models/{task}", "GET /v1/models/{task}/versions/{version}",
    "GET /v1/models/{task}/metadata", "GET /v1/models/{task}/versions/{version}/metadata",
    "POST /v1/models/{task}:predict", "POST /v1/models/{task}/versions/{version}:predict",
    "POST /v1/models/{task}:classify", "POST /v1/models/{task}/versions/{version}:classify",
    "GET /v2", "GET /v2/health/live", "GET /v2/health/ready", "GET /v2/models", "GET /v2/models/stats",
    "GET /v2/models/{task}/stats", "GET /v2/models/{task}",
    "GET /v2/models/{task}/ready", "GET /v2/models/{task}/config", "GET /v2/models/{task}/versions/{version}",
    "GET /v2/models/{task}/versions/{version}/ready", "GET /v2/models/{task}/versions/{version}/config",
    "POST /v2/models/{task}/infer", "POST /v2/models/{task}/versions/{version}/infer", "POST /v2/repository/index",
    "POST /v2/repository/models/{task}/load", "POST /v2/repository/models/{task}/unload",
    "GET /ping", "GET /models", "GET /models/{task}", "GET /models/{task}/{version}", "GET /models/{task}/health",
    "GET /models/{task}/info", "POST /models/{task}", "POST /predictions/{task}", "PUT /predictions/{task}",
    "POST /predictions/{task}/{version}", "PUT /predictions/{task}/{version}",
]  # fmt: skip
"""Of other servers' protocols; their bodies have tests of their own."""
UNFIT = (positive_data_acceptance, not_a_server_error)
"""A picture is a string to the document: it cannot say which ones are fine. And a short deadline may pass: 504."""
PARTS = {"start", "end", "window", "stride", "frames"}
PREDICT = ("/v1/tasks/{task}/predict", "/v1/predict")
FEW, FEWER = 15, 5
TASKS = ("digits", "digits", "clips", "gone")
PICTURE, KEPT = photograph(7), "kept"
LABELS = ("dog", "dog", "cat")


class Contract:
    """A server with two tasks of two versions each, and its document with what clients really send as bodies."""

    def __init__(self, home: House, kit: Kit) -> None:
        self.home = home
        self._files = {"digits": [kit.file(n)[0] for n in (1, 2)], "clips": [kit.file(n, CLIP)[0] for n in (3, 4)]}
        files = {f"{task} {i}": content for task, kept in self._files.items() for i, content in enumerate(kept)}
        pictures = {"jpeg": photograph(), "png": photograph(1, "PNG"), "clip": clip(), "empty": b""}
        self._bodies = pictures | files
        self.document: dict[str, Any] = home.client.get("/openapi.json").json()
        schema = schemathesis.openapi.from_dict(self.document)
        self.operations = {found.ok().label: found.ok() for found in schema.get_all_operations()}

    def fill(self) -> None:
        """Put back what other tests deleted."""
        for task, files in self._files.items():
            for content in files:
                self.home.put(task, content).raise_for_status()
            for path in ("examples", "feedback"):
                asked = {"params": {"label": "cat"}, "content": PICTURE}
                self.home.client.post(f"/v1/tasks/{task}/{path}", **asked).raise_for_status()
        self.home.built.examples.add(
            "digits", [ExampleDraft(label, "image", "image/jpeg", photograph(n)) for n, label in enumerate(LABELS)]
        )
        self._published()
        uncertain = "/v1/tasks/digits/uncertain"
        if not self.home.client.get(uncertain).json()["items"]:  # deleted, or given as feedback
            asked = {"content": PICTURE, "headers": {"X-Request-Id": KEPT}}
            self.home.client.post("/v1/tasks/digits/predict", **asked).raise_for_status()
            assert until(lambda: self.home.client.get(uncertain).json()["items"])

    def _published(self) -> None:
        """A job that is over and has a report of each version; nobody carries jobs out here."""
        jobs = self.home.built.jobs
        numbers = [one["version"] for one in self.home.client.get("/v1/tasks/digits/versions").json()["versions"]]
        for job in jobs.all():
            jobs.cancel(job.id)
        self._job = jobs.add("digits", "auto", {}, epochs=None, activate=True).id
        mine = jobs.claim(0)
        published = [
            PublishedVersion(
                version=number, digest="", method="linear", accuracy=1.0, balanced_accuracy=1.0, held_out=1,
                active=True, verdict="", report=f"/v1/jobs/{mine.id}/reports/{number}",
            )
            for number in numbers
        ]  # fmt: skip
        jobs.finish(jobs.update(mine, published=published), "good")
        for number in numbers:
            report = jobs.report(mine.id, number)
            report.parent.mkdir(exist_ok=True)
            report.write_text("<title>report</title>")

    def cases(self, label: str) -> st.SearchStrategy[Any]:
        """Calls as documented and calls against the document, and for each the checks that are not for it.

        Many are of tasks that are there, with bodies that fit.
        """
        operation = self.operations[label]
        fine = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        kept = self.home.client.get("/v1/tasks/digits/versions").json()["versions"]
        self._active, *self._idle = sorted((one["version"] for one in kept), key=lambda n: not self._is_active(kept, n))
        if label.endswith("/agreement"):
            self.home.client.put("/v1/tasks/digits/shadow", json={"version": self._idle[0]}).raise_for_status()
        real = {
            "task": st.sampled_from(TASKS),
            "part": st.sampled_from([{}, {}, {}, {"start": 0.1}, {"window": 0.2}]),
            "version": st.sampled_from([version["version"] for version in kept]),
            "digest": st.just(hashlib.sha256(PICTURE).hexdigest()),
            "key": st.just(key_of(KEPT)),
            "job": st.just(self._job),
            "body": st.sampled_from([name for name in self._bodies if (" " in name) or not label.endswith("/adapter")]),
        }
        return st.one_of(
            st.builds(self._with, fine, st.fixed_dictionaries(real)),
            st.tuples(fine, st.just(UNFIT)),
            st.tuples(wrong, st.just(UNFIT)),
        )

    def _with(self, case: Any, real: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """The case with what is real in the place of what was made up; bytes are no string to schemathesis."""
        for name in real.keys() & case.path_parameters.keys():
            case.path_parameters[name] = real[name]
        for name in PARTS & case.query.keys():  # few numbers are a part of a clip that has one
            del case.query[name]
        if case.path in PREDICT:
            case.query.update(real["part"])
        if "task" in case.query:
            case.query["task"] = [real["task"]]
        if case.path.endswith(("/traffic", "/shadow", "/agreement")):
            case.path_parameters["task"] = "digits"
        if case.path.endswith("/agreement"):
            case.query["version"] = self._idle[0]
        if case.media_type == "application/json":
            if case.path.endswith("/training"):
                case.path_parameters["task"] = "digits"
            case.body = self._ruled(case.path) or _json(
                case.path, base64.b64encode(self._bodies[real["body"]]).decode()
            )
        elif case.media_type not in (None, "multipart/form-data"):
            case.body = self._bodies[real["body"]]
            if case.path.endswith("/batch"):
                case.body = archive([("a", case.body), ("b", b"")], "zip")
        return case, (*UNFIT, negative_data_rejection)

    def _ruled(self, path: str) -> dict[str, Any] | None:
        if path.endswith("/traffic"):
            return {str(self._active): 95, str(self._idle[0]): 5}
        return {"version": self._idle[0]} if path.endswith("/shadow") else None

    @staticmethod
    def _is_active(kept: list[dict[str, Any]], number: int) -> bool:
        return any(one["version"] == number and one["active"] for one in kept)


def _json(path: str, text: str) -> dict[str, Any]:
    """What each of the other protocols takes, with a file's base64 in it."""
    if path.endswith("/infer"):
        return {"inputs": [{"name": "IMAGE", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    if path.endswith(":classify"):
        return {"examples": [{"b64": text}]}
    if path.endswith(":predict"):
        return {"instances": [{"b64": text}]}
    if path.endswith("/training"):
        return {"method": "linear"}
    if path.endswith("/feedback"):
        return {"request_id": KEPT, "label": "cat"}
    return {"inputs": text} if path.startswith("/models") else {"data": text}


@pytest.fixture(scope="module")
def contract(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    bounds = {"max_adapter_bytes": 2**20, "max_body_bytes": 2**20, "keep_recent": 50}
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"), **bounds)) as made:
        yield Contract(made, kit)


def test_every_operation_is_in_the_list(contract: Contract) -> None:
    assert sorted(contract.operations) == sorted(OPERATIONS + OTHERS)


@pytest.mark.parametrize(
    "examples", [FEW, pytest.param(300, marks=[pytest.mark.torture, pytest.mark.timeout(1800)])], ids=["few", "many"]
)
@pytest.mark.parametrize("label", OPERATIONS + OTHERS)
def test_answers_are_as_documented(contract: Contract, label: str, examples: int) -> None:
    contract.fill()
    statuses: set[int] = set()

    @settings(
        max_examples=FEWER if examples == FEW and label in OTHERS else examples, derandomize=True, database=None,
        deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(contract.cases(label))
    def call(made: tuple[Any, tuple[Any, ...]]) -> None:
        case, unfit = made
        response = case.call(base_url=contract.home.url)
        statuses.add(response.status_code)
        in_time = "X-Deadline-Ms" not in case.headers
        assert response.status_code < (500 if in_time else 505), response.text
        case.validate_response(response, excluded_checks=list(unfit))

    call()
    print(label, sorted(statuses))
    assert statuses & {200, 201, 202, 204}, "nothing that is fine was asked; the test proves little"
    assert contract.home.client.get("/readyz").status_code == 200
