"""One frozen settings object, read once from the environment (``ADAPTSERVE_``) and an optional file.

Every bound of the server has its name here; those that training keeps too have their defaults from ``adapters.limits``.
It knows nothing of what the values are used for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from adapters.clip_formats import CODECS, CONTAINERS, some_of
from adapters.config import MAX_CLASSES, MAX_CLIP_ROWS, MAX_RANK, size_of, size_text
from adapters.limits import BATCH_ROWS, PREFIX, FileLimits, MediaLimits, variable
from service import hosts
from service.share_settings import ShareSettings
from service.sharing import StoreSettings
from service.teach_settings import TeachSettings

MIB = 2**20
Names = Annotated[tuple[str, ...], NoDecode]
"""Separated by commas."""


class Settings(StoreSettings, TeachSettings, ShareSettings):
    """Name, default, bounds and help of every setting; the environment name is the prefix and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    published_host: str = Field(
        "", description="Address that a container's port is published on, where it is not the one listened on."
    )
    allowed_hosts: str = Field(
        "",
        description="Names that requests may be addressed to, separated by commas: `example.org`, `*.example.org`, `*` "
        "for any. IP addresses, localhost, this machine's name, HOST and PUBLISHED_HOST always may.",
    )
    allowed_origins: str = Field(
        "",
        description="Origins whose pages may call this server from a browser, separated by commas: "
        "`https://example.org`, `*` for any.",
    )
    root_path: str = Field("", description="Path that a proxy serves this server under, like `/vision`.")
    trusted_proxies: str = Field(
        "",
        description="Addresses or networks of proxies whose X-Forwarded-For, -Proto and -Host are believed, separated "
        "by commas; `*` for any.",
    )
    insecure: bool = Field(False, description="Allow an address other than loopback without keys.")
    keys: str = Field("", description="Keys as `adaptserve keys create` prints them: hashes in a JSON list.")
    keys_file: str = Field("", description="File with the same JSON list; its keys are added to those above.")
    backbone: str = Field("demo", description="`demo`, a timm model name, or a folder of timm or transformers.")
    weights: str = Field(
        "",
        description="Empty for the model's own pretrained weights; a .safetensors or .pth file; "
        "`random:SEED` for tests and benchmarks only.",
    )
    image_size: str = Field(
        "",
        description="Pixels of what the backbone sees, whole patches: `224`, or height x width as `196x322`; empty for "
        "the model's own. Adapters must be made for it.",
    )
    device: str = Field(
        "auto",
        description="`auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`; several, separated by commas, get an "
        "engine each.",
    )
    front_ends: int = Field(
        0,
        ge=0,
        le=64,
        description="Processes that speak HTTP and decode; 0 takes one without a GPU, else the cores less one, at "
        "most 16.",
    )
    dtype: str = Field(
        "auto",
        description="`auto` (bfloat16 on CUDA and on processors with AVX-512 BF16 or AMX, else float32), `float32`, "
        "`bfloat16`, `float16`.",
    )
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of a forward pass; 0 leaves torch's default.")
    cuda_graphs: bool = Field(True, description="Replay batches from CUDA graphs; no effect on the CPU.")
    compile: bool = Field(
        False, description="Compile the usual batches at start with torch.compile; takes minutes, and a C++ compiler."
    )

    slots: int = Field(64, ge=1, le=65_536, description="Adapters resident on the device at once.")
    max_rank: int = Field(
        0,
        ge=0,
        le=MAX_RANK,
        description="Rank of a slot; 0 takes about 1.4 % of the backbone, at least 16 and a sixth of its width up to "
        "64.",
    )
    max_classes: int = Field(
        FileLimits.max_classes, ge=1, le=MAX_CLASSES,
        description="Classes of one adapter, and the size in memory of its head: a clip's head over all frames counts "
        "as if it had more classes.",
    )  # fmt: skip
    host_cache_bytes: int = Field(1024 * MIB, ge=0, description="Packed adapters kept in host memory, in bytes.")
    prefix_cache_bytes: int = Field(
        0, ge=0,
        description="Pictures' tokens kept on each device, in bytes, for callers who ask several tasks about a picture "
        "one after another: the blocks below the first adapted one are not computed again. 0 keeps none.",
    )  # fmt: skip
    max_batch_rows: int = Field(BATCH_ROWS, ge=1, le=1024, description="Rows (pictures or frames) of one batch.")
    max_queue_rows: int = Field(1024, ge=1, description="Rows accepted and not yet answered; beyond it, 429.")
    deadline_s: float = Field(
        10.0, gt=0, description="Time for an answer, from the whole body on, where a request names none, in seconds."
    )
    max_deadline_s: float = Field(60.0, gt=0, description="The longest deadline a client may ask for, in seconds.")

    decode_workers: int = Field(0, ge=0, le=1024, description="Threads that decode; 0 takes the number of cores.")
    max_decodes_waiting: int = Field(256, ge=0, description="Bodies waiting for a decode thread; beyond it, 429.")
    max_body_bytes: int = Field(MediaLimits.max_bytes, ge=1, description="Bytes of one picture or clip.")
    max_bodies_bytes: int = Field(
        512 * MIB, ge=1, description="Bytes of all requests' pictures and clips together; beyond it, 429."
    )
    max_pixels: int = Field(
        MediaLimits.max_pixels,
        ge=1,
        le=178_956_970,
        description="Pixels of one picture, within Pillow's own 178956970.",
    )
    max_side: int = Field(MediaLimits.max_side, ge=1, description="Pixels along one side of a picture or a frame.")
    max_scan_pixels: int = Field(
        MediaLimits.max_scan_pixels, ge=1, description="Pixels times scans of a progressive JPEG."
    )
    max_frame_pixels: int = Field(MediaLimits.max_frame_pixels, ge=1, description="Pixels of one frame of a clip.")
    max_clip_frames: int = Field(
        MediaLimits.max_frames, ge=1, le=MAX_CLIP_ROWS,
        description="Frames that a video task may ask for, in all views of a clip together; a batch must hold those of "
        "one view (`ADAPTSERVE_MAX_BATCH_ROWS`), the queue all of them.",
    )  # fmt: skip
    max_clip_pixels: int = Field(
        MediaLimits.max_clip_pixels, ge=1, description="Pixels of all frames that are taken from one clip."
    )
    max_clip_seconds: float = Field(MediaLimits.max_duration_s, gt=0, description="Duration of one clip, in seconds.")
    max_clip_packets: int = Field(MediaLimits.max_packets, ge=1, description="Compressed frames of one clip.")
    max_windows: int = Field(
        MediaLimits.max_windows, ge=1, le=MAX_CLIP_ROWS,
        description="Windows of one clip that one request may ask; the queue must hold the frames of all of them.",
    )  # fmt: skip
    max_clip_samples: int = Field(
        MediaLimits.max_samples, ge=1, description="Entries in the tables of an MP4, about 70 bytes of memory each."
    )
    transparent_background: str = Field(
        "white",
        pattern="^(white|black|#[0-9a-fA-F]{6})$",
        description="What shows through transparent pictures: `white`, `black` or `#rrggbb`; the same for training.",
    )
    clip_formats: Names = Field(
        ",".join(CONTAINERS),
        validate_default=True,
        description="Containers of clips that are read, separated by commas; docs/MEDIA.md.",
    )
    clip_codecs: Names = Field(
        ",".join(CODECS),
        validate_default=True,
        description="Codecs of clips that are read, separated by commas; docs/MEDIA.md.",
    )
    decode_timeout_s: float = Field(
        MediaLimits.decode_timeout_s, gt=0, description="Time to decode one body, in seconds."
    )

    max_uploads: int = Field(
        4, ge=1, le=256, description="Uploads in progress at once at one front end; beyond it, 429."
    )
    upload_timeout_s: float = Field(
        120.0, gt=0, description="Time to check and publish an upload, from the whole file on, in seconds."
    )
    max_adapter_bytes: int = Field(FileLimits.max_file_bytes, ge=1, description="Bytes of one adapter file.")
    max_adapter_header_bytes: int = Field(
        FileLimits.max_header_bytes, ge=1, description="Bytes of an adapter file's header."
    )
    max_tasks: int = Field(10_000, ge=1, description="Tasks in the repository.")
    max_versions_per_task: int = Field(1000, ge=1, description="Versions kept of one task.")
    page_items: int = Field(100, ge=1, le=100_000, description="Tasks or versions on one page of a list.")
    max_page_items: int = Field(1000, ge=1, le=100_000, description="The most that `limit` may ask for on one page.")
    config_cache_bytes: int = Field(
        64 * MIB, ge=0, description="Parsed configs of adapter files kept in memory, in bytes; about 5 kB each."
    )
    max_tasks_per_request: int = Field(64, ge=1, le=1024, description="Tasks that one request may ask.")
    max_items_per_request: int = Field(
        64, ge=1, le=4096, description="Pictures or clips in one request, where a protocol takes several."
    )
    max_request_bytes: int = Field(
        128 * MIB,
        ge=1,
        description="Bytes of one request in another server's protocol, as they came and as they are unpacked: "
        "several pictures, base64, gzip.",
    )

    max_items_per_batch: int = Field(
        1000, ge=1, le=100_000, description="Pictures or clips in one batch call, a form, zip or tar of many."
    )
    max_batch_bytes: int = Field(
        1024 * MIB,
        ge=1,
        description="Bytes of a batch call's body, and of what is unpacked of it; it lies on the disk, not in memory.",
    )
    max_batches: int = Field(
        4, ge=1, le=256, description="Batch calls in progress at once at one front end; beyond it, 429."
    )
    batch_window_rows: int = Field(
        64,
        ge=1,
        le=65_536,
        description="Rows (pictures or frames) of one batch call that are read, decoded, computed or unread at a time; "
        "fewer while the device is slow, so that others' requests pass.",
    )
    batch_timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Time for a batch call's answers, from the whole body on, in seconds; X-Deadline-Ms may say less.",
    )
    spool_dir: str = Field(
        "", description="Folder for the bodies of batch calls while they are answered; empty: within the data folder."
    )

    max_connections: int = Field(1024, ge=1, description="Connections of one front end at once; beyond it, 503.")
    reserved_connections: int = Field(
        32, ge=1, description="Connections beyond those, for /livez, /readyz, /metrics and refusals."
    )
    max_request_header_bytes: int = Field(64 * 1024, ge=1024, description="Bytes of a request's headers.")
    header_timeout_s: float = Field(20.0, gt=0, description="Time to receive a request's headers, in seconds.")
    body_timeout_s: float = Field(1800.0, gt=0, description="Time to receive a body, in seconds; beyond it, 408.")
    min_body_rate: float = Field(8192.0, gt=0, description="Bytes a second that a body has to come at; below it, 408.")
    body_grace_s: float = Field(
        20.0, gt=0, description="Time that a body may pause or fall behind `min_body_rate`, in seconds."
    )
    max_discard_bytes: int = Field(
        1024 * MIB, ge=0, description="Bytes still read of a body that is refused, so that the client hears why."
    )
    discard_timeout_s: float = Field(
        120.0, gt=0, description="Time to read on of a body whose answer is out, in seconds."
    )
    send_timeout_s: float = Field(
        30.0, gt=0, description="Time for a client to take the next part of its answer, in seconds."
    )
    keep_alive_s: int = Field(30, ge=1, description="Idle time before a connection is closed, in seconds.")
    ready_fresh_s: float = Field(5.0, gt=0, description="Age of the last forward pass that still counts as ready.")
    ready_timeout_s: float = Field(10.0, gt=0, description="Time for the health check's own forward pass.")
    device_lost_s: float = Field(
        60.0,
        ge=0,
        description="Time without a sign of life of the device until its engine's process ends and another is started; "
        "if that does not compute either, the server ends (exit code 3). The same for a process that is stuck. "
        "0 is never.",
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

    _hosts = field_validator("allowed_hosts")(hosts.check_hosts)
    _origins = field_validator("allowed_origins")(hosts.check_origins)
    _root_path = field_validator("root_path")(hosts.check_root_path)
    _proxies = field_validator("trusted_proxies")(hosts.check_proxies)

    @field_validator("image_size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        return size_text(size_of(value)) if value.strip() else ""

    @field_validator("clip_formats", "clip_codecs", mode="before")
    @classmethod
    def _known_names(cls, value: object, info: ValidationInfo) -> object:
        known = CONTAINERS if info.field_name == "clip_formats" else CODECS
        return some_of(known, value) if isinstance(value, str) else value


def read_settings(env_file: Path | None = None, **overrides: Any) -> Settings:
    """Settings from the environment and ``env_file``; ``overrides`` that are not None win."""
    given = {name: value for name, value in overrides.items() if value is not None}
    return Settings(_env_file=env_file, **given)


def markdown_table() -> str:
    """Every setting as a markdown table; ``docs/SETTINGS.md`` holds it."""
    lines = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name, field in sorted(Settings.model_fields.items(), key=lambda one: one[0] not in Settings.__annotations__):
        default = "empty" if field.default == "" else f"`{field.default}`"
        lines.append(f"| `{variable(name)}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"
