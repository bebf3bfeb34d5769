"""The settings of sources: a folder that is watched for adapter files, and a file that says where tasks come from.

``service.settings`` has all others, and is what everybody reads.
"""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from service.source_address import allowed_of


class SourceSettings(BaseSettings):
    """Name, default, bounds and help of each, as in ``Settings``, which has them too."""

    watch_folder: str = Field(
        "",
        description="Folder whose files `<task>.safetensors` become versions of tasks as soon as they lie there; empty "
        "for none. docs/SOURCES.md.",
    )
    watch_every_s: float = Field(
        1.0, ge=0.05, le=3600,
        description="How often that folder is looked through, in seconds; a file is taken once two looks find it the "
        "same.",
    )  # fmt: skip
    tasks_file: str = Field(
        "",
        description="YAML file of tasks and where their adapters come from, brought in at the start or when first "
        "asked for. docs/SOURCES.md.",
    )
    sources_allowed: str = Field(
        "hf://,s3://,gs://,az://,oci://",
        description="What may stand in that file, by how addresses begin, separated by commas: `hf://org/`, "
        "`oci://ghcr.io/org`, `https://models.example.org`. Paths beside the file always may.",
    )
    max_source_fetches: int = Field(
        4,
        ge=1,
        le=64,
        description="Files that are fetched and tried at once: so many of the watched folder, so many at the start, so "
        "many for requests.",
    )
    source_timeout_s: float = Field(120.0, gt=0, description="Time to fetch one file from its source, in seconds.")
    source_wait_s: float = Field(
        10.0, gt=0,
        description="How long a request waits for a task that is being brought in, in seconds; beyond it, 503.",
    )  # fmt: skip
    source_retry_s: float = Field(
        60.0, gt=0,
        description="How long a source that failed is not asked again, in seconds; requests for its task get 503.",
    )  # fmt: skip

    @property
    def has_sources(self) -> bool:
        """Whether tasks come from anywhere but uploads."""
        return bool(self.watch_folder or self.tasks_file)

    @field_validator("sources_allowed")
    @classmethod
    def _are_beginnings(cls, value: str) -> str:
        allowed_of(value)
        return value
