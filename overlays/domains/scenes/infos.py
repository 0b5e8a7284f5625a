"""EmbodiedScan's infos files: read without running what a pickle may carry, and every defect named."""

from __future__ import annotations

import math
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from tqdm import tqdm

from overlays.domains import base
from overlays.errors import UserError
from overlays.files import SURROGATE

DEPTH_UNITS = {"matterport3d": 4000.0}  # stored depth units per metre; 1000 elsewhere

Pose, CameraAxes = Literal["camera-to-world", "world-to-camera"], Literal["opencv", "opengl", "ros"]
PoseUnit, DepthEncoding = Literal["m", "cm", "mm"], Literal["plain", "sun3d"]
WorldUp = Literal["z", "y", "-y"]
# Worlds whose y axis points up (ARKit, OpenGL) or down (that of a first camera), turned so that z does.
WORLDS: dict[WorldUp, np.ndarray] = {
    "z": np.eye(4), "y": np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
    "-y": np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])}
# OpenCV's camera axes (x right, y down, z forward) in others: OpenGL's x right, y up, z back; x forward, y left, z up.
CAMERA_AXES: dict[CameraAxes, np.ndarray] = {
    "opencv": np.eye(4), "opengl": np.diag([1.0, -1.0, -1.0, 1.0]),
    "ros": np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])}
POSE_UNITS: dict[PoseUnit, float] = {"m": 1.0, "cm": 0.01, "mm": 0.001}  # in metres
# Bits to the left by which the 16 bits of a pixel are rotated.
DEPTH_ENCODINGS: dict[DepthEncoding, int] = {"plain": 0, "sun3d": 3}


@dataclass(frozen=True)
class Conventions(base.Conventions):
    """How poses and depth are read; each field is a flag of prepare. `pose_unit` is that of axis_align_matrix too;
    `world_up` the axis that points up after it."""

    pose: Pose = "camera-to-world"
    camera_axes: CameraAxes = "opencv"
    pose_unit: PoseUnit = "m"
    depth_encoding: DepthEncoding = "plain"
    depth_scale: float | None = None  # stored units per metre; None: DEPTH_UNITS, else 1000
    world_up: WorldUp = "z"

    @property
    def rotated_bits(self) -> int:
        """Of depth pixels, see DEPTH_ENCODINGS."""
        return DEPTH_ENCODINGS[self.depth_encoding]

    def in_metres(self, matrix: np.ndarray) -> np.ndarray:
        """(4, 4) rigid motion whose translation is in `pose_unit`, in metres."""
        return matrix * np.where(np.arange(4) < 3, 1.0, POSE_UNITS[self.pose_unit]) + np.diag(
            [0, 0, 0, 1 - POSE_UNITS[self.pose_unit]])

    def camera_to_world(self, stored: np.ndarray) -> np.ndarray:
        """(4, 4) camera to world, metres, OpenCV axes, of a pose as a file has it."""
        moved = np.linalg.inv(stored) if self.pose == "world-to-camera" else stored
        return self.in_metres(moved) @ CAMERA_AXES[self.camera_axes]

    def as_stored(self, pose: np.ndarray) -> np.ndarray:
        """What `camera_to_world` was made of."""
        moved = pose @ CAMERA_AXES[self.camera_axes].T
        moved[:3, 3] /= POSE_UNITS[self.pose_unit]
        return np.linalg.inv(moved) if self.pose == "world-to-camera" else moved


@dataclass(frozen=True)
class Frame:
    """A frame as the infos name it. Paths exist; `pose` is camera-to-world (4, 4), metres, OpenCV axes."""

    image: Path
    depth: Path
    pose: np.ndarray
    color_intrinsic: np.ndarray  # (3, 3)
    depth_intrinsic: np.ndarray  # (3, 3)
    depth_like_color: bool  # no intrinsics of its own: the depth picture is one of the colour camera


@dataclass
class Scene:
    """A scene: its usable frames in order, and why the others are not (frame, reason)."""

    name: str
    split: str
    source: str
    axis_align: np.ndarray  # (4, 4) world -> axis-aligned
    depth_scale: float
    frames: list[Frame] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    problem: str = ""


def is_half(text: str) -> bool:
    """Whether text holds half a character (a lone surrogate), which no UTF-8 file can."""
    return SURROGATE.search(text) is not None


def printable(text: str) -> str:
    """Text with halves of characters spelled out, as a list of what was left out can show it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode` as old pickles of bytes use it, and nothing more."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"unexpected text encoding {encoding!r}")
    return text.encode("latin1")


def _bytes(*content: object) -> bytes:
    """`bytes` of what pickles give it; of a number it would be memory as large as the file says."""
    if not content:
        return b""
    if isinstance(content[0], str):
        return _latin1(*content)
    value, = content
    if not isinstance(value, bytes | list):
        raise pickle.UnpicklingError(f"bytes of {type(value).__name__}")
    return bytes(value)


def _bytearray(*content: object) -> bytearray:
    return bytearray(_bytes(*content))


def _set(items: list) -> set:
    return set(_checked(items))


def _frozenset(items: list) -> frozenset:
    return frozenset(_checked(items))


def _checked(items: list) -> list:
    """A list, as pickles of sets hold one: what else can be iterated over may be longer than the file."""
    if not isinstance(items, list):
        raise pickle.UnpicklingError(f"a set of {type(items).__name__}")
    return items


def _allowed() -> dict[tuple[str, str], object]:
    """What an infos file may name: plain containers, and numpy's own rebuilding functions under all their names."""
    array = np.zeros(1)
    rebuild, scalar, buffer = array.__reduce__()[0], np.float64(0).__reduce__()[0], array.__reduce_ex__(5)[0]
    names = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _latin1,
             ("collections", "OrderedDict"): OrderedDict}
    for core in ("numpy.core", "numpy._core"):
        names |= {(f"{core}.multiarray", "_reconstruct"): rebuild, (f"{core}.multiarray", "scalar"): scalar,
                  (f"{core}.numeric", "_frombuffer"): buffer}
    for builtins in ("builtins", "__builtin__"):  # the second is Python 2's, and that of protocols 0 to 2
        names |= {(builtins, "bytes"): _bytes, (builtins, "bytearray"): _bytearray, (builtins, "set"): _set,
                  (builtins, "frozenset"): _frozenset, (builtins, "complex"): complex}
    return names


class _Unpickler(pickle.Unpickler):
    """Rebuilds numpy values and plain containers; any other name is refused before it is even looked up."""

    allowed = _allowed()

    def find_class(self, module: str, name: str):
        try:
            return self.allowed[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None


class _Forbidden(Exception):
    pass


def load_pickle(path: Path) -> object:
    """Content of a pickle of numpy values and plain containers.

    Raises:
        UserError: it names anything else (nothing of it is run), or it is damaged.
    """
    try:
        try:
            with path.open("rb") as stream:
                return _Unpickler(stream).load()
        except UnicodeDecodeError:  # text of Python 2, which was bytes
            with path.open("rb") as stream:
                return _Unpickler(stream, encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"there is no infos file {path}") from None
    except _Forbidden as error:
        raise UserError(f"{path} is refused: it asks for {error}, and an infos file holds only numpy arrays and plain "
                        "containers; get it from EmbodiedScan's own source") from None
    except Exception as error:  # what a broken pickle raises is open-ended: EOFError, KeyError, ValueError, ...
        words = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"{path} is damaged or not a pickle: {words}") from None


def read_infos(path: Path, split: str, root: Path, wanted: Container[str] | None = None,
               conventions: Conventions = Conventions()) -> list[Scene]:
    """Scenes of an infos file, in its order.

    Args:
        path: embodiedscan_infos_<split>.pkl.
        root: folder that the file's picture paths start from, with or without the source's name ("scannet/") before.
        wanted: names of scenes whose frames are looked at; the others come without frames. None looks at all.
        conventions: of poses and depth. A scene's own "depth_scale" goes first.

    Raises:
        UserError: the file as a whole is of no use; a scene or frame that is not has its reason in the Scene.
    """
    content = load_pickle(path)
    rows = content.get("data_list") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path} is not an infos file of EmbodiedScan: it has no data_list")
    shown = tqdm(rows, desc=f"reading {path.name}", unit="scene", disable=None)
    return [_scene(row, f"entry {number} of {path.name}", split, root, wanted, conventions)
            for number, row in enumerate(shown)]


# Names by which scene_metadata.pkl may call what an infos file has: of a scene, of a frame.
_SCENE_NAMES = {"axis_align_matrix": ("axis_alignment", "axis_align"), "depth_scale": ("depth_shift",),
                "cam2img": ("intrinsic", "intrinsics", "color_intrinsic", "camera_intrinsics"),
                "depth_cam2img": ("depth_intrinsic", "depth_intrinsics"), "images": ("frames", "views")}
_FRAME_NAMES = {"img_path": ("image_path", "image", "color_path", "rgb_path", "file_path"),
                "depth_path": ("depth_image_path", "depth", "depth_file"),
                "cam2global": ("pose", "extrinsic", "camera_pose", "cam2world", "camera_to_world"),
                "cam2img": ("intrinsic", "intrinsics"), "depth_cam2img": ("depth_intrinsic",)}
_LISTS = {"img_path": ("image_paths", "img_paths", "image_files"), "depth_path": ("depth_paths", "depth_files"),
          "cam2global": ("poses", "extrinsics", "camera_poses")}


def read_scene_metadata(path: Path, root: Path, wanted: Container[str] | None = None,
                        conventions: Conventions = Conventions()) -> list[Scene]:
    """Scenes of a scene_metadata.pkl: {scene: {"frames": [{"image_path", "depth_path", "pose", ...}], ...}}, the same
    under "scenes", or a list with "scene_id". Frames may also be lists side by side: image_paths, depth_paths, poses.

    A scene's split is its own "split", "" without one. Names that are not those of an infos file: _SCENE_NAMES,
    _FRAME_NAMES, _LISTS. Paths are taken from "posed_images" on.

    Raises:
        UserError: as `read_infos`.
    """
    content = load_pickle(path)
    rows = content.get("scenes", content) if isinstance(content, dict) else content
    if isinstance(rows, dict):
        rows = [{"scene_id": name, **row} if isinstance(row, dict) else None for name, row in rows.items()]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} is not a scene_metadata.pkl: it does not map scenes to their frames")
    shown = tqdm(rows, desc=f"reading {path.name}", unit="scene", disable=None)
    return [_scene(_as_info(row), f"entry {number} of {path.name}", str(row.get("split") or ""), root, wanted,
                   conventions) for number, row in enumerate(shown)]


def _as_info(row: dict) -> dict:
    """An entry of scene_metadata.pkl as one of an infos file."""
    info = _renamed(row, _SCENE_NAMES) | {"sample_idx": row.get("sample_idx", row.get("scene_id", row.get("scene")))}
    columns = _renamed({name: row[name] for names in _LISTS.values() for name in names if name in row}, _LISTS)
    if "images" not in info and columns and all(isinstance(value, list | tuple | np.ndarray)
                                                for value in columns.values()):
        info["images"] = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=False)]
    if isinstance(info.get("images"), list | tuple):
        info["images"] = [_renamed({"img_path": image} if isinstance(image, str) else image, _FRAME_NAMES)
                          for image in info["images"] if isinstance(image, str | dict)]
        for image in info["images"]:
            for key in ("img_path", "depth_path"):
                if isinstance(image.get(key), str) and "posed_images/" in image[key]:
                    image[key] = "posed_images/" + image[key].rpartition("posed_images/")[2]
    return info


def _renamed(row: dict, names: dict[str, tuple[str, ...]]) -> dict:
    """A row with the names of an infos file; where it has several names for one thing, the table's first counts."""
    first = {next((other for other in others if other in row), name): name
             for name, others in names.items() if name not in row}
    return {first.get(key, key): value for key, value in row.items()}


def scene_name(index: str) -> str:
    """A scene without the source before it: "scannet/scene0000_00" -> "scene0000_00"."""
    return index.partition("/")[2] or index


def _is_folder_name(name: str) -> bool:
    """Whether a name is that of a folder below another one."""
    return not (is_half(name) or "\\" in name or "\0" in name) and all(
        part not in ("", ".", "..") and len(part.encode()) < 200 for part in name.split("/"))


def _scene(row: object, entry: str, split: str, root: Path, wanted: Container[str] | None,
           conventions: Conventions) -> Scene:
    index = row.get("sample_idx") if isinstance(row, dict) else None
    if not isinstance(index, str) or not _is_folder_name(index):
        said = "no sample_idx" if index is None else f"its sample_idx {str(index)[:100]!r} names no folder"
        return Scene(entry, split, "", np.eye(4), 1000.0, problem=printable(said))
    source = index.partition("/")[0] if "/" in index else ""
    scene = Scene(scene_name(index), split, source, np.eye(4),
                  conventions.depth_scale or DEPTH_UNITS.get(source, 1000.0))
    if wanted is not None and scene.name not in wanted:
        return scene
    if row.get("depth_scale") is not None:
        own = _numbers(row["depth_scale"])
        if own.shape != () or not 0 < own < math.inf:
            scene.problem = "its depth_scale is not a number above 0"
            return scene
        scene.depth_scale = float(own)
    align = row.get("axis_align_matrix")
    if align is not None:
        scene.axis_align, problem = _pose(align)
        if problem:
            scene.problem = f"axis_align_matrix {problem}"
            return scene
        scene.axis_align = conventions.in_metres(scene.axis_align)
    scene.axis_align = WORLDS[conventions.world_up] @ scene.axis_align
    images = row.get("images")
    if not isinstance(images, list | tuple) or not images:
        scene.problem = "no images in its entry"
        return scene
    seen = set()
    for image in images:
        frame, reason = _frame(image, row, root, source, conventions)
        if frame is not None and frame.image in seen:
            frame, reason = None, "named before in its entry"
        if frame is None:
            path = image.get("img_path") if isinstance(image, dict) else None
            scene.dropped.append((printable(PurePosixPath(str(path)).name)[:100] if path else "unnamed", reason))
        else:
            seen.add(frame.image)
            scene.frames.append(frame)
    if not scene.frames:
        scene.problem = f"none of its {len(images)} frames can be used ({scene.dropped[0][1]})"
    return scene


def _frame(image: object, row: dict, root: Path, source: str, conventions: Conventions) -> tuple[Frame | None, str]:
    """(frame, "") or (None, reason)."""
    if not isinstance(image, dict) or not isinstance(image.get("img_path"), str):
        return None, "no img_path in its entry"
    color, problem = _locate(image["img_path"], root, source, "colour picture")
    if color is None:
        return None, problem
    named = image.get("depth_path")
    depth, problem = _locate(named if isinstance(named, str) else str(PurePosixPath(image["img_path"]).with_suffix(
        ".png")), root, source, "depth picture")
    if depth is None:
        return None, problem
    pose = image.get("cam2global")
    if pose is None:
        pose = _read_matrix(color.with_suffix(".txt"))
        if pose is None:
            return None, "no pose: neither cam2global nor a .txt file"
    pose, problem = _pose(pose)
    if problem:
        return None, f"pose {problem}"
    own = image.get("cam2img", row.get("cam2img"))
    color_k, problem = _intrinsic(_read_matrix(color.with_name("intrinsic.txt")) if own is None else own)
    if problem:
        return None, f"colour intrinsics {problem}"
    own = image.get("depth_cam2img", row.get("depth_cam2img"))
    own = _read_matrix(depth.with_name("depth_intrinsic.txt")) if own is None else own
    depth_k, problem = (color_k, "") if own is None else _intrinsic(own)
    if problem:
        return None, f"depth intrinsics {problem}"
    return Frame(color, depth, conventions.camera_to_world(pose), color_k, depth_k, own is None), ""


def _locate(name: str, root: Path, source: str, what: str) -> tuple[Path | None, str]:
    """The file below `root`; names that leave it are refused."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        return None, f"path of the {what} leaves the data folder"
    if is_half(name):
        return None, f"path of the {what} holds half a character"
    candidates = [root / pure]
    if source and pure.parts and pure.parts[0] == source:
        candidates.append(root.joinpath(*pure.parts[1:]))
    for path in candidates:
        if os.path.isfile(path):  # False also for a name that the file system cannot hold
            return path, ""
    return None, f"{what} is missing"


def _read_matrix(path: Path) -> np.ndarray | None:
    """A matrix of a text file; None where there is no file, empty where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty file
            return np.loadtxt(path, dtype=np.float64, ndmin=2)
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        return np.empty(0)


def _numbers(value: object) -> np.ndarray:
    """An array of the real numbers in a value, empty where it holds something else."""
    try:
        return np.empty(0) if np.iscomplexobj(value) else np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.empty(0)


def _pose(value: object) -> tuple[np.ndarray, str]:
    """(4, 4) rigid motion, and what is wrong with it or ""."""
    matrix = _numbers(value)
    if not matrix.size:
        return np.eye(4), "cannot be read"
    if matrix.shape != (4, 4):
        return np.eye(4), f"is {' x '.join(map(str, matrix.shape))}, not 4 x 4"
    if not np.isfinite(matrix).all():
        return np.eye(4), "is not finite"
    rotation = matrix[:3, :3]
    if np.abs(rotation).max() > 2 or np.abs(rotation @ rotation.T - np.eye(3)).max() > 0.02 \
            or np.linalg.det(rotation) < 0:
        return np.eye(4), "is not a rotation"
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        return np.eye(4), "does not end in 0 0 0 1"
    return matrix, ""


def _intrinsic(value: object) -> tuple[np.ndarray, str]:
    """(3, 3) camera matrix, and what is wrong with it or ""."""
    if value is None:
        return np.eye(3), "are missing"
    matrix = _numbers(value)
    if not matrix.size:
        return np.eye(3), "cannot be read"
    if matrix.ndim != 2 or min(matrix.shape) < 3:
        return np.eye(3), "are not a 3 x 3 or 4 x 4 matrix"
    matrix = matrix[:3, :3]
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        return np.eye(3), "are not finite and positive"
    if matrix[0, 1] or matrix[1, 0]:
        return np.eye(3), "have skew"
    return matrix, ""
