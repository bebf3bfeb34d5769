"""What a call carries beside its body, over real sockets: unknown, near and repeated names, forms, and `curl -d`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.web.routes.parameters import unknown
from tests.houses import House, Kit, house, photograph, problem
from tests.media_samples import clip


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as made:
        made.put("pets", kit.file(1)[0]).raise_for_status()
        yield made


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/v1/tasks/pets/predict?topk=3", "'topk' (did you mean 'top_k'?)"),
        ("POST", "/v1/tasks/pets/predict?top-k=3", "'top-k' (did you mean 'top_k'?)"),
        ("POST", "/v1/tasks/pets/predict?TOP_K=3", "'TOP_K' (did you mean 'top_k'?)"),
        ("POST", "/v1/tasks/pets/predict/?Version=1", "'Version' (did you mean 'version'?)"),
        ("POST", "/v1/tasks/pets/predict?a=1&top_k=0&b=2", "'a', 'b'; there are 'top_k', 'version'"),
        ("POST", "/v1/tasks/pets/predict?_=1764", "'_'; there are 'top_k'"),
        ("POST", "/v1/tasks/none/predict?topk=1", "'topk'"),
        ("POST", "/v1/predict?tasks=pets", "'tasks' (did you mean 'task'?)"),
        ("POST", "/v1/predict?task=pets&version=1", "'version'; there are 'task', 'top_k'"),
        ("PUT", "/v1/tasks/pets/adapter?active=false", "'active' (did you mean 'activate'?)"),
        ("GET", "/v1/tasks/pets?verbose", "'verbose'; this call takes none"), ("GET", "/livez?x=1", "'x'"),
        ("GET", "/metrics?name[]=up", "'name[]'"), ("GET", "/readyz/?x=1", "'x'"),
        ("DELETE", "/v1/tasks/pets?version=1", "'version'"), ("POST", "/v1/tasks/pets/versions/1/activate?v=1", "'v'"),
        ("GET", "/v1/tasks/pets/versions/1/adapter?download=1", "'download'"), ("GET", "/v1/tasks/pets?=1", "''"),
        ("GET", "/v1/tasks/pets?%ff=1", "this call takes none"),
    ],
)  # fmt: skip
def test_an_unknown_query_parameter_is_named(home: House, method: str, path: str, words: str) -> None:
    document = problem(home.client.request(method, path, content=b"x" * 100), 400)
    assert words in str(document["detail"])
    assert isinstance(document["expected"], list)
    assert home.client.get("/v1/tasks/pets").json()["versions"] == 1


def test_every_call_that_is_documented_names_what_it_does_not_know(home: House) -> None:
    """One mechanism, and no list: whatever endpoint comes gets it."""
    calls = home.client.get("/openapi.json").json()["paths"]
    for template, methods in calls.items():
        path = template.replace("{task}", "pets").replace("{version}", "1")
        for method in methods:
            refused = home.client.request(method, path, params={"surely_unknown": "1"})
            assert refused.status_code == 400, (method, path)
            assert "'surely_unknown'" in refused.text, (method, path)  # each protocol has a form of its own
            assert home.client.head(path, params={"surely_unknown": "1"}).status_code in (400, 405)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/tasks/pets/predict?top_k=1&top_k=2", "/v1/tasks/pets/predict?top_k=1&top_k=1",
        "/v1/predict?task=pets&top_k=1&top_k=2", "/v1/tasks/pets/predict?version=1&version=",
    ],
)  # fmt: skip
def test_what_is_read_once_comes_once(home: House, path: str) -> None:
    assert "2 times" in str(problem(home.client.post(path, content=photograph()), 400)["detail"])


def test_what_may_come_more_than_once_does(home: House) -> None:
    assert home.client.post("/v1/predict?task=pets&task=pets&top_k=2", content=photograph()).status_code == 200


def test_a_header_is_called_by_its_name(home: House) -> None:
    path, body = "/v1/tasks/pets/predict", photograph()
    for value in ("0", "-5", "soon", "1.5", "", "9999999999"):
        document = problem(home.client.post(path, content=body, headers={"X-Deadline-Ms": value}), 400)
        assert document["field"] == "X-Deadline-Ms"
        assert "X-Deadline-Ms" in str(document["detail"])
        assert "x-deadline" not in str(document["detail"])
    twice = home.client.post(path, content=body, headers=[("X-Deadline-Ms", "900"), ("x-deadline-ms", "800")])
    assert "X-Deadline-Ms came more than once" in str(problem(twice, 400)["detail"])
    for name in ("top_k", "version"):
        document = problem(home.client.post(f"{path}?{name}=x", content=body), 400)
        assert document["field"] == name
        assert f"query parameter '{name}':" in str(document["detail"])


def test_an_unknown_form_field_is_named(home: House, kit: Kit) -> None:
    picture, adapter = ("a.jpg", photograph()), ("a.safetensors", kit.file(1)[0])
    predict, upload = "/v1/tasks/pets/predict", "/v1/tasks/pets/adapter"
    for fields, words in (
        ({"files": picture}, "'files' (did you mean 'file'?)"),
        ({"Image": picture}, "'Image' (did you mean 'image'?)"),
        ({"data": picture}, "'data'; there are 'file', 'image', 'video'"),
        ({"file": picture, "note": (None, b"x")}, "'note'"),
        ({"top_k": (None, b"3"), "file": picture}, "parameters go into the address"),
        ({"": picture}, "''"),
    ):
        document = problem(home.client.post(predict, files=fields), 400)
        assert words in str(document["detail"])
        assert document["expected"] == ["file", "image", "video"]
    assert "'image'; there are 'file'" in str(problem(home.client.put(upload, files={"image": adapter}), 400)["detail"])
    assert home.client.put(upload, files={"file": adapter}).status_code == 200


BODIES = {
    "jpeg": photograph(), "png": photograph(1, "PNG"), "gif": photograph(2, "GIF"), "webp": photograph(3, "WEBP"),
    "bmp": photograph(4, "BMP"), "tiff": photograph(5, "TIFF"), "large": photograph(6, "JPEG", (2000, 1500)),
    "tiny": photograph(7, "PNG", (1, 1)), "clip": clip(),
}  # fmt: skip


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("name", BODIES)
def test_curl_d_is_told_of_data_binary(home: House, tmp_path: Path, name: str) -> None:
    """Both options send the same Content-Type; one of them damages the file."""
    (tmp_path / name).write_bytes(BODIES[name])
    url = f"{home.url}/v1/tasks/pets/predict"

    def curl(option: str) -> str:
        command = ["curl", "-s", option, f"@{tmp_path / name}", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout

    assert "--data-binary" in curl("-d")
    whole = curl("--data-binary")
    assert ("picture" if name == "clip" else '"predictions"') in whole
    assert "--data-binary" not in whole


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_d_is_told_at_an_upload_too(home: House, kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(kit.file(3)[0])
    command = ["curl", "-s", "-X", "PUT", "-d", f"@{tmp_path / 'a'}", f"{home.url}/v1/tasks/curled/adapter"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert "--data-binary" in told
    assert '"status":415' in told
    command[4] = "--data-binary"
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert '"version":1' in done


def test_a_form_of_another_kind_gets_the_hint_and_others_do_not(home: House) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    path = "/v1/tasks/pets/predict"
    assert "--data-binary" in str(problem(home.client.post(path, content=b"image=abc", headers=form), 415)["detail"])
    assert "--data-binary" in str(problem(home.client.post(path, data={"image": "abc"}), 415)["detail"])
    for body, headers in ((b"", form), (b"a text\nof lines\n", form), (b"hello", {})):
        answer = home.client.post(path, content=body, headers=headers)
        assert "--data-binary" not in problem(answer, answer.status_code)["detail"]  # type: ignore[operator]


def test_a_sentence_about_unknown_names() -> None:
    assert unknown("thing", ["a"], []) == "unknown thing 'a'; this call takes none"
    assert unknown("thing", ["tsak", "b", "b"], ["task"]) == (
        "unknown things 'tsak' (did you mean 'task'?), 'b'; there are 'task'"
    )
    assert len(unknown("thing", ["x" * 10_000] * 10_000, ["task"])) < 200
    assert len(unknown("thing", [f"{i}" * 99 for i in range(99)], ["task"])) < 800
