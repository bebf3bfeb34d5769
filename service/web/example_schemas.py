"""The wire contract of labelled examples and feedback: what answers look like, with examples for /docs.

It does not know how anything is kept; docs/EXAMPLES.md tells the same in words.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.web.schemas import LabelScore, Problem

_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_COUNTS = {"cat": 30, "dog": 28}


class ExampleAnswer(BaseModel, frozen=True):
    """One labelled picture or clip."""

    digest: str = Field(description="sha256 of its bytes; its name in addresses", examples=[_DIGEST])
    label: str = Field(examples=["cat"])
    modality: Literal["image", "video"]
    media_type: str = Field(examples=["image/jpeg"])
    bytes: int = Field(examples=[51_200])
    added: datetime
    thumbnail: str = Field(description="where a small JPEG of it is, of a clip its middle frame")


class ExamplesAnswer(BaseModel, frozen=True):
    """One page of a task's examples, in the order of adding."""

    task: str = Field(examples=["pets"])
    counts: dict[str, int] = Field(description="examples of each label, of the whole task", examples=[_COUNTS])
    bytes: int = Field(description="of all examples of the task")
    examples: list[ExampleAnswer]
    count: int = Field(description="examples on all pages together: of the label, where one is asked for")
    next: int | None = Field(description="ask for the next page with ?after= this number; null: there is none")


class RejectedExample(BaseModel, frozen=True):
    """A file that was not taken, and why."""

    name: str = Field(description="its file name, or its path in the archive", examples=["cat/notes.txt"])
    problem: Problem


class ExamplesAdded(BaseModel, frozen=True):
    """What an addition came to."""

    task: str = Field(examples=["pets"])
    added: int = Field(description="that are new", examples=[57])
    duplicates: int = Field(description="whose very bytes were there under the same label", examples=[1])
    moved: int = Field(description="whose very bytes were there under another label, which is now this one")
    counts: dict[str, int] = Field(description="examples of each label from now on", examples=[_COUNTS])
    bytes: int = Field(description="of all examples of the task")
    rejected: list[RejectedExample]


class FeedbackAnswer(BaseModel, frozen=True):
    """The example that a correction has made."""

    task: str = Field(examples=["pets"])
    digest: str = Field(examples=[_DIGEST])
    label: str = Field(examples=["cat"])
    counts: dict[str, int] = Field(examples=[_COUNTS])


class FeedbackAsked(BaseModel):
    """Which answer was wrong, and what is right."""

    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(min_length=1, max_length=128, description="of the answer: its header X-Request-Id")
    label: str = Field(min_length=1, description="the right one", examples=["cat"])


class UncertainItem(BaseModel, frozen=True):
    """A picture or clip whose answer was not sure."""

    request_id: str
    predictions: list[LabelScore] = Field(description="what was answered, best first")
    created: datetime
    thumbnail: str = Field(description="where a small JPEG of it is")


class UncertainAnswer(BaseModel, frozen=True):
    """What the task was least sure of among the last inputs, the least sure first."""

    kept: bool = Field(description="false: this server keeps no inputs (keep_recent)")
    items: list[UncertainItem]
