"""`import transformers`, `adapterhub` and `adapter-plus`: what libraries of models and adapters saved -> adapter files.

It knows each command's own options; reading and converting is ``adapters.importers``'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapters.config import task_name
from service.cli.console import one_line_errors
from service.cli.import_options import (
    Against,
    Base,
    Check,
    CropMode,
    CropPct,
    ImageSize,
    Interpolation,
    Labels,
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


def adapterhub(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What save_adapter wrote, with_head=True.")],
    base: Base,
    file: Out,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="As other imports take it.  [default: those of the head]"),
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
    """Import a folder of AdapterHub's `adapters`: bottlenecks, Compacter or LoRA on Hugging Face's ViT, with a head.

    The folder does not hold the backbone, so that --base is the one it was trained on is yours to know.

    Example:  adaptserve import adapterhub ./pets --base vit_base_patch16_224.orig_in21k --out pets.safetensors
    """
    refuse_half_a_check(check, against)
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms, read_labels
        from adapters.importers.adapterhub import convert, labels_of, read_folder

        source = read_folder(folder)
        labelled = read_labels(labels, source.classes) if labels else labels_of(source)
        seen = processor_of(processor, folder, Path(base))
        backbone = load_backbone(base, weights, "cpu", "float32", image_size)
        given = preprocessing(mean, std, interpolation, crop_pct, crop_mode)
        terms = ImportTerms(task or task_name(file.name), labelled, given)
        imported = convert(source, backbone, terms, processor=seen)
        finish(file, imported, backbone, check, against)


def adapter_plus(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT.ckpt", help="What adapter_plus's training saved.")],
    base: Base,
    file: Out,
    labels: Labels = None,
    task: Task = None,
    weights: Weights = "",
    image_size: ImageSize = "",
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    check: Check = None,
    against: Against = None,
) -> None:
    """Import a checkpoint of adapter_plus: its adapters and LoRA on timm's ViTs, with their head.

    The file does not hold the backbone, so that --base is the one it was trained on is yours to know.

    Example:  adaptserve import adapter-plus last.ckpt --base vit_base_patch16_224.orig_in21k
    --labels caltech101.txt --out caltech101.safetensors
    """
    refuse_half_a_check(check, against)
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms
        from adapters.importers.adapter_plus import convert, read_checkpoint

        source = read_checkpoint(checkpoint)
        labelled = names(labels, base, source.classes)
        backbone = load_backbone(base, weights, "cpu", "float32", image_size)
        given = preprocessing(mean, std, interpolation, crop_pct, crop_mode)
        finish(file, convert(source, backbone, ImportTerms(task or task_name(file.name), labelled, given)), backbone,
               check, against)  # fmt: skip
