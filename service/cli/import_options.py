"""What every `import` command shares: its options, the file that is written, what is printed, and the comparison.

It knows no foreign format.
"""

from __future__ import annotations

from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.header import refusals
from adapters.limits import OWN_FILE, foreseen
from service.cli.console import complain, out, settings_or_exit
from service.exits import FAILED, USAGE
from service.limits import file_limits

if TYPE_CHECKING:
    from adapters.backbone import Backbone
    from adapters.backbone.processor import Processor
    from adapters.importers import Imported

CHECK_TOLERANCE = 0.01
"""In probability. What computes and resizes the same is within 1e-4; another resizing, scale or base is far beyond."""

Base = Annotated[
    str,
    typer.Option(
        "--base", metavar="NAME", help="The backbone: `demo`, a timm name, or a folder of timm or transformers."
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE",
        help="Class names in the head's order: one a line, a JSON list, or a config.json with id2label.  "
        "[default: the id2label of --base, where that is a folder of transformers]",
    ),
]  # fmt: skip
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")]
Task = Annotated[
    str | None, typer.Option("--task", metavar="NAME", help="The task's name.  [default: the name of --out]")
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="FILE", help="The backbone's weights.  [default: its pretrained ones]")
]
ImageSize = Annotated[
    str,
    typer.Option(
        "--image-size", metavar="SIZE", help="Pixels, as the server's: 224, or 196x322.  [default: the backbone's]"
    ),
]
Three = tuple[float, float, float]
Mean = Annotated[
    Three | None, typer.Option("--mean", help="Means of red, green, blue, 0 to 1.  [default: the training's]")
]
Std = Annotated[Three | None, typer.Option("--std", help="Standard deviations likewise.")]
Interpolation = Annotated[
    str | None, typer.Option("--interpolation", help="How pictures are resized, such as bicubic.")
]
CropPct = Annotated[float | None, typer.Option("--crop-pct", help="Share of the resized picture that is kept.")]
CropMode = Annotated[
    str | None,
    typer.Option(
        "--crop-mode", metavar="center|squash|border",
        help="`center` cuts the middle out, `squash` stretches to the size, `border` keeps all of it; the last two "
        "with a --crop-pct of 1 unless it is given.",
    ),
]  # fmt: skip
ProcessorFile = Annotated[
    Path | None,
    typer.Option(
        "--processor", metavar="FILE", help="The training's preprocessor_config.json, or a folder with it.  "
        "[default: the one in FOLDER, else in --base, else what the model's family does]",
    ),
]  # fmt: skip
Check = Annotated[
    Path | None,
    typer.Option("--check", metavar="FOLDER", help="Pictures to compare with the training's own answers."),
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against", metavar="FILE",
        help="A CSV: a picture's name, and its logit or probability of each class.  [default: the CSV in --check]",
    ),
]  # fmt: skip


def names(labels: Path | None, base: str, classes: int) -> tuple[str, ...]:
    """Class names from a file, or from the base's folder. Raises as ``read_labels``, and ImportRefused for neither."""
    from adapters.errors import ImportRefused
    from adapters.importers import read_labels

    config = Path(base) / "config.json"
    if labels is None and not (config.is_file() and b'"id2label"' in config.read_bytes()):
        raise ImportRefused("the names of the classes are not known; give --labels FILE, one a line in the order of "
                            "the head's rows", field="labels")  # fmt: skip
    return read_labels(labels or config, classes)


def processor_of(given: Path | None, *folders: Path) -> Processor | None:
    """The training's image processor: the file that is given, or the first in the folders. Raises ImportRefused,
    OSError."""
    from adapters.backbone.processor import find_processor, read_processor

    found = find_processor(given) if given else find_processor(*folders)
    if given and found is None:
        raise FileNotFoundError(ENOENT, "no such file", str(given))
    return read_processor(found) if found else None


def preprocessing(
    mean: Three | None, std: Three | None, interpolation: str | None, crop_pct: float | None, crop_mode: str | None
) -> dict[str, object]:
    """Fields of InputConfig that were given."""
    if crop_mode in ("squash", "border") and crop_pct is None:
        crop_pct = 1.0
    fields = {
        "mean": mean, "std": std, "interpolation": interpolation, "crop_pct": crop_pct, "crop_mode": crop_mode,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value is not None}


def refuse_half_a_check(check: Path | None, against: Path | None) -> None:
    """End the command, before it does anything, where there is a CSV and no pictures."""
    if against is not None and check is None:
        complain("--against needs --check FOLDER, where its pictures are")
        raise typer.Exit(USAGE)


def finish(file: Path, imported: Imported, backbone: Backbone, check: Path | None, against: Path | None) -> None:
    """Write the file, say what it is and what was taken for granted, and compare. Raises as the importers, and Exit."""
    from adapters.importers import save
    from adapters.importers.check import read_expected

    config, layout = imported.config, backbone.layout
    expected = read_expected(check, against, config.labels, config.score) if check else None
    digest = save(file, imported, layout)
    parameters = sum(tensor.numel() for tensor in imported.tensors.values())
    sites = ", ".join(f"{s.site} in {len(s.blocks)} blocks, rank {s.rank}" for s in config.sites) or "head only"
    say(
        f"{file}: task {config.task}, {len(config.labels)} labels, {sites}, {parameters:,} parameters "
        f"({100 * parameters / layout.parameters:.2f} % of {layout.model}), sha256 {digest[:12]}"
    )
    seen = config.input
    say(
        f"pictures: {seen.crop_mode}, crop_pct {seen.crop_pct:.4g}, {seen.interpolation}, "
        f"mean {_three(seen.mean)}, std {_three(seen.std)}"
    )
    for granted in imported.granted:
        say(f"taken for granted: {granted}")
    settings = settings_or_exit(None)
    bounds = file_limits(settings, layout.slot_rank(settings.max_rank))
    for refusal in refusals(config, layout, bounds):
        complain(foreseen(refusal), "warning")
    if expected is None:
        if imported.granted:
            say("to prove it: --check FOLDER --against SCORES.csv, with what the training's own code says of pictures")
    else:
        from adapters.file import read_adapter
        from adapters.importers.check import agreement

        found = agreement(backbone, read_adapter(file, layout, OWN_FILE), expected)
        if not found.probability <= CHECK_TOLERANCE:
            complain(f"{file} does not answer as expected: {found}; look at what was taken for granted: the base and "
                     "its weights, preprocessing, the order of labels, scales")  # fmt: skip
            raise typer.Exit(FAILED)
        say(f"checked: {found}")
    say(f"try: adaptserve push {file}")


def say(line: str) -> None:
    """A line of the result, as it is."""
    out().print(line, markup=False)


def _three(values: Three) -> str:
    return "/".join(f"{value:.4g}" for value in values)
