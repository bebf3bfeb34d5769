"""Held-out examples of the demo's tasks as the files a user would send: PNG pictures and MP4 clips.

It knows no model; the name of each file says what is in it.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.training.demo.tasks import DemoTask

PER_TASK = 4
FPS = 8


def write_samples(task: DemoTask, folder: Path) -> list[Path]:
    """The first held-out examples with different labels; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = task.data()[1]
    written: dict[str, Path] = {}
    for item, label in zip(pixels, labels, strict=True):
        if label.is_floating_point():
            name = "-".join(task.labels[i] for i in np.flatnonzero(label.numpy()))
        else:
            name = task.labels[int(label)]
        if name in written:
            continue
        frames = item.permute(0, 2, 3, 1).numpy()
        path = folder / f"{task.name}-{name}.{'png' if len(frames) == 1 else 'mp4'}"
        if len(frames) == 1:
            Image.fromarray(frames[0]).save(path, optimize=True)
        else:
            write_clip(path, frames)
        written[name] = path
        if len(written) == PER_TASK:
            break
    return list(written.values())


def write_clip(path: Path, frames: NDArray[np.uint8]) -> None:
    """H.264 in MP4 from (frames, height, width, 3), nearly without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "8"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
