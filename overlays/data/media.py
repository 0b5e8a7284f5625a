"""Images and videos: files -> what a processor takes, at the resolution that the flags ask for.

torch and transformers are imported where they are used: checking files needs neither, and they take seconds.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from overlays.data import records
from overlays.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers.video_utils import VideoMetadata

MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own limit: what a small file may unpack to is bounded
MAX_CLOCK = 240.0  # ticks a second for the clock of a video with a variable frame rate
DEFAULT_FPS = 2.0  # of qwen-vl-utils, where a processor names none


@dataclass(frozen=True)
class MediaOptions:
    """Resolution flags. Pixels are those of one image or one frame; None leaves the processor's own value."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    video_fps: float | None = None
    video_min_frames: int | None = None
    video_max_frames: int | None = None
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    video_backend: str = "pyav"


def apply_resolution(processor, options: MediaOptions) -> None:
    """Write the flags into the processor, where they take effect, and from where they are saved with a checkpoint.

    transformers has no setting for "pixels of one frame" that fits all families (Qwen3-VL's `size` is the budget of
    a whole clip). It is kept as `frame_min_pixels` and `frame_max_pixels` of the video processor, which `open_video`
    obeys; `size` is set beside it to the nearest that a program without this package understands.

    Raises:
        UserError: a lower limit above its upper limit, or frames and rates that are not positive.
    """
    from transformers.image_utils import SizeDict

    image = processor.image_processor
    low, high = _limits(options.min_pixels, options.max_pixels, _edges(image.size), "min_pixels", "max_pixels")
    image.size = SizeDict(shortest_edge=low, longest_edge=high)
    video = getattr(processor, "video_processor", None)
    if video is None:
        return
    if hasattr(video, "cap_pixels_per_frame"):
        video.cap_pixels_per_frame = False  # transformers 5.22: an own limit a frame, in place of which ours stands
    for name in ("fps", "min_frames", "max_frames"):
        value = getattr(options, f"video_{name}")
        if value is not None:
            if value <= 0:
                raise UserError(f"--video_{name} must be above 0, not {value}")
            setattr(video, name, value)
    if video.max_frames < video.temporal_patch_size:
        raise UserError(f"--video_max_frames must be at least {video.temporal_patch_size}, not {video.max_frames}")
    if video.min_frames > video.max_frames:
        raise UserError(f"--video_min_frames {video.min_frames} is above --video_max_frames {video.max_frames}")
    if options.video_min_pixels is None and options.video_max_pixels is None:
        return
    own = _frame_limits(video, video.max_frames)
    low, high = _limits(options.video_min_pixels, options.video_max_pixels, own, "video_min_pixels", "video_max_pixels")
    video.frame_min_pixels, video.frame_max_pixels = low, high
    clip = _limits_clips(video)
    video.size = SizeDict(
        shortest_edge=low * (video.min_frames if clip else 1), longest_edge=high * (video.max_frames if clip else 1)
    )


def _edges(size) -> tuple[int, int]:
    return size["shortest_edge"], size["longest_edge"]


def _limits(low: int | None, high: int | None, own: tuple[int, int], *names: str) -> tuple[int, int]:
    """Both limits, a missing one being the processor's own as far as the given one allows it."""
    if low is not None and high is not None and low > high:
        raise UserError(f"--{names[0]} {low} is above --{names[1]} {high}")
    for name, value in zip(names, (low, high), strict=True):
        if value is not None and value <= 0:
            raise UserError(f"--{name} must be above 0, not {value}")
    if low is None and high is None:
        return own
    low = min(own[0], high) if low is None else low
    return low, max(own[1], low) if high is None else high


def _limits_clips(video_processor) -> bool:
    """Whether the family's `size` is the budget of a whole clip (T x H x W) rather than of one frame."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    return isinstance(video_processor, Qwen3VLVideoProcessor)


def _frame_limits(video_processor, frames: int) -> tuple[int, int]:
    """(min, max) pixels of one frame in a clip of `frames` frames."""
    if getattr(video_processor, "frame_max_pixels", None):
        return video_processor.frame_min_pixels, video_processor.frame_max_pixels
    low, high = _edges(video_processor.size)
    return (low // frames, high // frames) if _limits_clips(video_processor) else (low, high)


# ---- images


@dataclass(frozen=True)
class Opener:
    """How files of some suffixes become what the image processor takes.

    open: path -> image. size: path -> (height, width) without decoding; it may leave out a quarter turn, which does
    not change the number of patches. Both raise UserError with the file's name.
    """

    open: Callable[[Path], object]
    size: Callable[[Path], tuple[int, int]]


def open_rgb(path: Path) -> Image.Image:
    """An image file as upright RGB.

    Raises:
        UserError: no image, cut short, more than MAX_IMAGE_PIXELS pixels, or more than 8 bits a channel.
    """
    with _rgb_file(path) as image:
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # decoders raise what they like on bad bytes: OSError, struct.error, KeyError, ...
            raise UserError(f"image {path} is damaged or cut short: {error}") from None


def rgb_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image as its header says: before a quarter turn by EXIF, which patches' number ignores.

    To ask a PNG for its EXIF is to decode it. Raises UserError as `open_rgb` does.
    """
    with _rgb_file(path) as image:
        return image.height, image.width


@contextmanager
def _rgb_file(path: Path) -> Iterator[Image.Image]:
    """An image file whose header is sound; closed at the end."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
    except FileNotFoundError:
        raise UserError(f"image file {path} is missing") from None
    except Image.DecompressionBombError:
        raise UserError(f"image {path} has more than {2 * MAX_IMAGE_PIXELS} pixels; make it smaller") from None
    except Exception as error:
        raise UserError(f"{path} is no image that can be read: {' '.join(str(error).split())}") from None
    with image:
        _check_header(path, image)
        yield image


def _check_header(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise UserError(f"image {path} has {image.width} x {image.height} pixels, above the limit of "
                        f"{MAX_IMAGE_PIXELS}; make it smaller")
    if image.mode.startswith(("I", "F")):
        raise UserError(f"image {path} has more than 8 bits a channel (mode {image.mode}); scale it to 8 bits")


RGB = Opener(open_rgb, rgb_size)
OPENERS: dict[str, Opener] = {}  # suffix -> opener; every other suffix is an RGB image. New inputs add their rows.


def opener_of(path: str | Path) -> Opener:
    """The opener of a file, by its suffix."""
    return OPENERS.get(Path(path).suffix.lower(), RGB)


# ---- videos


@dataclass(frozen=True)
class Clip:
    """Frames of a video, resized: (T, 3, H, W) uint8, T a multiple of the temporal patch; and their times."""

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


def open_video(path: Path, video_processor, backend: str = "pyav") -> Clip:
    """Frames of a video at the processor's fps, frame limits and pixels of a frame.

    The processor's family chooses the frames, on a clock of constant rate, so that variable frame rates are sampled
    by time as well. Frames are repeated at the end to fill the last temporal patch, as the processor would.

    Raises:
        UserError: no video, cut short, or the backend is missing.
    """
    import torch

    timeline, metadata, numbers = _plan_video(path, video_processor, backend)
    frames = BACKENDS[backend][1](path, timeline, numbers)  # (T, H, W, 3) uint8
    frames = torch.from_numpy(frames).permute(0, 3, 1, 2)
    height, width = _frame_size(timeline, len(numbers), video_processor, path)
    if frames.shape[2:] != (height, width):
        from torchvision.transforms.v2 import functional

        frames = functional.resize(frames, [height, width], functional.InterpolationMode.BICUBIC, antialias=True)
    return Clip(frames.contiguous(), metadata)


def video_grid(path: Path, video_processor, backend: str = "pyav") -> tuple[tuple[int, int, int], VideoMetadata]:
    """Patch grid (t, h, w) and metadata that `open_video` would give, without decoding."""
    timeline, metadata, numbers = _plan_video(path, video_processor, backend)
    height, width = _frame_size(timeline, len(numbers), video_processor, path)
    patch, temporal = video_processor.patch_size, video_processor.temporal_patch_size
    return (len(numbers) // temporal, height // patch, width // patch), metadata


def probe_video(path: Path, backend: str = "pyav") -> None:
    """Decode a video's first, middle and last frame. Raises UserError where one of them cannot be had."""
    if not path.is_file():
        raise UserError(f"video file {path} is missing")
    timeline = BACKENDS[backend][0](path)
    last = len(timeline.seconds) - 1
    BACKENDS[backend][1](path, timeline, np.array([0, last // 2, last]))


def _plan_video(path: Path, video_processor, backend: str) -> tuple[Timeline, VideoMetadata, np.ndarray]:
    """Timeline of a file, metadata for the processor, and the numbers of the frames to take (T,), ascending."""
    from transformers.video_utils import VideoMetadata

    if backend not in BACKENDS:
        raise UserError(f"video backend {backend!r} is unknown; there are {' and '.join(BACKENDS)}")
    if not path.is_file():
        raise UserError(f"video file {path} is missing")
    timeline = BACKENDS[backend][0](path)
    span = timeline.seconds[-1] + 1 / timeline.fps
    total = max(1, round(span * timeline.fps))
    metadata = VideoMetadata(
        total_num_frames=total, fps=timeline.fps, duration=float(span), video_backend=backend,
        height=timeline.height, width=timeline.width,
    )
    temporal = video_processor.temporal_patch_size
    if total <= temporal:
        ticks = list(range(total))
    else:
        fps = video_processor.fps or DEFAULT_FPS
        ticks = [int(tick) for tick in video_processor.sample_frames(metadata, fps=fps)]
    ticks += [ticks[-1]] * (-len(ticks) % temporal)
    metadata.frames_indices = ticks
    # The frame on show at each tick of the clock, forgiving a quarter of a frame of rounding in the file's times.
    numbers = np.searchsorted(timeline.seconds, np.array(ticks) / timeline.fps + 0.25 / timeline.fps, side="right") - 1
    return timeline, metadata, numbers.clip(0)


def _frame_size(timeline: Timeline, frames: int, video_processor, path: Path) -> tuple[int, int]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    low, high = _frame_limits(video_processor, frames)
    factor = video_processor.patch_size * video_processor.merge_size
    try:
        return smart_resize(timeline.height, timeline.width, factor, low, high)
    except ValueError as error:
        raise UserError(f"video {path} cannot be used: {error}") from None


def _timeline(path: Path, seconds: np.ndarray, rate: float | None, height: int, width: int, handle) -> Timeline:
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


def _pyav_timeline(path: Path) -> Timeline:
    """Presentation times from the packets (no decoding). handle: times as integers of the stream's time base."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"video {path} holds no video stream")
            stream = container.streams.video[0]
            stamps = [p.pts for p in container.demux(stream) if p.pts is not None and p.size and not p.is_discard]
            stamps = np.unique(np.array(stamps, dtype=np.int64))
            if not len(stamps):
                raise UserError(f"video {path} holds no frame that can be read")
            base, rate = Fraction(stream.time_base), stream.average_rate
            height, width = stream.codec_context.height, stream.codec_context.width
            container.seek(int(stamps[0]), stream=stream)
            turn = next((_turns(frame) for frame in container.decode(stream)), 0)
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"{path} is no video that can be read: {' '.join(str(error).split())}") from None
    height, width = (width, height) if turn % 2 else (height, width)
    seconds = (stamps - stamps[0]) * float(base)
    return _timeline(path, seconds, float(rate) if rate else None, height, width, stamps)


def _turns(frame) -> int:
    """Quarter turns, counter-clockwise, that set a frame upright (a phone's display matrix)."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _pyav_read(path: Path, timeline: Timeline, numbers: np.ndarray) -> np.ndarray:
    """Frames by number, (T, H, W, 3) uint8. A frame that cannot be decoded is shown as its predecessor."""
    import av

    wanted, stamps, taken = np.unique(numbers), timeline.handle, {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            last = None
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                while len(taken) < len(wanted) and frame.pts > stamps[wanted[len(taken)]] and last is not None:
                    taken[wanted[len(taken)]] = _upright(last)
                last = frame
                if len(taken) < len(wanted) and frame.pts == stamps[wanted[len(taken)]]:
                    taken[wanted[len(taken)]] = _upright(frame)
                if len(taken) == len(wanted):
                    break
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(f"video {path} is damaged: {' '.join(str(error).split())}") from None
    if len(taken) < len(wanted):
        second = timeline.seconds[wanted[len(taken)]]
        raise UserError(f"video {path} is cut short: no frame at {second:.2f} s, though its index promises one")
    return np.stack([taken[number] for number in numbers])


def _upright(frame) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), _turns(frame))


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


# ---- what a record shows


@dataclass(frozen=True)
class Media:
    """The opened media of one record, in the order of their placeholders."""

    images: Sequence[object] = ()
    videos: Sequence[Clip] = ()


def open_media(record: Mapping, media_root: str | Path, processor, backend: str = "pyav") -> Media:
    """Open every image and video of a record. Raises UserError with the file's name where one cannot be."""
    images = [records.media_file(media_root, name) for name in records.media_names(record, "image")]
    videos = [records.media_file(media_root, name) for name in records.media_names(record, "video")]
    return Media(
        [opener_of(path).open(path) for path in images],
        [open_video(path, processor.video_processor, backend) for path in videos],
    )


def image_patches(path: Path, image_processor) -> int:
    """Patches of an image (before merging) from its header. Raises UserError where it cannot be used."""
    height, width = opener_of(path).size(path)
    try:
        return image_processor.get_number_of_image_patches(height, width, {})
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"image {path} cannot be used: {error}") from None
