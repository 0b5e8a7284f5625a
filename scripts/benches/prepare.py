"""Preparing a scene of 614 x 972 pixels x 224 bands, int16, with two processes: seconds and peak memory."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LINES, SAMPLES, BANDS = 972, 614, 224
WORKERS = 2


def run() -> dict[str, float]:
    """Seconds, and peak resident memory in GB summed over the process tree (shared pages count in each process)."""
    import psutil

    with tempfile.TemporaryDirectory(prefix="cuprite-bench-") as folder:
        cube = full_scene(Path(folder))
        command = [sys.executable, str(ROOT / "scripts" / "prepare_cuprite.py"), "--cube", str(cube), "--output",
                   str(Path(folder) / "prepared"), "--workers", str(WORKERS)]
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _resident(watched))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"prepare ended with status {process.returncode}")
    return {"prepare_seconds": round(seconds, 2), "prepare_peak_gb": round(peak / 1e9, 3),
            "prepare_pixels_per_second": round(LINES * SAMPLES / seconds)}


def full_scene(folder: Path) -> Path:
    """A scene of full size, tiled from the sample; returns its header."""
    from overlays.samples.cuprite import write

    header = write(folder / "sample")
    text = header.read_text().replace("samples = 480", f"samples = {SAMPLES}")
    text = text.replace("lines = 400", f"lines = {LINES}")
    small = np.memmap(header.with_suffix(".img"), "<i2", "r", shape=(400, BANDS, 480))
    with (folder / "scene.img").open("wb") as stream:
        for line in range(LINES):
            row = small[line % 400]
            stream.write(np.concatenate([row, row], 1)[:, :SAMPLES].tobytes())
    (folder / "scene.hdr").write_text(text)
    return folder / "scene.hdr"


def _resident(process) -> int:
    import psutil

    total = 0
    try:
        for member in [process, *process.children(recursive=True)]:
            try:
                total += member.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total
