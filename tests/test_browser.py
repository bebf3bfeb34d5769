"""What a real browser makes of the server: pages of other origins, a name that was made to point here, and /docs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.keys import create, dump
from tests.browser import CHROMIUM, Browser
from tests.houses import House, Kit, house, photograph, until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")


class _Page(BaseHTTPRequestHandler):
    """An empty page, and none of the lines that Python's server writes."""

    def do_GET(self) -> None:
        body = b"<!DOCTYPE html><title>elsewhere</title><iframe name=aside></iframe>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def elsewhere() -> Iterator[str]:
    """The origin of a page that another server on this machine serves."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def state(home: House) -> list[tuple[str, int | None, int]]:
    return [(t["task"], t["version"], t["versions"]) for t in home.client.get("/v1/tasks").json()["tasks"]]


def fill(home: House, kit: Kit) -> None:
    for seed in (1, 2):
        home.put("pets", kit.file(seed)[0]).raise_for_status()
    assert state(home) == [("pets", 2, 2)]


def attempts(url: str, content: bytes) -> dict[str, str]:
    """Scripts that ask for a change, each the way a page can; the value is the status, or why there was none."""
    told = "(r => r.status || r.type, e => 'no answer')"
    call = f"fetch('{url}/v1/tasks/%s', {{%s}}).then{told}"
    body = f"new Uint8Array({json.dumps(list(content))})"
    return {
        "simple POST": call % ("pets/versions/1/activate", "method: 'POST', mode: 'no-cors', body: ''"),
        "POST": call % ("pets/versions/1/activate", "method: 'POST'"),
        "PUT": call % ("mine/adapter", f"method: 'PUT', body: {body}"),
        "DELETE": call % ("pets", "method: 'DELETE'"),
    }


FORM = """new Promise(done => {
  const frame = document.querySelector("iframe"), form = document.createElement("form");
  frame.onload = () => done(true);
  Object.assign(form, {method: "post", action: "%s/v1/tasks/pets/versions/1/activate", target: "aside"});
  document.body.append(form);
  form.submit();
})"""


def test_a_page_of_another_port_changes_nothing(kit: Kit, tmp_path: Path) -> None:
    with elsewhere() as origin, house(kit.settings(data_dir=tmp_path)) as home, Browser() as browser:
        fill(home, kit)
        browser.open(origin)
        for name, script in attempts(home.url, kit.file(3)[0]).items():
            assert browser.run(script) in ("no answer", "opaque"), name
            assert state(home) == [("pets", 2, 2)], name
        assert browser.run(FORM % home.url)
        assert state(home) == [("pets", 2, 2)], "a form"
        assert browser.run(f"fetch('{home.url}/v1/tasks').then(r => 'read', e => 'hidden')") == "hidden"


def test_the_same_page_may_once_its_origin_is_allowed(kit: Kit, tmp_path: Path) -> None:
    with (
        elsewhere() as origin,
        house(kit.settings(data_dir=tmp_path, allowed_origins=origin)) as home,
        Browser() as browser,
    ):
        fill(home, kit)
        browser.open(origin)
        scripts = attempts(home.url, kit.file(3)[0])
        assert browser.run(scripts["simple POST"]) == "opaque"
        assert until(lambda: state(home) == [("pets", 1, 2)])
        assert browser.run(scripts["POST"]) == 200
        assert browser.run(scripts["PUT"]) == 201
        read = "then(async r => [r.status, r.headers.get('x-request-id'), await r.json()])"
        status, request_id, document = browser.run(f"fetch('{home.url}/v1/tasks/nosuch').{read}")
        assert (status, document["request_id"]) == (404, request_id), "errors are read too"
        assert browser.run(scripts["DELETE"]) == 204
        assert state(home) == [("mine", 1, 1)]


def test_a_name_that_was_made_to_point_here_is_refused(kit: Kit, tmp_path: Path) -> None:
    with (
        house(kit.settings(data_dir=tmp_path)) as home,
        Browser(["--host-resolver-rules=MAP evil.example 127.0.0.1"]) as browser,
    ):
        fill(home, kit)
        url = home.url.replace("127.0.0.1", "evil.example")
        browser.open(f"{url}/livez")
        assert browser.run("location.origin") == url, "the page is of the origin that it asks"
        for name, script in attempts(url, kit.file(3)[0]).items():
            assert browser.run(script) in (421, "opaque"), name
        assert browser.run("fetch('/v1/tasks').then(r => r.status)") == 421
        assert browser.run(f"fetch('{home.url}/v1/tasks/pets', {{method: 'DELETE'}}).catch(e => 'none')") == "none"
        assert state(home) == [("pets", 2, 2)]


@pytest.mark.parametrize("root_path", ["", "/vision"])
def test_docs_work_under_their_policy(kit: Kit, tmp_path: Path, root_path: str) -> None:
    """Read, enter a key, try a prediction; the browser finds nothing to complain of, and asks nobody else."""
    secret, key = create("boss", "admin")
    (tmp_path / "keys.json").write_text(dump([key]))
    (tmp_path / "a.jpg").write_bytes(photograph())
    settings = kit.settings(data_dir=tmp_path / "data", keys_file=str(tmp_path / "keys.json"), root_path=root_path)
    with house(settings) as home, Browser() as browser:
        home.client.headers["Authorization"] = f"Bearer {secret}"
        home.put("pets", kit.file(1)[0]).raise_for_status()
        browser.open(f"{home.url}{root_path}/docs")
        browser.until("document.querySelectorAll('.opblock').length > 10")
        browser.click(".auth-wrapper .authorize")
        browser.type(".auth-container input", secret)
        browser.click(".auth-container .authorize")
        browser.click(".btn-done")
        predict = "#operations-predict-predict_v1_tasks__task__predict_post"
        browser.click(f"{predict} .opblock-summary-control")
        browser.type(f"{predict} tr[data-param-name=task] input", "pets")
        browser.choose(f"{predict} input[type=file]", str(tmp_path / "a.jpg"))
        browser.click(f"{predict} .execute")
        answer = "document.querySelector('.live-responses-table')?.textContent ?? ''"
        text = browser.until(answer)
        assert "200" in text
        assert "label 0" in text
        assert browser.console == []
        loaded = browser.run("performance.getEntriesByType('resource').map(e => new URL(e.name).origin)")
        assert set(loaded) == {home.url}
