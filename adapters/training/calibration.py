"""Calibration: a temperature that makes scores say how often they are right, and from which score on to rely on them.

Of held-out logits, as they are served. It knows no model and no file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adapters.config import MAX_TEMPERATURE, MIN_TEMPERATURE

BINS = 15
FOLDS = 5
MAX_VALUES = 2**22
"""Logits at most that a temperature is fitted to: it is one number."""
STEPS = 50
DIGITS = 4
"""Of a temperature, so that what other processors round otherwise makes the same file."""


@dataclass(frozen=True)
class Bin:
    """The answers whose confidence lies in one of ``BINS`` equal parts of 0 to 1: how many, and their means."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Abstention:
    """Answers with at least this ``threshold`` are accepted: what ``share`` of them all, and their ``accuracy``."""

    threshold: float
    share: float
    accuracy: float


def bins_of(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[Bin]:
    """Of answers (items,): those bins that hold any, in ascending order."""
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return [
        Bin(int(here.sum()), float(confidence[here].mean()), float(right[here].mean()))
        for here in (place == number for number in range(BINS))
        if here.any()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error (Guo et al. 2017): how far accuracy is from confidence, in the mean over answers."""
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / sum(one.count for one in bins)


def abstention(confidence: NDArray[np.float64], right: NDArray[np.bool_], wanted: float) -> Abstention | None:
    """The smallest threshold at which the accepted answers (items,) have at least the ``wanted`` accuracy.

    It lies half way to the best answer that is refused, 0 where none is. None where not even the surest are so good.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_, shares = confidence[order], np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    ends = np.append(sorted_[1:] < sorted_[:-1], True)  # equal scores are accepted together
    good = np.flatnonzero(ends & (shares >= wanted))
    if not len(good):
        return None
    last = int(good[-1])
    everything = last + 1 == len(order)
    threshold = 0.0 if everything else float(sorted_[last] + sorted_[last + 1]) / 2
    return Abstention(threshold, (last + 1) / len(order), float(shares[last]))


@dataclass(frozen=True)
class Temperature:
    """A fitted ``value``, and the log loss that other folds' temperatures left, beside that without any."""

    value: float
    loss_before: float
    loss_after: float


def fit_temperature(logits: Tensor, truth: Tensor, seed: int = 0) -> Temperature:
    """Of logits (items, classes), or (items, views, classes) whose scores are averaged, by temperature scaling.

    ``truth`` is int64 (items,) for a softmax, or float32 (items, classes) of ones and zeros for sigmoids. The value
    is 1 unless temperatures that were fitted to the other folds lower the log loss in the mean.
    """
    items, classes = logits.shape[0], logits.shape[-1]
    keep = max(FOLDS, min(items, MAX_VALUES // logits[0].numel()))
    chosen = torch.randperm(items, generator=torch.Generator().manual_seed(seed))[:keep]
    problem = _Problem(logits[chosen].reshape(len(chosen), -1, classes).double(), truth[chosen])
    if len(chosen) < FOLDS or (classes < 2 and not truth.is_floating_point()):
        loss = problem.loss(1.0)
        return Temperature(1.0, loss, loss)
    fold = torch.arange(len(chosen)) % FOLDS
    before, after = 0.0, 0.0
    for number in range(FOLDS):
        rest, here = problem.part(fold != number), problem.part(fold == number)
        share = here.count / len(chosen)
        before += share * here.loss(1.0)
        after += share * here.loss(rest.best())
    value = round(problem.best(), DIGITS) if after < before else 1.0
    return Temperature(value, before, after if value != 1.0 else before)


class _Problem:
    """The log loss of scores as a function of the temperature; ``logits`` (items, views, classes) float64."""

    def __init__(self, logits: Tensor, truth: Tensor) -> None:
        self.count, self._logits, self._truth = len(truth), logits, truth

    def part(self, which: Tensor) -> _Problem:
        return _Problem(self._logits[which], self._truth[which])

    @torch.no_grad()
    def loss(self, temperature: float) -> float:
        return float(self._loss(torch.tensor(temperature, dtype=torch.float64), 1.0))

    def best(self) -> float:
        """The temperature of the least loss, within bounds.

        As if one answer more were wrong and one more right, in the manner of Platt (1999): where no answer is wrong,
        the loss alone would have the scores be 1.
        """
        right = (self.count + 1) / (self.count + 2)
        logarithm = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([logarithm], max_iter=STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(logarithm.exp(), right)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        found = float(logarithm.detach().exp())
        return min(MAX_TEMPERATURE, max(MIN_TEMPERATURE, found)) if math.isfinite(found) else 1.0

    def _loss(self, temperature: Tensor, right: float) -> Tensor:
        """Mean of the negative log scores, a share ``right`` of the truth."""
        values = self._logits / temperature
        if self._truth.is_floating_point():
            yes, no = F.logsigmoid(values), F.logsigmoid(-values)
            truth = self._truth.double() * right + (1 - self._truth.double()) * (1 - right)
        else:
            index = self._truth[:, None, None].expand(-1, values.shape[1], 1)
            whole = values.logsumexp(-1)
            yes = values.gather(-1, index).squeeze(-1) - whole
            no = values.scatter(-1, index, -torch.inf).logsumexp(-1) - whole
            truth = torch.tensor(right, dtype=torch.float64)
        views = math.log(values.shape[1])
        yes, no = yes.logsumexp(1) - views, no.logsumexp(1) - views
        loss = -truth * yes
        return (loss - (1 - truth) * no if right < 1.0 or self._truth.is_floating_point() else loss).mean()


def told_of(temperature: Temperature, before: list[Bin], after: list[Bin], given: Abstention | None) -> dict[str, Any]:
    """As a file tells of it."""
    rounded = {
        "temperature": temperature.value,
        "error_before": round(calibration_error(before), 4),
        "error": round(calibration_error(after), 4),
        "log_loss_before": round(temperature.loss_before, 4),
        "log_loss": round(temperature.loss_after, 4),
    }
    lines = {f"abstain_{name}": round(value, 4) for name, value in asdict(given).items()} if given else {}
    return rounded | lines
