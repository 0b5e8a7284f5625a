"""The sample scene looks like AVIRIS, is the same every time, and shows every mineral in every split."""

import numpy as np
import pytest
from spectral.io import envi

from overlays.domains.cuprite.areas import split_areas, tile_starts
from overlays.domains.cuprite.bands import good_bands, skip_reasons
from overlays.domains.cuprite.classes import CLASSES
from overlays.domains.cuprite.cube import open_cube
from overlays.errors import UserError
from overlays.files import sha256
from overlays.samples.cuprite import PREPARE, abundances, read_abundances, write


def test_same_seed_gives_the_same_files_and_another_seed_does_not(tmp_path):
    first = write(tmp_path / "a", 3, lines=64, samples=64)
    again = write(tmp_path / "b", 3, lines=64, samples=64)
    other = write(tmp_path / "c", 4, lines=64, samples=64)
    for name in ("cuprite_sample.img", "cuprite_sample.hdr", "abundances.img", "sample.json"):
        assert sha256(first.parent / name) == sha256(again.parent / name)
    assert sha256(first.with_suffix(".img")) != sha256(other.with_suffix(".img"))


def test_header_has_what_a_real_one_has(scene):
    meta = envi.read_envi_header(str(scene))
    assert {"wavelength", "fwhm", "bbl", "reflectance scale factor", "data ignore value"} <= set(meta)
    backwards = np.flatnonzero(np.diff([float(value) for value in meta["wavelength"]]) < 0)
    assert len(backwards) == 3
    assert meta["bbl"].count("0") >= 15


def test_abundances_are_shares_and_absent_outside_the_data(scene):
    truth = read_abundances(scene.parent)
    cube = open_cube(scene)
    good = good_bands(skip_reasons(cube), cube.wavelength_nm)
    valid = np.isfinite(cube.read(0, 0, *cube.shape[:2], good)).all(-1)
    total = truth[:, :, :9].sum(-1)
    assert (~valid).any()
    np.testing.assert_allclose(total[valid], 1, atol=1e-5)
    assert (total[~valid] == 0).all()


def test_every_split_of_the_default_scene_shows_every_mineral():
    rows, cols, tile, stride = 400, 480, PREPARE["tile_size"], PREPARE["stride"]
    truth = abundances(rows, cols, np.random.default_rng(0))
    starts = tile_starts(rows, tile, stride), tile_starts(cols, tile, stride)
    kept = np.ones([len(start) for start in starts], bool)
    for name, area in split_areas(kept, *starts, (rows, cols), tile, (0.7, 0.15, 0.15)).items():
        here = truth[area.row:area.row_stop, area.col:area.col_stop]
        for mineral in CLASSES[:9]:
            assert (here[:, :, mineral.code] > 0.5).sum() > 100, f"{mineral.name} is missing in {name}"


def test_a_scene_of_a_few_pixels_is_refused(tmp_path):
    with pytest.raises(UserError, match="64 x 64"):
        write(tmp_path, lines=20, samples=20)
