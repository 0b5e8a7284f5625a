"""Simple motions, egomotion files as bytes and small videos, for tests."""

import io
from pathlib import Path

import av
import numpy as np
import pandas as pd

from overlays.samples.driving import Drive


def parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def write_clip(path: Path, frames: int, gop: int = 12, size: tuple[int, int] = (64, 48), codec: str = "libx264",
               options: dict | None = None) -> Path:
    """A video whose frame i is a colour of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"g": str(gop), **(options or {})}
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), (2 * i, 60, 240 - 2 * i), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def steady(speed: float, curvature: float) -> Drive:
    return Drive("steady", "country", np.array([-2.0, 10.0]), np.array([speed, speed]), np.array([-500.0, 500.0]),
                 np.array([curvature, curvature]))


def times(first_s: float = -0.5, last_s: float = 5.0, rate: float = 100) -> np.ndarray:
    return np.rint(np.arange(first_s, last_s, 1 / rate) * 1e6).astype(np.int64)
