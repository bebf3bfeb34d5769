"""`train`: a folder of labelled pictures or clips -> an adapter file that the server takes.

It knows options and the terminal; what happens is ``adapters.training.run``'s.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from adapters.config import MAX_FRAMES, MAX_STRIDE, MAX_VIEWS, HeadKind, Pool, Tokens, size_text, task_name
from adapters.limits import variable
from adapters.training.names import Method, Part
from service.cli.console import complain, one_line_errors, out, settings_or_exit
from service.exits import FAILED, INTERRUPTED
from service.limits import file_limits, media_limits

if TYPE_CHECKING:
    from adapters.backbone import Backbone
    from adapters.training.plan import TrainingPlan
    from adapters.training.run import Trained

MAX_BAD_SHOWN = 5
MAX_EPOCHS = 10_000
LEAST_RATE, MOST_RATE = 1e-8, 10.0
SHARE = 0.2


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="DATA/CLASS/FILE, DATA/{train,val,test}/CLASS/FILE, or a CSV of path,label[,split]."
        ),
    ],
    file: Annotated[Path, typer.Option("--out", metavar="FILE", help="The .safetensors file to write.")],
    task: Annotated[str | None, typer.Option(help="Name of the task.  [default: from FILE's name]")] = None,
    method: Annotated[
        Method, typer.Option(help="linear trains the head alone; vpt and full are for comparison.")
    ] = "adaptformer",
    backbone: Annotated[
        str, typer.Option(help="demo, a timm model name, or a folder of timm or transformers.")
    ] = "demo",
    weights: Annotated[str, typer.Option(help="A .safetensors or .pth file instead of the pretrained weights.")] = "",
    image_size: Annotated[
        str,
        typer.Option(help="Pixels that the backbone sees: 224, or height x width as 196x322.  [default: the model's]"),
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(
            help="Of the frozen backbone while it trains. auto: as the server's auto; float32: slower there, and one "
            "seed gives one file on every processor."
        ),
    ] = "auto",
    rank: Annotated[int | None, typer.Option(min=1, help="[default: about 1.4 % of the backbone]")] = None,
    scale: Annotated[float | None, typer.Option(help="0.1 is the paper's.  [default: 1]")] = None,
    blocks: Annotated[str, typer.Option(help="all, or such as 0-3,8.")] = "all",
    site: Annotated[str | None, typer.Option(help="[default: parallel, lora q,v, st-adapter input,pre_mlp]")] = None,
    tokens: Annotated[
        Tokens | None,
        typer.Option(help="patches leaves the class token and registers out.  [default: all, st-adapter patches]"),
    ] = None,
    pool: Annotated[Pool | None, typer.Option(help="[default: the best by cross-validation]")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=MAX_EPOCHS, help="[default: about 1,000 steps, 600 of clips]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, max=4096, help="Pictures or clips in a step.  [default: 8 to 32]")
    ] = None,
    lr: Annotated[
        str | None, typer.Option(metavar="RATE|auto", help="Highest learning rate; auto tries some on a part of DATA.")
    ] = None,
    crop: Annotated[
        float | None, typer.Option(min=0.05, max=1.0, help="Least area a random crop leaves.  [default: 0.8; 1: none]")
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirror half of the examples, where left is like right.")
    ] = False,
    mixup: Annotated[float, typer.Option(min=0.0, max=10.0, help="Blend examples; 0.2 is usual, 0 does not.")] = 0.0,
    label_smoothing: Annotated[float, typer.Option(min=0.0, max=0.9, help="0.1 is usual.")] = 0.0,
    prompts: Annotated[
        int | None, typer.Option(min=1, max=200, help="Tokens per block, vpt only.  [default: 10]")
    ] = None,
    patience: Annotated[int, typer.Option(min=0, help="Stop after so many epochs without gain; 0 never.")] = 0,
    held_out: Annotated[
        str,
        typer.Option(
            metavar="SHARE|val|test",
            help="Share of each class kept for the score; or which part of DATA's split.",
        ),
    ] = str(SHARE),
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same tensors.")] = 0,
    frames: Annotated[int | None, typer.Option(min=1, max=MAX_FRAMES, help="Frames of a clip.  [default: 8]")] = None,
    sampling: Annotated[
        Literal["uniform", "dense"] | None,
        typer.Option(help="Which: uniform from the whole clip, or dense around its middle.  [default: uniform]"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_STRIDE, help="Distance of dense frames, in the clip's own.  [default: 4]"),
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=1, max=MAX_VIEWS, help="Times a clip is looked at in serving; the mean answers.")
    ] = None,
    crops: Annotated[
        int | None, typer.Option(min=1, max=3, help="3: each view at both ends of the longer side too.")
    ] = None,
    temporal: Annotated[
        bool | None, typer.Option("--temporal/--no-temporal", help="Mix over a clip's frames.  [default: not for lora]")
    ] = None,
    head: Annotated[
        HeadKind | None,
        typer.Option(
            help="Of a clip: the mean of its frames, all frames in their order, or an attention over them.  "
            "[default: mean or frames, by cross-validation]"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=256, help="Threads that decode a set too large to keep.  [default: the cores]"),
    ] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback/--no-fallback", help="Write the best linear head where the method is no better.")
    ] = True,
    abstain_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Write the score from which so many held-out answers are right; others get accepted: false.",
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write FILE.report/ too.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from FILE.resume, if it is there.")] = False,
    env_file: Annotated[
        Path | None, typer.Option(help="File with the ADAPTSERVE_ settings of the server that FILE is for.")
    ] = None,
) -> None:
    """Train an adapter on DATA and write it to FILE, ready for `adaptserve push`.

    Part of DATA is held out, and the accuracy on it is told. Ctrl-C leaves FILE.resume; the same command with --resume
    goes on from there, to the same result. The methods vpt and full leave a report and no FILE, for comparison.

    Bounds on pictures, clips and adapters are the server's, with the same names in the environment (ADAPTSERVE_); what
    a server with them would refuse is warned of.

    Example:  adaptserve train flowers/ --out flowers.safetensors --epochs 20
    """
    with one_line_errors():
        import torch  # takes seconds; --help need not wait for it

        from adapters.backbone import load_backbone
        from adapters.training.fit import FitConfig
        from adapters.training.plan import TrainingPlan
        from adapters.training.recipe import CROP, Recipe

        logging.getLogger("timm").setLevel(logging.WARNING)
        settings = settings_or_exit(env_file)
        share, part = _held_out(held_out)
        recipe = Recipe(
            task=task or task_name(file.name), method=method, rank=rank, scale=scale, blocks=blocks, site=site,
            pool=pool, frames=frames, temporal=temporal, prompts=prompts, epochs=epochs,
            batch=batch, lr=_rate(lr),
            head=head, tokens=tokens,
            sampling=sampling, stride=stride, views=views, crops=crops,
        )  # fmt: skip
        fit = FitConfig(
            label_smoothing=label_smoothing, crop=CROP if crop is None else crop, flip=flip, mixup=mixup,
            patience=patience, workers=(os.cpu_count() or 1) if workers is None else workers, seed=seed,
        )  # fmt: skip
        plan = TrainingPlan(
            data, file, recipe, fit, held_out=share, part=part, limits=media_limits(settings),
            served=file_limits(settings, settings.max_rank), fallback=fallback, report=report, resume=resume,
            abstain_accuracy=abstain_accuracy,
        )  # fmt: skip
        _say_no_file(plan)
        try:
            trained = _run(plan, load_backbone(backbone, weights, device, dtype, image_size))
        except KeyboardInterrupt:
            left = (
                f"; {plan.checkpoint} keeps its whole epochs, go on with --resume" if plan.checkpoint.exists() else ""
            )
            complain(f"interrupted, nothing was written to {file}{left}", "stopped")
            raise typer.Exit(INTERRUPTED) from None
        except (MemoryError, torch.OutOfMemoryError) as error:
            complain("the memory is full; try a smaller --batch, or fewer --frames")
            raise typer.Exit(FAILED) from error
    _say(plan, trained, sized=bool(image_size))


def _rate(text: str | None) -> float | Literal["auto"] | None:
    if text is None or text == "auto":
        return None if text is None else "auto"
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not LEAST_RATE <= rate <= MOST_RATE:
        told = f"'{text}' is no rate from {LEAST_RATE:g} to {MOST_RATE:g}, nor auto"
        raise typer.BadParameter(told, param_hint="'--lr'")
    return rate


def _held_out(text: str) -> tuple[float, Part | None]:
    """A share of each class, or the part of a split."""
    if text in ("val", "test"):
        return SHARE, cast("Part", text)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.01 <= share <= 0.9:
        raise typer.BadParameter(f"'{text}' is no share from 0.01 to 0.9, nor val or test", param_hint="'--held-out'")
    return share, None


def _run(plan: TrainingPlan, backbone: Backbone) -> Trained:
    from adapters.training.progress import telling
    from adapters.training.run import train as train_adapter

    with telling() as teller:
        return train_adapter(plan, backbone, teller)


def _say_no_file(plan: TrainingPlan, report: Path | None = None) -> None:
    """One line for a method that leaves no file; nothing for the others."""
    from adapters.training.baselines import NO_FILE

    why = NO_FILE.get(plan.recipe.method)
    if why:
        place = f"{report or plan.report_folder}/index.html" if plan.report else "none"
        out().print(f"{why}, so there is no adapter file to serve; report: {place}", markup=False, soft_wrap=True)


def _say(plan: TrainingPlan, trained: Trained, *, sized: bool) -> None:
    told, console = trained.config.training, out()
    needs = list(told.get("needs", ()))
    if sized:
        needs.append(f"{variable('image_size')}={size_text(trained.config.input.size)}")
    for bad in trained.bad[:MAX_BAD_SHOWN]:
        complain(f"{bad.name}: {bad.reason}", "left out")
    if len(trained.bad) > MAX_BAD_SHOWN:
        complain(f"and {len(trained.bad) - MAX_BAD_SHOWN} more files", "left out")
    if plan.resume:
        console.print(f"resumed after epoch {trained.tuned.resumed_epochs}")
    lines = {
        "task": f"{trained.config.task}, {len(trained.config.labels)} labels",
        "held-out accuracy": f"{told['held_out_accuracy']:.2%} of {told['held_out_examples']} files{_epochs(told)}",
        "balanced accuracy": trained.recalls.summary(),
        "calibration error": _calibration(told["calibration"]),
        **({"abstain": _abstain(told["calibration"])} if "abstain_threshold" in told["calibration"] else {}),
        "parameters": f"{told['parameters']:,} ({told['share_of_backbone']:.2%} of the backbone)",
        "time, memory": f"{told['seconds']:.0f} s, peak {told['peak_memory_bytes'] / 2**20:,.0f} MiB",
        "file": f"{plan.out}, sha256 {trained.digest[:12]}" if trained.digest else "none",
        "report": f"{trained.report}/index.html" if trained.report else "none",
    }
    for name, value in lines.items():
        console.print(f"{name:<18} {value}", markup=False)
    console.print(f"{'verdict':<18} {told['verdict']}", markup=False, soft_wrap=True)
    if needs:
        console.print(f"{'a server needs':<18} {' '.join(needs)}", markup=False)
    if trained.digest:
        console.print(f"next: adaptserve push {plan.out}", markup=False)
    else:
        _say_no_file(plan, trained.report)


def _calibration(told: dict[str, Any]) -> str:
    if told["temperature"] == 1.0:
        return f"{told['error_before']:.2%}; no temperature lowers the log loss, so none is written"
    return f"{told['error_before']:.2%}, {told['error']:.2%} with temperature {told['temperature']:g}"


def _abstain(told: dict[str, Any]) -> str:
    return (
        f"below {told['abstain_threshold']:.2%}; {told['abstain_share']:.1%} of the files are accepted, "
        f"{told['abstain_accuracy']:.2%} of them right"
    )


def _epochs(told: dict[str, Any]) -> str:
    return f", best of {told['epochs_run']} epochs: {told['best_epoch']}" if told["best_epoch"] else ""
