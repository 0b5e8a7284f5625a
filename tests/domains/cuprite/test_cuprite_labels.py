"""Labels are right where the truth is known, and rasters by others are read or refused in one sentence."""

import json

import numpy as np
import pytest
from spectral.io import envi

from benches import labels as bench
from overlays.data.rasters import open_raster
from overlays.domains.cuprite.bands import good_bands, skip_reasons
from overlays.domains.cuprite.classes import BY_NAME, CLASSES, RULES, rule_codes, rule_fractions
from overlays.domains.cuprite.cube import open_cube
from overlays.domains.cuprite.indices import ferric_iron
from overlays.domains.cuprite.labellers import LABELLERS, MicaLabeller, NearestLabeller, absorption, al_oh_position
from overlays.domains.cuprite.labels import read_label_raster
from overlays.errors import UserError
from overlays.samples.cuprite import read_abundances


@pytest.fixture(scope="module")
def labelled(scene):
    """(codes, truth, spectra, wavelengths) of the valid pixels of the sample scene."""
    cube = open_cube(scene)
    good = good_bands(skip_reasons(cube), cube.wavelength_nm)
    spectra = cube.read(0, 0, *cube.shape[:2], good)
    valid = np.isfinite(spectra).all(-1)
    labeller = NearestLabeller(cube.wavelength_nm[good], cube.fwhm_nm[good])
    rule, _ = labeller(spectra[valid])
    codes = np.where(rule >= 0, rule_codes(labeller.rules)[rule], 0)
    codes[codes == BY_NAME["white mica"].code] = BY_NAME["muscovite"].code  # a fifth of the muscovite is illite
    return codes, read_abundances(scene.parent)[valid], spectra[valid], cube.wavelength_nm[good]


def test_pixels_with_one_mineral_above_60_percent_are_labelled_right(labelled):
    codes, truth, *_ = labelled
    minerals = truth[:, 1:9]
    single = minerals.max(1) > 0.6
    right = codes[single] == minerals[single].argmax(1) + 1
    assert single.sum() > 3000
    assert right.mean() >= 0.90
    for mineral in CLASSES[1:9]:
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


@pytest.fixture(scope="module")
def library(hyperspectral):
    return bench.Library(hyperspectral / "s07_AV95_envi.hdr")


def named(library, name, prefix):
    """(names, labels, rules) of the library's spectra whose names begin with a word."""
    rows = [i for i, own in enumerate(library.names) if own.startswith(prefix)]
    labeller = LABELLERS[name](library.nm, library.fwhm)
    rule, _ = labeller(library.spectra[rows])
    return ([library.names[i] for i in rows], bench.labels(labeller, library.spectra[rows]),
            [labeller.rules[number] if number >= 0 else "" for number in rule])


def test_the_default_finds_the_eight_minerals_and_little_else_through_the_bands_that_are_kept(library):
    metrics = bench.measure(library, "nearest")
    assert len(library.classes(bench.EIGHT)[0]) == 169
    assert metrics["recall"] >= 0.93 and metrics["recall SNR 50"] >= 0.90 and metrics["recall 20% leaf"] >= 0.93
    assert metrics["false other minerals"] < 0.13 and metrics["false artificial"] < 0.05
    assert metrics["false vegetation"] < 0.03 and metrics["false noise alone, SNR 30"] < 0.01


def test_the_rules_alone_find_148_of_169_through_the_bands_that_are_kept(library):
    rows, target = library.classes(bench.EIGHT)
    assert bench.right(bench.labels(MicaLabeller(library.nm, library.fwhm), library.spectra[rows]), target).sum() >= 148


def test_consensus_is_a_label_where_both_agree(library):
    rows, _ = library.classes(bench.EIGHT)
    found = {name: bench.labels(labeller(library.nm, library.fwhm), library.spectra[rows])
             for name, labeller in LABELLERS.items()}
    same = found["mica"] == found["nearest"]
    assert (found["consensus"][same] == found["mica"][same]).all() and (found["consensus"][~same] == "").all()


@pytest.mark.parametrize("name", ["nearest", "mica"])
def test_alunite_needs_the_left_shoulder_of_its_1480_nm_feature(library, name):
    row = next(i for i, own in enumerate(library.names) if own.startswith("Alunite GDS84") and "BECK" in own)
    noise = 1 + 0.007 * np.random.default_rng(0).standard_normal((200, len(library.nm)))
    assert (bench.labels(LABELLERS[name](library.nm, library.fwhm), library.spectra[row] * noise) == "alunite").all()


def test_rules_without_their_bands_are_named(library):
    shoulder = "bands from 1440 to 1470 nm"
    assert shoulder not in MicaLabeller(library.nm, library.fwhm).incomplete.values()
    kept = (library.nm < 1340) | (library.nm > 1460)
    assert MicaLabeller(library.nm[kept], library.fwhm[kept]).incomplete["alunite_K_250C"] == shoulder
    assert not NearestLabeller(library.nm[kept], library.fwhm[kept]).incomplete


def test_field_samples_of_cuprite(library):
    names, found, rules = map(np.array, named(library, "nearest", ("Alunite", "Halloysite CU", "Kaol", "Chlorite+Musc",
                                                                   "Muscovite", "Dickite+", "Buddingtnt")))
    field = np.array([any(f"CU{year}" in name for year in ("91", "93", "98", "00")) for name in names])
    assert (found[field & np.char.startswith(names, "Alunite")] == "alunite").all()
    assert (found[np.char.startswith(names, "Halloysite CU")] == "kaolinite").all()
    assert (found[np.char.startswith(names, "Dickite+")] == "dickite").all()
    for start, minerals in (("Kaol+Muscov_intimate", {"kaolinite", "muscovite"}),
                            ("Kaol.5+MuscCU91", {"kaolinite", "muscovite"}),
                            ("Chlorite+Muscovite", {"chlorite", "muscovite"}),
                            ("Buddingtnt+Na-Mont", {"buddingtonite", "montmorillonite"})):
        these = rules[field & np.char.startswith(names, start)]
        assert len(these) and all(set(RULES[rule]) == minerals for rule in these), start


def test_near_relatives_have_classes_of_their_own(library):
    for prefix, mineral, least in (("Illite", "white mica", 10), ("Dickite NMNH", "dickite", 5),
                                   ("Pyrophyllite", "pyrophyllite", 8), ("Halloysite", "kaolinite", 9)):
        _, found, _ = named(library, "nearest", prefix)
        assert (found == mineral).sum() >= least, prefix


@pytest.mark.parametrize("name", list(LABELLERS))
def test_paragonite_is_a_white_mica_by_its_al_oh_position(library, name):
    _, found, rules = named(library, name, "Paragonite")
    assert found.tolist() == ["white mica"] and rules == ["paragonite"]
    _, found, rules = named(library, name, ("Muscovite GDS", "Kaol.5+MuscCU91"))
    assert "paragonite" not in rules and "muscovite" in found


def test_a_rule_counts_for_every_mineral_that_it_names():
    table = rule_fractions(["calcite.5+muscoviteMedAl.5", "alunite.25+kaolinite.75", "talc_or_tremolite"])
    shares = [{CLASSES[code].name: part for code, part in enumerate(row) if part} for row in table]
    assert shares == [{"calcite": 0.5, "white mica": 0.5}, {"alunite": 0.25, "kaolinite": 0.75}, {"background": 1.0}]
    assert rule_codes(["alunite.25+kaolinite.75", "alunite.5+kaolinite.5"]).tolist() == [2, 1]


def test_every_rule_named_for_a_mineral_exists():
    labeller = MicaLabeller(np.arange(400.0, 2500, 10), np.full(210, 10.0))
    assert set(RULES) <= set(labeller.rules)


def test_continuum_is_the_upper_hull():
    nm = np.arange(2000.0, 2110, 10)
    line = 0.2 + (nm - 2000) / 1000
    dip = line * (1 - 0.3 * np.exp(-((nm - 2050) / 15) ** 2))
    depth = absorption(np.stack([line, dip]), nm)
    np.testing.assert_allclose(depth[0], 0, atol=1e-12)
    assert depth[1].argmax() == 5 and depth[1].max() == pytest.approx(0.3, abs=0.01)


def test_the_al_oh_position_is_exact_between_bands():
    nm = np.arange(2000.0, 2400, 10)
    spectra = np.stack([0.5 - 0.1 * np.exp(-((nm - centre) / 25) ** 2) for centre in (2197.0, 2206.5)])
    np.testing.assert_allclose(al_oh_position(spectra, nm), [2197.0, 2206.5], atol=0.5)
    assert np.isnan(al_oh_position(np.full((1, len(nm)), 0.3), nm)).all()


def test_a_cube_without_the_2_um_range_is_refused():
    with pytest.raises(UserError, match="2000 and 2450 nm"):
        NearestLabeller(np.arange(400.0, 1000, 10), np.full(60, 10.0))


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
    np.save(tmp_path / "map.npy", raster + 11)
    with pytest.raises(UserError, match="values without a class: 12, 13"):
        read_label_raster(tmp_path / "map.npy", (12, 10))
    (tmp_path / "map.json").write_text('{"11": "quartz"}')
    with pytest.raises(UserError, match="unknown class 'quartz'"):
        read_label_raster(tmp_path / "map.npy", (12, 10), tmp_path / "map.json")


def save_map(path, values, west=500000.0, north=4000000.0, pixel=10.0, crs="EPSG:32611", **options):
    import rasterio
    from rasterio.transform import from_origin

    with rasterio.open(path, "w", driver="GTiff", width=values.shape[1], height=values.shape[0], count=1,
                       dtype=values.dtype, crs=crs, transform=from_origin(west, north, pixel, pixel), **options) as out:
        out.write(values, 1)
    return path


def test_a_label_raster_is_laid_on_the_cubes_grid(tmp_path, raster):
    place = open_raster(save_map(tmp_path / "cube.tif", raster)).georeference()
    whole = np.pad(raster, ((3, 2), (4, 1)), constant_values=5)
    codes = read_label_raster(save_map(tmp_path / "a.tif", whole, 500000 - 40, 4000000 + 30), raster.shape, None, place)
    np.testing.assert_array_equal(codes, raster)
    codes = read_label_raster(save_map(tmp_path / "corner.tif", whole[3:, 4:]), raster.shape, None, place)
    np.testing.assert_array_equal(codes, raster)
    for name, options, words in (
            ("b", {"west": 500100.0}, "does not cover the cube"), ("c", {"pixel": 20.0}, "another grid"),
            ("d", {"west": 500004.0}, "a part of a pixel"), ("e", {"crs": "EPSG:32612"}, "another grid")):
        with pytest.raises(UserError, match=words):
            read_label_raster(save_map(tmp_path / f"{name}.tif", raster, **options), raster.shape, None, place)


def test_a_label_raster_without_classes_or_with_other_names_is_refused(tmp_path, raster):
    empty = save_map(tmp_path / "a.tif", np.full(raster.shape, np.nan, np.float32))
    with pytest.raises(UserError, match="holds no class"):
        read_label_raster(empty, raster.shape)
    envi.save_classification(str(tmp_path / "b.hdr"), raster, class_names=["Unclassified", "Zoning A", "Opal"])
    with pytest.raises(UserError, match=r"values without a class: 1 \(Zoning A\), 2 \(Opal\)"):
        read_label_raster(tmp_path / "b.hdr", raster.shape)
    (save_map(tmp_path / "d.tif", raster).with_name("d.tif.aux.xml")).write_text(
        "<PAMDataset><PAMRasterBand band='1'><CategoryNames><Category>Unclassified</Category><Category>Rock &amp; sand"
        "</Category><Category>Calcite</Category></CategoryNames></PAMRasterBand></PAMDataset>")
    with pytest.raises(UserError, match=r"values without a class: 1 \(Rock & sand\);"):
        read_label_raster(tmp_path / "d.tif", raster.shape)
    envi.save_classification(str(tmp_path / "c.hdr"), raster, class_names=["Unclassified", "Smectite", "Illite"])
    np.testing.assert_array_equal(read_label_raster(tmp_path / "c.hdr", raster.shape),
                                  np.array([0, 4, 9], np.uint8)[raster])
