"""The peer Ray Serve with model multiplexing. Its arguments: FOLDER PORT TASKS DTYPE.

As its documents do it: the header names the model, `@serve.multiplexed` keeps those that were loaded, and here all fit.
The environment says whether HAProxy and the throughput flags are on.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import threading
from pathlib import Path

import ray
import torch
from ray import serve
from starlette.requests import Request
from torch import nn

from benchmarks.peers.model import Folder, Reader, scores

MOST_MODELS = 256


class Classifier:
    """A picture as body -> the scores of the task in the header ``serve_multiplexed_model_id``."""

    def __init__(self, folder: str, dtype: str) -> None:
        self._folder, self._dtype = Folder(Path(folder)), getattr(torch, dtype)
        self._read = Reader(self._folder.backbone())

    @serve.multiplexed(max_num_models_per_replica=MOST_MODELS)  # type: ignore[untyped-decorator]
    async def model(self, task: str) -> nn.Module:
        return await asyncio.to_thread(self._folder.task, task, self._dtype)

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        model = await self.model(serve.get_multiplexed_model_id())
        body = await request.body()
        return {"scores": await asyncio.to_thread(self._scores, model, body)}

    def _scores(self, model: nn.Module, body: bytes) -> list[float]:
        return scores(model, self._read(body)[None])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("tasks", type=int, help="of no use here: a task is loaded when it is asked for")
    parser.add_argument("dtype")
    parser.add_argument("--replicas", type=int, default=2)
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    deployment = serve.deployment(Classifier, num_replicas=given.replicas, ray_actor_options={"num_cpus": 1})
    serve.run(deployment.bind(str(given.folder), given.dtype))
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
