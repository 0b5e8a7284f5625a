"""What lies beside a GeoTIFF and describes its bands: the METADATA.XML of an EnMAP or DESIS product, an ENVI header."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np

from overlays.data.envi import parse_header, spectrum
from overlays.data.raster_file import RasterFile, coefficients
from overlays.data.spectral_bands import spectral
from overlays.errors import UserError

MAX_XML_BYTES = 64 << 20
_PRODUCT = re.compile(r"[-_]SPECTRAL_IMAGE.*$", re.IGNORECASE)
# Names of a band's numbers in both products, lower case.
_CENTRE, _WIDTHS, _GAIN, _OFFSET = "wavelengthcenterofband", ("fwhmofband", "wavelengthwidthofband"), "gainofband", \
    "offsetofband"


def completed(file: RasterFile) -> RasterFile:
    """A raster whose file names no wavelengths with those of a file beside it; any other as it is.

    Gains and offsets of the file beside it count where the raster has none.

    Raises:
        UserError: the file beside it cannot be read or is of another number of bands.
    """
    if file.wavelength_nm is not None or file.shape[2] < 2:
        return file
    beside = _metadata_xml(file.path)
    if beside is not None:
        return _with_xml(file, beside)
    header = next((found for found in (file.path.with_name(file.path.name + ".hdr"), file.path.with_suffix(".hdr"))
                   if found.is_file()), None)
    if header is None:
        return file
    centres, widths, note = spectrum(header, parse_header(header), file.shape[2])
    if centres is None:
        return file
    return replace(file, files=(*file.files, header), wavelength_nm=centres, fwhm_nm=widths, problem="",
                   notes=(*file.notes, *filter(None, (note,))))


def _metadata_xml(path: Path) -> Path | None:
    """...-METADATA.XML of ...-SPECTRAL_IMAGE.TIF."""
    start = _PRODUCT.sub("", path.stem)
    if start == path.stem:
        return None
    return next((found for found in sorted(path.parent.glob("*.[xX][mM][lL]"))
                 if found.stem.lower() == f"{start}-metadata".lower()), None)


def _with_xml(file: RasterFile, path: Path) -> RasterFile:
    if path.stat().st_size > MAX_XML_BYTES:
        raise UserError(f"{path} has more than {MAX_XML_BYTES >> 20} MB, which no product's metadata have")
    try:
        root = ElementTree.fromstring(path.read_bytes())
        found = [{child.tag.rpartition("}")[2].lower(): float(child.text) for child in band
                  if child.tag.rpartition("}")[2].lower() in (_CENTRE, *_WIDTHS, _GAIN, _OFFSET) and child.text}
                 for band in root.iter()]
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path} cannot be read as metadata of a product: {error}") from None
    bands = [band for band in found if _CENTRE in band]
    if len(bands) != file.shape[2]:
        raise UserError(f"{path} describes {len(bands)} bands, but {file.path} has {file.shape[2]}: give --wavelengths "
                        "FILE, one band centre a line")

    def column(*names: str) -> np.ndarray | None:
        name = next((name for name in names if all(name in band for band in bands)), None)
        return None if name is None else np.array([band[name] for band in bands])

    centres, widths, note = spectral(column(_CENTRE), "nm", column(*_WIDTHS), "nm", path)
    scale, offset = file.scale, file.offset
    if scale is None and offset is None:
        scale, offset = coefficients(column(_GAIN), 1.0), coefficients(column(_OFFSET), 0.0)
    return replace(file, files=(*file.files, path), wavelength_nm=centres, fwhm_nm=widths, scale=scale, offset=offset,
                   problem="", notes=(*file.notes, *filter(None, (note,))))
