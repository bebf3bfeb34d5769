"""`import`: other people's files -> adapter files, without a server.

It knows each command's own options; reading and converting is ``adapters.importers``'.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from adapters.config import MAX_FRAMES, task_name
from service.cli.console import complain, one_line_errors
from service.cli.import_libraries import adapter_plus, adapterhub, transformers
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
    say,
)
from service.exits import USAGE

if TYPE_CHECKING:
    from adapters.importers.adaptformer import Option

app = typer.Typer(
    no_args_is_help=True,
    help="""Make an adapter file from another tool's checkpoint.

    Example:  adaptserve import adaptformer checkpoint.pth --base demo --labels labels.txt --out my-task.safetensors
    """,
)


@app.command()
def adaptformer(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT.pth", help="What AdaptFormer's own code saved.")],
    base: Base,
    file: Out,
    labels: Labels = None,
    task: Task = None,
    weights: Weights = "",
    image_size: ImageSize = "",
    scale: Annotated[
        float | None,
        typer.Option("--scale", help="The adapters' scale, which no file tells unless it was learnt.  [default: 0.1]"),
    ] = None,
    option: Annotated[
        str | None,
        typer.Option(
            "--option", metavar="parallel|sequential",
            help="The training's ffn_option, which no file tells.  [default: parallel]",
        ),
    ] = None,
    export_base: Annotated[
        Path | None,
        typer.Option("--export-base", metavar="FILE", help="Write the checkpoint's backbone, and use it as weights."),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option("--sampling", metavar="dense|uniform", help="Clips: which frames.  [default: the checkpoint's]"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Clips: frames from one to the next.  [default: the checkpoint's]")
    ] = None,
    views: Annotated[int | None, typer.Option("--views", help="Clips: looks at other times.  [default: 1]")] = None,
    crops: Annotated[int | None, typer.Option("--crops", metavar="1|3", help="Clips: of each look.  [default: 1]")]
    = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    check: Check = None,
    against: Against = None,
) -> None:  # fmt: skip
    """Import a checkpoint of AdaptFormer's official code: for pictures (class token or global pooling), or for clips.

    Its frozen backbone must be the one named by --base, tensor by tensor. If it was another, --export-base
    writes it as weights for the same architecture: `adaptserve serve --backbone NAME --weights FILE`.

    A checkpoint holds neither its adapters' scale nor whether they are parallel or sequential. --check proves them.

    Clips need VideoMAE's backbone, such as --base videomae_base_patch16_224_f8 --weights checkpoint.pth.

    Example:  adaptserve import adaptformer checkpoint-99.pth --base vit_base_patch16_224.mae
    --labels cifar100.txt --out cifar100.safetensors --check pictures --against logits.csv
    """
    refuse_half_a_check(check, against)
    if option not in (None, "parallel", "sequential"):
        complain(f"--option is parallel or sequential, not {option[:40]!r}")
        raise typer.Exit(USAGE)
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms
        from adapters.importers.adaptformer import convert, export_backbone, read_checkpoint

        source = read_checkpoint(checkpoint)
        labelled = names(labels, base, source.classes)
        chosen = weights or ("random:0" if export_base else "")  # only the architecture is needed then
        backbone = load_backbone(base, chosen, "cpu", "float32")
        if export_base:
            export_backbone(source, backbone, export_base)
            chosen = str(export_base)
            backbone = load_backbone(base, chosen, "cpu", "float32")
        given, sized = preprocessing(mean, std, interpolation, crop_pct, crop_mode), backbone
        if image_size:  # its tensors are compared at their own size; their fingerprint is the same at any
            sized = load_backbone(base, chosen, "cpu", "float32", image_size)
            given |= {"size": sized.layout.input_size}
        terms = ImportTerms(task or task_name(file.name), labelled, given)
        asked = {"sampling": sampling, "stride": stride, "views": views, "crops": crops}
        clips = {name: value for name, value in asked.items() if value is not None}
        imported = convert(source, backbone, terms, scale=scale, option=cast("Option | None", option), clips=clips)
        finish(file, imported, sized, check, against)
    if export_base:
        line = f"its backbone is {export_base}: adaptserve serve --backbone {base} --weights {export_base}"
        say(line + (f" --image-size {image_size}" if image_size else ""))


@app.command()
def peft(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What PEFT's save_pretrained wrote.")],
    base: Base,
    file: Out,
    labels: Labels = None,
    task: Task = None,
    weights: Weights = "",
    image_size: ImageSize = "",
    processor: ProcessorFile = None,
    skip: Annotated[bool, typer.Option("--skip", help="Go on without layers that cannot be adapted here.")] = False,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    check: Check = None,
    against: Against = None,
) -> None:
    """Import a PEFT LoRA or AdaLoRA folder, with its trained classifier.

    The model may be Hugging Face's ViT, DeiT, BEiT, Swin, DINOv2, I-JEPA, CLIP or SigLIP, or timm's, bare or wrapped.

    The folder does not hold the backbone. --base may be the folder of transformers that the training began with.

    Example:  adaptserve import peft ./vit-lora-pets --base ./vit-base-patch16-224-in21k
    --labels pets.txt --out pets.safetensors
    """
    refuse_half_a_check(check, against)
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms
        from adapters.importers.peft import convert, read_folder

        source = read_folder(folder)
        labelled = names(labels, base, source.classes)
        seen = processor_of(processor, *((folder, Path(base)) if source.on_hugging_face else ()))
        backbone = load_backbone(base, weights, "cpu", "float32", image_size)
        given = preprocessing(mean, std, interpolation, crop_pct, crop_mode)
        terms = ImportTerms(task or task_name(file.name), labelled, given)
        imported = convert(source, backbone, terms, processor=seen, skip=skip)
        finish(file, imported, backbone, check, against)


app.command()(transformers)
app.command()(adapterhub)
app.command("adapter-plus")(adapter_plus)


@app.command("st-adapter")
def st_adapter(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT.pth", help="What ST-Adapter's own code saved.")],
    base: Base,
    file: Out,
    labels: Labels = None,
    task: Task = None,
    weights: Weights = "",
    image_size: ImageSize = "",
    frames: Annotated[
        int, typer.Option("--frames", min=1, max=MAX_FRAMES, help="Frames of a clip, the training's --num_frames.")
    ] = 8,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    check: Check = None,
    against: Against = None,
) -> None:
    """Import a checkpoint of ST-Adapter's official code: clips on OpenAI's CLIP, adapters with kernels of 3x1x1.

    The file holds what was trained and seldom the backbone, so that --base has the weights that the training had is
    yours to know. Preprocessing is that code's unless it is given.

    Example:  adaptserve import st-adapter checkpoint-49.pth --base vit_base_patch16_clip_quickgelu_224.openai
    --labels ssv2.txt --out ssv2.safetensors
    """
    refuse_half_a_check(check, against)
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms
        from adapters.importers.st_adapter import convert, read_checkpoint

        source = read_checkpoint(checkpoint)
        labelled = names(labels, base, source.classes)
        backbone = load_backbone(base, weights, "cpu", "float32", image_size)
        given = preprocessing(mean, std, interpolation, crop_pct, crop_mode)
        terms = ImportTerms(task or task_name(file.name), labelled, given)
        finish(file, convert(source, backbone, terms, frames=frames), backbone, check, against)
