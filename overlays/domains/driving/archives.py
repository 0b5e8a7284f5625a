"""Zip archives from outside: what they hold is read only where every name stays inside its folder."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from overlays.errors import UserError
from overlays.files import atomic_path

CHUNK = 1 << 20
# What zipfile raises for bytes that are no sound archive, whichever way the members are packed.
DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError,
          RuntimeError)
UNPACKED_LIMIT = 50 << 30  # bytes; a chunk of the real set holds a few GB


def members(archive: Path, limit: int = UNPACKED_LIMIT) -> dict[str, zipfile.ZipInfo]:
    """File name without folders -> member, of an archive that is safe to unpack.

    Raises:
        UserError: no zip, or a member that leaves the folder, is no plain file, is encrypted, or has the name of
            another; or more than `limit` bytes.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            infos = source.infolist()
    except DAMAGE as error:
        raise UserError(f"archive {archive} cannot be read: {error}; fetch it again") from None
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        path, other = PurePosixPath(name), PureWindowsPath(name)
        if path.is_absolute() or other.is_absolute() or other.drive or "\\" in name or ".." in path.parts:
            raise UserError(f"archive {archive} holds {name!r}, which would leave its folder: it was not touched")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"archive {archive} holds {name!r}, which is no plain file: it was not touched")
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise UserError(f"archive {archive} holds {name!r}, which is encrypted: it was not touched")
        if path.name in found:
            raise UserError(f"archive {archive} holds {path.name!r} twice: it was not touched")
        found[path.name] = info
    total = sum(info.file_size for info in found.values())
    if total > limit:
        raise UserError(f"archive {archive} unpacks to {total / 2**30:.1f} GB, above the limit of {limit / 2**30:.1f} "
                        "GB: it was not touched")
    return found


def read_member(archive: Path, info: zipfile.ZipInfo) -> bytes:
    """Content of a small member. Raises UserError where it is damaged."""
    return b"".join(_blocks(archive, info))


def extract(archive: Path, info: zipfile.ZipInfo, target: Path) -> None:
    """Write a member to `target`, atomically. Raises UserError where it is damaged, OSError where it has no room."""
    with atomic_path(target) as temporary, temporary.open("wb") as out:
        for block in _blocks(archive, info):
            out.write(block)


def _blocks(archive: Path, info: zipfile.ZipInfo) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(archive) as source, source.open(info) as stream:
            while block := stream.read(CHUNK):
                yield block
    except DAMAGE as error:
        said = str(error) or type(error).__name__
        raise UserError(f"archive {archive}: {info.filename} is damaged: {said}") from None


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool] = lambda name: True,
           limit: int = UNPACKED_LIMIT) -> list[Path]:
    """Unpack the wanted files of an archive side by side into `folder`; files already there in full are kept.

    Raises:
        UserError: as `members` does, before anything is written; or a damaged member.
    """
    written = []
    for name, info in members(archive, limit).items():
        if wanted(name):
            target = folder / name
            if not is_member(target, info):
                extract(archive, info, target)
            written.append(target)
    return written


def is_member(file: Path, info: zipfile.ZipInfo) -> bool:
    """Whether a file has the size and checksum of a member."""
    if not file.is_file() or file.stat().st_size != info.file_size:
        return False
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(CHUNK):
            checksum = zipfile.crc32(block, checksum)
    return checksum == info.CRC
