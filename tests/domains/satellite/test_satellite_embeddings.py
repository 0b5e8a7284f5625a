from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine

from overlays.data.encodings import dequantise
from overlays.domains.satellite.embeddings import open_raster, windows
from overlays.errors import UserError
from overlays.samples.satellite import quantise

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "alphaearth"


@pytest.fixture(params=["iowa_ag", "sf_bay_urban"])
def vectors(request):
    """(720, 64) real AlphaEarth vectors."""
    import pandas as pd

    files = sorted(REAL.glob(f"*{request.param}*.csv"))
    if not files:
        pytest.skip(f"real data are not here: {REAL}")
    return pd.read_csv(files[0])[[f"A{band:02d}" for band in range(64)]].to_numpy()


def test_real_vectors_lie_on_the_grid_of_the_formula(vectors):
    codes = quantise(vectors)
    assert np.abs(dequantise(codes) - vectors).max() < 1e-6
    assert codes.min() > -128 and np.unique(codes).size > 100


def test_real_vectors_have_unit_length_only_after_the_formula(vectors):
    codes = quantise(vectors)
    assert np.abs(np.linalg.norm(dequantise(codes), axis=1) - 1).max() < 0.01
    assert np.linalg.norm(codes / 127, axis=1).mean() > 2


def test_real_vectors_survive_a_geotiff(vectors, write_tile, tmp_path):
    grid = vectors[:600].T.reshape(64, 20, 30)
    path = write_tile(tmp_path / "real.tif", quantise(grid))
    (_, values), = windows(open_raster(path))
    assert np.abs(values - grid).max() < 1e-6


def test_no_data_becomes_nan_and_back():
    codes = np.array([-128, -127, -1, 0, 1, 127], np.int8)
    values = dequantise(codes)
    assert np.isnan(values[0]) and np.array_equal(quantise(values), codes)
    assert values[5] == pytest.approx((127 / 127.5) ** 2) and values[1] == -values[5]


def test_windows_give_the_whole_raster_from_the_north(codes, write_tile, tmp_path):
    stored = codes()
    for bottom_up in (False, True):
        raster = open_raster(write_tile(tmp_path / f"{bottom_up}.tif", stored, bottom_up=bottom_up))
        found = np.empty(stored.shape, np.float32)
        for start, values in windows(raster, rows=4):
            assert values.shape[1] <= 4
            found[:, start:start + values.shape[1]] = values
        assert np.array_equal(found, dequantise(stored))


def test_a_pixel_without_data_in_one_band_has_none(codes, write_tile, tmp_path):
    stored = codes()
    stored[3, 2, 1] = -128
    (_, values), = windows(open_raster(write_tile(tmp_path / "a.tif", stored)))
    assert np.isnan(values[:, 2, 1]).all() and np.isnan(values).sum() == 8


def test_zeros_and_infinities_are_no_data(codes, write_tile, tmp_path):
    stored = codes()
    stored[:, 0] = 0
    stored[3, 2, 1] = 0  # in one band it is a value
    (_, values), = windows(open_raster(write_tile(tmp_path / "a.tif", stored)))
    assert np.isnan(values[:, 0]).all() and np.isfinite(values[:, 1:]).all()
    decoded = dequantise(codes())
    decoded[3, 2, 1], decoded[:, 5] = np.inf, 0
    (_, values), = windows(open_raster(write_tile(tmp_path / "b.tif", decoded)))
    assert np.isnan(values[:, 2, 1]).all() and np.isnan(values[:, 5]).all() and np.isfinite(values).sum() == 8 * 24


def test_the_centre_is_told_in_degrees(codes, write_tile, tmp_path):
    lon, lat = open_raster(write_tile(tmp_path / "a.tif", codes())).lonlat
    assert lon == pytest.approx(-93.0, abs=0.01) and lat == pytest.approx(41.55, abs=0.05)
    assert open_raster(write_tile(tmp_path / "b.tif", codes(), crs=None)).lonlat is None
    local = 'LOCAL_CS["local",UNIT["metre",1]]'
    assert open_raster(write_tile(tmp_path / "c.tif", codes(), crs=local)).lonlat is None
    far = write_tile(tmp_path / "d.tif", codes(), transform=Affine(10, 0, 9e20, 0, -10, 5e20))
    assert open_raster(far).lonlat is None


@pytest.mark.parametrize("kind", ["uint8", "int16"])
def test_wrong_types_are_one_sentence(kind, codes, write_tile, tmp_path):
    path = write_tile(tmp_path / "a.tif", codes().astype(kind))
    with pytest.raises(UserError, match=rf"a\.tif holds {kind}: embeddings are int8"):
        open_raster(path)


def test_a_file_that_is_no_raster_is_one_sentence(tmp_path):
    (tmp_path / "a.tif").write_text("nothing")
    with pytest.raises(UserError, match="cannot be read, it may be damaged"):
        open_raster(tmp_path / "a.tif")
