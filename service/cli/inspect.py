"""`inspect`: what an adapter file says of itself, and whether it is whole; no server and no backbone needed.

It does not know HTTP.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from adapters.config import AdapterConfig, VideoConfig, size_text
from adapters.header import Header, digest_of, read_header
from adapters.layout import oversized
from adapters.limits import OWN_FILE, FileLimits, needed, raised
from service.cli.console import one_line_errors, out

MAX_LABELS_SHOWN = 10


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors adapter file.")],
    backbone_parameters: Annotated[
        int | None,
        typer.Option("--backbone-parameters", min=1, metavar="N", help="Show the share of a backbone of N parameters."),
    ] = None,
) -> None:
    """Show FILE's config, tensors, parameters and digest; exit 1 with one line if it is no valid adapter.

    Only the header is parsed. The server checks the values too, and the base model.

    Example:  adaptserve inspect digits.safetensors
    """
    with one_line_errors():
        header = read_header(file, OWN_FILE)
        digest = digest_of(file)
        size = file.stat().st_size
    console = out()
    console.print(_config_table(file, header, digest, size, backbone_parameters or _told_parameters(header)))
    console.print(_tensor_table(header))


def _config_table(file: Path, header: Header, digest: str, size: int, backbone: int | None) -> Table:
    config = header.config
    table = Table(title=str(file), show_header=False, title_justify="left")
    table.add_column("field", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    labels = ", ".join(config.labels[:MAX_LABELS_SHOWN])
    more = len(config.labels) - MAX_LABELS_SHOWN
    rows = {
        "task": config.task,
        "modality": _modality(config),
        "labels": f"{len(config.labels)}: {labels}{f', and {more} more' if more > 0 else ''}",
        "score": config.score + (f", temperature {config.temperature:g}" if config.temperature != 1 else ""),
        "abstain": "no threshold" if config.abstain is None else f"below a score of {config.abstain:g}",
        "base model": config.base.model,
        "base fingerprint": config.base.fingerprint,
        "sites": "; ".join(
            f"{s.site} in blocks {_ranges(s.blocks)}, rank {s.rank}, {s.act}, scale {s.scale:g}{s.manner}"
            for s in config.sites
        )
        or "none (head only)",
        "pool, norm": f"{config.pool}, {config.norm}",
        "input": f"{size_text(config.input.size)} pixels, {config.input.interpolation}, crop {config.input.crop_pct:g} "
        f"({config.input.crop_mode}), mean {_numbers(config.input.mean)}, std {_numbers(config.input.std)}",
        "parameters": f"{header.parameters:,}"
        + (f" ({100 * header.parameters / backbone:.2f} % of the backbone's {backbone:,})" if backbone else ""),
        "training": ", ".join(f"{k}: {v}" for k, v in config.training.items())[:500] or "not told",
        "a server needs": _needs(header, size),
        "bytes": f"{size:,}",
        "sha256": digest,
    }
    for name, value in rows.items():
        table.add_row(name, _plain(value))
    return table


def _modality(config: AdapterConfig) -> str:
    """Which frames of a clip are taken, and how often it is looked at."""
    video = config.video
    if video is None:
        return "image"
    which = f", dense: {video.stride} apart" if video.sampling == "dense" else ""
    crops = f" x {video.crops} crops" if video.crops > 1 else ""
    views = f"; {video.views} views{crops} averaged, {config.rows} rows in all" if config.views > 1 else ""
    return f"video, {config.frames} frames{which}, {_head(video)}{views}"


def _needs(header: Header, size: int) -> str:
    """Settings without which a server refuses the file; of the rank only training knew, since a backbone bounds it."""
    config, limits, told = header.config, FileLimits(), header.config.training.get("needs")
    found = [str(line) for line in told] if isinstance(told, list) else []
    found += [needed(refusal) for refusal in oversized(config, **limits.of_config)]
    if size > limits.max_file_bytes:
        found.append(raised(["max_adapter_bytes"], size))
    return ", ".join(dict.fromkeys(found)) or "no more than the default bounds, as far as the file tells"


def _tensor_table(header: Header) -> Table:
    table = Table(title="tensors", title_justify="left")
    for column in ("name", "dtype", "shape", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for name, (dtype, shape) in sorted(header.tensors.items()):
        table.add_row(_plain(name), dtype, " x ".join(map(str, shape)), f"{math.prod(shape):,}")
    return table


def _told_parameters(header: Header) -> int | None:
    """The training report may say how large the backbone was; nothing else in a file does."""
    told = header.config.training.get("backbone_parameters")
    return told if isinstance(told, int) and told > 0 else None


def _plain(text: str) -> str:
    """A file's own words, without what a terminal or rich would act on."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("[", r"\[")


def _head(video: VideoConfig) -> str:
    if video.head == "attention":
        return f"head of an attention over them, {video.head_width} values"
    if video.head == "frames":
        return f"head of all of them{f', rank {video.head_rank}' if video.head_rank else ''}"
    return "head of their mean"


def _ranges(blocks: tuple[int, ...]) -> str:
    if len(blocks) > 2 and blocks == tuple(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]} to {blocks[-1]}"
    return ", ".join(map(str, blocks))


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
