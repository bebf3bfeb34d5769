"""One training of the comparison, in a process of its own, so that its peak memory is its own.

``python -m benchmarks.trial JSON`` trains on the demo backbone and prints what it measured as one line of JSON. It
knows one trial; which trials there are, and what they are compared with, is another module's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Trial:
    """What to train; None leaves the choice to the method, as in ``adaptserve train``.

    ``part``: ``all`` trains on all training data and scores the held-out data; ``choose`` trains on 40 % of the
    training data and scores another 20 % of it, so that a learning rate is not chosen on held-out data.
    """

    task: Literal["digits"]
    method: Literal["adaptformer", "lora", "linear", "vpt", "full"]
    lr: float
    epochs: int
    batch: int
    seed: int = 0
    part: Literal["all", "choose"] = "all"
    rank: int | None = None
    scale: float | None = None
    learn_scale: bool = False
    site: str | None = None
    blocks: str = "all"
    threads: int = 1

    @property
    def key(self) -> str:
        """The same for the same training; what is left out has its default."""
        default = Trial("digits", "linear", 0.0, 0, 0)
        given = {k: v for k, v in asdict(self).items() if v != getattr(default, k) or k in ("task", "method")}
        return ", ".join(f"{k} {v}" for k, v in given.items())


def run(trial: Trial) -> dict[str, Any]:
    """Train in a child process. Raises RuntimeError with the last words of a child that failed."""
    environment = os.environ | {"OMP_NUM_THREADS": str(trial.threads), "MKL_NUM_THREADS": str(trial.threads)}
    command = [sys.executable, "-m", "benchmarks.trial", json.dumps(asdict(trial))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{trial.key}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def train(trial: Trial) -> dict[str, Any]:
    """Train in this process; accuracies are those after the last epoch, so that no epoch is chosen.

    Memory is in bytes. ``growth``: the largest resident size during training minus that before its first step.
    ``kept``: what one step keeps for its backward pass, parameters not counted.
    """
    import torch
    from torch.utils.data import TensorDataset

    from adapters.backbone import load_backbone
    from adapters.training.baselines import model_of
    from adapters.training.demo.tasks import shift
    from adapters.training.fit import FitConfig, fit, parameters_of
    from adapters.training.model import AdaptedModel
    from adapters.training.recipe import Recipe, config_of
    from adapters.training.start import best_start, frozen

    torch.set_num_threads(trial.threads)
    backbone = load_backbone("demo", device="cpu", dtype="float32")
    training, held_out = _data(trial)
    recipe = Recipe(
        task=trial.task, method=trial.method, rank=trial.rank, scale=trial.scale, site=trial.site, blocks=trial.blocks
    )
    config = config_of(recipe, backbone, "image", tuple(str(digit) for digit in range(10)))
    torch.manual_seed(trial.seed)
    if trial.learn_scale:
        model: Any = AdaptedModel(backbone, config, learn_scale=True)
    else:
        model = model_of(recipe, backbone, config)
    vectors = frozen(backbone, config, (config.pool,), TensorDataset(*training))
    linear = trial.method == "linear"
    model.start(vectors.seen(config), best_start(vectors, [config], trial.seed)[0].solved if linear else None)
    settings = FitConfig(epochs=trial.epochs, batch=trial.batch, lr=trial.lr, seed=trial.seed)
    before = reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    result = fit(model, TensorDataset(*training), TensorDataset(*held_out), settings, augment=shift)
    wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, resident("VmHWM")
    count, share = parameters_of(model)
    scales = [round(r.scale.item(), 3) for r in model.residuals.values()] if trial.learn_scale else None
    return {
        "accuracy": result.history[-1]["accuracy"],
        "held_out_loss": result.history[-1]["held_out_loss"],
        "accuracies": [round(line["accuracy"], 4) for line in result.history],
        "train_examples": len(training[0]),
        "held_out_examples": len(held_out[0]),
        "parameters": count,
        "share": share,
        "rank": config.sites[0].rank if config.sites else None,
        "scales": scales,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "peak": peak,
        "growth": peak - before,
        "kept": kept_for_backward(model, training[0][: trial.batch]),
        "fingerprint": backbone.layout.fingerprint,
    }


def _data(trial: Trial) -> tuple[Any, Any]:
    """Training and scoring data; the demo's own split."""
    import numpy as np

    from adapters.training.demo import digits

    training, held_out = digits.split()
    if trial.part == "choose":
        order = np.random.default_rng(7).permutation(len(training.digit))
        first, second = round(0.4 * len(order)), round(0.6 * len(order))
        parts = [replace(training, scans=training.scans[i], digit=training.digit[i])
                 for i in (order[:first], order[first:second])]  # fmt: skip
        training, held_out = parts
    return digits.pictures(training), digits.pictures(held_out)


def kept_for_backward(model: Any, pixels: Any) -> int:
    """Bytes of the tensors that one training step of these pixels saves for its backward pass, each counted once."""
    import torch

    from adapters.training.model import images_of

    owned = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.backbone.model.parameters()]}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
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
    print(json.dumps(train(Trial(**json.loads(sys.argv[1])))))
