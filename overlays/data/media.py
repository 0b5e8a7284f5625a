"""Images and videos: files -> what a processor takes, at the resolution that the flags ask for.

torch and transformers are imported where they are used: checking files needs neither, and they take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overlays.data import rasters, records
from overlays.data.decode import BACKENDS  # noqa: F401
from overlays.data.rgb import open_rgb, rgb_size, to_rgb  # noqa: F401  (to_rgb: for images that are open already)
from overlays.data.video import (  # noqa: F401  (videos are media as well: their names are here too)
    Clip,
    Reader,
    frame_limits,
    limits_clips,
    open_video,
    probe_video,
    video_grid,
)
from overlays.errors import UserError

NO_WINDOW = "image {} is not a raster, so its record cannot have a window"
MAX_ASPECT = 200  # of the longer to the shorter side: what the image processors of all families take


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
    video_cache: str | None = None

    @property
    def reader(self) -> Reader:
        """How videos are decoded and kept."""
        return Reader(self.video_backend, Path(self.video_cache) if self.video_cache else None)


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
    own = frame_limits(video, video.max_frames)
    low, high = _limits(options.video_min_pixels, options.video_max_pixels, own, "video_min_pixels", "video_max_pixels")
    video.frame_min_pixels, video.frame_max_pixels = low, high
    clip = limits_clips(video)
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


# ---- images


@dataclass(frozen=True)
class Opener:
    """How files of some suffixes become what the image processor takes.

    open: path -> image. size: path -> (height, width) without decoding; it may leave out a quarter turn, which does
    not change the number of patches. Both raise UserError with the file's name.
    """

    open: Callable[[Path], object]
    size: Callable[[Path], tuple[int, int]]


RGB = Opener(open_rgb, rgb_size)
RASTER = Opener(rasters.read, rasters.size)
# suffix -> opener; every other suffix is an RGB image. New inputs add their rows.
OPENERS: dict[str, Opener] = dict.fromkeys(rasters.SUFFIXES, RASTER)


def opener_of(path: str | Path) -> Opener:
    """The opener of a file, by its suffix."""
    return OPENERS.get(Path(path).suffix.lower(), RGB)


# ---- what a record shows


@dataclass(frozen=True)
class Media:
    """The opened media of one record, in the order of their placeholders. Rasters are tensors (C, H, W)."""

    images: Sequence[object] = ()
    videos: Sequence[Clip] = ()


def open_media(record: Mapping, media_root: str | Path, processor, reader: Reader | str = "pyav") -> Media:
    """Open every image and video of a record. Raises UserError with the file's name where one cannot be."""
    images = [records.media_file(media_root, name) for name in records.media_names(record, "image")]
    videos = [records.media_file(media_root, name) for name in records.media_names(record, "video")]
    if videos and rasters.takes_rasters(processor):
        raise UserError(f"video {videos[0]} cannot be shown to a model that takes rasters of "
                        f"{processor.image_processor.in_channels} channels")
    return Media(
        [open_image(path, processor.image_processor, window)
         for path, window in zip(images, records.windows(record), strict=True)],
        [open_video(path, processor.video_processor, reader, segment)
         for path, segment in zip(videos, records.video_segments(record), strict=True)],
    )


def open_image(path: Path, image_processor, window: Sequence[int] | None = None) -> object:
    """An image as the processor takes it; of a raster only `window` (row, column, height, width) where there is one."""
    opener = opener_of(path)
    if opener in (RGB, RASTER):
        rasters.check(path, image_processor)
    if opener is RASTER:
        return rasters.as_image(rasters.read(path, window), image_processor, path)
    if window is not None:
        raise UserError(NO_WINDOW.format(path))
    return opener.open(path)


def _window_size(path: Path, opener: Opener, window: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a window. Raises UserError where the image is not a raster or does not hold it."""
    if opener is not RASTER:
        raise UserError(NO_WINDOW.format(path))
    row, column, height, width = window
    if min(row, column) < 0 or min(height, width) < 1 or row + height > size[0] or column + width > size[1]:
        raise UserError(f"image {path} has {size[0]} x {size[1]} pixels and does not hold the window {list(window)}")
    return height, width


def image_patches(path: Path, image_processor, window: Sequence[int] | None = None) -> int:
    """Patches of an image (before merging) from its header. Raises UserError where it cannot be used."""
    opener = opener_of(path)
    if opener in (RGB, RASTER):
        rasters.check(path, image_processor)
    height, width = opener.size(path)
    if window is not None:
        height, width = _window_size(path, opener, window, (height, width))
    try:
        return image_processor.get_number_of_image_patches(height, width, {})
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"image {path} cannot be used: {error}") from None
