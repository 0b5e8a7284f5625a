"""Maps that a GIS opens over each other: rasters as cloud-optimised GeoTIFF, tiles as a GeoPackage."""

from __future__ import annotations

import sqlite3
import struct
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from overlays.data.raster_file import Georeference
from overlays.files import atomic_path

OWN_SRS = 100_000  # id of a coordinate reference system without an EPSG code


def write_geotiff(path: Path, values: np.ndarray, georeference: Georeference, nodata: float,
                  colors: Mapping[int, tuple[int, int, int]] | None = None) -> None:
    """Write (height, width) values as a cloud-optimised GeoTIFF; a swath is put on the grid of its lookup table."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile
    from rasterio.shutil import copy
    from rasterio.transform import Affine

    values = on_grid(values, georeference, nodata)
    with warnings.catch_warnings(), atomic_path(path) as temporary, MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff", height=values.shape[0], width=values.shape[1], count=1, dtype=values.dtype,
                         crs=rasterio.crs.CRS.from_wkt(georeference.crs), transform=Affine(*georeference.transform),
                         nodata=nodata) as out:
            out.write(values, 1)
            if colors:
                out.write_colormap(1, dict(colors))
        with memory.open() as source:
            copy(source, temporary, driver="COG", compress="deflate", overview_resampling="nearest")


def on_grid(values: np.ndarray, georeference: Georeference, nodata: float) -> np.ndarray:
    """(height, width) values on the map's grid: as they are, or by the lookup table of a swath (EMIT's GLT)."""
    if georeference.table is None:
        return values
    from overlays.data.netcdf import lookup_table

    row, col = lookup_table(georeference.table)
    inside = (row > 0) & (col > 0)  # counted from 1
    grid = np.full(row.shape, nodata, values.dtype)
    grid[inside] = values[row[inside] - 1, col[inside] - 1]
    return grid


def pixel_transform(georeference: Georeference) -> tuple[float, ...]:
    """From (column, row) of the raster to the map; of a swath the affine map that fits its lookup table best."""
    if georeference.table is None:
        return georeference.transform
    from overlays.data.netcdf import lookup_table

    row, col = lookup_table(georeference.table)
    y, x = np.nonzero((row > 0) & (col > 0))
    a, b, c, d, e, f = georeference.transform
    points = np.stack([a * (x + 0.5) + b * (y + 0.5) + c, d * (x + 0.5) + e * (y + 0.5) + f], 1)
    pixels = np.stack([col[y, x] - 0.5, row[y, x] - 0.5, np.ones(len(x))], 1)
    origin = points.mean(0)
    fitted = np.linalg.lstsq(pixels, points - origin, rcond=None)[0]
    fitted[2] += origin
    return tuple(float(value) for value in fitted.T.ravel())


def write_geopackage(path: Path, layer: str, georeference: Georeference, boxes: Sequence[tuple[int, int, int, int]],
                     columns: Mapping[str, Sequence]) -> None:
    """Write rectangles (row, column, height, width) of a raster as polygons with attributes; see `pixel_transform`.

    Args:
        columns: name -> a text or number for each box; None where there is none.
    """
    from rasterio.crs import CRS

    crs = CRS.from_wkt(georeference.crs)
    code = crs.to_epsg() or OWN_SRS
    transform = pixel_transform(georeference)
    polygons = [_corners(box, transform) for box in boxes]
    points = np.array(polygons).reshape(-1, 2) if polygons else np.zeros((1, 2))
    kinds = {name: "TEXT" if any(isinstance(value, str) for value in values) else "REAL"
             for name, values in columns.items()}
    fields = "".join(f', "{name}" {kind}' for name, kind in kinds.items())
    with atomic_path(path) as temporary:
        with closing(sqlite3.connect(temporary)) as data, data:
            data.executescript(f"""
                PRAGMA application_id = 0x47504B47; PRAGMA user_version = 10300;
                CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY,
                    organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL,
                    description TEXT);
                CREATE TABLE gpkg_contents (table_name TEXT PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT
                    UNIQUE, description TEXT DEFAULT '', last_change DATETIME NOT NULL DEFAULT
                    '1970-01-01T00:00:00.000Z', min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER);
                CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL,
                    geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
                    PRIMARY KEY (table_name, column_name));
                CREATE TABLE "{layer}" (fid INTEGER PRIMARY KEY AUTOINCREMENT, geom BLOB{fields});""")
            systems = [("Undefined Cartesian", -1, "NONE", -1, "undefined", None),
                       ("Undefined geographic", 0, "NONE", 0, "undefined", None),
                       ("of the raster", code, "EPSG" if code != OWN_SRS else "NONE", code, georeference.crs, None)]
            if code != 4326:
                systems.append(("WGS 84", 4326, "EPSG", 4326, CRS.from_epsg(4326).to_wkt(), None))
            data.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", systems)
            data.execute("INSERT INTO gpkg_contents (table_name, data_type, identifier, min_x, min_y, max_x, max_y, "
                         "srs_id) VALUES (?, 'features', ?, ?, ?, ?, ?, ?)",
                         (layer, layer, *points.min(0).tolist(), *points.max(0).tolist(), code))
            data.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', 'POLYGON', ?, 0, 0)", (layer, code))
            names = "".join(f', "{name}"' for name in columns)
            data.executemany(f'INSERT INTO "{layer}" (geom{names}) VALUES (?{", ?" * len(columns)})', [
                (_geometry(polygon, code), *row) for polygon, row in zip(
                    polygons, zip(*columns.values(), strict=True) if columns else [()] * len(polygons), strict=True)])


def _corners(box: tuple[int, int, int, int], transform: Sequence[float]) -> list[tuple[float, float]]:
    """Closed ring of a box in map coordinates."""
    row, col, height, width = box
    a, b, c, d, e, f = transform
    ring = ((col, row), (col, row + height), (col + width, row + height), (col + width, row), (col, row))
    return [(a * x + b * y + c, d * x + e * y + f) for x, y in ring]


def _geometry(ring: Sequence[tuple[float, float]], srs: int) -> bytes:
    """A polygon of one ring as a GeoPackage geometry: its header without an envelope, then well-known binary."""
    head = b"GP" + struct.pack("<BBi", 0, 1, srs)
    return head + struct.pack("<BIII", 1, 3, 1, len(ring)) + b"".join(struct.pack("<dd", *point) for point in ring)
