"""The settings of trainings that are asked over HTTP; ``service.settings`` has them with all others."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings


class JobSettings(BaseSettings):
    """Name, default, bounds and help, as of ``Settings``."""

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
