"""Does an object store keep its conditions where many write at once? `python -m benchmarks.conditions s3://bucket/path`.

Eight threads create the same key, of whom one may succeed, again and again; then they count up one number by
`If-Match`, which must come out whole. A server asks the like once at its start, alone. It ends with 1 where the store
does not.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

from benchmarks.replicated import say
from service.errors import StoreAway
from service.store.objects import Objects, Preceded, open_objects

THREADS, TIMEOUT_S = 8, 30.0


def together(work: Callable[[], None]) -> float:
    """Seconds until all threads have done it."""
    start, threads = time.monotonic(), [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - start


def created(objects: Objects, key: str) -> Counter[str]:
    """What came of the threads' creates of one key."""
    found, begin = Counter[str](), threading.Barrier(THREADS)

    def create() -> None:
        begin.wait()
        try:
            objects.create(key, uuid4().bytes)
        except Preceded:
            found["preceded"] += 1
        except StoreAway:
            found["no answer"] += 1
        else:
            found["created"] += 1

    together(create)
    return found


def counted(objects: Objects, key: str, times: int) -> tuple[int, float]:
    """The number that they counted up to, each so many times, and the seconds that it took."""
    objects.create(key, b"0")

    def count() -> None:
        left = times
        while left:
            content, mark = objects.get(key)
            try:
                objects.replace(key, str(int(content) + 1).encode(), mark)
            except Preceded:
                continue
            left -= 1

    seconds = together(count)
    return int(objects.get(key)[0]), seconds


def main() -> None:
    """Try, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", help="as --store of the server has it")
    parser.add_argument("--rounds", type=int, default=20, help="of creates")
    parser.add_argument("--times", type=int, default=30, help="that each thread counts")
    given = parser.parse_args()
    objects, run = open_objects(given.store, timeout_s=TIMEOUT_S, retries=0), uuid4().hex
    start, rounds = time.monotonic(), [created(objects, f"{run}/{number}") for number in range(given.rounds)]
    wrong = sum(one["created"] > 1 or (one["created"] == 0 and not one["no answer"]) for one in rounds)
    unanswered = sum(one["no answer"] for one in rounds)
    say(
        f"{given.rounds} keys created by {THREADS} at once in {time.monotonic() - start:.1f} s: {wrong} not by exactly "
        f"one, {unanswered} creates without an answer"
    )
    number, seconds = counted(objects, f"{run}/count", given.times)
    say(f"counted by {THREADS} at once to {number} of {THREADS * given.times} in {seconds:.1f} s")
    sys.exit(int(wrong > 0 or number != THREADS * given.times))


if __name__ == "__main__":
    main()
