"""Mutated real files against the three parsers, and over HTTP: our errors or a result, in time, in flat memory.

The long run is a torture; inputs that once failed stay here by their number.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import fuzzing
from tests.houses import CLIP, IMAGE, Kit, Process, problem

CHILDREN = 2
PICTURES = 600
"""Inputs of which at least the pictures are sent over HTTP."""


@pytest.mark.parametrize("count", [600, pytest.param(100_000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])])
def test_mutated_files_are_read_or_refused(count: int, tmp_path: Path) -> None:
    children = CHILDREN if count > 10_000 else 1  # a start costs as much as a thousand inputs
    share = count // children
    with ThreadPoolExecutor(children) as pool:
        reports = list(pool.map(lambda n: fuzzing.run(tmp_path / str(n), n * share, share), range(children)))
    print(fuzzing.summary(reports))
    assert [wrong for report in reports for wrong in report.wrong] == []
    assert sum(report.inputs for report in reports) == count
    parsed = {name.split()[0] for report in reports for name in report.outcomes if name.endswith(" read")}
    assert parsed == set(fuzzing.PARSERS)  # else the mutations are too wild to reach beyond the headers
    if count > 10_000:
        assert max(report.growth for report in reports) < 0.1


@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])])
def test_mutated_files_over_http_end_no_process_and_the_log_is_nothing_but_json(
    count: int, kit: Kit, tmp_path: Path
) -> None:
    """Also the log of pictures that Pillow warns of and libtiff complains about, past Python, on stderr."""
    seen = Counter[tuple[str, int]]()
    pictures = [n for n in range(count, PICTURES) if fuzzing.PARSERS[n % len(fuzzing.PARSERS)] == "image"]
    numbers = [*range(count), *pictures]
    arguments = ["--backbone", str(kit.folder / "vit"), "--weights", "random:0", "--data-dir", str(tmp_path / "data")]
    arguments += ["--threads", "1", "--front-ends", "2", "--log-format", "json"]
    with Process(arguments, tmp_path / "log") as server:
        for task, spec in (("image", IMAGE), ("clip", CLIP)):
            server.client.put(f"/v1/tasks/{task}/adapter", content=kit.file(1, spec)[0]).raise_for_status()
        family = server.family()
        before = [process.memory_info().rss for process in family]

        fuzz = fuzzing.Fuzz(tmp_path / "fuzz")

        def send(share: int) -> None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                for number in numbers[share::CHILDREN]:
                    parser, data = fuzz.input(number)
                    if parser == "adapter":
                        answer = client.put(f"/v1/tasks/fuzzed-{share}/adapter", content=data)
                    else:
                        answer = client.post(f"/v1/tasks/{parser}/predict", content=data)
                    seen[parser, answer.status_code] += 1
                    if not answer.is_success:
                        problem(answer, answer.status_code)

        with ThreadPoolExecutor(CHILDREN) as pool:
            list(pool.map(send, range(CHILDREN)))
        growth = [process.memory_info().rss / rss - 1 for process, rss in zip(family, before, strict=True)]
        print(json.dumps({"answers": {f"{parser} {status}": n for (parser, status), n in sorted(seen.items())},
                          "rss_growth": [round(share, 3) for share in growth]}))  # fmt: skip
        assert {status for _, status in seen} <= {200, 201, 413, 415, 422}
        assert {parser for parser, status in seen if status < 300} == set(fuzzing.PARSERS)
        assert server.family() == family  # none was replaced
        assert server.stop(signal.SIGTERM) == 0
        lines = [json.loads(line) for line in server.output.splitlines()]
    requests = [line["route"] for line in lines if line["logger"] == "adaptserve.request"]
    assert len(requests) == 2 + len(numbers)
    assert any("random" in line["message"] for line in lines if line["level"] == "warning")
    if count < PICTURES:
        assert {line["logger"] for line in lines} == {"adaptserve.request", "service.cli.serve"}
