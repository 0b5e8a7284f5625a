"""Video files, folders and lists of frames -> when each frame is shown, and frames by number; by PyAV or decord."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from overlays.data.formats import FRAME_SUFFIXES
from overlays.data.rgb import open_rgb, upright_size
from overlays.errors import UserError

MAX_CLOCK = 240.0  # ticks a second for the clock of a video with a variable frame rate
ORDER_CHECK = 250  # decoded frames that show whether an AVI file tells the order of its frames
DEFAULT_FPS = 2.0  # of qwen-vl-utils, where a processor names none and for frames in a folder or list
# Frame numbers: the first, and the one after the last (None: to the end). Of frames in a folder or list there may be a
# third number: how many are a second.
Segment = tuple[int, int | None] | tuple[int, int | None, float]
Source = Path | tuple[Path, ...]  # a video file, a folder of frames, or frames in their order


@dataclass(frozen=True)
class Timeline:
    """When the frames of a file are shown: seconds from the first one, ascending; size of an upright frame."""

    seconds: np.ndarray  # (frames,)
    fps: float
    height: int
    width: int
    handle: object = field(default=None, compare=False)  # what the backend's read function needs


def name_of(path: Source) -> str:
    return f"{path[0]} to {path[-1].name}" if isinstance(path, tuple) else str(path)


def timeline_of(path: Source, backend: str, segment: Segment | None = None) -> Timeline:
    if backend not in BACKENDS:
        raise UserError(f"video backend {backend!r} is unknown; there are {' and '.join(BACKENDS)}")
    fps = segment[2] if segment is not None and len(segment) == 3 else None
    if is_frames(path):
        return _frames_timeline(frame_files(path), DEFAULT_FPS if fps is None else fps)
    if not path.is_file():
        raise UserError(f"video file {path} is missing")
    if fps is not None:
        raise UserError(f"video {path} is a file with times of its own; the key fps is for folders and lists of frames "
                        "(the flag --video_fps sets how many frames of a second are shown)")
    return BACKENDS[backend][0](path)


def decode(path: Source, timeline: Timeline, numbers: np.ndarray, backend: str) -> np.ndarray:
    """Frames by number, (T, H, W, 3) uint8, upright."""
    return _read_pictures(timeline, numbers) if is_frames(path) else BACKENDS[backend][1](path, timeline, numbers)


def make_timeline(path: Source, seconds: np.ndarray, rate: float | None, height: int, width: int, handle) -> Timeline:
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


def is_frames(path: Source) -> bool:
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
    return make_timeline(files, np.arange(len(files)) / fps, fps, *sizes[0], files)


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
    return make_timeline(path, seconds, float(rate) if rate else None, height, width, (stamps, keys))


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
        return make_timeline(path, seconds, float(reader.get_avg_fps()), height, width, reader)
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
