"""Spans of predictions: stages inside their request, in the caller's trace, with task and version; nothing when off."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from adapters.errors import AdaptError
from service.settings import Settings
from service.watch import tracing
from tests.houses import WAIT, House, Kit, house, photograph, until

PREDICT = "POST /v1/tasks/{task}/predict"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def home(kit: Kit, tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    def start(_: Settings) -> tracing.Tracing:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(spans))
        return tracing.Tracing(provider)

    monkeypatch.setattr(tracing, "start", start)
    with house(kit.settings(data_dir=tmp_path / "data")) as made:
        made.put("a", kit.file(1)[0]).raise_for_status()
        made.put("b", kit.file(2)[0]).raise_for_status()
        yield made


def facts(span: ReadableSpan) -> dict[str, AttributeValue]:
    return dict(span.attributes or {})


def test_a_prediction_is_a_span_with_its_stages(home: House, spans: InMemorySpanExporter) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "mine"}
    home.client.post("/v1/tasks/a/predict", content=photograph(), headers=headers).raise_for_status()
    assert until(lambda: len(spans.get_finished_spans()) == 4)
    found = {span.name: span for span in spans.get_finished_spans()}
    root = found.pop(PREDICT)
    assert root.kind is SpanKind.SERVER
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (trace, parent)
    assert facts(root)["adaptserve.request_id"] == "mine"
    assert facts(root)["adaptserve.tasks"] == ("a",)
    assert sorted(found) == ["compute", "decode", "queue"]
    for span in found.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
    assert found["decode"].end_time <= found["queue"].start_time
    assert found["queue"].end_time == found["compute"].start_time
    assert facts(found["compute"]) == {"adaptserve.task": "a", "adaptserve.version": 1}


def test_one_body_for_many_tasks_has_stages_for_each(home: House, spans: InMemorySpanExporter) -> None:
    home.client.post("/v1/predict", params={"task": ["a", "b"]}, content=photograph()).raise_for_status()
    assert until(lambda: len(spans.get_finished_spans()) == 6)
    names = sorted((span.name, str(facts(span).get("adaptserve.task", ""))) for span in spans.get_finished_spans())
    assert names == [
        ("POST /v1/predict", ""), ("compute", "a"), ("compute", "b"), ("decode", ""), ("queue", "a"), ("queue", "b"),
    ]  # fmt: skip


def test_failures_are_told_and_only_ours_are_errors(
    home: House, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("no device")

    assert home.ask("a", b"no picture").status_code == 415
    monkeypatch.setattr(home.local.engine.runner, "forward", broken)
    assert home.ask("a", photograph()).status_code == 500
    assert until(lambda: len(spans.get_finished_spans()) == 2)
    theirs, ours = spans.get_finished_spans()
    assert (facts(theirs)["error.type"], facts(theirs)["http.response.status_code"]) == ("UnsupportedMedia", 415)
    assert theirs.status.status_code is StatusCode.UNSET
    assert (facts(ours)["error.type"], ours.status.status_code) == ("ComputeFailed", StatusCode.ERROR)


def test_it_is_off_unless_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.STANDARD:
        monkeypatch.delenv(name, raising=False)
    assert tracing.start(Settings(otel_endpoint="")) is None
    code = "import sys, service.web.app; sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.parametrize("by", ["setting", "standard variable"])
def test_spans_reach_a_collector(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    came: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        settings = kit.settings(data_dir=tmp_path / "data", otel_endpoint=url if by == "setting" else "")
        if by != "setting":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        try:
            with house(settings) as made:
                made.put("traced", kit.file(1)[0]).raise_for_status()
                made.ask("traced", photograph()).raise_for_status()
            assert until(lambda: bool(came), WAIT)  # a stop sends what is left
        finally:
            server.shutdown()
            thread.join()
    assert came[0][0] == "/v1/traces"
    assert b"traced" in came[0][1]
    assert b"adaptserve" in came[0][1]


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(AdaptError, match=r"adaptserve\[otel\]"):
        tracing.start(Settings(otel_endpoint="http://127.0.0.1:4318"))
