"""Does a stop lose a request? Clients ask without pause while the server is told to stop; its log says what it took.

`python -m benchmarks.stop --stop 'docker-compose stop' --logs 'docker-compose logs adaptserve'` against a server that
logs JSON. Every request has an id of its own, so that what the clients saw and what the server did are joined by it.
It ends with 1 when the server took a request whose client did not get the answer.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "adapters/demo/samples/digits-9.png"
REFUSED = 503
"""What comes after the word to stop."""
PAUSE_S = 0.02
"""After a refusal; a client in a tight loop would take the cores from the server that is about to end."""


class Clients:
    """Half keep their connection, half make one for each request; ``seen`` has what became of each id."""

    def __init__(self, url: str, task: str, key: str, count: int) -> None:
        self._path = f"{url}/v1/tasks/{task}/predict"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._body = SAMPLE.read_bytes()
        self.seen: dict[str, str] = {}
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(bool(i % 2),)) for i in range(count)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _run(self, keep: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if keep else 0)
        with httpx.Client(timeout=60, limits=limits, trust_env=False) as client:
            while not self._done.is_set():
                name = uuid.uuid4().hex
                outcome = self._ask(client, name)
                self.seen[name] = outcome
                if outcome != "200":
                    time.sleep(PAUSE_S)

    def _ask(self, client: httpx.Client, name: str) -> str:
        try:
            response = client.post(self._path, content=self._body, headers=self._headers | {"X-Request-Id": name})
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return "refused"
        except httpx.TransportError:
            return "cut off"
        return str(response.status_code)


def logged(lines: str) -> dict[str, int]:
    """Request id -> status, from JSON lines that may have a prefix."""
    found = {}
    for line in lines.splitlines():
        match = re.search(r"\{.*\}", line)
        entry = json.loads(match[0]) if match else {}
        if "request_id" in entry and "status" in entry:
            found[entry["request_id"]] = entry["status"]
    return found


def run(command: str) -> tuple[str, float]:
    """What the command printed, and its seconds. Ends the program when it failed."""
    start = time.monotonic()
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")
    return done.stdout, time.monotonic() - start


def table(seen: dict[str, str], log: dict[str, int]) -> Table:
    shown = Table("what the client got", "requests", "in the server's log")
    for outcome, count in sorted(Counter(seen.values()).items()):
        logged_as = Counter(str(log.get(name, "nothing")) for name, got in seen.items() if got == outcome)
        shown.add_row(outcome, str(count), ", ".join(f"{status}: {n}" for status, n in sorted(logged_as.items())))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stop", required=True, help="the command that stops the server and returns when it has")
    parser.add_argument("--logs", required=True, help="the command that prints its log")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--task", default="digits")
    parser.add_argument("--key", default="", help="where the server has keys")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load before the stop")
    given = parser.parse_args()
    clients = Clients(given.url, given.task, given.key, given.clients)
    clients.start()
    try:
        time.sleep(given.seconds)
        _, seconds = run(given.stop)
    finally:
        clients.stop()
    log = logged(run(given.logs)[0])
    console = Console()
    console.print(table(clients.seen, log))
    lost = [name for name, got in clients.seen.items() if name in log and got != str(log[name])]
    failed = [name for name in clients.seen if log.get(name, 200) not in (200, REFUSED)]
    count = Counter(clients.seen.values())
    console.print(
        f"{given.stop!r} took {seconds:.1f} s under {given.clients} clients; "
        f"the server answered {count['200']} with 200, "
        f"refused {count[str(REFUSED)]} with {REFUSED}, failed {len(failed)} and lost {len(lost)}"
    )
    sys.exit(bool(lost or failed or not count["200"]))


if __name__ == "__main__":
    main()
