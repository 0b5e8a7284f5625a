"""Videos: a file, a folder or list of frames, or a segment -> the frames that a processor samples, resized.

torch and transformers are imported where they are used: checking files needs neither, and they take seconds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overlays.data.decode import (
    DEFAULT_FPS,
    Segment,
    Source,
    Timeline,
    decode,
    frame_files,
    is_frames,
    make_timeline,
    name_of,
    timeline_of,
)
from overlays.errors import UserError
from overlays.families import FAMILIES
from overlays.files import atomic_path

if TYPE_CHECKING:
    import torch
    from transformers.video_utils import VideoMetadata

SAME_RATE = 0.97  # share of a video's own rate from which on a wanted rate means every frame: 30 fps of a 30.1 fps clip


@dataclass(frozen=True)
class Reader:
    """How frames are had: which backend decodes them, and the folder that keeps resized ones (None: none are kept)."""

    backend: str = "pyav"
    cache: Path | None = None


@dataclass(frozen=True)
class Clip:
    """Frames of a video, resized: (T, 3, H, W) uint8, T a multiple of the temporal patch; and their times.

    Times (`metadata.frames_indices` over `metadata.fps`) count from the first frame of the segment; frames that only
    fill the last temporal patch have none.
    """

    frames: torch.Tensor
    metadata: VideoMetadata


@dataclass(frozen=True)
class Plan:
    """What is taken of a file: frame numbers (T,), ascending; size (height, width) they are brought to."""

    timeline: Timeline
    metadata: VideoMetadata
    numbers: np.ndarray
    size: tuple[int, int]


def open_video(path: Source, video_processor, reader: Reader | str = "pyav", segment: Segment | None = None) -> Clip:
    """Frames of a video at the processor's fps, frame limits and pixels of a frame.

    A rate at or above the video's own takes every frame, up to the processor's `max_frames`. Otherwise the processor's
    family chooses, on a clock of constant rate, so that variable frame rates are sampled by time as well. Frames are
    repeated at the end to fill the last temporal patch, as the processor would.

    Args:
        reader: or the name of its backend.
        segment: frames that count; times then start at the first of them. Only what they need is decoded.

    Raises:
        UserError: no video, cut short or damaged, the segment lies beyond its end, or the backend is missing.
    """
    import torch

    reader = Reader(reader) if isinstance(reader, str) else reader
    plan = _plan(path, video_processor, reader.backend, segment)
    if reader.cache is None:
        frames = _read(path, plan, reader.backend)
    else:
        file = _cache_file(reader.cache, path, plan)
        frames = _load_frames(file, (len(plan.numbers), 3, *plan.size))
        if frames is None:
            frames = _read(path, plan, reader.backend)
            with atomic_path(file) as temporary:
                np.save(temporary, frames)
    return Clip(torch.from_numpy(frames), plan.metadata)


def video_grid(path: Source, video_processor, reader: Reader | str = "pyav",
               segment: Segment | None = None) -> tuple[tuple[int, int, int], VideoMetadata]:
    """Patch grid (t, h, w) and metadata that `open_video` would give, without decoding."""
    plan = _plan(path, video_processor, reader if isinstance(reader, str) else reader.backend, segment)
    patch, temporal = video_processor.patch_size, video_processor.temporal_patch_size
    height, width = plan.size
    return (len(plan.numbers) // temporal, height // patch, width // patch), plan.metadata


def probe_video(path: Source, backend: str = "pyav", segment: Segment | None = None) -> None:
    """Decode first, middle and last frame of a video or segment. Raises UserError where one cannot be had."""
    timeline = timeline_of(path, backend, segment)
    first, stop = _bounds(path, timeline, segment)
    decode(path, timeline, np.array([first, (first + stop - 1) // 2, stop - 1]), backend)


def read_frames(path: Source, numbers: np.ndarray, backend: str = "pyav") -> np.ndarray:
    """Frames by number, in any order, (T, H, W, 3) uint8, upright and not resized.

    Raises:
        UserError: as `open_video`.
    """
    timeline, numbers = timeline_of(path, backend), np.asarray(numbers)
    _bounds(path, timeline, (int(numbers.min()), int(numbers.max()) + 1))
    return decode(path, timeline, numbers, backend)


# ---- which frames, at which size


def limits_clips(video_processor) -> bool:
    """Whether the family's `size` is the budget of a whole clip (T x H x W) rather than of one frame."""
    names = {row.video_processor for row in FAMILIES.values() if row.clip_budget}
    return any(base.__name__ in names for base in type(video_processor).__mro__)


def frame_limits(video_processor, frames: int) -> tuple[int, int]:
    """(min, max) pixels of one frame in a clip of `frames` frames."""
    if getattr(video_processor, "frame_max_pixels", None):
        return video_processor.frame_min_pixels, video_processor.frame_max_pixels
    low, high = video_processor.size["shortest_edge"], video_processor.size["longest_edge"]
    return (low // frames, high // frames) if limits_clips(video_processor) else (low, high)


def _plan(path: Source, video_processor, backend: str, segment: Segment | None) -> Plan:
    from transformers.video_utils import VideoMetadata

    timeline = timeline_of(path, backend, segment)
    first, stop = _bounds(path, timeline, segment)
    shown = timeline if segment is None else make_timeline(
        path, timeline.seconds[first:stop], timeline.fps, timeline.height, timeline.width, None)
    span = shown.seconds[-1] + 1 / shown.fps
    metadata = VideoMetadata(
        total_num_frames=max(1, round(span * shown.fps)), fps=shown.fps, duration=float(span), video_backend=backend,
        height=shown.height, width=shown.width,
    )
    fps = video_processor.fps or DEFAULT_FPS
    if len(shown.seconds) <= video_processor.max_frames and fps >= SAME_RATE * shown.fps:
        numbers = np.arange(len(shown.seconds))
        ticks = np.round(shown.seconds * shown.fps).astype(int)
    else:
        ticks = np.arange(metadata.total_num_frames)
        if len(ticks) > video_processor.temporal_patch_size:
            ticks = np.asarray(video_processor.sample_frames(metadata, fps=fps))
        # The frame on show at each tick of the clock, forgiving a quarter of a frame of rounding in the file's times.
        numbers = np.searchsorted(shown.seconds, (ticks + 0.25) / shown.fps, side="right") - 1
    # Not padded as the frames are: processors take the seconds of a grid step from the number of frames sampled.
    metadata.frames_indices = ticks.tolist()
    missing = -len(ticks) % video_processor.temporal_patch_size
    numbers = np.pad(numbers.clip(0), (0, missing), mode="edge")
    return Plan(timeline, metadata, numbers + first, _frame_size(shown, len(numbers), video_processor, path))


def _bounds(path: Source, timeline: Timeline, segment: Segment | None) -> tuple[int, int]:
    """First frame of a segment and the one after its last."""
    total = len(timeline.seconds)
    first, stop = (segment or (0, None))[:2]
    stop = total if stop is None else stop
    if not 0 <= first < stop <= total:
        raise UserError(f"video {name_of(path)} has {total} frames, so it has no segment from frame {first} up "
                        f"to {stop}")
    return first, stop


def _frame_size(timeline: Timeline, frames: int, video_processor, path: Path) -> tuple[int, int]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    low, high = frame_limits(video_processor, frames)
    factor = video_processor.patch_size * video_processor.merge_size
    try:
        return smart_resize(timeline.height, timeline.width, factor, low, high)
    except ValueError as error:
        raise UserError(f"video {name_of(path)} cannot be used: {error}") from None


def _read(path: Source, plan: Plan, backend: str) -> np.ndarray:
    """The frames of a plan, resized: (T, 3, H, W) uint8."""
    import torch

    frames = decode(path, plan.timeline, plan.numbers, backend)
    frames = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if frames.shape[2:] != plan.size:
        from torchvision.transforms.v2 import functional

        frames = functional.resize(frames, list(plan.size), functional.InterpolationMode.BICUBIC, antialias=True)
    return frames.contiguous().numpy()


# ---- decoded frames on disk


def _cache_file(cache: Path, path: Source, plan: Plan) -> Path:
    """Where the frames of a plan are kept: by the file (path, size, time of change), the frames and their size."""
    files = frame_files(path) if is_frames(path) else (path,)
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    state = states if is_frames(path) else states[0]
    key = [*state, plan.numbers.tolist(), list(plan.size), "bicubic"]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return Path(cache) / digest[:2] / f"{digest}.npy"


def _load_frames(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Kept frames; None where there are none or the file is not what was written."""
    try:
        frames = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return frames if isinstance(frames, np.ndarray) and frames.shape == shape and frames.dtype == np.uint8 else None
