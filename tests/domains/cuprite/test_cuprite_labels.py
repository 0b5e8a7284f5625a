"""Labels are right where the truth is known, and rasters by others are read or refused in one sentence."""

import json

import numpy as np
import pytest
from spectral.io import envi

from overlays.domains.cuprite.bands import good_bands, skip_reasons
from overlays.domains.cuprite.classes import BY_NAME, CLASSES, RULE_CODES
from overlays.domains.cuprite.cube import open_cube
from overlays.domains.cuprite.labels import MicaLabeller, ferric_iron, read_label_raster
from overlays.errors import UserError
from overlays.samples.cuprite import read_abundances

# First words of the names of library spectra; prochlorite and thuringite are chlorites.
LIBRARY_NAMES = {
    "Alunite": "alunite", "Kaolinite": "kaolinite", "Muscovite": "muscovite", "Montmorillonite": "montmorillonite",
    "Buddingtonite": "buddingtonite", "Calcite": "calcite", "Chlorite": "chlorite", "Clinochlore": "chlorite",
    "Clinochlore_Fe": "chlorite", "Prochlorite": "chlorite", "Thuringite": "chlorite", "Epidote": "epidote",
}


@pytest.fixture(scope="module")
def labelled(scene):
    """(codes, truth, spectra, wavelengths) of the valid pixels of the sample scene."""
    cube = open_cube(scene)
    good = good_bands(skip_reasons(cube), cube.wavelength_nm)
    spectra = cube.read(0, 0, *cube.shape[:2], good)
    valid = np.isfinite(spectra).all(-1)
    labeller = MicaLabeller(cube.wavelength_nm[good], cube.fwhm_nm[good])
    return labeller(spectra[valid])[0], read_abundances(scene.parent)[valid], spectra[valid], cube.wavelength_nm[good]


def test_pixels_with_one_mineral_above_60_percent_are_labelled_right(labelled):
    codes, truth, *_ = labelled
    minerals = truth[:, 1:len(CLASSES)]
    single = minerals.max(1) > 0.6
    right = codes[single] == minerals[single].argmax(1) + 1
    assert single.sum() > 3000
    assert right.mean() >= 0.90
    for mineral in CLASSES[1:]:
        these = minerals[single].argmax(1) + 1 == mineral.code
        assert right[these].mean() >= 0.75, mineral.name


def test_unaltered_ground_is_left_unclassified(labelled):
    codes, truth, *_ = labelled
    assert (codes[truth[:, 0] > 0.9] == 0).mean() > 0.9


def test_iron_is_reported_beside_the_minerals(labelled):
    codes, truth, spectra, wavelengths = labelled
    iron = ferric_iron(spectra, wavelengths)
    assert iron[truth[:, -1] > 0.4].mean() > 0.8
    assert iron[truth[:, -1] < 0.02].mean() < 0.1
    assert (iron & (codes > 0)).any()
    assert ferric_iron(spectra[:, wavelengths > 1500], wavelengths[wavelengths > 1500]) is None


def test_library_spectra_of_the_eight_minerals_are_labelled_right(hyperspectral):
    library = envi.open(str(hyperspectral / "s07_AV95_envi.hdr"))
    wavelengths, widths = library.spectra[0] * 1000.0, library.spectra[1] * 1000.0
    rows = [(row, LIBRARY_NAMES[name.split()[0]]) for row, name in enumerate(library.names)
            if name.split() and name.split()[0] in LIBRARY_NAMES]
    ascending = [band for band, centre in enumerate(wavelengths) if centre > wavelengths[:band].max(initial=0)]
    spectra = library.spectra[[row for row, _ in rows]][:, ascending].astype(float)
    spectra[spectra < -1e30] = 0  # deleted channels
    codes = MicaLabeller(wavelengths[ascending], widths[ascending])(spectra)[0]
    right = codes == [BY_NAME[name].code for _, name in rows]
    assert len(rows) == 169
    assert right.mean() >= 0.85, f"{right.sum()} of {len(rows)}"


def test_every_rule_named_for_a_mineral_exists():
    labeller = MicaLabeller(np.arange(400.0, 2500, 10), np.full(210, 10.0))
    assert set(RULE_CODES) <= set(labeller.rules)


def test_a_cube_without_the_2_um_range_is_refused():
    with pytest.raises(UserError, match="2000 and 2450 nm"):
        MicaLabeller(np.arange(400.0, 1000, 10), np.full(60, 10.0))


@pytest.fixture
def raster():
    return (np.arange(12 * 10).reshape(12, 10) % 3).astype(np.uint8)


def test_geotiff_raster_with_a_class_map(tmp_path, raster):
    import rasterio

    with rasterio.open(tmp_path / "map.tif", "w", driver="GTiff", width=10, height=12, count=1, dtype="uint8") as out:
        out.write(raster, 1)
    (tmp_path / "map.json").write_text(json.dumps({"0": "background", "1": "epidote", "2": 3}))
    codes = read_label_raster(tmp_path / "map.tif", (12, 10), tmp_path / "map.json")
    np.testing.assert_array_equal(codes, np.array([0, 8, 3], np.uint8)[raster])


def test_envi_classification_with_our_class_names_needs_no_map(tmp_path, raster):
    envi.save_classification(str(tmp_path / "map.hdr"), raster, class_names=["Unclassified", "Calcite", "Alunite"])
    codes = read_label_raster(tmp_path / "map.hdr", (12, 10))
    np.testing.assert_array_equal(codes, np.array([0, 6, 1], np.uint8)[raster])


def test_raster_of_another_size_or_with_unknown_values_is_refused(tmp_path, raster):
    np.save(tmp_path / "map.npy", raster)
    with pytest.raises(UserError, match="12 x 10 pixels, the cube is 12 x 11"):
        read_label_raster(tmp_path / "map.npy", (12, 11))
    np.save(tmp_path / "map.npy", raster + 8)
    with pytest.raises(UserError, match="values without a class: 9, 10"):
        read_label_raster(tmp_path / "map.npy", (12, 10))
    (tmp_path / "map.json").write_text('{"8": "quartz"}')
    with pytest.raises(UserError, match="unknown class 'quartz'"):
        read_label_raster(tmp_path / "map.npy", (12, 10), tmp_path / "map.json")
