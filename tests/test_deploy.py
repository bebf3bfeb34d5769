"""The deployment files against the server: every metric, every setting, and Prometheus' own opinion where it is here.

It builds no image: docs/DEPLOY.md has the transcript of a real run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.keys import create, dump
from service.settings import PREFIX, Settings
from tests.houses import House, Kit, house, photograph, until

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "docker/prometheus"

IN_THE_CONTAINER = {"ADAPTSERVE_HOST", "ADAPTSERVE_PORT", "ADAPTSERVE_DATA_DIR"}
"""What compose fixes: they are the container's business, the host's side is the published port and the volume."""
FOR_COMPOSE = {"ADAPTSERVE_PUBLISHED_PORT", "ADAPTSERVE_CPUS", "ADAPTSERVE_MEMORY", "GRAFANA_PASSWORD"}
"""What compose reads and the server does not."""


def settings() -> dict[str, Any]:
    """Each setting's name in the environment, and its default."""
    return {PREFIX + name.upper(): field.default for name, field in Settings.model_fields.items()}


class Unique(yaml.SafeLoader):
    """YAML in which no key comes twice: YAML's readers, Compose's among them, let the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        assert len(names) == len(set(names)), f"twice in {node.start_mark}: {sorted(names)}"
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), Unique)


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    return read_yaml(ROOT / name)


def dashboard_queries() -> list[str]:
    """Every expression of every panel, and those behind the variables."""
    board = json.loads((ROOT / "docker/grafana/dashboards/adaptserve.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return queries + [variable["query"]["query"] for variable in board["templating"]["list"]]


def rules() -> list[dict[str, Any]]:
    groups = read_yaml(PROMETHEUS / "rules.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def named_in(queries: list[str]) -> set[str]:
    """Every series that expressions name, whatever it is called: what is no string, label, range, function or word."""
    words = {"and", "or", "unless", "on", "ignoring", "bool", "offset", "inf", "nan", "by", "without", "label_values"}
    names = set()
    for query in queries:
        bare = re.sub(r'"[^"]*"', "", query)
        bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
        bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
        bare = re.sub(r"(\blabel_values\(.*),.*\)", r"\1", bare)
        found = re.findall(r"(?<![\w$.])[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)
        names |= {name for name in found if name.lower() not in words}
    return names


OF_PROMETHEUS = {"up"}
"""Series that Prometheus makes itself."""


@pytest.fixture(scope="module")
def home(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    secret, key = create("watcher", "admin", rate=1000)
    settings = kit.settings(data_dir=tmp_path_factory.mktemp("data"), ready_fresh_s=0.05, keys=dump([key]))
    with house(settings) as made:
        made.client.headers["Authorization"] = f"Bearer {secret}"
        assert made.put("seen", kit.file(1)[0]).status_code == 201
        assert made.ask("seen", photograph()).status_code == 200
        yield made


def samples(home: House) -> dict[str, float]:
    """What /metrics exports now: series without labels -> value; the names alone matter to most tests."""
    lines = home.client.get("/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return {series.split("{")[0]: float(value) for series, value in pairs}


def test_every_metric_that_is_watched_is_exported(home: House) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = set(samples(home)) | recorded | OF_PROMETHEUS
    on_the_board, in_rules = named_in(dashboard_queries()), named_in([rule["expr"] for rule in rules()])
    assert len(on_the_board) > 15
    assert len(in_rules) > 5
    assert (on_the_board | in_rules) - known == set()


def test_every_query_names_a_series_and_none_is_overlooked() -> None:
    """The test above would be empty if names were not found: each expression has one, and a wrong one shows."""
    queries = dashboard_queries() + [rule["expr"] for rule in rules()]
    assert [query for query in queries if not named_in([query])] == []
    wrong = 'sum by (le) (rate(adaptserv_typo_total{a="b_c"}[5m])) / on (x) histogram_quantile(0.9, other_bucket) > 1'
    assert named_in([wrong]) == {"adaptserv_typo_total", "other_bucket"}


def test_every_metric_of_ours_is_watched(home: House) -> None:
    watched = named_in(dashboard_queries()) | named_in([rule["expr"] for rule in rules()])
    families = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in samples(home)}
    ours = {name for name in families if name.startswith("adaptserve_")}
    seen = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in watched}
    assert ours - seen == set()


def test_an_idle_server_is_ready_in_every_scrape(home: House) -> None:
    # A scrape must not depend on whether somebody asked for something within the last seconds.
    assert until(lambda: home.local.health.age > 0.1)
    assert samples(home)["adaptserve_ready"] == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules rules.yml", "test rules rules_test.yml"]
)
def test_prometheus_accepts_its_files(command: str) -> None:
    done = subprocess.run(
        ["promtool", *command.split()], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_can_be_given_a_key(tmp_path: Path) -> None:
    text = (PROMETHEUS / "prometheus.yml").read_text()
    with_key = re.sub(r"# (authorization:|  credentials_file:)", r"\1", text)
    job = yaml.load(with_key, Unique)["scrape_configs"][0]
    file = Path(job["authorization"]["credentials_file"])
    assert f"/docker/prometheus/{file.name}" in (ROOT / ".gitignore").read_text().splitlines()
    assert f"./docker/prometheus:{file.parent}:ro" in compose()["services"]["prometheus"]["volumes"]
    if shutil.which("promtool"):
        (tmp_path / "key").write_text("as_x")
        (tmp_path / "prometheus.yml").write_text(with_key.replace(str(file), str(tmp_path / "key")))
        shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
        done = subprocess.run(
            ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_scrapes_where_the_server_listens() -> None:
    config = read_yaml(PROMETHEUS / "prometheus.yml")
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    server = compose()["services"]["adaptserve"]
    assert server["hostname"] == "adaptserve", "or the server would not go by the name that is asked for"
    assert targets["adaptserve"] == [f"adaptserve:{server['environment']['ADAPTSERVE_PORT']}"]
    source = read_yaml(ROOT / "docker/grafana/provisioning/datasources/prometheus.yml")
    board = json.loads((ROOT / "docker/grafana/dashboards/adaptserve.json").read_text())
    sources = {panel["datasource"]["uid"] for panel in board["panels"]}
    assert sources == {source["datasources"][0]["uid"]}


def test_the_example_names_every_setting_and_no_other() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = [line.removeprefix("#").split("=", 1) for line in lines if re.match(r"#?[A-Z_]+=", line)]
    given = dict(pairs)
    assert len(given) == len(pairs), "a name comes twice"
    assert set(given) - FOR_COMPOSE == set(settings())
    for name, default in settings().items():
        expected = str(default).lower() if isinstance(default, bool) else str(default)
        assert given[name] in (expected, f"{default:g}" if isinstance(default, float) else expected), name


def test_compose_hands_on_every_setting() -> None:
    environment = compose()["services"]["adaptserve"]["environment"]
    handed = {name for name in environment if name.startswith(PREFIX)}
    assert handed == set(settings())
    for name in handed - IN_THE_CONTAINER:
        value = environment[name]
        assert value is None or value.startswith("${" + name), f"{name} is fixed to {value}"


def test_the_container_may_do_little() -> None:
    server = compose()["services"]["adaptserve"]
    assert server["read_only"] is True
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "mem_limit", "pids_limit"} <= set(server)
    ports = [port for service in compose()["services"].values() for port in service["ports"]]
    assert all(re.match(r"127\.0\.0\.1:|\$\{ADAPTSERVE_PUBLISHED_HOST:-127\.0\.0\.1\}:", port) for port in ports)
    # What decides whether keys are needed is what the port is published on, with the same default.
    assert server["environment"]["ADAPTSERVE_PUBLISHED_HOST"] == "${ADAPTSERVE_PUBLISHED_HOST:-127.0.0.1}"
    assert server["environment"]["ADAPTSERVE_INSECURE"] is None
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", dockerfile, re.MULTILINE)
    assert "/readyz" in dockerfile
    assert not re.search(r"--mount|--chmod|<<", dockerfile)


def test_a_stop_leaves_time_to_drain() -> None:
    server = compose()["services"]["adaptserve"]
    assert server["stop_signal"] == "SIGTERM"
    assert float(server["stop_grace_period"].removesuffix("s")) > settings()["ADAPTSERVE_DRAIN_S"]


def test_the_gpu_file_changes_the_server_alone() -> None:
    services = compose("docker-compose.gpu.yml")["services"]
    assert set(services) == {"adaptserve"}
    (device,) = services["adaptserve"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_the_image_takes_only_what_it_is_built_from() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    taken = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert taken == {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in taken)


def test_scrapes_are_text_that_prometheus_reads(home: House) -> None:
    response: httpx.Response = home.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    if shutil.which("promtool"):
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=response.text, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
