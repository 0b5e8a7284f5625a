"""A small set of driving clips whose motion is known."""

from __future__ import annotations

import hashlib
import os
import uuid
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator
from tqdm import tqdm

from overlays.errors import UserError
from overlays.files import atomic_path, temporary_folder, write_json
from overlays.samples.driving import road

VERSION = 4  # raised with every change of the clips; an older sample is made anew
CAMERA = "camera_front_wide_120fov"
FPS = 30
CLIPS, SECONDS, CHUNK = 200, 6, 50
TEXTURE_M = 600.0
# What a clip shows, and the kinds of road on which it may happen.
ROADS = {
    "cruise": ("town", "country", "motorway"), "left": ("town", "country"), "right": ("town", "country"),
    "bends": ("town", "country"), "start": ("town",), "stop": ("town",), "slow left": ("town",),
    "slow right": ("town",), "faster": ("country", "motorway"), "slower": ("country", "motorway"),
    "any speed": ("open",),  # the only cue to the speed is how fast the ground moves
}
KINDS = tuple(ROADS)
# What prepare takes where the user names neither data nor parameters.
PREPARE = {"pairs": 4}


@dataclass(frozen=True)
class Drive:
    """A known motion: speed over time and curvature over way, both monotone cubic between knots.

    Attributes:
        kind: one of KINDS.
        road: kind of road, one of road.KINDS.
        times_s, speeds_mps: knots of the speed.
        ways_m, curvatures: knots of the curvature (1/m, + left) over the way driven since time 0.
    """

    kind: str
    road: str
    times_s: np.ndarray
    speeds_mps: np.ndarray
    ways_m: np.ndarray
    curvatures: np.ndarray

    def speed(self, seconds: np.ndarray) -> np.ndarray:
        """Speed in m/s at (T,) times."""
        return PchipInterpolator(self.times_s, self.speeds_mps)(seconds)

    def way(self, seconds: np.ndarray) -> np.ndarray:
        """Way in m since time 0 at (T,) times, exact."""
        total = PchipInterpolator(self.times_s, self.speeds_mps).antiderivative()
        return total(seconds) - total(0.0)

    def curvature(self, seconds: np.ndarray) -> np.ndarray:
        """Curvature in 1/m, + left, at (T,) times: that of the road where the car is."""
        return PchipInterpolator(self.ways_m, self.curvatures)(self.way(seconds))

    def heading(self, way_m: np.ndarray) -> np.ndarray:
        """Heading in rad, + left, at (W,) places, exact; 0 at way 0."""
        total = PchipInterpolator(self.ways_m, self.curvatures).antiderivative()
        return total(way_m) - total(0.0)


def draw(rng: np.random.Generator, kind: str, seconds: float) -> Drive:
    """A motion of a kind by chance. Speed stays within 0..33 m/s, sideways acceleration within 3 m/s2."""
    place = str(rng.choice(ROADS[kind]))
    slowest, fastest = road.KINDS[place].speeds_mps
    knots = np.arange(-2.0, seconds + 4.1, 2.0)
    if kind in ("start", "stop"):
        rate, still = rng.uniform(1.2, 2.6), rng.uniform(0.5, seconds * 0.6)
        speeds = np.clip((knots - still) * rate, 0, rng.uniform(10, fastest))
        speeds = speeds if kind == "start" else speeds[::-1].copy()
    else:
        middle = (slowest + fastest) / 2
        low, high = {"slow left": (4, 9), "slow right": (4, 9), "faster": (slowest, middle),
                     "slower": (middle, fastest)}.get(kind, (slowest, fastest))
        drift = {"faster": (0.8, 2.2), "slower": (-2.2, -0.8)}.get(kind, (-0.4, 0.4))
        speeds = rng.uniform(low, high) + rng.uniform(*drift) * knots + rng.normal(0, 0.25, len(knots))
        speeds = np.clip(speeds, max(slowest - 2, 2), fastest)
    drive = Drive(kind, place, knots, speeds, np.array([0.0, 1.0]), np.zeros(2))
    # A knot of the road about every two seconds of driving, and on to where the camera sees.
    unrelated = kind == "any speed"  # then neither bends nor their distance may tell the speed
    spacing = max(2.0 * (fastest if unrelated else float(speeds.mean())), 12.0)
    start, end = drive.way(np.array([knots[0], knots[-1]]))
    ways = np.arange(start - road.BEHIND_M - spacing, end + road.AHEAD_M + 2 * spacing, spacing)
    passing = np.maximum(np.interp(ways, drive.way(knots) + np.arange(len(knots)) * 1e-6, speeds), 3.0)
    limit = np.minimum(3.0 / (fastest if unrelated else passing) ** 2, 0.09) * np.ones(len(ways))
    side = {"left": 1, "slow left": 1, "right": -1, "slow right": -1}.get(kind, 0)
    if side:
        curvatures = side * rng.uniform(0.35, 0.9, len(ways)) * limit
    elif kind == "bends":
        signs = np.where((np.arange(len(ways)) // 2 + rng.integers(2)) % 2, 1, -1)
        curvatures = signs * rng.uniform(0.3, 0.8, len(ways)) * limit
    else:
        curvatures = rng.normal(0, 0.1, len(ways)) * limit
    return Drive(kind, place, knots, speeds, ways, curvatures)


def clip_name(seed: int, number: int) -> str:
    """Name of a clip: a UUID, as in the real set."""
    return str(uuid.UUID(bytes=hashlib.sha256(f"driving sample {seed} {number}".encode()).digest()[:16], version=4))


def drive_of(seed: int, number: int, seconds: float = SECONDS) -> Drive:
    """The known motion of a clip of the sample."""
    return draw(np.random.default_rng([seed, number, 0]), KINDS[number % len(KINDS)], seconds)


def split_of(number: int) -> str:
    """Split of a clip: 70 % train, 15 % val, 15 % test, the same share of every kind."""
    place = (number // len(KINDS) + 3 * (number % len(KINDS))) % 20
    return "test" if place % 7 == 3 else "val" if place % 7 == 5 else "train"


def clocks(seed: int, number: int, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """(frame times, egomotion times), int64 microseconds: both irregular, neither starting at 0 or in step.

    Egomotion runs at about 100 Hz from half a second before the clip to more than a second after it.
    """
    rng = np.random.default_rng([seed, number, 1])
    frames = round(seconds * FPS) + int(rng.integers(1, 6))
    frame_us = rng.integers(2_000, 45_000) + np.arange(frames) * 1e6 / FPS + rng.uniform(-400, 400, frames)
    rows = int((seconds + 2.0) * 100)
    ego_us = -500_000 + rng.uniform(0, 9_000) + rng.uniform(9_000, 11_000, rows).cumsum()
    return np.rint(frame_us).astype(np.int64), np.rint(ego_us).astype(np.int64)


def egomotion_table(drive: Drive, times_us: np.ndarray):
    """Egomotion of a motion at (N,) times, as a pandas table in the real columns: the rig's frame at time 0."""
    import pandas as pd

    seconds = times_us / 1e6
    way, speed, curvature = drive.way(seconds), drive.speed(seconds), drive.curvature(seconds)
    heading = drive.heading(way)
    fine = np.linspace(min(way.min(), 0.0) - 1e-6, max(way.max(), 1e-3), 20001)
    angle = drive.heading(fine)
    place = []
    for part in (np.cos(angle), np.sin(angle)):
        total = np.concatenate([[0], np.cumsum((part[1:] + part[:-1]) / 2 * np.diff(fine))])
        place.append(np.interp(way, fine, total) - np.interp(0.0, fine, total))
    pull = PchipInterpolator(drive.times_s, drive.speeds_mps).derivative()(seconds)
    zero = np.zeros_like(seconds)
    cos, sin = np.cos(heading), np.sin(heading)
    return pd.DataFrame({
        "timestamp": times_us, "qx": zero, "qy": zero, "qz": np.sin(heading / 2), "qw": np.cos(heading / 2),
        "x": place[0], "y": place[1], "z": zero, "vx": speed * cos, "vy": speed * sin, "vz": zero,
        "ax": pull * cos - speed**2 * curvature * sin, "ay": pull * sin + speed**2 * curvature * cos, "az": zero,
        "curvature": curvature,
    })


def encode(pictures, path: Path, fps: int = FPS, quality: int = 18) -> None:
    """Pictures of (height, width, 3) uint8 as an H.264 mp4."""
    import av

    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=fps)
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
                stream.codec_context.thread_count = 1  # the same bytes on any machine
                # Without the macroblock tree, whose look-ahead makes the bytes differ from time to time.
                stream.options = {"crf": str(quality), "preset": "veryfast", "x264-params": "no-mbtree=1"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@cache
def _texture(seed: int) -> np.ndarray:
    return road.grain(np.random.default_rng([seed, 10**6]), TEXTURE_M)


def pictures(seed: int, number: int, seconds: float, camera: road.Camera):
    """Frames of a clip one by one, taken at its camera's own times."""
    drive, (frame_us, _) = drive_of(seed, number, seconds), clocks(seed, number, seconds)
    rng = np.random.default_rng([seed, number, 2])
    if drive.road == "open":
        camera = replace(camera, shutter_s=0.0)  # blur would tell the speed in each picture
    ways, speeds = drive.way(frame_us / 1e6), drive.speed(frame_us / 1e6)
    line = np.arange(ways[0] - road.BEHIND_M, ways[-1] + road.AHEAD_M, 0.5)
    scene = road.Road(road.Look.draw(rng, drive.road), _texture(seed), int(rng.integers(TEXTURE_M / road.STEP_M)), line,
                      drive.heading(line), camera)
    for way, speed in zip(ways, speeds, strict=True):
        yield scene.view(float(way), float(speed))


def _make_clip(number: int, folder: Path, seed: int, seconds: float, camera: road.Camera) -> None:
    import pandas as pd

    name = clip_name(seed, number)
    frame_us, ego_us = clocks(seed, number, seconds)
    encode(pictures(seed, number, seconds, camera), folder / f"{name}.{CAMERA}.mp4")
    pd.DataFrame({"timestamp": frame_us}).to_parquet(folder / f"{name}.{CAMERA}.timestamps.parquet")
    egomotion_table(drive_of(seed, number, seconds), ego_us).to_parquet(folder / f"{name}.egomotion.parquet")


def write(folder: str | Path, seed: int = 0, *, clips: int = CLIPS, seconds: float = SECONDS,
          camera: road.Camera | None = None, workers: int = os.cpu_count() or 1) -> Path:
    """Write clips in the layout of PhysicalAI-Autonomous-Vehicles; the same arguments give the same clips.

    Args:
        folder: gets camera/CAMERA/CAMERA.chunk_NNNN.zip, labels/egomotion/egomotion.chunk_NNNN.zip,
            clip_index.parquet and, last, sample.json with prepare's defaults for these clips.
        seed: of every random choice.
        clips: number of clips, KINDS in turn.
        seconds: length of a clip, at least 2.
        camera: size and place of the camera.
        workers: processes.

    Returns:
        The folder.
    """
    import pandas as pd

    if clips < 1 or seconds < 2:
        raise UserError(f"a sample needs at least one clip of 2 s, {clips} of {seconds} s were asked for")
    output, camera = Path(folder), camera or road.Camera()
    workers = min(clips, workers)
    output.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output, "clips") as folder, tqdm(total=clips, desc="sample clips", unit="clip") as bar:
        make = partial(_make_clip, folder=folder, seed=seed, seconds=seconds, camera=camera)
        if workers > 1:
            with ProcessPoolExecutor(workers) as pool:
                for _ in pool.map(make, range(clips), chunksize=4):
                    bar.update()
        else:
            for number in range(clips):
                make(number)
                bar.update()
        for chunk, first in enumerate(range(0, clips, CHUNK)):
            names = [clip_name(seed, number) for number in range(first, min(first + CHUNK, clips))]
            for place, suffixes in ((f"camera/{CAMERA}/{CAMERA}", (f".{CAMERA}.mp4", f".{CAMERA}.timestamps.parquet")),
                                    ("labels/egomotion/egomotion", (".egomotion.parquet",))):
                with atomic_path(output / f"{place}.chunk_{chunk:04d}.zip") as archive:
                    _pack(archive, [folder / f"{name}{suffix}" for name in names for suffix in suffixes])
        index = pd.DataFrame({
            "clip_is_valid": True, "chunk": [number // CHUNK for number in range(clips)],
            "split": [split_of(number) for number in range(clips)],
            "road": [drive_of(seed, number, seconds).road for number in range(clips)],
        }, index=pd.Index([clip_name(seed, number) for number in range(clips)], name="clip_id"))
        with atomic_path(output / "clip_index.parquet") as path:
            index.to_parquet(path)
    # Written last: where it is present the sample is complete.
    write_json(output / "sample.json", {"version": VERSION, "clips": clips, "seconds": seconds, "seed": seed,
                                        "camera": CAMERA, "prepare": PREPARE})
    return output


def _pack(archive: Path, files: list[Path]) -> None:
    """A zip of files side by side, uncompressed as the real ones, with one date so that equal files give equal zips."""
    with zipfile.ZipFile(archive, "w") as out:
        for file in files:
            out.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
