"""The peer LitServe with a whole model for each task. Its arguments: FOLDER PORT TASKS DTYPE.

As its documents do it: `setup` loads, requests come in batches, and each task of a batch has its own forward.
"""

import argparse
from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import Request
from torch import Tensor

from benchmarks.peers.model import Folder, Models, Reader, scores

Read = tuple[str, Tensor]


class Api(litserve.LitAPI):  # type: ignore[misc]
    """A form with ``task`` and ``picture`` -> the task's scores."""

    def __init__(self, folder: Path, tasks: int, dtype: str, **more: Any) -> None:
        super().__init__(**more)
        self._given = folder, tasks, dtype

    def setup(self, device: str) -> None:  # noqa: ARG002
        folder, tasks, dtype = self._given
        self._models = Models(Folder(folder), getattr(torch, dtype), tasks)
        self._read = Reader(Folder(folder).backbone())

    def decode_request(self, request: Request) -> Read:
        return request["task"], self._read(request["picture"].file.read())

    def batch(self, inputs: list[Read]) -> list[Read]:
        return inputs

    def predict(self, inputs: list[Read]) -> list[list[float]]:
        answers: list[list[float]] = [[] for _ in inputs]
        for task in {task for task, _ in inputs}:
            rows = [row for row, (name, _) in enumerate(inputs) if name == task]
            found = scores(self._models[task], torch.stack([inputs[row][1] for row in rows]))
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
        return answers

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        return {"scores": output}


def serve(api: litserve.LitAPI, port: int) -> None:
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=port, generate_client_file=False, log_level="error", access_log=False
    )


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("tasks", type=int)
    parser.add_argument("dtype")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--wait", type=float, default=0.01, help="seconds for a batch to fill")
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments(__doc__)
    serve(Api(given.folder, given.tasks, given.dtype, max_batch_size=given.batch, batch_timeout=given.wait), given.port)
