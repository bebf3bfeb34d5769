"""One training of the tables, in a process of its own, so that its peak memory is its own.

``python -m benchmarks.trial JSON DATA`` trains and prints what it measured as one line of JSON; DATA is the folder of
archives and weights (docs/RESULTS.md). It knows one trial; which trials there are, and what they are compared with, is
another module's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from adapters.training.model import HeadedModel

ROOT = Path(__file__).parent.parent
WORK = Path(tempfile.gettempdir()) / "adaptserve-sets"
"""Archives unpacked, sets as folders, and the adapters that trials made."""
WEIGHTS = "vit_small_dinov2_saliency_fp16.safetensors"
BACKBONES: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "", ""), "vit-s": ("vit_small_patch14_dinov2", WEIGHTS, "98"),
}  # fmt: skip
"""Name, weights in the folder of data, and image size."""
CHOOSE = 0.7
"""Of the training data, to choose a learning rate by the rest of it."""


@dataclass(frozen=True)
class Trial:
    """What to train; None leaves the choice to the method, as in ``adaptserve train``.

    ``data``: a set's name. ``part``: ``all`` trains on all training data and scores the held-out data; ``choose``
    trains on a part of the training data and scores the rest of it, so that no rate is chosen on held-out data.
    ``examples``: of each class, drawn by the seed. ``crop``: the least area that a random crop leaves. ``curve``: score
    after every epoch too.
    """

    data: str
    method: Literal["adaptformer", "lora", "st-adapter", "linear", "vpt", "full"]
    backbone: Literal["demo", "vit-s"] = "vit-s"
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    seed: int = 0
    part: Literal["all", "choose"] = "all"
    examples: int | None = None
    rank: int | None = None
    scale: float | None = None
    learn_scale: bool = False
    site: str | None = None
    blocks: str = "all"
    head: Literal["mean", "frames", "attention"] | None = None
    temporal: bool | None = None
    crop: float = 0.8
    warmup: float = 0.1
    clip: float = 1.0
    curve: bool = False

    @property
    def key(self) -> str:
        """The same for the same training; what is left out has its default."""
        default = Trial("", "linear")
        given = {k: v for k, v in asdict(self).items() if v != getattr(default, k) or k in ("data", "method")}
        return ", ".join(f"{k} {v}" for k, v in given.items())

    @property
    def file(self) -> Path:
        """Where the adapter is, once it has run."""
        return WORK / "adapters" / f"{hashlib.sha256(self.key.encode()).hexdigest()[:16]}.safetensors"


def run(trial: Trial, data: Path) -> dict[str, Any]:
    """Train in a child process of one thread. Raises RuntimeError with the last words of a child that failed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.trial", json.dumps(asdict(trial)), str(data)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{trial.key}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def train(trial: Trial, data: Path) -> dict[str, Any]:
    """Train in this process; scores are those after the last step, so that nothing is chosen by them.

    Memory is in bytes. ``growth``: the largest resident size during training minus that before its first step.
    ``kept``: what one step keeps for its backward pass, parameters not counted. ``cpu_seconds``: of the features for
    the linear head or of the fit, with its one score.
    """
    import torch
    from torch.utils.data import Subset

    from adapters.backbone import load_backbone
    from adapters.training.data import find_examples
    from adapters.training.fit import FitConfig, fit, parameters_of, predict, score_of
    from adapters.training.model import AdaptedModel
    from adapters.training.plan import TrainingPlan
    from adapters.training.progress import Teller
    from adapters.training.recipe import Recipe, config_of, fit_of, pools_of
    from adapters.training.run import read_data
    from adapters.training.start import frozen
    from adapters.training.tune import begun, start_of
    from benchmarks.sets import written

    torch.set_num_threads(1)
    teller = Teller(sys.stderr)
    name, weights, size = BACKBONES[trial.backbone]
    backbone = load_backbone(name, str(data / weights) if weights else "", "cpu", "auto", size)
    recipe = Recipe(
        "t", trial.method, rank=trial.rank, scale=trial.scale, blocks=trial.blocks, site=trial.site,
        head=trial.head, temporal=trial.temporal, batch=trial.batch, lr=trial.lr,
    )  # fmt: skip
    fit_config = FitConfig(seed=trial.seed, crop=trial.crop, warmup=trial.warmup, clip=trial.clip)
    plan = TrainingPlan(written(trial.data, WORK), trial.file, recipe, fit_config)
    listing = find_examples(plan.data, plan.part)
    config = config_of(recipe, backbone, listing.modality, listing.labels)
    _, (training, held_out), _ = read_data(plan, listing, config, teller)
    truth = [listing.labels.index(example.label) for example in training.examples]
    chosen, rest = indices(truth, trial)
    train_on, score_on = Subset(training, chosen), Subset(training, rest) if trial.part == "choose" else held_out
    began = time.process_time()
    vectors = frozen(backbone, config, pools_of(recipe, backbone.layout), train_on)
    start = start_of(recipe, backbone, config, vectors, trial.seed, teller)
    settings = fit_of(recipe, plan.settings(training), len(chosen), config.frames)
    if trial.steps:
        settings = replace(settings, epochs=max(1, round(trial.steps * settings.batch / len(chosen))))
    settings = replace(settings, every=1 if trial.curve else settings.epochs)
    torch.manual_seed(trial.seed)
    model = begun(recipe, backbone, start, vectors, settings)
    if trial.learn_scale:
        model = AdaptedModel(backbone, start.config, learn_scale=True)
        model.start(vectors.seen(start.config))
    before, history = reset_peak(), list[dict[str, float]]()
    if trial.method == "linear" and start.config.head != "attention":
        scores = score_of(*predict(model, score_on, settings))
    else:
        began = time.process_time()
        history = fit(model, train_on, score_on, settings).history
        scores = history[-1]
    cpu, peak = time.process_time() - began, resident("VmHWM")
    count, share = parameters_of(model)
    found: dict[str, Any] = {
        "accuracy": scores["accuracy"],
        "balanced_accuracy": scores["balanced_accuracy"],
        "held_out_loss": scores["held_out_loss"],
        "train_examples": len(chosen),
        "held_out_examples": len(score_on),
        "classes": len(listing.labels),
        "steps": settings.epochs * -(-len(chosen) // settings.batch),
        "batch": settings.batch,
        "lr": settings.lr,
        "pool": start.config.pool,
        "head": start.config.head,
        "parameters": count,
        "share": share,
        "rank": start.config.sites[0].rank if start.config.sites else None,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "cpu_seconds": cpu,
        "peak": peak,
        "growth": peak - before,
        "fingerprint": f"{backbone.layout.model} {backbone.layout.fingerprint}",
    }
    if trial.curve:
        found["losses"] = [round(line["held_out_loss"], 4) for line in history]
    if isinstance(model, AdaptedModel):
        found |= _file_of(trial, model)
        if trial.learn_scale:
            residuals: Any = model.residuals.values()
            found["scales"] = [round(residual.scale.item(), 3) for residual in residuals]
    if trial.method != "linear":
        pixels = torch.stack([training[i][0] for i in chosen[: settings.batch]])
        found["kept"] = kept_for_backward(model, pixels)
    return found


def _file_of(trial: Trial, model: Any) -> dict[str, Any]:
    """Write the adapter; its size in bytes."""
    from adapters.file import write_adapter

    if trial.part == "choose":
        return {}
    trial.file.parent.mkdir(parents=True, exist_ok=True)
    write_adapter(trial.file, model.exported_config(), model.tensors())
    return {"file_bytes": trial.file.stat().st_size}


def indices(labels: list[int], trial: Trial) -> tuple[list[int], list[int]]:
    """Of the training examples: those to train on, and the rest."""
    import numpy as np

    seed = trial.seed if trial.examples else 7
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    if trial.examples:
        seen: dict[int, int] = {}
        chosen = []
        for i in order:
            seen[labels[i]] = seen.get(labels[i], 0) + 1
            if seen[labels[i]] <= trial.examples:
                chosen.append(i)
    else:
        chosen = order[: round(CHOOSE * len(order))] if trial.part == "choose" else order
    kept = frozenset(chosen)
    return sorted(chosen), [i for i in range(len(labels)) if i not in kept]


def kept_for_backward(model: HeadedModel, pixels: torch.Tensor) -> int:
    """Bytes of the tensors that one training step of these pixels saves for its backward pass, each counted once."""
    import torch

    from adapters.training.model import images_of, written_out_attention

    owned = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.backbone.model.parameters()]}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with written_out_attention(model.backbone), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(images_of(model, pixels))
    del logits
    return sum(found.values())


def resident(field: str) -> int:
    """Bytes: ``VmRSS``, the resident size now, or ``VmHWM``, its largest since the last reset (Linux)."""
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")
    return int(match[1]) * 1024


def reset_peak() -> int:
    """Begin the measurement of the peak anew; returns the resident size now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


if __name__ == "__main__":
    print(json.dumps(train(Trial(**json.loads(sys.argv[1])), Path(sys.argv[2]))))
