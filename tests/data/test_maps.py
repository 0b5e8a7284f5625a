"""Maps lie where the raster lies: GeoTIFF, GeoPackage, ENVI's map info, lookup tables of swaths."""

import sqlite3
import struct

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS

from overlays.data import maps, rasters
from overlays.data.raster_file import Georeference

UTM = CRS.from_epsg(32611).to_wkt()
PLACE = Georeference(UTM, (15.5, 0.0, 494000.0, 0.0, -15.5, 4156000.0))


def test_a_map_is_a_cog_on_the_rasters_grid(tmp_path):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    maps.write_geotiff(tmp_path / "a.tif", values, PLACE, 255, {0: (1, 2, 3)})
    with rasterio.open(tmp_path / "a.tif") as found:
        assert np.array_equal(found.read(1), values) and found.crs.to_epsg() == 32611 and found.nodata == 255
        assert tuple(found.transform)[:6] == PLACE.transform
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and found.colormap(1)[0] == (1, 2, 3, 255)
    assert rasters.open_raster(tmp_path / "a.tif").georeference().transform == PLACE.transform


@pytest.mark.parametrize("text, transform, epsg", [
    ("map info = {UTM, 1.0, 1.0, 494000.0, 4156000.0, 15.5, 15.5, 11, North, WGS-84, units=Meters}",
     PLACE.transform, 32611),
    ("map info = {UTM, 1.5, 1.5, 494007.75, 4155992.25, 15.5, 15.5, 11, North, WGS-84}", PLACE.transform, 32611),
    ("map info = {Geographic Lat/Lon, 1, 1, -117.5, 37.5, 0.001, 0.001, WGS-84, units=Degrees}",
     (0.001, 0, -117.5, 0, -0.001, 37.5), 4326)])
def test_map_info_of_envi(text, transform, epsg, tmp_path):
    np.zeros((6, 8), np.uint8).tofile(tmp_path / "a.img")
    (tmp_path / "a.hdr").write_text(f"ENVI\nsamples = 8\nlines = 6\nbands = 1\ndata type = 1\n{text}\n")
    place = rasters.open_raster(tmp_path / "a.hdr").georeference()
    assert CRS.from_wkt(place.crs).to_epsg() == epsg and place.transform == pytest.approx(transform)
    (tmp_path / "a.hdr").write_text("ENVI\nsamples = 8\nlines = 6\nbands = 1\ndata type = 1\n")
    assert rasters.open_raster(tmp_path / "a.hdr").georeference() is None


def test_tiles_are_polygons_with_attributes(tmp_path):
    maps.write_geopackage(tmp_path / "a.gpkg", "tiles", PLACE, [(2, 4, 3, 5)],
                          {"id": ["a"], "share": [0.25], "x": [None]})
    with sqlite3.connect(tmp_path / "a.gpkg") as data:
        assert data.execute("PRAGMA application_id").fetchone()[0] == 0x47504B47
        assert data.execute("SELECT srs_id, geometry_type_name FROM gpkg_geometry_columns").fetchone() == (
            32611, "POLYGON")
        geometry, *row = data.execute('SELECT geom, id, share, x FROM tiles').fetchone()
        bounds = data.execute("SELECT min_x, max_y FROM gpkg_contents").fetchone()
    assert row == ["a", 0.25, None] and bounds == (494062.0, 4155969.0)
    assert geometry[:2] == b"GP" and struct.unpack("<i", geometry[4:8])[0] == 32611
    ring = np.frombuffer(geometry[8 + 13:]).reshape(-1, 2)
    assert ring[0].tolist() == ring[-1].tolist() == [494062.0, 4155969.0]
    assert np.ptp(ring, axis=0).tolist() == [77.5, 46.5]


def test_a_swath_is_put_on_the_map_by_its_lookup_table(tmp_path):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "emit.nc", "w") as out:
        sizes = {"downtrack": 3, "crosstrack": 2, "bands": 4, "ortho_y": 3, "ortho_x": 4}
        for name, size in sizes.items():
            out.createDimension(name, size)
        out.createVariable("reflectance", "f4", ("downtrack", "crosstrack", "bands"))[:] = 0.3
        bands = out.createGroup("sensor_band_parameters")
        bands.createVariable("wavelengths", "f4", ("bands",))[:] = [500, 600, 700, 800]
        location = out.createGroup("location")
        glt = np.zeros((2, 3, 4), int)
        glt[:, 0, 1], glt[:, 2, 3] = (1, 3), (2, 1)
        for name, table in zip(("glt_x", "glt_y"), glt, strict=True):
            location.createVariable(name, "i4", ("ortho_y", "ortho_x"))[:] = table
        out.spatial_ref, out.geotransform = CRS.from_epsg(4326).to_wkt(), np.array([-117.5, 0.001, 0, 37.5, 0, -0.001])
    place = rasters.open_raster(tmp_path / "emit.nc").georeference()
    assert place.table == tmp_path / "emit.nc" and place.transform == (0.001, 0, -117.5, 0, -0.001, 37.5)
    found = maps.on_grid(np.arange(6, dtype=np.uint8).reshape(3, 2), place, 255)
    assert found.tolist() == [[255, 4, 255, 255], [255] * 4, [255, 255, 255, 1]]


def test_tiles_of_a_swath_are_fitted_to_its_lookup_table(tmp_path, monkeypatch):
    from overlays.data import netcdf

    row, col = np.mgrid[1:31, 1:41]  # a swath that is turned by a quarter: its rows run along the map's columns
    monkeypatch.setattr(netcdf, "lookup_table", lambda path: (col, row))
    place = Georeference(UTM, PLACE.transform, tmp_path / "emit.nc")
    assert maps.pixel_transform(place) == pytest.approx((0.0, 15.5, 494000.0, -15.5, 0.0, 4156000.0))
