"""EmbodiedScan's infos files: read without running what a pickle may carry, and every defect named."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from overlays.errors import UserError

DEPTH_UNITS = {"matterport3d": 4000.0}  # stored depth units per metre; 1000 elsewhere


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


def _latin1(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as old pickles of bytes use it, and nothing more."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"unexpected text encoding {encoding!r}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], object]:
    """What an infos file may name: numpy's own rebuilding functions, under all names numpy gave them."""
    array = np.zeros(1)
    rebuild, scalar, buffer = array.__reduce__()[0], np.float64(0).__reduce__()[0], array.__reduce_ex__(5)[0]
    names = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _latin1,
             ("collections", "OrderedDict"): OrderedDict}
    for core in ("numpy.core", "numpy._core"):
        names |= {(f"{core}.multiarray", "_reconstruct"): rebuild, (f"{core}.multiarray", "scalar"): scalar,
                  (f"{core}.numeric", "_frombuffer"): buffer}
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
        with path.open("rb") as stream:
            return _Unpickler(stream).load()
    except FileNotFoundError:
        raise UserError(f"there is no infos file {path}") from None
    except _Forbidden as error:
        raise UserError(f"{path} is refused: it asks for {error}, and an infos file holds only numpy arrays and plain "
                        "containers; get it from EmbodiedScan's own source") from None
    except Exception as error:  # what a broken pickle raises is open-ended: EOFError, KeyError, ValueError, ...
        raise UserError(f"{path} is damaged or no pickle: {type(error).__name__} {error}".rstrip()) from None


def read_infos(path: Path, split: str, root: Path, wanted: Container[str] | None = None) -> list[Scene]:
    """Scenes of an infos file, in its order.

    Args:
        path: embodiedscan_infos_<split>.pkl.
        root: folder that the file's picture paths start from, with or without the source's name ("scannet/") before.
        wanted: names of scenes whose frames are looked at; the others come without frames. None looks at all.

    Raises:
        UserError: the file as a whole is of no use; a scene or frame that is not has its reason in the Scene.
    """
    content = load_pickle(path)
    rows = content.get("data_list") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path} is no infos file of EmbodiedScan: it has no data_list")
    shown = tqdm(rows, desc=f"reading {path.name}", unit="scene", disable=None)
    return [_scene(row, number, split, root, wanted) for number, row in enumerate(shown)]


def scene_name(index: str) -> str:
    """A scene without the source before it: "scannet/scene0000_00" -> "scene0000_00"."""
    return index.partition("/")[2] or index


def _scene(row: object, number: int, split: str, root: Path, wanted: Container[str] | None) -> Scene:
    index = row.get("sample_idx") if isinstance(row, dict) else None
    if not isinstance(index, str) or not index or ".." in index.split("/") or index.startswith("/"):
        return Scene(f"entry {number}", split, "", np.eye(4), 1000.0, problem="entry without a sample_idx of use")
    source = index.partition("/")[0] if "/" in index else ""
    scene = Scene(scene_name(index), split, source, np.eye(4), DEPTH_UNITS.get(source, 1000.0))
    if wanted is not None and scene.name not in wanted:
        return scene
    align = row.get("axis_align_matrix")
    if align is not None:
        scene.axis_align, problem = _pose(align)
        if problem:
            scene.problem = f"axis_align_matrix {problem}"
            return scene
    images = row.get("images")
    if not isinstance(images, list | tuple) or not images:
        scene.problem = "no images in its entry"
        return scene
    for image in images:
        frame, reason = _frame(image, row, root, source)
        if frame is None:
            path = image.get("img_path") if isinstance(image, dict) else None
            scene.dropped.append((PurePosixPath(str(path)).name if path else "unnamed", reason))
        else:
            scene.frames.append(frame)
    if not scene.frames:
        scene.problem = f"none of its {len(images)} frames can be used ({scene.dropped[0][1]})"
    return scene


def _frame(image: object, row: dict, root: Path, source: str) -> tuple[Frame | None, str]:
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
    return Frame(color, depth, pose, color_k, depth_k, own is None), ""


def _locate(name: str, root: Path, source: str, what: str) -> tuple[Path | None, str]:
    """The file below `root`; names that leave it are refused."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        return None, f"path of the {what} leaves the data folder"
    candidates = [root / pure]
    if source and pure.parts and pure.parts[0] == source:
        candidates.append(root.joinpath(*pure.parts[1:]))
    for path in candidates:
        if path.is_file():
            return path, ""
    return None, f"{what} is missing"


def _read_matrix(path: Path) -> np.ndarray | None:
    """A matrix of a text file; None where there is no file, NaN where it cannot be read."""
    try:
        return np.loadtxt(path, dtype=np.float64, ndmin=2)
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        return np.full((4, 4), np.nan)


def _numbers(value: object) -> np.ndarray:
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)


def _pose(value: object) -> tuple[np.ndarray, str]:
    """(4, 4) rigid motion, and what is wrong with it or ""."""
    matrix = _numbers(value)
    if matrix.shape != (4, 4):
        return np.eye(4), f"is {' x '.join(map(str, matrix.shape))}, not 4 x 4"
    if not np.isfinite(matrix).all():
        return np.eye(4), "is not finite"
    rotation = matrix[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 0.02 or np.linalg.det(rotation) < 0:
        return np.eye(4), "is no rotation"
    if np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        return np.eye(4), "does not end in 0 0 0 1"
    return matrix, ""


def _intrinsic(value: object) -> tuple[np.ndarray, str]:
    """(3, 3) camera matrix, and what is wrong with it or ""."""
    if value is None:
        return np.eye(3), "are missing"
    matrix = _numbers(value)
    if matrix.ndim != 2 or min(matrix.shape) < 3:
        return np.eye(3), "are no 3 x 3 or 4 x 4 matrix"
    matrix = matrix[:3, :3]
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        return np.eye(3), "are not finite and positive"
    if matrix[0, 1] or matrix[1, 0]:
        return np.eye(3), "have skew"
    return matrix, ""
