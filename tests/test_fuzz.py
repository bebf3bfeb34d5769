"""Mutated real files against the three parsers: our errors or a result, in time, in flat memory.

The long run is a torture; inputs that once failed stay here by their number.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import fuzzing

CHILDREN = 2


@pytest.mark.parametrize("count", [600, pytest.param(100_000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])])
def test_mutated_files_are_read_or_refused(count: int, tmp_path: Path) -> None:
    share = count // CHILDREN
    with ThreadPoolExecutor(CHILDREN) as pool:
        reports = list(pool.map(lambda n: fuzzing.run(tmp_path / str(n), n * share, share), range(CHILDREN)))
    print(fuzzing.summary(reports))
    assert [wrong for report in reports for wrong in report.wrong] == []
    assert sum(report.inputs for report in reports) == count
    parsed = {name.split()[0] for report in reports for name in report.outcomes if name.endswith(" read")}
    assert parsed == set(fuzzing.PARSERS)  # else the mutations are too wild to reach beyond the headers
    if count > 10_000:
        assert max(report.growth for report in reports) < 0.1
