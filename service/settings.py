"""One frozen settings object, read once from the environment (``ADAPTSERVE_``) and an optional file.

Every bound of the server has its name here. It knows nothing of what the values are used for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ADAPTSERVE_"
MIB = 2**20


class Settings(BaseSettings):
    """Name, default, bounds and help of every setting; the environment name is the prefix and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    published_host: str = Field(
        "", description="Address that a container's port is published on, where it is not the one listened on."
    )
    insecure: bool = Field(False, description="Allow an address other than loopback without keys.")
    keys: str = Field("", description="Keys as `adaptserve keys create` prints them: hashes in a JSON list.")
    keys_file: str = Field("", description="File with the same JSON list; its keys are added to those above.")
    data_dir: Path = Field(Path("data"), description="Folder of the tasks and their versions.")
    backbone: str = Field("demo", description="`demo`, a timm model name, or a folder in timm's hub layout.")
    weights: str = Field(
        "",
        description="Empty for the model's own pretrained weights; a .safetensors or .pth file; "
        "`random:SEED` for tests and benchmarks only.",
    )
    device: str = Field("auto", description="`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`.")
    dtype: str = Field("auto", description="`auto` (bfloat16 on CUDA, else float32), `float32`, `bfloat16`, `float16`.")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of a forward pass; 0 leaves torch's default.")
    cuda_graphs: bool = Field(True, description="Replay batches from CUDA graphs; no effect on the CPU.")

    slots: int = Field(64, ge=1, le=65_536, description="Adapters resident on the device at once.")
    max_rank: int = Field(
        0, ge=0, le=1024, description="Rank of a slot; 0 takes about 1.4 % of the backbone, at least 16."
    )
    max_classes: int = Field(4096, ge=1, le=65_536, description="Classes of one adapter.")
    host_cache_bytes: int = Field(1024 * MIB, ge=0, description="Packed adapters kept in host memory, in bytes.")
    max_batch_rows: int = Field(32, ge=1, le=1024, description="Rows (pictures or frames) of one batch.")
    max_queue_rows: int = Field(1024, ge=1, description="Rows accepted and not yet answered; beyond it, 429.")
    deadline_s: float = Field(10.0, gt=0, description="Time for a request that names none, in seconds.")
    max_deadline_s: float = Field(60.0, gt=0, description="The longest deadline a client may ask for, in seconds.")

    decode_workers: int = Field(0, ge=0, le=1024, description="Threads that decode; 0 takes the number of cores.")
    max_decodes_waiting: int = Field(256, ge=0, description="Bodies waiting for a decode thread; beyond it, 429.")
    max_body_bytes: int = Field(64 * MIB, ge=1, description="Bytes of one picture or clip.")
    max_bodies_bytes: int = Field(
        512 * MIB, ge=1, description="Bytes of all requests' pictures and clips together; beyond it, 429."
    )
    max_pixels: int = Field(50_000_000, ge=1, description="Pixels of one picture.")
    max_frame_pixels: int = Field(9_000_000, ge=1, description="Pixels of one frame of a clip.")
    max_side: int = Field(16_384, ge=1, description="Pixels along one side of a picture.")
    max_clip_frames: int = Field(32, ge=1, le=128, description="Frames that a video task may ask for.")
    max_clip_seconds: float = Field(600.0, gt=0, description="Duration of one clip, in seconds.")
    decode_timeout_s: float = Field(10.0, gt=0, description="Time to decode one body, in seconds.")

    max_uploads: int = Field(4, ge=1, le=256, description="Uploads in progress at once; beyond it, 429.")
    upload_timeout_s: float = Field(120.0, gt=0, description="Time for one upload, in seconds.")
    max_adapter_bytes: int = Field(256 * MIB, ge=1, description="Bytes of one adapter file.")
    max_adapter_header_bytes: int = Field(MIB, ge=1, description="Bytes of an adapter file's header.")
    max_tasks: int = Field(10_000, ge=1, description="Tasks in the repository.")
    max_versions_per_task: int = Field(1000, ge=1, description="Versions kept of one task.")
    max_tasks_per_request: int = Field(64, ge=1, le=1024, description="Tasks that one request may ask.")

    max_connections: int = Field(1024, ge=1, description="Connections at once; beyond it, 503.")
    max_request_header_bytes: int = Field(64 * 1024, ge=1024, description="Bytes of a request's headers.")
    header_timeout_s: float = Field(20.0, gt=0, description="Time to receive a request's headers, in seconds.")
    keep_alive_s: int = Field(30, ge=1, description="Idle time before a connection is closed, in seconds.")
    ready_fresh_s: float = Field(5.0, gt=0, description="Age of the last forward pass that still counts as ready.")
    ready_timeout_s: float = Field(10.0, gt=0, description="Time for the health check's own forward pass.")
    device_lost_s: float = Field(
        60.0,
        ge=0,
        description="Time without a sign of life of the device until the process ends (exit code 3); 0 is never.",
    )
    drain_s: float = Field(
        20.0, ge=0, description="Time for accepted requests after SIGTERM, in seconds; 5 s later it is over."
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="`debug`, `info`, `warning` or `error`."
    )
    log_format: str = Field("text", pattern="^(text|json)$", description="`text`, or `json`: one object a line.")
    otel_endpoint: str = Field(
        "", description="Address of an OpenTelemetry collector (OTLP over HTTP); empty is off. Needs the extra `otel`."
    )


def read_settings(env_file: Path | None = None, **overrides: Any) -> Settings:
    """Settings from the environment and ``env_file``; ``overrides`` that are not None win."""
    given = {name: value for name, value in overrides.items() if value is not None}
    return Settings(_env_file=env_file, **given)


def markdown_table() -> str:
    """Every setting as a markdown table; ``docs/SETTINGS.md`` holds it."""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "empty" if field.default == "" else f"`{field.default}`"
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"
