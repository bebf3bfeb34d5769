"""What several servers are deployed with, against the server: names, ports, paths, settings, metrics; and what is safe.

docs/SCALE.md has the transcript of containers that ran. Kustomize and HAProxy say what they think where they are here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings
from service.watch.gateway import gateway_metrics
from service.watch.metrics import Metrics, Snapshot
from service.web.routes.guard import NEEDS, WHOLE_SERVER
from tests.test_deploy import Unique, compose, named_in

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "docker/kubernetes"
STOP_S = 5.0
"""How much longer than ``drain_s`` a stop may take."""
GRAMMAR = {"kustomization.yaml", "names.yaml", "prometheus-adapter.yaml"}
"""What is for tools and not for the cluster."""


def environment(lines: list[str]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def known(name: str) -> bool:
    return name.startswith("AWS_") or name.removeprefix(PREFIX).lower() in Settings.model_fields


def manifests() -> dict[str, dict[str, Any]]:
    """Every object, by the folder and the kind."""
    found = {}
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        if path.name not in GRAMMAR:
            for one in yaml.load_all(path.read_text(), Unique):
                found[f"{path.parent.name}/{one['kind']}"] = one
    return found


def kustomization(folder: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((KUBERNETES / folder / "kustomization.yaml").read_text(), Unique)
    return loaded


FOLDERS = sorted(path.parent.name for path in KUBERNETES.rglob("kustomization.yaml"))
OBJECTS = manifests()
SPEC = OBJECTS["base/Deployment"]["spec"]["template"]["spec"]
RUNTIME = OBJECTS["kserve/ServingRuntime"]["spec"]
GRACES = {"base": SPEC, "kserve": OBJECTS["kserve/InferenceService"]["spec"]["predictor"]}
CONTAINERS = {"base": SPEC["containers"][0], "kserve": RUNTIME["containers"][0]}
SETTINGS = environment((KUBERNETES / "settings/settings.env").read_text().splitlines())
LABELS = {"app.kubernetes.io/name": "adaptserve"}


def test_every_setting_that_is_given_exists() -> None:
    given = {*SETTINGS, *environment((ROOT / "docker/replicas/server.env").read_text().splitlines())}
    given |= {
        line[1:].partition("=")[0]
        for line in (ROOT / "docker/replicas/server.env").read_text().splitlines()
        if re.match("#[A-Z]", line)
    }
    for folder in FOLDERS:
        for maker in kustomization(folder).get("configMapGenerator", []):
            given |= {one.partition("=")[0] for one in maker.get("literals", [])}
        for patch in kustomization(folder).get("patches", []):
            containers = yaml.safe_load(patch["patch"])["spec"]["template"]["spec"]["containers"]
            given |= {one["name"] for container in containers for one in container.get("env", [])}
    assert [name for name in given if not known(name)] == []
    Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in SETTINGS.items()})


@pytest.mark.parametrize("which", CONTAINERS)
def test_probes_ask_what_is_there(which: str) -> None:
    container = CONTAINERS[which]
    (port,) = container["ports"]
    assert port["containerPort"] == Settings.model_fields["port"].default
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] in (port.get("name"), port["containerPort"])
        assert NEEDS["GET", asked["path"]] is None, "probes have no key"
        assert ("live" in asked["path"]) == (probe == "livenessProbe")


@pytest.mark.parametrize("which", CONTAINERS)
def test_a_stop_leaves_time_to_drain(which: str) -> None:
    before = float(CONTAINERS[which]["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = GRACES[which]["terminationGracePeriodSeconds"]
    assert grace >= before + float(SETTINGS["ADAPTSERVE_DRAIN_S"]) + STOP_S


@pytest.mark.parametrize("which", CONTAINERS)
def test_a_server_may_do_little(which: str) -> None:
    container, pod = CONTAINERS[which], SPEC if which == "base" else RUNTIME
    may = pod.get("securityContext", {}) | container["securityContext"]
    assert (may["runAsNonRoot"], may["runAsUser"], may["readOnlyRootFilesystem"]) == (True, 10001, True)
    assert (may["allowPrivilegeEscalation"], may["capabilities"]) == (False, {"drop": ["ALL"]})
    assert container["resources"]["limits"]["cpu"] == SETTINGS["ADAPTSERVE_THREADS"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounted.values()) == set(volumes)
    assert volumes[mounted["/data"]]["emptyDir"]["sizeLimit"] == "20Gi"
    assert int(SETTINGS["ADAPTSERVE_STORE_CACHE_BYTES"]) <= 10 * 2**30
    keys = SETTINGS["ADAPTSERVE_KEYS_FILE"]
    assert volumes[mounted[str(Path(keys).parent)]]["secret"]["secretName"] == "adaptserve-keys"


def test_selectors_find_the_servers() -> None:
    (labels,) = kustomization("base")["labels"]
    assert (labels["pairs"], labels["includeSelectors"]) == (LABELS, True)
    assert OBJECTS["base/PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == LABELS
    assert OBJECTS["monitoring/ServiceMonitor"]["spec"]["selector"]["matchLabels"] == LABELS
    assert OBJECTS["inference-gateway/InferencePool"]["spec"]["selector"]["matchLabels"] == LABELS
    (spread,) = SPEC["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == LABELS
    (port,) = OBJECTS["base/Service"]["spec"]["ports"]
    assert port["targetPort"] == CONTAINERS["base"]["ports"][0]["name"]
    assert OBJECTS["monitoring/ServiceMonitor"]["spec"]["endpoints"][0]["port"] == port["name"]
    assert OBJECTS["monitoring/ServiceMonitor"]["spec"]["endpoints"][0]["path"] in WHOLE_SERVER
    scaled = OBJECTS["autoscaling/HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", OBJECTS["base/Deployment"]["metadata"]["name"])
    assert OBJECTS["keda/ScaledObject"]["spec"]["scaleTargetRef"]["name"] == scaled["name"]
    assert OBJECTS["kserve/InferenceService"]["spec"]["predictor"]["model"]["runtime"] == "adaptserve"
    assert OBJECTS["inference-gateway/InferencePool"]["spec"]["targetPorts"] == [{"number": 8000}]


def test_autoscalers_ask_for_metrics_that_there_are() -> None:
    adapter = yaml.load((KUBERNETES / "autoscaling/prometheus-adapter.yaml").read_text(), Unique)["rules"]["custom"]
    made = {rule["name"]["as"] for rule in adapter}
    asked = OBJECTS["autoscaling/HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert {one["pods"]["metric"]["name"] for one in asked} == made
    queries = [
        re.sub("<<[.A-Za-z]*>>", "x", rule[name]) for rule in adapter for name in ("seriesQuery", "metricsQuery")
    ]
    queries += [one["metadata"]["query"] for one in OBJECTS["keda/ScaledObject"]["spec"]["triggers"]]
    metrics = Metrics()
    metrics.staged(0.1, 0.1, 0.1)
    text = metrics.render(Snapshot.nothing(), {}, list(gateway_metrics(Snapshot.nothing(), {}, 1))).decode()
    series = {re.split("[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    assert {name for name in named_in(queries) if name.startswith("adaptserve")} <= series


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["base", "example", "kserve"])
def test_kustomize_puts_them_together(folder: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    settings = next(one["metadata"]["name"] for one in made if one["kind"] == "ConfigMap")
    runs = next(one for one in made if one["kind"] in ("Deployment", "ServingRuntime"))
    pod = runs["spec"]["template"]["spec"] if runs["kind"] == "Deployment" else runs["spec"]
    assert pod["containers"][0]["envFrom"][0]["configMapRef"]["name"] == settings
    for one in made:
        if one["kind"] == "Service":
            assert one["spec"]["selector"] == LABELS
        if one["kind"] == "Deployment":
            assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"] == LABELS


REPLICAS = compose("docker-compose.replicas.yml")
SERVERS = {name: one for name, one in REPLICAS["services"].items() if name.startswith("server")}
BALANCER = (ROOT / "docker/replicas/haproxy.cfg").read_text()


@pytest.mark.parametrize("name", SERVERS)
def test_servers_in_compose_share_a_store_that_nobody_else_reaches(name: str) -> None:
    server, store = SERVERS[name], REPLICAS["services"]["store"]
    given = server["environment"]
    assert [setting for setting in given if setting.startswith(PREFIX) and not known(setting)] == []
    assert given["ADAPTSERVE_STORE"].startswith("s3://")
    assert (
        given["AWS_ENDPOINT_URL"] == f"http://{store['hostname']}:{re.search(r's3.port=([0-9]+)', store['command'])[1]}"
    )  # type: ignore[index]
    assert (given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"]) == (
        store["environment"]["AWS_ACCESS_KEY_ID"], store["environment"]["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    assert store["networks"] == ["store"]
    assert "ports" not in store
    assert "ports" not in server
    assert server["hostname"] == name
    assert server["volumes"][0] == f"{name}:/data", "each has a folder of its own"
    one = compose()["services"]["adaptserve"]
    for what in ("read_only", "cap_drop", "security_opt", "stop_signal", "stop_grace_period", "image", "healthcheck"):
        assert server[what] == one[what], what


def test_images_have_versions() -> None:
    for name, one in REPLICAS["services"].items():
        assert re.search(r":\d", one["image"]), name


def test_the_balancer_asks_the_servers_whether_they_are_well() -> None:
    assert re.findall(r"^    server (\S+) (\S+):8000$", BALANCER, re.MULTILINE) == [(name, name) for name in SERVERS]
    (path,) = re.findall(r"^    http-check send meth GET uri (\S+) hdr Host localhost$", BALANCER, re.MULTILINE)
    assert path == "/readyz"
    longest = Settings.model_fields["batch_timeout_s"].default
    assert int(re.findall(r"timeout server (\d+)s", BALANCER)[0]) > longest
    ports = REPLICAS["services"]["balancer"]["ports"]
    assert ports[0].endswith(":8000")
    assert "bind :8000" in BALANCER


def test_the_balancer_asks_again_only_where_that_changes_nothing() -> None:
    (reads,) = re.findall(r"^    acl reads method (.+)$", BALANCER, re.MULTILINE)
    (predicts,) = re.findall(r"^    acl predicts path_reg (.+)$", BALANCER, re.MULTILINE)
    assert "http-request disable-l7-retry unless reads or predicts" in BALANCER
    assert reads.split() == ["GET", "HEAD"]
    again = {(method, path) for method, path in NEEDS if re.search(predicts, path) and method not in reads.split()}
    assert again == {("POST", "/v1/predict"), ("POST", "/v1/tasks/{task}/predict")}


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed (Debian: haproxy)")
def test_haproxy_accepts_its_file() -> None:
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(ROOT / "docker/replicas/haproxy.cfg")], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
