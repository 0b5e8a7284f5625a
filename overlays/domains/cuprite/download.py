"""Fetches the real Cuprite scenes: resumed where interrupted, checked against a checksum."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from overlays.errors import UserError
from overlays.files import read_json, sha256, write_json

CHUNK = 1 << 20


@dataclass(frozen=True)
class Scene:
    """A scene to fetch: files by address, and what to do with them afterwards."""

    about: str
    urls: tuple[str, ...]
    page: str
    next_step: str


_JPL_1995 = "https://popo.jpl.nasa.gov/1995_cuprite_RTGC_rfl_cube/"
SCENES: dict[str, Scene] = {
    "cuprite95": Scene(
        "AVIRIS 1995, surface reflectance, 614 x 750 pixels x 224 bands", (
            _JPL_1995 + "cuprite.95.cal.rtgc.v.hdr", _JPL_1995 + "cuprite.95.cal.rtgc.v"), _JPL_1995,
        # Stored values are reflectance x 20000, which the header does not say.
        "python scripts/prepare_cuprite.py --cube {folder}/cuprite.95.cal.rtgc.v.hdr --scale 20000 --tile-size 64"),
    "f970619": Scene(
        "AVIRIS flight f970619t01p02_r02 of 1997, sector 3, surface reflectance, MATLAB", (
            "https://www.ehu.eus/ccwintco/uploads/7/7d/Cuprite_f970619t01p02_r02_sc03.a.rfl.mat",),
        "https://aviris.jpl.nasa.gov/data/free_data.html",
        "python scripts/prepare_cuprite.py --cube {folder}/Cuprite_f970619t01p02_r02_sc03.a.rfl.mat --wavelengths "
        "FILE --tile-size 64, with the band centres from the flight's .spc file"),
}


def fetch(url: str, folder: Path, expected: str | None = None, about: str = "") -> Path:
    """Download a file into `folder`, continuing a part that an earlier run left.

    Args:
        url: http or https address.
        expected: SHA-256 in hexadecimal; None takes the one recorded in checksums.json at the first download.
        about: where a person finds the file, for the message when the address cannot be reached.

    Returns:
        Path of the whole file; its checksum is recorded in checksums.json.

    Raises:
        UserError: no network, a server's refusal, a wrong checksum.
    """
    parts = urlsplit(url)
    name = unquote(PurePosixPath(parts.path).name)
    if parts.scheme not in ("http", "https") or not parts.hostname or name in ("", ".", "..") or "/" in name:
        raise UserError(f"{url!r} is not an http address of a file")
    folder.mkdir(parents=True, exist_ok=True)
    target, ledger = folder / name, folder / "checksums.json"
    known = read_json(ledger, {str: {"sha256?": str}}) if ledger.is_file() else {}
    expected = (expected or known.get(name, {}).get("sha256") or "").lower()
    if target.is_file():
        digest = sha256(target)
        if not expected or digest == expected:
            write_json(ledger, {**known, name: {"sha256": digest, "bytes": target.stat().st_size, "url": url}})
            return target
        raise UserError(f"{target} has SHA-256 {digest}, expected {expected}: delete it and run this again")
    part = _download(url, target, about)
    digest = sha256(part)
    if expected and digest != expected:
        part.unlink()
        _mark(part).unlink(missing_ok=True)
        raise UserError(f"the download of {url} has SHA-256 {digest}, expected {expected}: it was deleted, run this "
                        "again or check the address")
    size = part.stat().st_size
    part.replace(target)
    _mark(part).unlink(missing_ok=True)
    write_json(ledger, {**known, name: {"sha256": digest, "bytes": size, "url": url}})
    return target


def _mark(part: Path) -> Path:
    """File beside a part that keeps the server's version of it, so that two versions are never joined."""
    return part.with_name(part.name + ".version")


def _download(url: str, target: Path, about: str) -> Path:
    part = target.with_name(target.name + ".part")
    by_hand = f"fetch {url} by hand{f' ({about})' if about else ''} and put it at {target}, then run this again"
    start = part.stat().st_size if part.is_file() and _mark(part).is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "qwen-vl-overlays"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", _mark(part).read_text(encoding="ascii"))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if answer.status != 206:
                start = 0
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length else None
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            if version and not version.startswith("W/"):
                _mark(part).write_text(version, encoding="ascii")
            else:
                _mark(part).unlink(missing_ok=True)
            with part.open("ab" if start else "wb") as stream, tqdm(
                    desc=target.name, total=total, initial=start, unit="B", unit_scale=True) as bar:
                while block := answer.read(CHUNK):
                    stream.write(block)
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            part.unlink()
            return _download(url, target, about)
        raise UserError(f"{urlsplit(url).hostname} answered {error.code} {error.reason}: {by_hand}") from None
    except (urllib.error.URLError, HTTPException, OSError) as error:
        kept = f"; {part.stat().st_size} bytes are kept and will be continued" if part.is_file() else ""
        reason = getattr(error, "reason", error)
        raise UserError(f"{urlsplit(url).hostname} cannot be reached ({reason}){kept}: {by_hand}") from None
    if total is not None and part.stat().st_size != total:
        raise UserError(f"the connection ended after {part.stat().st_size} of {total} bytes of {url}: run this again "
                        "to continue")
    return part
