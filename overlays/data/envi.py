"""ENVI files: header text, data file, layout, memory-mapped windows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from overlays.data.raster_file import Georeference, RasterFile, coefficients
from overlays.data.spectral_bands import named_centres, quantities, spectral
from overlays.errors import UserError

ORDERS = {"bil": ("row", "band", "column"), "bip": ("row", "column", "band"), "bsq": ("band", "row", "column")}
DATA_SUFFIXES = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ".rfl", ".cube", ".hyspex", ".rtgc", ".bin")
_TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 6: "c8", 9: "c16", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}
_PLACE = ("map info", "projection info", "coordinate system string")


def header_of(path: Path) -> Path | None:
    """The header of an ENVI file that is named by header or data file, a.dat.hdr before a.hdr; None without one."""
    if path.suffix.lower() == ".hdr":
        return path
    candidates = (path.with_name(path.name + end) if whole else path.with_suffix(end)
                  for whole in (True, False) for end in (".hdr", ".HDR"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _data_of(header: Path) -> Path:
    base = header.with_suffix("")
    suffixes = dict.fromkeys(end for suffix in DATA_SUFFIXES for end in (suffix, suffix.upper()))
    candidates = [file for end in suffixes if (file := base.with_name(base.name + end)).is_file()]
    own = [file for file in candidates if header_of(file) == header]  # a.dat belongs to a.dat.hdr where there is one
    if not candidates:
        tif = next((file for end in (".tif", ".TIF", ".tiff") if (file := base.with_name(base.name + end)).is_file()),
                   None)
        if tif is not None:
            raise UserError(f"header {header} describes the GeoTIFF {tif.name}: name that file")
        raise UserError(f"the data file of header {header} is missing: put {header.stem}.img beside it")
    return (own or candidates)[0]


def files_of(path: Path) -> tuple[Path, Path]:
    """(header, data file) of an ENVI image that is named by either. Raises UserError where one is missing."""
    header = header_of(path)
    if header is None or not header.is_file():
        raise UserError(f"{path} has no ENVI header beside it: a file {path.name}.hdr is needed")
    return header, _data_of(header) if path == header else path


def parse_header(path: Path) -> dict[str, str]:
    """Fields of an ENVI header, names in lower case; values in braces keep them.

    UTF-8 or Latin-1, with or without a byte order mark; comments and lines without "=" are passed over, as ENVI does.

    Raises:
        UserError: it cannot be read, does not begin with ENVI, or a brace is not closed.
    """
    try:
        content = path.read_bytes()[:1 << 24].removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{path} cannot be read as an ENVI header: {error.strerror or error}") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = text.splitlines()
    if not lines or lines[0].strip().upper() != "ENVI":
        raise UserError(f"{path} cannot be read as an ENVI header: its first line is not ENVI")
    fields, number = {}, 1
    while number < len(lines):
        line, start = lines[number], number + 1
        number += 1
        name, equals, value = line.partition("=")
        if not equals or line.lstrip().startswith(";"):
            continue
        value = value.strip()
        while value.startswith("{") and "}" not in value:
            if number == len(lines):
                raise UserError(f"{path} cannot be read as an ENVI header: the brace of line {start} "
                                f"({name.strip()!r}) is not closed")
            value += "\n" + lines[number].strip()
            number += 1
        fields[" ".join(name.lower().split())] = value
    return fields


def open_envi(path: Path) -> RasterFile:
    """An ENVI image that is named by header or data file; the data file's size is checked.

    Raises:
        UserError: no header or data file, a field that makes no sense, a compressed or truncated file.
    """
    header, data = files_of(path)
    fields = parse_header(header)
    if "library" in fields.get("file type", "").lower():
        raise UserError(f"{header} describes a spectral library, not an image cube")
    if _words(fields.get("file compression", "0")) not in ("0", ""):
        raise UserError(f"{data} is compressed, which is not supported: save it uncompressed")
    layout = _layout(header, fields, data)
    shape, dtype = layout["shape"], np.dtype(layout["dtype"])
    needed = layout["offset"] + int(np.prod(shape, dtype=object)) * dtype.itemsize
    stored = data.stat().st_size
    if stored < needed:
        raise UserError(f"{data} is truncated: its header asks for {needed} bytes ({shape[0]} x {shape[1]} x "
                        f"{shape[2]} {dtype.name}), the file has {stored}; copy or download it again")
    bands, problem = shape[2], ""
    names = tuple(_split(fields.get("band names", "")))
    try:
        centres, widths, note = spectrum(header, fields, bands, names)
    except UserError as error:  # matters only to who needs the spectrum
        centres, widths, note, problem = None, None, "", str(error)
    notes = [note] if note else []
    good = _list(header, fields, "bbl", bands)
    good = None if good is None else good > 0
    if good is not None and not good.any():
        good, notes = None, [*notes, f"{header}: its bbl marks every band bad and is not used"]
    scale, offset = _gains(header, fields, bands)
    nodata = fields.get("data ignore value")
    place = {name: fields[name] for name in _PLACE if name in fields}
    return RasterFile(
        path, "envi", (header, data), shape, dtype, partial(_stored, layout), scale, offset,
        None if nodata is None else _number(header, fields, "data ignore value"), centres, widths, good,
        names if len(names) == bands else (), tuple(_split(fields.get("class names", ""))),
        {name: _words(value) for name, value in fields.items() if len(value) < 1000}, tuple(notes), problem,
        locate=partial(_locate, place, shape[:2]))


def spectrum(header: Path, fields: Mapping, bands: int, names: Sequence[str] = ()
             ) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """(centres, widths, note) in nm of a header's lists, or of its bands' names. Raises UserError as `spectral`."""
    listed = _quantities(header, fields, "wavelength", bands)
    named = named_centres(names) if listed is None and len(names) == bands else None
    centres, unit = listed or named or (None, "")
    widths, width_unit = _quantities(header, fields, "fwhm", bands) or (None, "")
    return spectral(centres, unit or _words(fields.get("wavelength units", "")), widths, width_unit, header)


def _layout(header: Path, fields: Mapping, data: Path) -> dict:
    if missing := [name for name in ("lines", "samples", "bands", "data type") if name not in fields]:
        raise UserError(f"{header} cannot be read as an ENVI header: it has no {' and no '.join(missing)}")
    shape = tuple(_whole(header, fields, name) for name in ("lines", "samples", "bands"))
    start = _whole(header, fields, "header offset") if "header offset" in fields else 0
    if min(shape) < 1 or start < 0:
        raise UserError(f"header {header} asks for {shape[0]} lines, {shape[1]} samples, {shape[2]} bands and a header "
                        f"offset of {start}: correct it")
    kind = _whole(header, fields, "data type")
    if kind not in _TYPES:
        raise UserError(f"header {header} has the data type {kind}, which is not one of ENVI's")
    interleave = _words(fields.get("interleave", "bsq")).lower()
    if interleave not in ORDERS:
        raise UserError(f"header {header} has the interleave {interleave!r}: {', '.join(ORDERS)} are known")
    swapped = _whole(header, fields, "byte order") if _words(fields.get("byte order", "")) else 0
    return {"file": str(data), "offset": start, "dtype": np.dtype((">" if swapped else "<") + _TYPES[kind]).str,
            "interleave": interleave, "shape": shape}


def _words(value: str) -> str:
    """A field without braces and line ends."""
    return " ".join(value.strip().strip("{}").split())


def _split(value: str) -> list[str]:
    return [word.strip() for word in _words(value).split(",") if word.strip()]


def _number(header: Path, fields: Mapping, name: str) -> float:
    """A field that is one number. Raises UserError for anything else."""
    try:
        return float(_words(fields[name]).rstrip(","))
    except ValueError:
        raise UserError(f"header {header} has a {name!r} that is not a number, {fields[name]!r}: correct it or take "
                        "the line out") from None


def _whole(header: Path, fields: Mapping, name: str) -> int:
    """A field that is one whole number. Raises UserError for anything else."""
    value = _number(header, fields, name)
    if not value.is_integer():  # nor NaN or infinite
        raise UserError(f"header {header} has a {name!r} that is not a whole number, {fields[name]!r}: correct it")
    return int(value)


def _list(header: Path, fields: Mapping, name: str, bands: int) -> np.ndarray | None:
    """`_quantities` without the unit."""
    found = _quantities(header, fields, name, bands)
    return None if found is None else found[0]


def _quantities(header: Path, fields: Mapping, name: str, bands: int) -> tuple[np.ndarray, str] | None:
    """(one number a band, their unit) of a field; None where it is missing or empty. Raises UserError for anything
    else."""
    if not _words(fields.get(name, "")):
        return None
    try:
        values, unit = quantities(fields[name])
    except ValueError:
        raise UserError(f"header {header} has a {name!r} list that is not numbers") from None
    if len(values) != bands:
        raise UserError(f"header {header} lists {len(values)} values under {name!r} for {bands} bands")
    return values, unit


def _gains(header: Path, fields: Mapping, bands: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(scale, offset) by band, of reflectance before others; else of the reflectance scale factor."""
    for prefix in ("data reflectance", "data"):
        gain, offset = (_list(header, fields, f"{prefix} {kind} values", bands) for kind in ("gain", "offset"))
        gain, offset = coefficients(gain, 1.0), coefficients(offset, 0.0)
        if gain is not None or offset is not None:
            return gain, offset
    if "reflectance scale factor" in fields:
        factor = _number(header, fields, "reflectance scale factor")
        if 0 < factor < np.inf:
            return np.full(bands, 1 / factor), None
    return None, None


def _stored(layout: Mapping, row: int, col: int, rows: int, cols: int, bands: np.ndarray) -> tuple[np.ndarray, None]:
    """A fresh map for every window: pages of earlier windows do not stay in memory."""
    height, width, count = layout["shape"]
    sides = {"row": height, "column": width, "band": count}
    order = ORDERS[layout["interleave"]]
    stored = np.memmap(layout["file"], np.dtype(layout["dtype"]), "r", layout["offset"],
                       tuple(sides[side] for side in order))
    window = stored.transpose([order.index(side) for side in ("row", "column", "band")])[row:row + rows, col:col + cols]
    every = len(bands) == count and (bands == np.arange(count)).all()
    return np.array(window) if every else np.asarray(window[:, :, bands]), None


def _locate(place: Mapping[str, str], shape: tuple[int, int]) -> Georeference | None:
    """GDAL reads the fields about the map from a header of one band over an empty file."""
    if not place:
        return None
    from overlays.data.geotiff import open_with_gdal, place_of

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.img"
        with file.open("wb") as stream:
            os.truncate(stream.fileno(), shape[0] * shape[1])
        lines = [f"{name} = {' '.join(value.split())}" for name, value in place.items()]
        file.with_suffix(".hdr").write_text("\n".join([
            "ENVI", f"samples = {shape[1]}", f"lines = {shape[0]}", "bands = 1", "header offset = 0", "data type = 1",
            "interleave = bsq", "byte order = 0", *lines]) + "\n", encoding="utf-8")
        try:
            with open_with_gdal(file, "ENVI") as image:
                return place_of(image)
        except UserError:
            return None
