"""What labelled examples may come to, and the refusal of what passes it. It knows no disk."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.errors import NoRoom
from service.store.example_index import ExampleSet


@dataclass(frozen=True)
class ExampleLimits:
    """How many examples, bytes and labels one task may have, how many bytes all may, and how many tasks there may be.

    The names are those of the settings.
    """

    max_examples: int = 10_000
    max_examples_bytes: int = 2 * 2**30
    max_example_labels: int = 1000
    examples_total_bytes: int = 20 * 2**30
    max_tasks: int = 10_000

    def check_task(self, old: ExampleSet, new: ExampleSet) -> None:
        """Raise NoRoom where the new set is larger than the old one, and than it may be."""
        for name, was, now, what in (
            ("max_examples", len(old.items), len(new.items), "examples"),
            ("max_examples_bytes", old.bytes, new.bytes, "bytes of examples"),
            ("max_example_labels", len(old.counts), len(new.counts), "labels"),
        ):
            if was < now:
                self.check(name, now, f"task '{new.task}' would have {now} {what}")

    def check(self, setting: str, value: int, sentence: str) -> None:
        """Raise NoRoom, with what the ``sentence`` says, where a value passes the bound of that name."""
        limit: int = getattr(self, setting)
        if value > limit:
            raise NoRoom(
                f"{sentence}, the limit is {limit} ({setting}); delete some, or allow more",
                field=setting, limit=limit, value=value,
            )  # fmt: skip
