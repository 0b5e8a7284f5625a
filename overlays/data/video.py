"""Videos: a file, a folder or list of frames, or a segment -> the frames that a processor samples, resized.

torch and transformers are imported where they are used: checking files needs neither, and they take seconds.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overlays.data.formats import FRAME_SUFFIXES
from overlays.data.rgb import open_rgb, upright_size
from overlays.errors import UserError
from overlays.families import FAMILIES
from overlays.files import atomic_path

if TYPE_CHECKING:
    import torch
    from transformers.video_utils import VideoMetadata

MAX_CLOCK = 240.0  # ticks a second for the clock of a video with a variable frame rate
ORDER_CHECK = 250  # decoded frames that show whether an AVI file tells the order of its frames
DEFAULT_FPS = 2.0  # of qwen-vl-utils, where a processor names none and for frames in a folder or list
SAME_RATE = 0.97  # share of a video's own rate from which on a wanted rate means every frame: 30 fps of a 30.1 fps clip
# Frame numbers: the first, and the one after the last (None: to the end). Of frames in a folder or list there may be a
# third number: how many are a second.
Segment = tuple[int, int | None] | tuple[int, int | None, float]
Source = Path | tuple[Path, ...]  # a video file, a folder of frames, or frames in their order


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
class Timeline:
    """When the frames of a file are shown: seconds from the first one, ascending; size of an upright frame."""

    seconds: np.ndarray  # (frames,)
    fps: float
    height: int
    width: int
    handle: object = field(default=None, compare=False)  # what the backend's read function needs


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
    timeline = _timeline_of(path, backend, segment)
    first, stop = _bounds(path, timeline, segment)
    _decode(path, timeline, np.array([first, (first + stop - 1) // 2, stop - 1]), backend)


def read_frames(path: Source, numbers: np.ndarray, backend: str = "pyav") -> np.ndarray:
    """Frames by number, in any order, (T, H, W, 3) uint8, upright and not resized.

    Raises:
        UserError: as `open_video`.
    """
    timeline, numbers = _timeline_of(path, backend), np.asarray(numbers)
    _bounds(path, timeline, (int(numbers.min()), int(numbers.max()) + 1))
    return _decode(path, timeline, numbers, backend)


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

    timeline = _timeline_of(path, backend, segment)
    first, stop = _bounds(path, timeline, segment)
    shown = timeline if segment is None else _timeline(
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
        raise UserError(f"video {_name(path)} has {total} frames, so it has no segment from frame {first} up to {stop}")
    return first, stop


def _name(path: Source) -> str:
    return f"{path[0]} to {path[-1].name}" if isinstance(path, tuple) else str(path)


def _frame_size(timeline: Timeline, frames: int, video_processor, path: Path) -> tuple[int, int]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    low, high = frame_limits(video_processor, frames)
    factor = video_processor.patch_size * video_processor.merge_size
    try:
        return smart_resize(timeline.height, timeline.width, factor, low, high)
    except ValueError as error:
        raise UserError(f"video {_name(path)} cannot be used: {error}") from None


def _read(path: Source, plan: Plan, backend: str) -> np.ndarray:
    """The frames of a plan, resized: (T, 3, H, W) uint8."""
    import torch

    frames = _decode(path, plan.timeline, plan.numbers, backend)
    frames = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if frames.shape[2:] != plan.size:
        from torchvision.transforms.v2 import functional

        frames = functional.resize(frames, list(plan.size), functional.InterpolationMode.BICUBIC, antialias=True)
    return frames.contiguous().numpy()


# ---- decoded frames on disk


def _cache_file(cache: Path, path: Source, plan: Plan) -> Path:
    """Where the frames of a plan are kept: by the file (path, size, time of change), the frames and their size."""
    files = frame_files(path) if _is_frames(path) else (path,)
    states = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    state = states if _is_frames(path) else states[0]
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


# ---- timelines


def _timeline_of(path: Source, backend: str, segment: Segment | None = None) -> Timeline:
    if backend not in BACKENDS:
        raise UserError(f"video backend {backend!r} is unknown; there are {' and '.join(BACKENDS)}")
    fps = segment[2] if segment is not None and len(segment) == 3 else None
    if _is_frames(path):
        return _frames_timeline(frame_files(path), DEFAULT_FPS if fps is None else fps)
    if not path.is_file():
        raise UserError(f"video file {path} is missing")
    if fps is not None:
        raise UserError(f"video {path} is a file with times of its own; the key fps is for folders and lists of frames "
                        "(the flag --video_fps sets how many frames of a second are shown)")
    return BACKENDS[backend][0](path)


def _decode(path: Source, timeline: Timeline, numbers: np.ndarray, backend: str) -> np.ndarray:
    """Frames by number, (T, H, W, 3) uint8, upright."""
    return _read_pictures(timeline, numbers) if _is_frames(path) else BACKENDS[backend][1](path, timeline, numbers)


def _timeline(path: Source, seconds: np.ndarray, rate: float | None, height: int, width: int, handle) -> Timeline:
    """A Timeline on a clock of constant rate.

    The clock is the header's frame rate where frames follow it to half a frame, else their measured mean rate, else
    (a variable rate) that of the two frames nearest to each other, at most MAX_CLOCK.
    """
    seconds = np.sort(seconds)
    if not len(seconds) or not height or not width:
        raise UserError(f"video {path} holds no frame that can be read")
    seconds = seconds - seconds[0]
    gaps = np.diff(seconds)
    rates = [rate or 0.0, *([len(gaps) / seconds[-1], min(MAX_CLOCK, 1 / gaps.min())] if len(gaps) else [1.0])]
    for clock in filter(None, rates):
        if np.abs(seconds * clock - np.arange(len(seconds))).max() < 0.5:
            break
    return Timeline(seconds, float(clock), height, width, handle)


# ---- frames as picture files


def _is_frames(path: Source) -> bool:
    return isinstance(path, tuple) or path.is_dir()


def frame_files(path: Source) -> tuple[Path, ...]:
    """The frames of a folder (files of FRAME_SUFFIXES in it, by name, numbers in names by value) or of a list.

    Raises:
        UserError: the folder holds none.
    """
    if isinstance(path, tuple):
        return path
    files = [file for file in path.iterdir()
             if file.suffix.lower() in FRAME_SUFFIXES and not file.name.startswith(".") and file.is_file()]
    if not files:
        raise UserError(f"video folder {path} holds no frames ({', '.join(FRAME_SUFFIXES)})")
    return tuple(sorted(files, key=lambda file: (
        [int(piece) if piece.isdecimal() else piece for piece in re.split("([0-9]+)", file.name.lower())], file.name)))


def _frames_timeline(files: tuple[Path, ...], fps: float) -> Timeline:
    """Frames at a constant rate, all of one size by their headers. handle: the files."""
    sizes = [_picture_size(file) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise UserError(f"frame {file} is {size[1]} x {size[0]} pixels, but the video's first, {files[0]}, is "
                            f"{sizes[0][1]} x {sizes[0][0]}")
    return _timeline(files, np.arange(len(files)) / fps, fps, *sizes[0], files)


def _picture_size(file: Path) -> tuple[int, int]:
    try:
        state = file.stat()
    except (OSError, ValueError):
        raise UserError(f"video frame {file} is missing") from None
    return _size_of(file, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _size_of(file: Path, size: int, changed_ns: int) -> tuple[int, int]:
    return upright_size(file)


def _read_pictures(timeline: Timeline, numbers: np.ndarray) -> np.ndarray:
    frames = {number: np.asarray(open_rgb(timeline.handle[number])) for number in np.unique(numbers).tolist()}
    for number, frame in frames.items():
        if frame.shape[:2] != (timeline.height, timeline.width):
            raise UserError(f"frame {timeline.handle[number]} is turned by its EXIF orientation, other frames are not")
    return np.stack([frames[number] for number in numbers.tolist()])


# ---- PyAV


@contextmanager
def opened(path: Path) -> Iterator[tuple]:
    """(container, its video stream) of a file, to be read with PyAV; titles that are not UTF-8 do not matter.

    Raises:
        UserError: no video stream, or none that can be decoded.
    """
    av = import_av()

    with av.open(str(path), metadata_errors="ignore") as container:
        if not container.streams.video:
            raise UserError(f"video {path} holds no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise UserError(f"video {path} cannot be read: there is no decoder for its codec")
        yield container, stream


def _pyav_timeline(path: Path) -> Timeline:
    """Presentation times from the packets, without decoding; kept for the next segment of the same file."""
    state = path.stat()
    return _pyav_scan(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _pyav_scan(path: Path, size: int, changed_ns: int) -> Timeline:
    """handle: times of all frames and of the key frames, as integers of the stream's time base, ascending."""
    av = import_av()

    try:
        with opened(path) as (container, stream):
            packets = [packet for packet in container.demux(stream) if packet.size]
            shown = [packet for packet in packets if packet.pts is not None and not packet.is_discard]
            if not shown:
                raise UserError(f"video {path} holds no frame that can be read")
            stamps = np.unique(np.array([packet.pts for packet in shown], dtype=np.int64))
            keys = np.unique(np.array([packet.pts for packet in shown if packet.is_keyframe], dtype=np.int64))
            base, rate = Fraction(stream.time_base), stream.average_rate
            early = bool(stream.duration) and stamps[-1] - stamps[0] < 0.9 * stream.duration
            if packets[-1].is_corrupt or (len(packets) < stream.frames and early):
                raise UserError(f"video {path} is cut short: {stream.frames or 'more'} frames are promised, "
                                f"{len(packets)} are there, the last maybe in part")
            height, width = stream.codec_context.height, stream.codec_context.width
            container.seek(int(stamps[0]), stream=stream)
            count = ORDER_CHECK if container.format.name == "avi" and stream.codec_context.has_b_frames else 1
            first = [(_turns(frame), frame.pts) for frame in islice(container.decode(stream), count)]
            turn = first[0][0] if first else 0
            if any(later[1] <= earlier[1] for earlier, later in zip(first, first[1:], strict=False)):
                raise UserError(f"video {path} is an AVI file with B-frames, which does not say when its frames are "
                                "shown: write it as .mp4 or .mkv")
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{path} is no video that can be read: {' '.join(str(error).split())}") from None
    height, width = (width, height) if turn % 2 else (height, width)
    seconds = (stamps - stamps[0]) * float(base)
    return _timeline(path, seconds, float(rate) if rate else None, height, width, (stamps, keys))


def import_av():
    """PyAV without its log callback, which torchvision up to 0.24 switches on: a decoding thread can block in it."""
    import av
    import av.logging

    av.logging.set_level(None)
    return av


def _turns(frame) -> int:
    """Quarter turns, counter-clockwise, that set a frame upright (a phone's display matrix)."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _pyav_read(path: Path, timeline: Timeline, numbers: np.ndarray) -> np.ndarray:
    """Frames by number, (T, H, W, 3) uint8: from the key frame before them, else from the start of the file."""
    stamps, keys = timeline.handle
    wanted = stamps[np.unique(numbers)]
    before = keys[keys <= wanted[0]]
    found = _pyav_decode(path, wanted, int(before[-1])) if len(before) and before[-1] > stamps[0] else {}
    if len(found) < len(wanted):
        found = _pyav_decode(path, wanted, None)
    for number in numbers:
        if stamps[number] not in found:
            raise UserError(f"video {path} is cut short or damaged: frame {number} (at "
                            f"{timeline.seconds[number]:.2f} s) cannot be decoded, though its index promises it")
    return np.stack([found[stamps[number]] for number in numbers])


def _pyav_decode(path: Path, wanted: np.ndarray, start: int | None) -> dict[int, np.ndarray]:
    """Time stamp -> sound frame, for those `wanted` (ascending) that decoding from `start` gives."""
    av = import_av()

    found, missing = {}, set(wanted.tolist())
    try:
        with opened(path) as (container, stream):
            stream.thread_type = "AUTO"
            if start is not None:
                container.seek(start, stream=stream)
            for frame in container.decode(stream):
                if frame.pts in missing and not frame.is_corrupt:
                    missing.remove(frame.pts)
                    found[frame.pts] = np.rot90(frame.to_ndarray(format="rgb24"), _turns(frame))
                if not missing or (frame.pts is not None and frame.pts > wanted[-1]):
                    break
    except (av.error.FFmpegError, OSError) as error:
        if start is None:
            raise UserError(f"video {path} is damaged: {' '.join(str(error).split())}") from None
    return found


# ---- decord


def _decord_timeline(path: Path) -> Timeline:
    try:
        import decord
    except ImportError:
        raise UserError("video backend decord is not installed: pip install decord, or use pyav") from None
    try:
        reader = decord.VideoReader(io.BytesIO(path.read_bytes()), num_threads=1)
        seconds = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
        height, width = reader[0].shape[:2]
        return _timeline(path, seconds, float(reader.get_avg_fps()), height, width, reader)
    except (decord.DECORDError, RuntimeError, ValueError, IndexError) as error:
        first = str(error).strip().split("\n")[0]
        raise UserError(f"{path} is no video that decord can read: {first}; try the backend pyav") from None


def _decord_read(path: Path, timeline: Timeline, numbers: np.ndarray) -> np.ndarray:
    import decord

    try:
        return timeline.handle.get_batch(numbers.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, ValueError) as error:
        raise UserError(f"video {path} is damaged: {str(error).strip().splitlines()[0]}") from None


BACKENDS = {"pyav": (_pyav_timeline, _pyav_read), "decord": (_decord_timeline, _decord_read)}
