"""Every job's head, for a whole batch at once: the frames' vectors become one vector of each job, and that its logits.

It knows the bank's pages and the batch's table; it knows no backbone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.bank import PAGE, Slabs
from adapters.forward.plan import FRAMES, BatchKey, Table
from adapters.forward.timed import TimedKey, TimedTable

PAGES_AT_ONCE = 256
"""Pages of heads that are gathered for one product: 4,096 classes, 6 MB at ViT-S."""


OwnNorm = Callable[[Tensor, Tensor], Tensor]
"""Vectors, and the table's lines of whose they are -> the vectors, normed where a job has a norm of its own."""


def vectors_of(rows: Tensor, slabs: Slabs, key: BatchKey, table: Table[Tensor], own_norm: OwnNorm | None) -> Tensor:
    """One vector for each job (jobs, width), of the pooled ``rows`` (rows * modes, width): what its last map takes.

    The mean over the job's frames, normed; or what its head makes of the frames, each of which is normed before.
    """
    vectors = mean_over_frames(rows, table.vectors, table)
    if own_norm is not None:
        vectors = own_norm(vectors, table.jobs)
    if key.timed is None:
        return vectors
    heads = TimedTable[Tensor].of(key.timed_shapes, table.timed)
    jobs, frames = table.jobs[:, heads.jobs], rows[table.vectors[heads.jobs]]
    if own_norm is not None:
        frames = own_norm(frames.flatten(0, 1), jobs.repeat_interleave(key.frames, 1)).view_as(frames)
    made = _features_of(frames, jobs[FRAMES], slabs, key.timed, heads)
    return torch.cat([vectors, made])[heads.vectors]


def mean_over_frames(rows: Tensor, of_jobs: Tensor, table: Table[Tensor]) -> Tensor:
    """Mean of each job's rows, added one frame after another so that longer neighbours change no bit.

    ``of_jobs`` (jobs, frames) are the table's ``vectors`` or ``second_vectors``.
    """
    frames = of_jobs.shape[1]
    total = rows[of_jobs[:, 0]]
    if frames == 1:
        return total
    count = table.jobs[FRAMES, :, None]
    here = (torch.arange(frames, device=count.device) < count).to(total.dtype)
    for t in range(1, frames):
        total = total.addcmul(rows[of_jobs[:, t]], here[:, t : t + 1])
    return total / count.to(total.dtype)


def scores_of(vectors: Tensor, slabs: Slabs, pages: Tensor, places: Tensor) -> Tensor:
    """Logits (jobs, pages * PAGE): every job against every different page, and then each job takes its own.

    ``pages`` and ``places`` are the table's ``heads`` and ``places``, or those of the second vectors.

    So the classes of a task are read once, however many jobs ask it. That most products are thrown away where each job
    has a task of its own costs little: a page is 16 of the thousands of rows that a batch is to the backbone. A page's
    product depends on the number of jobs alone, so neighbours with larger heads change no bit.
    """
    jobs, heads = vectors.shape[0], pages.shape[0]
    columns = vectors.T
    scores = vectors.new_empty(heads, PAGE, jobs)
    for start in range(0, heads, PAGES_AT_ONCE):
        numbers = pages[start : start + PAGES_AT_ONCE]
        torch.baddbmm(
            slabs.page_bias[numbers].unsqueeze(-1), slabs.pages[numbers], columns.expand(len(numbers), -1, -1),
            out=scores[start : start + PAGES_AT_ONCE],
        )  # fmt: skip
    chosen = scores[places, :, torch.arange(jobs, device=scores.device)[:, None]]
    return chosen.reshape(jobs, -1)


def _features_of(frames: Tensor, counts: Tensor, slabs: Slabs, key: TimedKey, table: TimedTable[Tensor]) -> Tensor:
    """What heads that see time make of ``frames`` (jobs, frames, width), of which each job has so many: (jobs, width).

    As in ``scores_of``: every different group of pages against every job, and then each job takes its own.
    """
    jobs, span, width = frames.shape
    columns = frames.permute(1, 2, 0)
    here = torch.arange(span, device=counts.device) < counts[:, None]
    made = frames.new_empty(key.groups, PAGE, jobs)
    step = max(1, PAGES_AT_ONCE // span)
    for start in range(0, key.groups, step):
        part = slice(start, start + step)
        made[part] = _lines_of(columns, here, slabs, key, table.groups[part], table.attends[part])
    chosen = made[table.places, :, torch.arange(jobs, device=made.device)[:, None]]
    chosen = chosen.reshape(jobs, -1)
    return F.pad(chosen, (0, width - chosen.shape[1]))


def _lines_of(columns: Tensor, here: Tensor, slabs: Slabs, key: TimedKey, groups: Tensor, attends: Tensor) -> Tensor:
    """Some groups' lines for every job (groups, PAGE, jobs); ``columns`` (frames, width, jobs).

    A frame that a job does not have meets a blank page, or has no weight in an attention.
    """
    products = slabs.pages[groups[:, :-1]] @ columns  # (groups, frames, PAGE, jobs)
    if key.kinds == ("frames",):
        return products.sum(1)
    span, width = columns.shape[:2]
    products += F.pad(slabs.pages[groups[:, -1]], (0, span - width)).transpose(1, 2).unsqueeze(-1)
    # Its frames side by side, so that a softmax is the same work wherever in the batch it stands.
    scores = products[:, :, 0].transpose(1, 2).masked_fill(~here, -torch.inf)
    attended = (scores.softmax(2).transpose(1, 2).unsqueeze(2) * products).sum(1)
    if key.kinds == ("attention",):
        return attended
    return torch.where(attends.bool().view(-1, 1, 1), attended, products.sum(1))
