"""Clips of a PhysicalAI-Autonomous-Vehicles folder: which there are, their clocks, their videos."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from overlays import archives
from overlays.data.decode import import_av, opened
from overlays.data.tables import read_frame
from overlays.domains.driving.skips import ClipSkip, no_room
from overlays.errors import UserError
from overlays.files import atomic_path, link

CAMERA = "camera_front_wide_120fov"
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")  # in any case; the first of a clip's is taken
# What prepare calls its videos.
MEDIA = re.compile(rf"[\w][\w.-]*\.[0-9a-f]{{12}}(?:-\d{{5,}})?({'|'.join(map(re.escape, VIDEO_SUFFIXES))})")
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class File:
    """A file as it lies in the raw folder: plain, or a member of an archive."""

    path: Path
    member: zipfile.ZipInfo | None = None

    @property
    def suffix(self) -> str:
        """Of its name, in lower case."""
        return Path(self.member.filename if self.member else self.path).suffix.lower()

    def read(self) -> bytes:
        """Its content. Raises UserError where it is damaged."""
        return archives.read_member(self.path, self.member) if self.member else self.path.read_bytes()

    def digest(self) -> str:
        """Twelve hexadecimal digits, others for another camera, file or content."""
        if self.member:
            state = [Path(self.member.filename).name, self.member.file_size, self.member.CRC]
        else:
            state_of_file = self.path.stat()
            state = [self.path.name, state_of_file.st_size, state_of_file.st_mtime_ns]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]

    def place(self, target: Path) -> None:
        """Put it at `target`: unpacked, else a hard link, else a copy. One that is there in full stays."""
        if self.member:
            if target.is_symlink() or not archives.is_member(target, self.member):
                target.unlink(missing_ok=True)
                archives.extract(self.path, self.member, target)
            return
        if target.is_file() and target.samefile(self.path):
            return
        with atomic_path(target) as temporary:
            link(self.path, temporary)


@dataclass(frozen=True)
class Clip:
    """What belongs to one clip; None where it is missing. `split`, `valid` and `road` (its kind) are the index's."""

    name: str
    video: File | None
    timestamps: File | None
    egomotion: File | None
    split: str | None = None
    valid: bool = True
    road: str | None = None


def find(raw: Path, camera: str = CAMERA) -> tuple[list[Clip], list[dict]]:
    """Clips of a folder, by name, and the archives that were refused, [{"archive", "reason", "detail"}].

    Both layouts are read: archives `camera/<cam>/*.zip` and `labels/egomotion/*.zip`, and the same files unpacked.

    Raises:
        UserError: no such folder or camera, or nothing in it.
    """
    raw = Path(raw)
    if not raw.is_dir():
        raise UserError(f"there is no folder {raw}: give the one that holds camera/ and labels/")
    folder = raw / "camera" / camera
    if not folder.is_dir():
        there = sorted(path.name for path in (raw / "camera").glob("*") if path.is_dir())
        hint = f"there are {', '.join(there)}" if there else "it must hold camera/<camera> and labels/egomotion"
        raise UserError(f"{raw} holds no camera {camera}: {hint}")
    refused: list[dict] = []
    pictures = _files(folder, refused)
    motion = _files(raw / "labels" / "egomotion", refused)
    files_of: dict[str, dict[str, File]] = {}
    kinds = (*((pictures, f".{camera}{suffix}", "video") for suffix in VIDEO_SUFFIXES),
             (pictures, f".{camera}.timestamps.parquet", "timestamps"), (motion, ".egomotion.parquet", "egomotion"))
    for files, suffix, kind in kinds:
        for name, file in files.items():
            clip = name[:-len(suffix)]
            if name.lower().endswith(suffix.lower()) and re.fullmatch(r"[\w][\w.-]*", clip):
                files_of.setdefault(clip, {}).setdefault(kind, file)
    if not files_of and not refused:
        raise UserError(f"{raw} holds no clip of {camera}: neither archives nor <clip>.{camera}.mp4 (or "
                        f"{', '.join(VIDEO_SUFFIXES[1:])})")
    index = read_index(raw)
    return [Clip(name, **{kind: files_of[name].get(kind) for kind in ("video", "timestamps", "egomotion")},
                 **index.get(name, {})) for name in sorted(files_of)], refused


def _files(folder: Path, refused: list[dict]) -> dict[str, File]:
    """Name -> file below a folder, archives looked into; a plain file goes before an archive's."""
    files: dict[str, File] = {}
    for archive in sorted(folder.rglob("*.zip")):
        try:
            files |= {name: File(archive, info) for name, info in archives.members(archive).items()}
        except UserError as error:
            refused.append({"archive": archive.name, "reason": "refused archive", "detail": str(error)})
    return files | {path.name: File(path) for path in sorted(folder.rglob("*"))
                    if path.suffix.lower() in (*VIDEO_SUFFIXES, ".parquet") and path.is_file()}


def read_index(raw: Path) -> dict[str, dict]:
    """Clip -> {"valid", "split", "road"} of clip_index.parquet; splits/default.parquet goes before its own split.

    Empty without one. The column `road` (the kind of road) is ours: the sample has it.

    Raises:
        UserError: an index that cannot be read.
    """
    path, splits = raw / "clip_index.parquet", raw / "splits" / "default.parquet"
    if not path.is_file():
        return {}
    try:
        table = read_frame(path)
        table = table.set_index("clip_id") if "clip_id" in table.columns else table
        if splits.is_file():
            labels = read_frame(splits)
            labels = labels.set_index("clip_id") if "clip_id" in labels.columns else labels
            table["split"] = labels["split"]
    except Exception as error:  # pandas raises many kinds on odd tables
        raise UserError(f"{path} or {splits} cannot be read: {' '.join(str(error).split())[:200]}") from None
    valid = table["clip_is_valid"].map(_is_true) if "clip_is_valid" in table else [True] * len(table)
    texts = [[value if isinstance(value, str) else None for value in table[name]] if name in table
             else [None] * len(table) for name in ("split", "road")]
    return {str(name): {"valid": ok, "split": split, "road": road}
            for name, ok, split, road in zip(table.index, valid, *texts, strict=True)}


def _is_true(value: object) -> bool:
    import pandas as pd

    return value.strip().lower() in ("true", "1") if isinstance(value, str) else not pd.isna(value) and bool(value)


def read_timestamps(file: File, name: str) -> np.ndarray:
    """(F,) int64 microseconds: when each frame was taken. They may begin above or below 0.

    Raises:
        ClipSkip: no parquet file, no column `timestamp` of whole numbers.
    """
    try:
        table = read_frame(file.read())
    except (UserError, OSError, ValueError) as error:
        raise ClipSkip("unreadable timestamps", f"{name}: {error}") from None
    if "timestamp" not in table.columns or table["timestamp"].dtype.kind not in "iu":
        raise ClipSkip("unreadable timestamps", f"{name} has no column timestamp of whole microseconds")
    if table["timestamp"].isna().any():
        row = int(np.flatnonzero(table["timestamp"].isna())[0])
        raise ClipSkip("unreadable timestamps", f"{name}: row {row} has no timestamp")
    return table["timestamp"].to_numpy(np.int64)


def frame_stamps(path: Path) -> tuple[np.ndarray, int]:
    """When the frames of a video are shown, (F,) in its time base, ascending, by its packets; and how many of the first
    ones cannot be decoded, because the file starts within a group of pictures. Nothing else is decoded.

    Raises:
        ClipSkip: no video, or cut short.
    """
    with _opened(path) as (container, stream):
        size, stamps, first_key = path.stat().st_size, set(), None
        for packet in container.demux(stream):
            if packet.pts is None or not packet.size or packet.is_discard:
                continue
            if packet.is_corrupt or (packet.pos is not None and packet.pos + packet.size > size):
                raise ClipSkip("truncated video", f"{path.name} ends within frame {len(stamps)}")
            if first_key is None and packet.is_keyframe:
                first_key = packet.pts
            stamps.add(packet.pts)
    early = {stamp for stamp in stamps if first_key is not None and stamp < first_key}
    lost = len(early)
    if early:
        with _opened(path) as (container, stream):
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts >= first_key:
                    break
                lost -= frame.pts in early and not frame.is_corrupt
    return np.array(sorted(stamps), np.int64), lost


@contextmanager
def _opened(path: Path) -> Iterator[tuple]:
    """As `video.opened`, with every error but a full disk as a ClipSkip."""
    av = import_av()

    try:
        with opened(path) as found:
            yield found
    except ClipSkip:
        raise
    except UserError as error:
        raise ClipSkip("unreadable video", str(error)) from None
    except (av.error.FFmpegError, OSError) as error:
        if no_room(error):
            raise
        raise ClipSkip("unreadable video", f"{path.name}: {' '.join(str(error).split())}") from None


def cut(path: Path, stamps: np.ndarray, stretches: list[tuple[int, int]], targets: list[Path],
        quality: int = 0) -> list[int]:
    """Write stretches of a video as files of their own, frame by frame the same.

    Args:
        stamps: as `frame_stamps` gives them; frames are known by these, not by counting what is decoded.
        stretches: (first frame, the one after the last), ascending, counted in the order of showing from 0.
        targets: file of each stretch.
        quality: x264's: 0 is lossless, and then every frame is read again and compared; 18 looks the same.

    Returns:
        the starts of the stretches that were not written because one of their frames cannot be decoded.

    Raises:
        ClipSkip: a video that cannot be decoded or written so, or a file that differs from its source.
    """
    number_of = {stamp: number for number, stamp in enumerate(stamps.tolist())}
    waiting = [(*ends, target) for ends, target in zip(stretches, targets, strict=True)]
    held: dict[int, object] = {}  # frame by number, from the first that is wanted
    lost = []
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        rate = stream.average_rate or 30
        for frame in container.decode(stream):
            number = number_of.get(frame.pts)
            if number is None or frame.is_corrupt:
                continue
            if getattr(frame, "rotation", 0):
                raise ClipSkip("rotated video", f"{path.name} is rotated: prepare it without --cut")
            while waiting and number >= waiting[0][1]:  # its last frame never came
                lost.append(waiting.pop(0)[0])
            if not waiting:
                break
            held[number] = frame
            held = {known: kept for known, kept in held.items() if known >= waiting[0][0]}
            if number == waiting[0][1] - 1:
                start, end, target = waiting.pop(0)
                if len(held) == end - start:
                    _encode(list(held.values()), target, rate, quality)
                else:
                    lost.append(start)
    return lost + [start for start, *_ in waiting]


def _encode(pictures: list, target: Path, rate, quality: int) -> None:
    av = import_av()

    first, arrays = pictures[0], []
    with atomic_path(target) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4") as container:
                stream = container.add_stream("libx264", rate=rate)
                stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
                for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                    if hasattr(first, name):  # the last two are younger than PyAV 14
                        setattr(stream.codec_context, name, getattr(first, name))
                stream.options = {"preset": "veryfast", **({"qp": "0"} if quality == 0 else {"crf": str(quality)})}
                for number, picture in enumerate(pictures):
                    array = picture.to_ndarray()
                    copy = av.VideoFrame.from_ndarray(array, format=first.format.name)
                    copy.pts, copy.time_base = number, 1 / stream.codec_context.framerate
                    container.mux(stream.encode(copy))
                    arrays.append(array)
                container.mux(stream.encode())
        except (av.error.FFmpegError, ValueError, AssertionError) as error:
            if no_room(error):
                raise
            raise ClipSkip("cannot be cut", f"{target.name}: H.264 takes no {first.width} x {first.height} "
                                             f"{first.format.name} ({' '.join(str(error).split())}): prepare it "
                                             "without --cut") from None
        with av.open(str(temporary), metadata_errors="ignore") as container:
            again = [frame.to_ndarray() for frame in container.decode(container.streams.video[0])]
        same = len(again) == len(arrays) and (quality or all(map(np.array_equal, again, arrays)))
        if not same:
            raise ClipSkip("segment differs", f"{target.name} does not hold the {len(arrays)} frames of its source")


def remove_other(folder: Path, kept: set[str], named: set[str]) -> None:
    """Delete the videos of a folder that an earlier annotation named or that bear a name of prepare's, but for `kept`.

    Files of other names stay. A folder that is empty then goes.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in kept and (path.name in named or MEDIA.fullmatch(path.name)) and not path.is_dir():
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
