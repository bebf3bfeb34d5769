"""Safe change: versions share the traffic, shadows see it, and one that does badly loses it by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.houses import IMAGE, House, Kit, house, photograph, until


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(kit.settings(data_dir=tmp_path_factory.mktemp("data"))) as built:
        yield built


def put_two(home: House, kit: Kit, task: str) -> None:
    """Version 1 is active, version 2 is another one."""
    for seed, activate in ((1, True), (2, False)):
        assert home.put(task, kit.file(seed, IMAGE, task)[0], activate=activate).status_code == 201


def direct(home: House, task: str, body: Any) -> dict[str, Any]:
    answer = home.client.put(f"/v1/tasks/{task}/traffic", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_thin(home: House, kit: Kit) -> None:
    put_two(home, kit, "thin")
    state = direct(home, "thin", {"weights": {"1": 50, "2": 50}, "guard": None})
    assert state["weights"] == {"1": 50, "2": 50}
    seen = [home.ask("thin", photograph(seed)).json()["version"] for seed in range(40)]
    assert set(seen) == {1, 2}
    again = [home.ask("thin", photograph(seed)).json()["version"] for seed in range(40)]
    assert again == seen

    def compared() -> bool:
        state = home.client.get("/v1/tasks/thin/traffic").json()
        return state["versions"][1]["compared"] == 2 * seen.count(2)

    assert until(compared), home.client.get("/v1/tasks/thin/traffic").json()
    print(home.client.get("/v1/tasks/thin/traffic").json())
    print(home.client.get("/v1/tasks/thin/agreement").json())
    print([line for line in home.metrics().splitlines() if "version" in line or "comparis" in line])
