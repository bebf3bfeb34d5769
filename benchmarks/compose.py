"""Two servers, a store and a balancer in containers: `python -m benchmarks.compose` prints docs/SCALE.md's transcript.

It takes docker-compose.replicas.yml up from images that are there, runs the journey through the balancer, kills a
server with `kill -9` in its midst, and takes all of it down, with its volumes.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import machine
from benchmarks.front import free_port
from benchmarks.replicated import Journey, say, shell

COMPOSE = "docker-compose -p adaptserve-replicas -f docker-compose.replicas.yml"
SHOWN = COMPOSE.replace("-p adaptserve-replicas ", "")


def run(arguments: str) -> None:
    """As it is typed, and what it says at the end."""
    say(f"    $ {SHOWN} {arguments}")
    printed = shell(f"{COMPOSE} {arguments}")
    say("\n".join(f"    {line}" for line in printed.splitlines() if line.strip()))


def kill() -> str:
    """The first process of a server's container, so that the whole of it ends; its restart brings it back."""
    container = shell(f"{COMPOSE} ps -q server-1").strip()
    shell(f"docker kill --signal KILL {container}")
    time.sleep(5)
    shell(f"docker start {container}")  # `restart` leaves alone what a person killed
    return "$ docker kill --signal KILL adaptserve-replicas_server-1_1    # 5 s later: docker start"


def main() -> None:
    """Print what happens; fail where something is lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=float, default=10.0, help="seconds of load before the kill")
    parser.add_argument("--after", type=float, default=40.0, help="and from then on")
    given = parser.parse_args()
    port = free_port()
    os.environ |= {"ADAPTSERVE_PUBLISHED_PORT": str(port), "ADAPTSERVE_CPUS": "1"}
    with TemporaryDirectory() as name:
        try:
            began = time.monotonic()
            run("up -d --no-build")
            journey = Journey(f"http://127.0.0.1:{port}", 2, Path(name))
            journey.come_up()
            say(f"    2 servers answer {time.monotonic() - began:.1f} s after that line was typed")
            journey.readme()
            journey.everywhere()
            journey.under_load(kill, given.before, given.after)
            say(f"    2 servers answer again ({journey.come_up():.1f} s after the load)")
            journey.hold()
            run("ps")
        except BaseException:
            say(shell(f"{COMPOSE} logs --no-color --tail 20"))
            raise
        finally:
            shell(f"{COMPOSE} down -v", within=120)
    say(str(machine(torch.device("cpu"))))


if __name__ == "__main__":
    main()
