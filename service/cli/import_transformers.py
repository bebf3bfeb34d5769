"""`import transformers`: the classifier of a model of Hugging Face's transformers, as a task of a head alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapters.config import task_name
from service.cli.console import one_line_errors
from service.cli.import_options import (
    Against,
    Check,
    CropMode,
    CropPct,
    ImageSize,
    Interpolation,
    Mean,
    Out,
    ProcessorFile,
    Std,
    Task,
    Weights,
    finish,
    names,
    preprocessing,
    processor_of,
    refuse_half_a_check,
)


def transformers(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What save_pretrained of transformers wrote.")],
    file: Out,
    base: Annotated[
        str, typer.Option("--base", metavar="NAME", help="The backbone, as other imports take it.  [default: FOLDER]")
    ] = "",
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="As other imports take it.  [default: FOLDER's id2label]"),
    ] = None,
    task: Task = None,
    weights: Weights = "",
    image_size: ImageSize = "",
    processor: ProcessorFile = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    check: Check = None,
    against: Against = None,
) -> None:
    """Import the classifier of a model of Hugging Face's transformers, as a task of a head alone.

    The backbone is the folder's own: `adaptserve serve --backbone FOLDER`. Adapters for it may stand beside the task.

    Example:  adaptserve import transformers ./vit-base-patch16-224 --out imagenet.safetensors
    """
    refuse_half_a_check(check, against)
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms
        from adapters.importers.classifier import convert, read_folder

        source = read_folder(folder)
        labelled = names(labels, str(folder), source.classes)
        backbone = load_backbone(base or str(folder), weights, "cpu", "float32", image_size)
        given = preprocessing(mean, std, interpolation, crop_pct, crop_mode)
        terms = ImportTerms(task or task_name(file.name), labelled, given)
        imported = convert(source, backbone, terms, processor=processor_of(processor, folder), own=not base)
        finish(file, imported, backbone, check, against)
