"""`import`: other people's files -> adapter files, without a server.

It knows the options and what to print; reading and converting is ``adapters.importers``'.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.config import MAX_FRAMES, task_name
from adapters.header import refusals
from adapters.limits import foreseen
from service.cli.console import complain, one_line_errors, out, settings_or_exit
from service.limits import file_limits

if TYPE_CHECKING:
    from adapters.importers import Imported
    from adapters.layout import Layout

app = typer.Typer(
    no_args_is_help=True,
    help="""Make an adapter file from another tool's checkpoint.

    Example:  adaptserve import adaptformer checkpoint.pth --base demo --labels labels.txt --out my-task.safetensors
    """,
)

Base = Annotated[str, typer.Option("--base", metavar="NAME", help="The backbone: `demo`, a timm name, or a folder.")]
Labels = Annotated[
    Path, typer.Option("--labels", metavar="FILE", help="Class names, one a line or a JSON list, in the head's order.")
]
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
    Three | None, typer.Option("--mean", help="Means of red, green, blue, 0 to 1.  [default: the backbone's]")
]
Std = Annotated[Three | None, typer.Option("--std", help="Standard deviations likewise.")]
Interpolation = Annotated[
    str | None, typer.Option("--interpolation", help="How pictures are resized, such as bicubic.")
]
CropPct = Annotated[float | None, typer.Option("--crop-pct", help="Share of the resized picture that is kept.")]


@app.command()
def adaptformer(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT.pth", help="What AdaptFormer's own code saved.")],
    base: Base,
    labels: Labels,
    file: Out,
    task: Task = None,
    weights: Weights = "",
    image_size: ImageSize = "",
    scale: Annotated[float, typer.Option("--scale", help="The adapters' scale, where none was learnt.")] = 0.1,
    export_base: Annotated[
        Path | None,
        typer.Option("--export-base", metavar="FILE", help="Write the checkpoint's backbone, and use it as weights."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
) -> None:
    """Import an image checkpoint of AdaptFormer's official code (class token or global pooling).

    Its frozen backbone must be the one named by --base, tensor by tensor. If it was another, --export-base
    writes it as weights for the same architecture: `adaptserve serve --backbone NAME --weights FILE`.

    Example:  adaptserve import adaptformer checkpoint-99.pth --base vit_base_patch16_224.mae
    --labels cifar100.txt --out cifar100.safetensors
    """
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms, read_labels
        from adapters.importers.adaptformer import convert, export_backbone, read_checkpoint

        source = read_checkpoint(checkpoint)
        names = read_labels(labels, source.classes)
        chosen = weights or ("random:0" if export_base else "")  # only the architecture is needed then
        backbone = load_backbone(base, chosen, "cpu", "float32")
        if export_base:
            export_backbone(source, backbone, export_base)
            chosen = str(export_base)
            backbone = load_backbone(base, chosen, "cpu", "float32")
        given, layout = _given(mean, std, interpolation, crop_pct), backbone.layout
        if image_size:  # its tensors are compared at their own size; their fingerprint is the same at any
            layout = load_backbone(base, chosen, "cpu", "float32", image_size).layout
            given |= {"size": layout.input_size}
        terms = ImportTerms(task or task_name(file.name), names, given)
        _finish(file, convert(source, backbone, terms, scale=scale), layout)
    if export_base:
        line = f"its backbone is {export_base}: adaptserve serve --backbone {base} --weights {export_base}"
        out().print(line + (f" --image-size {image_size}" if image_size else ""), markup=False)


@app.command()
def peft(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What PEFT's save_pretrained wrote.")],
    base: Base,
    labels: Labels,
    file: Out,
    task: Task = None,
    weights: Weights = "",
    image_size: ImageSize = "",
    mean: Mean = None,
    std: Std = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
) -> None:
    """Import a PEFT LoRA folder of Hugging Face's ViT or of a timm model, with its trained classifier.

    The folder does not hold the backbone, so that --base is the one it was trained on is yours to know.

    Example:  adaptserve import peft ./vit-lora-pets --base vit_base_patch16_224.augreg_in21k
    --labels pets.txt --out pets.safetensors --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --crop-pct 1
    """
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms, read_labels
        from adapters.importers.peft import convert, read_folder

        source = read_folder(folder)
        names = read_labels(labels, source.classes)
        backbone = load_backbone(base, weights, "cpu", "float32", image_size)
        terms = ImportTerms(task or task_name(file.name), names, _given(mean, std, interpolation, crop_pct))
        _finish(file, convert(source, backbone, terms), backbone.layout)
    out().print(
        f"it was trained on {source.trained_on or 'a model that it does not name'}; "
        f"that {base} has the same weights cannot be seen from the folder",
        markup=False,
    )


@app.command("st-adapter")
def st_adapter(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT.pth", help="What ST-Adapter's own code saved.")],
    base: Base,
    labels: Labels,
    file: Out,
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
) -> None:
    """Import a checkpoint of ST-Adapter's official code: clips on OpenAI's CLIP, adapters with kernels of 3x1x1.

    The file holds what was trained and seldom the backbone, so that --base has the weights that the training had is
    yours to know. Preprocessing is that code's unless it is given.

    Example:  adaptserve import st-adapter checkpoint-49.pth --base vit_base_patch16_clip_quickgelu_224.openai
    --labels ssv2.txt --out ssv2.safetensors
    """
    with one_line_errors():
        from adapters.backbone import load_backbone
        from adapters.importers import ImportTerms, read_labels
        from adapters.importers.st_adapter import convert, read_checkpoint

        source = read_checkpoint(checkpoint)
        names = read_labels(labels, source.classes)
        backbone = load_backbone(base, weights, "cpu", "float32", image_size)
        terms = ImportTerms(task or task_name(file.name), names, _given(mean, std, interpolation, crop_pct))
        _finish(file, convert(source, backbone, terms, frames=frames), backbone.layout)
    held = len(source.backbone)
    out().print(
        f"it was trained on OpenAI's CLIP; that {base} has the same weights "
        f"{f'was seen from {held} tensors in the file' if held else 'cannot be seen from the file'}; "
        f"taken for granted: {frames} frames from all over a clip, and one view of it",
        markup=False,
    )


def _given(
    mean: Three | None, std: Three | None, interpolation: str | None, crop_pct: float | None
) -> dict[str, object]:
    return {"mean": mean, "std": std, "interpolation": interpolation, "crop_pct": crop_pct}


def _finish(file: Path, imported: Imported, layout: Layout) -> None:
    from adapters.importers import save

    config, tensors = imported
    digest = save(file, imported, layout)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    sites = ", ".join(f"{s.site} in {len(s.blocks)} blocks, rank {s.rank}" for s in config.sites) or "head only"
    out().print(
        f"{file}: task {config.task}, {len(config.labels)} labels, {sites}, {parameters:,} parameters "
        f"({100 * parameters / layout.parameters:.2f} % of {layout.model}), sha256 {digest[:12]}",
        markup=False,
    )
    settings = settings_or_exit(None)
    bounds = file_limits(settings, layout.slot_rank(settings.max_rank))
    for refusal in refusals(config, layout, bounds):
        complain(foreseen(refusal), "warning")
    out().print(f"try: adaptserve push {file}", markup=False)
