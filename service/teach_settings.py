"""The settings of teaching: what labelled examples of tasks may come to, which inputs are kept to be labelled, and
trainings over HTTP.

``service.settings`` has all others, and is what everybody reads.
"""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings

from adapters.config import MAX_CLASSES

MIB = 2**20


class TeachSettings(BaseSettings):
    """Name, default, bounds and help of each, as in ``Settings``, which has them too."""

    max_examples: int = Field(10_000, ge=1, le=100_000, description="Labelled examples of one task; beyond it, 507.")
    max_examples_bytes: int = Field(
        2048 * MIB, ge=1, description="Bytes of one task's labelled examples; beyond it, 507."
    )
    max_example_labels: int = Field(
        1000, ge=1, le=MAX_CLASSES, description="Different labels of one task's examples; beyond it, 507."
    )
    examples_total_bytes: int = Field(
        20_480 * MIB, ge=1, description="Bytes of all tasks' labelled examples together; beyond it, 507."
    )
    keep_recent: int = Field(
        0,
        ge=0,
        le=1000,
        description="Pictures and clips of the last predictions that are kept in the data folder until the server "
        "starts again, so that feedback can name a request and the least sure ones can be labelled. 0 keeps none.",
    )
    keep_recent_bytes: int = Field(
        256 * MIB, ge=1, description="Bytes of those together; one that is larger alone is not kept."
    )
    max_trainings: int = Field(
        1, ge=0, le=8,
        description="Trainings at once, in a process each; others wait. 0 takes none: then nobody can train over HTTP.",
    )  # fmt: skip
    max_jobs_waiting: int = Field(16, ge=0, le=1000, description="Trainings that wait for their turn; beyond it, 429.")
    max_jobs_kept: int = Field(
        100, ge=1, le=10_000, description="Trainings that are over, and still told of with their reports."
    )
    training_threads: int = Field(
        0, ge=0, le=1024,
        description="CPU threads of all trainings together; 0 takes half of the processor's, at least one each.",
    )  # fmt: skip
    training_device: str = Field(
        "auto",
        description="Where adapters are trained, with a backbone of their own there: `auto` (as the first engine), "
        "`cpu`, `cuda`, `cuda:1`.",
    )
