"""The peer of an afternoon: FastAPI and timm. Its arguments: FOLDER PORT TASKS DTYPE [--swap].

A model for each task in a dict; or, with `--swap`, one model into which each request puts its task's tensors.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks.peers.model import Folder, Models, Reader, name_of, scores


class Swapped:
    """One model; a task's own tensors are put in place for each request, one request at a time."""

    def __init__(self, folder: Folder, dtype: torch.dtype, tasks: int) -> None:
        self._folder, self._dtype = folder, dtype
        self._model = folder.task(name_of(0), dtype)
        self._own = {name for name, _ in self._model.named_parameters() if ".down." in name or ".up." in name}
        self._own |= {"head.weight", "head.bias"}
        self._tensors: dict[str, dict[str, torch.Tensor]] = {}
        self._lock = threading.Lock()
        for number in range(tasks):
            self._of(name_of(number))

    def scores(self, task: str, pixels: torch.Tensor) -> list[float]:
        with self._lock:
            self._model.load_state_dict(self._of(task), strict=False)
            return scores(self._model, pixels[None])[0]

    def _of(self, task: str) -> dict[str, torch.Tensor]:
        if task not in self._tensors:
            state = self._folder.task(task, self._dtype).state_dict()
            self._tensors[task] = {name: state[name].clone() for name in self._own}
        return self._tensors[task]


class Resident:
    """A model for each task."""

    def __init__(self, folder: Folder, dtype: torch.dtype, tasks: int) -> None:
        self._models = Models(folder, dtype, tasks)

    def scores(self, task: str, pixels: torch.Tensor) -> list[float]:
        return scores(self._models[task], pixels[None])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("tasks", type=int)
    parser.add_argument("dtype")
    parser.add_argument("--swap", action="store_true")
    given = parser.parse_args()
    folder = Folder(given.folder)
    read = Reader(folder.backbone())
    tasks = (Swapped if given.swap else Resident)(folder, getattr(torch, given.dtype), given.tasks)
    app = FastAPI()

    def classify(task: str, body: bytes) -> list[float]:
        return tasks.scores(task, read(body))

    @app.post("/predict/{task}")
    async def predict(task: str, request: Request) -> dict[str, list[float]]:
        return {"scores": await run_in_threadpool(classify, task, await request.body())}

    uvicorn.run(app, port=given.port, log_level="error", access_log=False)


if __name__ == "__main__":
    main()
