"""Which examples teach and which are held out, and whether there are enough of them. It knows no file and no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set

from adapters.errors import TrainingError
from service.store.examples import ExampleSet

SHARE = 0.2
"""Of each label's examples that is held out, at least one."""
LEAST_LABELS, LEAST_EXAMPLES = 2, 2


def check_examples(examples: ExampleSet, max_classes: int) -> None:
    """Raises TrainingError where nothing can be learnt of them, in words that say what is missing."""
    task, counts = examples.task, examples.counts
    if len(counts) < LEAST_LABELS:
        there = f"of the label '{next(iter(counts))}' alone" if counts else "none yet"
        raise TrainingError(
            f"task '{task}' has examples of {len(counts)} labels ({there}), and a training needs at least "
            f"{LEAST_LABELS} to choose from; send more with POST /v1/tasks/{task}/examples?label=NAME",
            field="examples", limit=LEAST_LABELS, value=len(counts),
        )  # fmt: skip
    few = [label for label, count in counts.items() if count < LEAST_EXAMPLES]
    if few:
        shown = ", ".join(f"'{label}'" for label in few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        raise TrainingError(
            f"task '{task}' has one example alone of {shown}; each label needs at least {LEAST_EXAMPLES}, one to learn "
            "from and one to hold out",
            field="examples", limit=LEAST_EXAMPLES, value=1,
        )  # fmt: skip
    clips = sum(example.modality == "video" for example in examples.items)
    if 0 < clips < len(examples.items):
        raise TrainingError(
            f"task '{task}' has {len(examples.items) - clips} pictures and {clips} clips among its examples; a task "
            "takes one or the other: delete those that do not belong",
            field="examples", expected="pictures or clips", got="both",
        )  # fmt: skip
    if len(counts) > max_classes:
        raise TrainingError(
            f"task '{task}' has examples of {len(counts)} labels, and an adapter may have {max_classes} here "
            "(max_classes)",
            field="max_classes", limit=max_classes, value=len(counts),
        )  # fmt: skip


def held_out(examples: ExampleSet) -> Set[str]:
    """Digests of those that are held out: of each label those with the least, so the same every time.

    An example that comes later may push another one out of that part, never one that was learnt from into it, but
    where it makes the part larger.
    """
    by_label = defaultdict[str, list[str]](list)
    for example in examples.items:
        by_label[example.label].append(example.digest)
    return {
        digest
        for digests in by_label.values()
        for digest in sorted(digests)[: min(max(1, round(SHARE * len(digests))), len(digests) - 1)]
    }
