"""Writers and readers at several servers of one store, and the account that every answer is held against.

An answer is right if its digest was the task's active one at some moment between request and answer, or up to
``LATE_S`` before: so long a change may take to be seen everywhere. While the store is away, and until ``LATE_S`` after,
what was known before it went is right too.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from tests.houses import Kit, client_of, photograph

LATE_S = 1.0
NOTHING = "nothing"
"""Stands for the digest where no version is active."""
PROBE_S = 20.0


@dataclass
class State:
    """What may be active: from ``since`` on, and until ``until`` at the latest."""

    digest: str
    since: float
    until: float = float("inf")


@dataclass
class Task:
    """One task; its lock's holder changes it, so that its changes have an order."""

    name: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    states: list[State] = field(default_factory=lambda: [State(NOTHING, 0.0)])
    versions: dict[int, str] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    doubtful: bool = False
    """A change may have been made or not: what is there is not known."""

    def settled(self, digest: str, sent: float, end: float) -> None:
        """From ``sent`` on it may be, and from ``end`` on it is nothing else."""
        for state in self.states:
            state.until = min(state.until, end)
        self.states = [*(state for state in self.states if state.until > sent - 120), State(digest, sent)]


class Replicas:
    """The run. ``urls`` are the servers' addresses now; None for one that is down."""

    def __init__(self, kit: Kit, urls: Sequence[Callable[[], str | None]], seed: int, tasks: int = 6) -> None:
        self.kit, self.urls, self.dice = kit, urls, random.Random(seed)
        self.tasks = [Task(f"task-{number}") for number in range(tasks)]
        self.files = [kit.file(1000 + number) for number in range(24)]
        self.body = photograph()
        self.away: list[tuple[float, float]] = []
        self.counts: Counter[str] = Counter()
        self.wanted = float("inf")  # changes after which writers end
        self.seen_after: list[float] = []
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @property
    def changes(self) -> int:
        """Those that were acknowledged."""
        return sum(self.counts[what] for what in ("published", "activated", "deleted", "dropped"))

    def stop(self) -> None:
        self._stop.set()

    def store_away(self, cut: Callable[[float], object], seconds: float) -> None:
        """Cut the store off for so long, and wait until it is back."""
        began = time.monotonic()
        self.away.append((began, began + seconds + 0.5))
        cut(seconds)
        self._stop.wait(seconds)

    def write(self) -> None:
        """Change tasks at random servers until as many changes as are ``wanted`` were acknowledged."""
        dice = random.Random(self.dice.random())
        while self.changes < self.wanted and not self._stop.is_set():
            task, at = dice.choice(self.tasks), dice.randrange(len(self.urls))
            url = self.urls[at]()
            if url is None or not task.lock.acquire(blocking=False):
                self._stop.wait(0.01)
                continue
            try:
                with client_of(url) as client:
                    self._change(client, at, task, dice)
            except httpx.TransportError:
                self._count("change cut off")
            finally:
                task.lock.release()

    def read(self) -> None:
        """Ask random servers about random tasks, and hold each answer against the account."""
        dice = random.Random(self.dice.random())
        while not self._stop.is_set():
            task, url = dice.choice(self.tasks), self.urls[dice.randrange(len(self.urls))]()
            if url is None:
                self._stop.wait(0.05)
                continue
            sent = time.monotonic()
            try:
                with client_of(url) as client:
                    answer = client.post(f"/v1/tasks/{task.name}/predict", content=self.body)
            except httpx.TransportError:
                self._count("answer cut off")
                continue
            self._hold(task, answer, sent, time.monotonic())
            self._stop.wait(0.02)

    def _hold(self, task: Task, answer: httpx.Response, sent: float, came: float) -> None:
        if answer.status_code not in (200, 404):
            self._count(f"answer {answer.status_code}")
            if answer.status_code not in (429, 503, 504):
                self.wrong.append(f"{task.name}: {answer.status_code} {answer.text[:300]}")
            return
        digest = answer.json()["digest"] if answer.status_code == 200 else NOTHING
        states = list(task.states)
        right = any(s.digest == digest and s.since <= came and self._late(s.until) >= sent for s in states)
        self._count("answered")
        if not right:
            told = [(s.digest[:8], round(s.since - sent, 2), round(s.until - sent, 2)) for s in states[-6:]]
            self.wrong.append(f"{task.name}: {digest[:8]} came after {came - sent:.2f} s; there may be {told}")

    def _late(self, moment: float) -> float:
        """Until when a server may not know yet that something ended at ``moment``."""
        late = moment + LATE_S
        for began, ended in self.away:
            if began <= late and moment <= ended:
                late = max(late, ended + LATE_S)
        return late

    def _change(self, client: httpx.Client, at: int, task: Task, dice: random.Random) -> None:
        what = dice.choices(["publish", "activate", "drop", "delete"], [6, 3, 2, 1])[0]
        known, before = sorted(task.versions), task.states[-1].digest
        if not known or (task.doubtful and what != "activate"):
            what = "publish"
        number = dice.choice(known) if known else 0
        if what == "drop" and task.versions[number] == before:
            return
        content, adapter = dice.choice(self.files)
        after = {
            "publish": adapter.digest, "activate": task.versions.get(number, ""), "drop": before, "delete": NOTHING
        }[what]  # fmt: skip
        method, path = {
            "publish": ("PUT", "/adapter"), "activate": ("POST", f"/versions/{number}/activate"),
            "drop": ("DELETE", f"/versions/{number}"), "delete": ("DELETE", ""),
        }[what]  # fmt: skip
        sent, task.doubtful = time.monotonic(), True
        task.states = [*task.states, State(after, sent)]
        if what == "drop":
            del task.versions[number]
        elif what == "delete":
            task.versions.clear()
        answer = client.request(method, f"/v1/tasks/{task.name}{path}", content=content if what == "publish" else None)
        came = time.monotonic()
        if not answer.is_success:
            self._count(f"{what} {answer.status_code}")
            if answer.status_code not in (429, 503, 504):
                self.wrong.append(f"{task.name}: {what} {answer.status_code} {answer.text[:300]}")
            return
        task.settled(after, sent, came)
        task.doubtful = False
        if what == "publish":
            made = answer.json()["version"]
            if answer.status_code == 201 and made in task.used:
                self.wrong.append(f"{task.name}: version {made} was given twice")
            task.used.add(made)
            task.versions[made] = answer.json()["digest"]
        self._count({"publish": "published", "activate": "activated", "drop": "dropped", "delete": "deleted"}[what])
        if what in ("publish", "activate") and dice.random() < 0.5:
            self._probe(task, after, came, at)

    def _probe(self, task: Task, digest: str, acknowledged: float, at: int) -> None:
        """How long until all other servers show it; not told where one was killed or the store cut off meanwhile."""
        urls = [url() for number, url in enumerate(self.urls) if number != at]
        if None in urls or any(began - 1 < acknowledged < ended + 1 for began, ended in self.away):
            return
        latest = 0.0
        for url in urls:
            assert url is not None
            try:
                with client_of(url) as client:
                    while client.get(f"/v1/tasks/{task.name}").json().get("digest") != digest:
                        if time.monotonic() - acknowledged > PROBE_S or self._stop.is_set():
                            break
                        time.sleep(0.01)
            except httpx.TransportError:
                return
            latest = max(latest, time.monotonic() - acknowledged)
        if not any(began - 1 < time.monotonic() and acknowledged < ended + 1 for began, ended in self.away):
            self.seen_after.append(latest)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
