"""Two replicas on Ray Serve, for real: `python -m benchmarks.ray_serve` prints the transcript of docs/SCALE.md.

It starts a Ray cluster on this machine, deploys the demo with `adaptserve ray deploy`, and ends both. With
`--haproxy` HAProxy takes the place of Ray's own proxy. It needs the extra `ray`, and no cluster that runs already.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from benchmarks.common import machine
from benchmarks.front import free_port
from benchmarks.replicated import Journey, say, shell, until

NAME = "ray::ServeReplica:adaptserve"
RAY, SERVE = (str(Path(sys.executable).with_name(name)) for name in ("ray", "serve"))


def replicas() -> list[psutil.Process]:
    """The processes of the replicas' actors."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or ()).startswith(NAME):
            found.append(process)
    return found


def kill() -> str:
    """One of them, at once."""
    process = replicas()[0]
    process.send_signal(signal.SIGKILL)
    return f"$ kill -9 {process.pid}    # {NAME}"


def redeployed(command: str) -> str:
    """The same with another setting: Ray puts new replicas in the places of the old ones, which drain."""
    os.environ["ADAPTSERVE_DEADLINE_S"] = "12"
    began = time.monotonic()
    shell(command)
    return f"$ ADAPTSERVE_DEADLINE_S=12 {shown(command)}    # {time.monotonic() - began:.0f} s, one after the other"


def shown(command: str) -> str:
    """As whoever types it has it."""
    return command.replace(RAY, "ray").replace(SERVE, "serve").replace(f"{sys.executable} -m service.cli", "adaptserve")


def run(command: str) -> str:
    say(f"    $ {shown(command)}")
    return shell(command)


@contextmanager
def cluster(folder: Path, cpus: int) -> Iterator[None]:
    """A head node, which the environment names from here on."""
    dashboard, gcs = free_port(), free_port()
    command = (
        f"{RAY} start --head --block --port {gcs} --dashboard-host 127.0.0.1 "
        f"--dashboard-port {dashboard} --num-cpus {cpus} --object-store-memory 100000000 --temp-dir {folder}"
    )
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{gcs}"
    os.environ["RAY_DASHBOARD_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    folder.mkdir()
    with (folder / "out").open("w") as log, subprocess.Popen(shlex.split(command), stdout=log, stderr=log) as head:
        try:
            until("the cluster's dashboard", lambda: answers(dashboard) or head.poll() is not None)
            yield
        finally:
            head.terminate()


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Print what happens; fail where something is lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--haproxy", action="store_true", help="in place of Ray's own proxy")
    parser.add_argument("--before", type=float, default=10.0, help="seconds of load before the kill")
    parser.add_argument("--after", type=float, default=30.0, help="and from then on")
    given = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    if given.haproxy:
        os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
        for name in ("METRICS", "STATS"):
            os.environ[f"RAY_SERVE_HAPROXY_{name}_PORT"] = str(free_port())
        # How long a replica that is to stop still takes requests, for load balancers that Ray knows nothing of.
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "5"
        os.environ["ADAPTSERVE_INSECURE"] = "true"  # on loopback all the same, but for the replicas' own ports
    with tempfile.TemporaryDirectory(prefix="as-") as name, cluster(Path(name) / "r", 2 * given.replicas):
        folder, port, began = Path(name), free_port(), time.monotonic()
        deploy = (
            f"{sys.executable} -m service.cli ray deploy --replicas {given.replicas} --store file://{folder / 'store'} "
            f"--data-dir {folder / 'data'} --port {port}"
        )
        run(deploy)
        try:
            journey = Journey(f"http://127.0.0.1:{port}", given.replicas, folder)
            journey.come_up()
            say(f"    {given.replicas} replicas serve {time.monotonic() - began:.1f} s after that line was typed")
            journey.readme()
            journey.everywhere()
            before = {process.pid for process in replicas()}
            journey.under_load(kill, given.before, given.after)
            took = journey.come_up()
            assert len({process.pid for process in replicas()} - before) == 1, "another one in its place"
            say(f"    {given.replicas} replicas are there again ({took:.1f} s after the load)")
            journey.under_load(lambda: redeployed(deploy), 5.0, 5.0)
            assert not before & {process.pid for process in replicas()}, "others in their places"
            journey.come_up()
            journey.hold()
            say(run(f"{SERVE} status"))
        finally:
            shell(f"{SERVE} shutdown -y")
    say(str(machine(torch.device("cpu"))))


if __name__ == "__main__":
    main()
