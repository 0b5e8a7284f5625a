"""Where the visual tokens of a posed RGB-D scene are: depth, poses and intrinsics -> coordinates in metres.

A record's "scene" names a metadata file and the rows of its frames:

    {"metadata": "scene_metadata.npz", "frames": [0, 5, null]}

`frames` has one entry for each medium, images first: a row for an image, a list of rows (one for each frame of the
file) for a video, null where nothing is known. The file's arrays have one row for each frame:

    depth            ()      path of a uint16 PNG or PGM relative to the media root; "" where the frame has none
    pose             (4, 4)  camera to world, metres, OpenCV axes (x right, y down, z forward)
    axis_align       (4, 4)  world to the frame of the coordinates, e.g. z up and the floor at 0
    depth_intrinsic  (3, 3)  K of the depth camera for images of depth_size
    color_intrinsic  (3, 3)  K of the colour camera for images of color_size
    depth_size, color_size (2,)  height, width
    depth_scale      ()      depth units in a metre
    image            ()      path of the colour image (may be left out); has to be the record's
    depth_rotated_bits ()    bits to the left by which the 16 bits of a depth pixel are rotated (may be left out: 0)

Pixel centres are at whole numbers, of images as they are stored: one that EXIF turns when it is shown is refused. Both
cameras share one centre and direction, as in ScanNet, and may see different fields: a pixel of the resized image is
followed along its ray to the nearest depth pixel.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from scipy import sparse

from overlays.data import records
from overlays.data.media import RGB, Reader, opener_of, video_grid
from overlays.errors import UserError

INVALID = (0, 65535)  # depth codes of a pixel without a measurement
SHAPES = {
    "depth": (), "pose": (4, 4), "axis_align": (4, 4), "depth_intrinsic": (3, 3), "color_intrinsic": (3, 3),
    "depth_size": (2,), "color_size": (2,), "depth_scale": (),
}


# ---- metadata


def load_metadata(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a metadata file, see the module's text; read once in a process.

    Raises:
        UserError: the file is missing, no npz, holds pickled objects, or lacks an array.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise UserError(f"scene metadata {path} is missing; prepare the scenes again") from None
    return _load_metadata(path, changed)


@lru_cache(maxsize=4)
def _load_metadata(path: Path, changed: int) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*SHAPES, "image", "depth_rotated_bits") if name in file.files}
    except Exception as error:  # zipfile, zlib and numpy raise what they like on bad bytes
        raise UserError(f"scene metadata {path} cannot be read: {' '.join(str(error).split())}") from None
    lacking = [name for name in SHAPES if name not in arrays]
    if lacking:
        raise UserError(f"scene metadata {path} lacks {', '.join(lacking)}; prepare the scenes again")
    rows = len(arrays["pose"]) if arrays["pose"].ndim else 0
    for name, array in arrays.items():
        if array.shape != (rows, *SHAPES.get(name, ())):
            raise UserError(f"scene metadata {path}: {name} has shape {array.shape}, "
                            f"not {(rows, *SHAPES.get(name, ()))}")
    return arrays


class _Frames:
    """Rows of one metadata file, checked when they are asked for."""

    def __init__(self, path: Path):
        self.path, self.arrays = path, load_metadata(path)

    def __call__(self, row: object, image: str | None = None) -> dict:
        """Values of one frame. Raises UserError where the row does not exist or one of its values is no camera."""
        if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < len(self.arrays["pose"]):
            raise UserError(f"scene metadata {self.path} has no row {row!r}: it has {len(self.arrays['pose'])}")
        frame = {name: array[row] for name, array in self.arrays.items()}
        where = f"scene metadata {self.path}, row {row} ({frame.get('image', frame['depth'])})"
        if image is not None and str(frame.get("image", image)) != image:
            raise UserError(f"{where} is not of the record's image {image}; prepare the scenes again")
        for name in ("pose", "axis_align"):
            if not np.isfinite(frame[name]).all():
                raise UserError(f"{where}: {name} holds numbers that are not finite; leave this frame out")
        for name in ("depth_intrinsic", "color_intrinsic"):
            matrix = frame[name]
            if not np.isfinite(matrix).all() or min(matrix[0, 0], matrix[1, 1]) <= 0 or matrix[0, 1] or matrix[1, 0]:
                raise UserError(f"{where}: {name} is no camera matrix without skew: {matrix.tolist()}")
        if min(*frame["depth_size"], *frame["color_size"]) < 1 or not 0 < frame["depth_scale"] < np.inf:
            raise UserError(f"{where}: depth_size, color_size and depth_scale must be above 0")
        return frame


# ---- depth


def depth_problem(image: Image.Image) -> str:
    """Why an opened image cannot be a depth image, "" where it can: 16 bits a pixel, in a format that keeps them."""
    if image.format == "PNG" and image.mode in ("I", "I;16"):
        return ""
    if image.format == "PPM" and image.mode == "I" and image.tile[0][0] != "ppm_plain":
        return ""
    return f"is no 16-bit PNG or PGM ({image.format}, mode {image.mode})"


def read_depth(path: Path, size: tuple[int, int], rotated_bits: int = 0) -> np.ndarray:
    """A depth image, (H, W) uint16.

    Args:
        size: (height, width) that its intrinsics belong to.
        rotated_bits: to the left, of every pixel, as SUN3D stores them (3).

    Raises:
        UserError: missing, no 16-bit PNG or PGM, damaged, or of another size.
    """
    with _depth_file(path, size) as image:
        try:
            if image.format == "PPM":  # Pillow stretches it from its largest value to 65535
                pixels = np.fromfile(path, ">u2", size[0] * size[1], offset=image.tile[0][2])
                depth = pixels.reshape(size).astype(np.uint16)
            else:
                depth = np.asarray(image).astype(np.uint16, copy=False)
        except Exception as error:  # decoders raise what they like on bad bytes
            raise UserError(f"depth image {path} is damaged or cut short: {' '.join(str(error).split())}") from None
    return rotate_right(depth, rotated_bits)


def rotate_right(depth: np.ndarray, bits: int) -> np.ndarray:
    """uint16 values whose bits are rotated to the right, by a number that may be below 0."""
    bits %= 16
    return (depth >> np.uint16(bits)) | (depth << np.uint16(16 - bits)) if bits else depth


def _depth_file(path: Path, size: tuple[int, int]) -> Image.Image:
    """A depth image whose header is sound, not decoded yet."""
    try:
        image = Image.open(path)
    except FileNotFoundError:
        raise UserError(f"depth image {path} is missing") from None
    except Exception as error:
        raise UserError(f"{path} is no depth image that can be read: {' '.join(str(error).split())}") from None
    problem = depth_problem(image)
    if problem:
        image.close()
        raise UserError(f"depth image {path} {problem}")
    if (image.height, image.width) != size:
        found = f"{image.width} x {image.height}"
        image.close()
        raise UserError(f"depth image {path} is {found} pixels, but its intrinsics are for {size[1]} x {size[0]}")
    return image


@lru_cache(maxsize=65536)
def _check_depth(path: Path, size: tuple[int, int]) -> None:
    _depth_file(path, size).close()


# ---- colour


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF turns or mirrors an opened image when it is shown. Nothing is decoded.

    Of a PNG that is what stands before its pixels, where programs write it.
    """
    return 2 <= Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) <= 8


@lru_cache(maxsize=65536)
def _check_upright(path: Path) -> None:
    try:
        with Image.open(path) as image:
            turned = is_turned(image)
    except Exception:  # decoders raise what they like; what cannot be opened is named where it is shown
        return
    if turned:
        raise UserError(f"image {path} is turned by its EXIF orientation, but depth and intrinsics belong to its "
                        "pixels as they are stored; leave this frame out")


# ---- blocks


@lru_cache(maxsize=256)
def _sampling(blocks: int, block: int, color: tuple[float, float, int], depth: tuple[float, float, int]):
    """How the pixels of one axis of the resized image meet depth pixels, by block.

    Args:
        blocks, block: the axis has blocks * block pixels.
        color, depth: (focal length, principal point, pixels) of the cameras along this axis.

    Returns:
        Sparse (blocks, depth pixels): how many pixels of each block meet each depth pixel; and (2 * blocks, depth
        pixels): the same, and below it the same times the depth pixel's ray (its position at depth 1).
    """
    pixels = blocks * block
    position = (np.arange(pixels) + 0.5) * color[2] / pixels - 0.5  # in the colour image
    nearest = np.floor(depth[0] * (position - color[1]) / color[0] + depth[1] + 0.5).astype(np.int64)
    seen = (nearest >= 0) & (nearest < depth[2])
    ray = (nearest - depth[1]) / depth[0]
    place = (np.arange(pixels)[seen] // block, nearest[seen])
    counts, rays = (
        sparse.csr_matrix((values.astype(np.float32), place), shape=(blocks, depth[2]))
        for values in (np.ones(int(seen.sum())), ray[seen])
    )
    return counts, sparse.vstack([counts, rays]).tocsr()


def block_sums(depth: np.ndarray, frame: Mapping, grid: tuple[int, int], block: int,
               max_depth_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the valid pixels of each block of a resized image.

    The mean world point of a block is that of its camera points moved by the pose, and these are depth times ray:
    so three sums over depth are all that is needed, and no point is ever made for a pixel.

    Args:
        depth: (H, W) uint16.
        frame: pose, axis_align, intrinsics and sizes of one row of the metadata.
        grid: (h, w) blocks of block x block pixels: the resized image has h * block x w * block pixels.
        max_depth_m: what is measured farther away counts as invalid.

    Returns:
        Sums of points (h, w, 3) in metres, in the axis-aligned frame, and numbers of valid pixels (h, w).
    """
    color, own = frame["color_intrinsic"], frame["depth_intrinsic"]
    rows, columns = (
        _sampling(grid[axis], block, (float(color[1 - axis, 1 - axis]), float(color[1 - axis, 2]),
                                      int(frame["color_size"][axis])),
                  (float(own[1 - axis, 1 - axis]), float(own[1 - axis, 2]), int(frame["depth_size"][axis])))
        for axis in (0, 1)
    )
    farthest = min(INVALID[1] - 1, int(max_depth_m * float(frame["depth_scale"])))
    both = np.empty((2, *depth.shape), np.float32)  # 1 at valid pixels, and depth there
    np.less(depth - np.uint16(1), np.uint16(farthest), out=both[0], casting="unsafe")  # 0 - 1 is 65535
    np.multiply(depth, both[0], out=both[1])
    h, w = grid
    number = (columns[0] @ (rows[0] @ both[0]).T).T  # (h, w)
    sums = (columns[1] @ (rows[1] @ both[1]).T).T.astype(np.float64)  # (2 h, 2 w)
    camera = np.stack([sums[:h, w:], sums[h:, :w], sums[:h, :w]], axis=-1) / float(frame["depth_scale"])
    move = frame["axis_align"].astype(np.float64) @ frame["pose"].astype(np.float64)
    return camera @ move[:3, :3].T + number[..., None] * move[:3, 3], number.astype(np.float64)


def mean_points(depths: Sequence[np.ndarray | None], frames: Sequence[Mapping | None], grid: tuple[int, int],
                block: int, max_depth_m: float) -> np.ndarray:
    """Mean point of each block over the valid pixels of one image, or of all frames that share a token.

    Args:
        depths, frames: one for each frame; None where it has no depth.

    Returns:
        (h, w, 3) float32, metres in the axis-aligned frame; exactly 0 where no pixel is valid.
    """
    points, number = np.zeros((*grid, 3)), np.zeros(grid)
    for depth, frame in zip(depths, frames, strict=True):
        if depth is not None:
            more = block_sums(depth, frame, grid, block, max_depth_m)
            points, number = points + more[0], number + more[1]
    empty = number == 0
    points[empty] = 0.0
    return (points / np.where(empty, 1.0, number)[..., None]).astype(np.float32)


# ---- records


def add_coordinates(sample: dict, record: Mapping, processor, media_root: str | Path, max_depth_m: float | None,
                    reader: Reader | str = "pyav") -> dict:
    """The sample of a record, with `coordinates` (see `token_coordinates`) where there is a scene.

    Args:
        max_depth_m: None where the model takes no coordinates: the sample stays as it is.
    """
    if max_depth_m is not None and record.get("scene") is not None:
        import torch

        points = token_coordinates(record, sample, processor, media_root, max_depth_m, reader)
        sample["coordinates"] = torch.from_numpy(points)
    return sample


def token_coordinates(record: Mapping, sample: Mapping, processor, media_root: str | Path, max_depth_m: float = 10.0,
                      reader: Reader | str = "pyav") -> np.ndarray:
    """Coordinates of every visual token of a record with a scene.

    Args:
        sample: what `chat.encode` or `chat.encode_prompt` gives for the record; its grids are read.

    Returns:
        (tokens, 3) float32: the tokens of the images, then of the videos, each row by row of its blocks, as
        `get_image_features` puts them out. Metres in the axis-aligned frame; 0 where there is no valid depth.

    Raises:
        UserError: metadata or depth are missing or broken, or do not belong to the record's media.
    """
    media_root, found = Path(media_root), []
    read = _reader(media_root)
    merge, patch = processor.image_processor.merge_size, processor.image_processor.patch_size
    grids = [grid.tolist() for key in ("image_grid_thw", "video_grid_thw") if key in sample for grid in sample[key]]
    for (_, height, width), groups in zip(
        grids, _groups(record, processor, media_root, reader), strict=True
    ):
        for group in groups:  # the frames of one temporal patch
            depths = [read(frame) for frame in group]
            grid = (height // merge, width // merge)
            found.append(mean_points(depths, group, grid, merge * patch, max_depth_m).reshape(-1, 3))
    return np.concatenate(found) if found else np.zeros((0, 3), np.float32)


def check_scene(record: Mapping, media_root: str | Path) -> list[Path]:
    """Look at a record's scene without decoding a depth image; returns the depth files and the scene's metadata.

    Raises:
        UserError: as `token_coordinates`.
    """
    frames, media_root = _frames(record, Path(media_root)), Path(media_root)
    files = [records.media_file(media_root, record["scene"]["metadata"])]
    for entry in frames:
        for frame in entry if isinstance(entry, list) else [entry]:
            if frame is not None and str(frame["depth"]):
                files.append(records.media_file(media_root, str(frame["depth"])))
                _check_depth(files[-1], _size(frame))
    return files


def _size(frame: Mapping) -> tuple[int, int]:
    return int(frame["depth_size"][0]), int(frame["depth_size"][1])


def _reader(media_root: Path):
    """Function: frame -> its depth or None; a frame that is shown twice is read once."""
    last: dict[str, np.ndarray] = {}

    def read(frame: Mapping | None) -> np.ndarray | None:
        name = str(frame["depth"]) if frame is not None else ""
        if not name:
            return None
        if name not in last:
            depth = read_depth(records.media_file(media_root, name), _size(frame),
                               int(frame.get("depth_rotated_bits", 0)))
            last.clear()
            last[name] = depth
        return last[name]

    return read


def _frames(record: Mapping, media_root: Path) -> list[dict | list[dict | None] | None]:
    """The frames of a record's scene, one entry for each medium, checked."""
    scene = record["scene"]
    if not isinstance(scene, Mapping) or not isinstance(scene.get("metadata"), str) \
            or not isinstance(scene.get("frames"), list):
        raise UserError('scene must be {"metadata": file, "frames": [row, ...]}')
    images, videos = records.media_names(record, "image"), records.media_names(record, "video")
    if len(scene["frames"]) != len(images) + len(videos):
        raise UserError(f"the scene has {len(scene['frames'])} frames, but the record {len(images) + len(videos)} "
                        "images and videos")
    frame_at = _Frames(records.media_file(media_root, scene["metadata"]))
    entries = []
    for number, entry in enumerate(scene["frames"]):
        video = number >= len(images)
        if video != isinstance(entry, list) and entry is not None:
            raise UserError("a scene's frames hold a row for an image and a list of rows for a video")
        if entry is None or video:
            entries.append(entry and [None if row is None else frame_at(row) for row in entry])
        else:
            entries.append(frame_at(entry, images[number]))
            if str(entries[-1]["depth"]) and opener_of(images[number]) is RGB:
                _check_upright(records.media_file(media_root, images[number]))
    return entries


def _groups(record: Mapping, processor, media_root: Path, reader: Reader | str) -> list[list[list[dict | None]]]:
    """For each medium its temporal patches, each a list of frames (one for an image)."""
    names = records.media_names(record, "video")
    entries = _frames(record, media_root)
    images = len(entries) - len(names)
    groups = [[[entry]] for entry in entries[:images]]
    for name, rows, segment in zip(names, entries[images:], records.video_segments(record), strict=True):
        video = processor.video_processor
        _, metadata = video_grid(records.media_file(media_root, name), video, reader, segment)
        shown = [tick + (segment[0] if segment else 0) for tick in metadata.frames_indices]
        if rows is not None and len(rows) <= max(shown):
            raise UserError(f"video {name} has {max(shown) + 1} frames or more, but its scene {len(rows)}")
        frames = [None if rows is None else rows[tick] for tick in shown]
        pair = video.temporal_patch_size
        groups.append([frames[start:start + pair] for start in range(0, len(frames), pair)])
    return groups
