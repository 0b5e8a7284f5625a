"""Simple motions, and egomotion files as bytes, for tests."""

import io

import numpy as np
import pandas as pd

from overlays.domains.driving.sample import Drive


def parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def steady(speed: float, curvature: float) -> Drive:
    return Drive("steady", "country", np.array([-2.0, 10.0]), np.array([speed, speed]), np.array([-500.0, 500.0]),
                 np.array([curvature, curvature]))


def times(first_s: float = -0.5, last_s: float = 5.0, rate: float = 100) -> np.ndarray:
    return np.rint(np.arange(first_s, last_s, 1 / rate) * 1e6).astype(np.int64)
