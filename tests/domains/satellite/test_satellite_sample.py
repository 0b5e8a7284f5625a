import json

import numpy as np
import pytest
import rasterio

from overlays.data.encodings import dequantise
from overlays.domains.satellite.score import r2, ridge
from overlays.errors import UserError
from overlays.samples import satellite as module


def test_tiles_are_as_alphaearth_stores_them(cities):
    files = sorted((cities / "tiles").glob("*.tif"))
    borders = bottom_up = 0
    for path in files:
        with rasterio.open(path) as file:
            assert file.count == 64 and set(file.dtypes) == {"int8"} and file.nodata == -128
            assert str(file.crs).startswith("EPSG:32") and 48 <= file.width <= 64
            stored = file.read()
            bottom_up += file.transform.e > 0
        empty = (stored == -128).any(0)
        assert np.array_equal(empty, (stored == -128).all(0))
        borders += bool(empty.any())
        lengths = np.linalg.norm(dequantise(stored)[:, ~empty], axis=0)
        assert np.abs(lengths - 1).max() < 0.02
    assert len(files) == 25 and borders == 3 and bottom_up == 1


def test_the_same_seed_gives_the_same_cities(cities, tmp_path):
    again = module.write(tmp_path / "again", cities=24)
    assert (again / module.TRUTH).read_bytes() == (cities / module.TRUTH).read_bytes()
    name = sorted((cities / "tiles").glob("*.tif"))[5].name
    assert (again / "tiles" / name).read_bytes() == (cities / "tiles" / name).read_bytes()


def test_growth_depends_on_layout_that_composition_does_not_tell():
    rng = np.random.default_rng(0)
    covers = [module.land_cover(48, rng.uniform(), rng) for _ in range(300)]
    shares = np.array([np.bincount(cover.ravel(), minlength=7) / cover.size for cover in covers])
    layout = np.array([module.contact(cover) for cover in covers])
    growth, signal = module._growth(shares, layout, rng)
    known, asked = slice(0, 200), slice(200, None)

    def reached(inputs):
        return r2(growth[asked], ridge(inputs[known], growth[known], inputs[asked])[0])

    ceiling = r2(growth[asked], signal[asked])
    assert 0.7 < ceiling < 0.9
    assert reached(shares[:, :6]) < 0.5 < reached(np.c_[shares[:, :6], layout])
    assert reached(np.c_[shares[:, :6], layout]) > ceiling - 0.06


def test_growth_does_not_change_when_a_city_is_turned():
    cover = module.land_cover(48, 0.4, np.random.default_rng(1))
    assert module.contact(np.rot90(cover)) == pytest.approx(module.contact(cover), abs=1e-3)
    assert module.contact(cover[:, ::-1]) == pytest.approx(module.contact(cover), abs=1e-3)


def test_the_ceiling_is_what_the_noise_leaves(cities, prepared):
    truth = json.loads((cities / module.TRUTH).read_text())
    assert 0.5 < truth["ceiling"] < 1 and len(truth["signal"]) == 24
    assert set(prepared[1]["ceiling"]) == {"train", "val", "test"}


def test_too_few_cities_and_a_negative_seed_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 20 cities"):
        module.write(tmp_path, cities=5)
    with pytest.raises(UserError, match="--seed must be at least 0"):
        module.write(tmp_path, seed=-1)
