"""Archives from outside: what they hold is read only where every name stays inside its folder."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from overlays.errors import UserError
from overlays.files import atomic_path

CHUNK = 1 << 20
# What zipfile and tarfile raise for damaged bytes, whichever way the members are packed.
DAMAGE = (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
          ValueError, RuntimeError)
MEMBER_LIMIT = 256 << 20  # bytes of a member that is read into memory
UNPACKED_LIMIT = 50 << 30  # bytes; a chunk of the real set holds a few GB


def members(archive: Path, limit: int = UNPACKED_LIMIT, flat: bool = True) -> dict[str, zipfile.ZipInfo]:
    """File name, without folders where `flat` -> member, of a zip archive that is safe to unpack.

    Raises:
        UserError: not a zip, or a member that leaves the folder, is not a plain file, is encrypted, or has the name of
            another; or more than `limit` bytes.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            infos = source.infolist()
    except DAMAGE as error:
        raise UserError(f"archive {archive} cannot be read: {error}; fetch it again") from None
    infos_by_name: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        kind = stat.S_IFMT(info.external_attr >> 16)
        path = _inside(archive, name)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"archive {archive} holds {name!r}, which is not a plain file: it was not touched")
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise UserError(f"archive {archive} holds {name!r}, which is encrypted: it was not touched")
        key = path.name if flat else str(path)
        if key in infos_by_name:
            raise UserError(f"archive {archive} holds {key!r} twice: it was not touched")
        infos_by_name[key] = info
    _check_size(archive, sum(info.file_size for info in infos_by_name.values()), limit)
    return infos_by_name


def _inside(archive: Path, name: str) -> PurePosixPath:
    """A member's name as a path. Raises UserError where it would leave the folder."""
    path, other = PurePosixPath(name), PureWindowsPath(name)
    if path.is_absolute() or other.is_absolute() or other.drive or "\\" in name or ".." in path.parts:
        raise UserError(f"archive {archive} holds {name!r}, which would leave its folder: it was not touched")
    return path


def _check_size(archive: Path, total: int, limit: int) -> None:
    if total > limit:
        raise UserError(f"archive {archive} unpacks to {total / 2**30:.1f} GB, above the limit of {limit / 2**30:.1f} "
                        "GB: it was not touched")


def unpack_beside(archive: Path, limit: int = UNPACKED_LIMIT) -> Path | None:
    """Unpack a .zip or .tar(.gz, .bz2, .xz) with its folders into one beside it, which appears complete or not at all.

    Returns:
        The folder, or None where the file is not an archive.

    Raises:
        UserError: as `members` does, or a tar archive that holds links or devices.
    """
    is_zip = zipfile.is_zipfile(archive)
    try:
        if not is_zip and not tarfile.is_tarfile(archive):
            return None
    except DAMAGE as error:  # a compressed one that is cut short
        raise UserError(f"archive {archive} cannot be read: {error}; fetch it again") from None
    folder = archive.with_name(archive.name.split(".zip")[0].split(".tar")[0].split(".tgz")[0] + "_unpacked")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        if is_zip:
            for name, info in members(archive, limit, flat=False).items():
                extract(archive, info, temporary / name)
            return folder
        try:
            with tarfile.open(archive) as source:
                total = 0
                for info in source:  # one by one: what lies behind a member too large is not unpacked to be listed
                    total += info.size
                    _check_size(archive, total, limit)
                    _inside(archive, info.name)
                    if not (info.isfile() or info.isdir()):
                        raise UserError(f"archive {archive} holds {info.name!r}, which is not a plain file: it was not "
                                        "touched")
                source.extractall(temporary, filter="data")
        except DAMAGE as error:
            raise UserError(f"archive {archive} cannot be unpacked: {error}: nothing was unpacked") from None
    return folder


def read_member(archive: Path, info: zipfile.ZipInfo) -> bytes:
    """Content of a small member. Raises UserError where it is damaged, or has more than MEMBER_LIMIT bytes."""
    _check_size(archive, info.file_size, MEMBER_LIMIT)
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
        message = str(error) or type(error).__name__
        raise UserError(f"archive {archive}: {info.filename} is damaged: {message}") from None


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
