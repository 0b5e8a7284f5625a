"""Cubes of every format give the same reflectance, and what is not a reflectance cube is refused in one sentence."""

import shutil

import numpy as np
import pytest

from overlays.domains.cuprite.bands import good_bands, nearest_band, skip_reasons
from overlays.domains.cuprite.cube import open_cube
from overlays.errors import UserError

CENTRES = np.concatenate([np.arange(400, 1010, 10.0), np.arange(990, 2500, 10.0)])


@pytest.fixture
def reflectance():
    """(9, 7, bands) smooth reflectance between 0.1 and 0.6."""
    rng = np.random.default_rng(0)
    return (0.2 + 0.3 * rng.random((9, 7, 1)) + 0.05 * np.sin(CENTRES / 200) + 0.005 * rng.random((9, 7, len(CENTRES)))
            ).astype(np.float32)


def write_envi(path, cube, interleave="bip", dtype="<i2", scale=10000, **extra):
    """An ENVI cube of reflectance x scale; an extra of None leaves that header line out."""
    codes = {"<i2": 2, ">i2": 2, "<f4": 4}
    stored = np.rint(cube * scale) if dtype[1] == "i" else cube * scale
    order = {"bip": (0, 1, 2), "bil": (0, 2, 1), "bsq": (2, 0, 1)}[interleave]
    np.ascontiguousarray(stored.transpose(order), dtype).tofile(path.with_suffix(".img"))
    lines = {"samples": cube.shape[1], "lines": cube.shape[0], "bands": cube.shape[2], "header offset": 0,
             "data type": codes[dtype], "interleave": interleave, "byte order": int(dtype[0] == ">"),
             "wavelength units": "Nanometers", "wavelength": "{" + ", ".join(map(str, CENTRES)) + "}",
             "reflectance scale factor": scale, **extra}
    path.write_text("ENVI\n" + "".join(f"{key.replace('_', ' ')} = {value}\n" for key, value in lines.items()
                                       if value is not None))
    return path


@pytest.mark.parametrize("interleave", ["bip", "bil", "bsq"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4"])
def test_envi_window_is_the_same_in_every_layout(tmp_path, reflectance, interleave, dtype):
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance, interleave, dtype))
    window = cube.read(2, 3, 5, 4, np.array([0, 7, 200]))
    np.testing.assert_allclose(window, reflectance[2:7, 3:7][:, :, [0, 7, 200]], atol=6e-5)


def test_units_ignore_value_and_data_file_by_name(tmp_path, reflectance):
    reflectance[0, 0] = -9999 / 10000
    um = "{" + ", ".join(str(value / 1000) for value in CENTRES) + "}"
    write_envi(tmp_path / "cube.hdr", reflectance, **{"wavelength units": "Micrometers", "wavelength": um,
                                                      "data ignore value": -9999})
    cube = open_cube(tmp_path / "cube.img")
    np.testing.assert_allclose(cube.wavelength_nm, CENTRES)
    values = cube.read(0, 0, 2, 2)
    assert np.isnan(values[0, 0]).all() and np.isfinite(values[0, 1]).all()


def test_geotiff_with_band_tags_and_matlab_with_a_wavelength_file(tmp_path, reflectance):
    import rasterio
    from scipy.io import savemat

    rows, cols, bands = reflectance.shape
    with rasterio.open(tmp_path / "cube.tif", "w", driver="GTiff", width=cols, height=rows, count=bands,
                       dtype="float32") as out:
        out.write(reflectance.transpose(2, 0, 1))
        for band, centre in enumerate(CENTRES, 1):
            out.update_tags(band, wavelength=str(centre), wavelength_units="Nanometers")
    savemat(tmp_path / "cube.mat", {"X": np.rint(reflectance * 10000).astype(np.int16)})
    np.savetxt(tmp_path / "bands.txt", CENTRES / 1000)
    for cube in (open_cube(tmp_path / "cube.tif"), open_cube(tmp_path / "cube.mat", tmp_path / "bands.txt")):
        np.testing.assert_allclose(cube.wavelength_nm, CENTRES)
        np.testing.assert_allclose(cube.read(1, 2, 3, 4), reflectance[1:4, 2:6], atol=6e-5)
    with pytest.raises(UserError, match="--wavelengths"):
        open_cube(tmp_path / "cube.mat")


def test_emit_netcdf(tmp_path, reflectance):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "emit.nc", "w") as out:
        for name, size in zip(("downtrack", "crosstrack", "bands"), reflectance.shape, strict=True):
            out.createDimension(name, size)
        out.createVariable("reflectance", "f4", ("downtrack", "crosstrack", "bands"))[:] = reflectance
        group = out.createGroup("sensor_band_parameters")
        group.createVariable("wavelengths", "f4", ("bands",))[:] = CENTRES
        group.createVariable("fwhm", "f4", ("bands",))[:] = 8.5
        group.createVariable("good_wavelengths", "f4", ("bands",))[:] = (CENTRES < 1350) | (CENTRES > 1450)
    cube = open_cube(tmp_path / "emit.nc")
    assert cube.good.sum() == ((CENTRES < 1350) | (CENTRES > 1450)).sum()
    np.testing.assert_allclose(cube.read(1, 2, 3, 4), reflectance[1:4, 2:6], atol=1e-6)


def test_bad_bands_without_a_list_come_from_wavelengths_variance_and_order(tmp_path, reflectance):
    reflectance[:, :, 30] = 0.25
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance))
    reasons = np.array(skip_reasons(cube))
    water = ((CENTRES >= 1340) & (CENTRES <= 1430)) | ((CENTRES >= 1780) & (CENTRES <= 2000))
    assert (reasons[water] == "water").all() and (reasons[~water] != "water").all()
    assert reasons[30] == "constant"
    assert (np.diff(CENTRES[good_bands(reasons.tolist(), CENTRES)]) > 0).all()
    assert CENTRES[reasons == "overlap"].tolist() == [990.0, 1000.0]


def test_a_band_list_in_the_header_decides(tmp_path, reflectance):
    listed = np.ones(len(CENTRES), int)
    listed[[5, 6]] = 0
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance, bbl="{" + ", ".join(map(str, listed)) + "}"))
    reasons = np.array(skip_reasons(cube))
    assert np.flatnonzero(reasons == "header").tolist() == [5, 6]
    assert "water" not in reasons


def test_a_cube_without_the_wanted_band_is_refused(tmp_path, reflectance):
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance))
    good = np.flatnonzero(CENTRES > 1000)
    with pytest.raises(UserError, match="near 480 nm"):
        nearest_band(cube, good, 480, "the iron composite")


def test_header_without_wavelengths_is_refused(tmp_path, reflectance):
    path = write_envi(tmp_path / "cube.hdr", reflectance, wavelength=None)
    with pytest.raises(UserError, match="no wavelengths"):
        open_cube(path)


def test_truncated_cube_is_refused_before_it_is_read(tmp_path, reflectance):
    path = write_envi(tmp_path / "cube.hdr", reflectance)
    data = path.with_suffix(".img")
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        open_cube(path)


def test_a_geotiff_damaged_inside_is_one_sentence_whatever_is_read_of_it(tmp_path, reflectance):
    import rasterio

    path, values = tmp_path / "cube.tif", np.rint(np.tile(reflectance, (20, 3, 1)) * 10000).astype("int16")
    with rasterio.open(path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1], count=values.shape[2],
                       dtype="int16", compress="deflate", interleave="pixel", blockysize=8) as image:
        image.write(values.transpose(2, 0, 1))
    np.savetxt(tmp_path / "wavelengths.txt", CENTRES)
    cube = open_cube(path, tmp_path / "wavelengths.txt", scale=10000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 20_000] = bytes(20_000)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cube.tif cannot be read, it may be damaged"):
        cube.read(0, 0, *cube.shape[:2])


def sunlight(nm):
    """Relative solar radiance with the air's absorption bands."""
    planck = 1 / (nm / 1000) ** 5 / (np.exp(14388 / (nm * 5.8)) - 1)
    for centre, width, depth in ((760, 8, 0.4), (940, 25, 0.5), (1135, 25, 0.6), (1390, 60, 1), (1880, 80, 1)):
        planck = planck * (1 - depth * np.exp(-((nm - centre) / width) ** 2))
    return planck / planck.max()


@pytest.mark.parametrize("scale", [1, 100, 10000])
def test_radiance_is_recognised_by_its_values(tmp_path, reflectance, scale):
    path = write_envi(tmp_path / "cube.hdr", reflectance * sunlight(CENTRES), dtype="<f4", scale=scale)
    with pytest.raises(UserError, match="looks like radiance"):
        open_cube(path)


def test_radiance_is_recognised_by_its_units(tmp_path, reflectance):
    path = write_envi(tmp_path / "cube.hdr", reflectance, **{"data units": "uW/(cm2 nm sr)"})
    with pytest.raises(UserError, match="says it holds radiance"):
        open_cube(path)


def test_scale_is_guessed_from_whole_numbers_and_absurd_values_are_refused(tmp_path, reflectance):
    path = write_envi(tmp_path / "cube.hdr", reflectance, **{"reflectance scale factor": None})
    cube = open_cube(path)
    assert (cube.scale, cube.scale_source) == (10000, "values")
    assert open_cube(path, scale=20000).scale == 20000
    with pytest.raises(UserError, match="is not reflectance"):
        open_cube(path, scale=1)


def test_missing_cube_missing_data_and_strange_files_are_refused(tmp_path, reflectance):
    with pytest.raises(UserError, match="does not exist"):
        open_cube(tmp_path / "none.hdr")
    path = write_envi(tmp_path / "cube.hdr", reflectance)
    path.with_suffix(".img").unlink()
    with pytest.raises(UserError, match="data file of header"):
        open_cube(path)
    (tmp_path / "notes.txt").write_text("not a cube")
    with pytest.raises(UserError, match="no known format"):
        open_cube(tmp_path / "notes.txt")


def test_real_headers(hyperspectral, tmp_path):
    cube = open_cube(hyperspectral / "salton_sea_aviris.hdr")
    reasons = skip_reasons(cube)
    assert cube.shape == (51, 56, 224) and cube.scale == 10000
    assert reasons.count("header") == 20
    assert (np.diff(cube.wavelength_nm[good_bands(reasons, cube.wavelength_nm)]) > 0).all()
    shutil.copy(hyperspectral / "cuprite95_header_only.hdr", tmp_path / "cuprite95.hdr")
    with pytest.raises(UserError, match="data file of header"):
        open_cube(tmp_path / "cuprite95.hdr")
    (tmp_path / "cuprite95.img").write_bytes(b"0" * 5000)
    with pytest.raises(UserError, match=str(1228 + 614 * 750 * 224 * 2)):
        open_cube(tmp_path / "cuprite95.hdr")


def test_a_tag_may_name_its_unit_and_a_cube_of_one_band_is_none(tmp_path, reflectance):
    import rasterio

    def save(name, cube, tag):
        with rasterio.open(tmp_path / name, "w", driver="GTiff", width=7, height=9, count=cube.shape[2],
                           dtype="float32") as file:
            file.write(cube.transpose(2, 0, 1))
            for band, centre in enumerate(CENTRES[:cube.shape[2]], start=1):
                file.update_tags(band, wavelength=tag(centre))
        return tmp_path / name

    for tag in (lambda nm: f"{nm:g} nm", lambda nm: f"{nm / 1000:g} um", lambda nm: f"{nm:g}"):
        np.testing.assert_allclose(open_cube(save("a.tif", reflectance, tag)).wavelength_nm, CENTRES)
    with pytest.raises(UserError, match="a band tag 'red' where a wavelength"):
        open_cube(save("a.tif", reflectance, lambda nm: "red"))
    np.savetxt(tmp_path / "centres.txt", CENTRES)
    np.testing.assert_allclose(open_cube(tmp_path / "a.tif", tmp_path / "centres.txt").wavelength_nm, CENTRES)
    with pytest.raises(UserError, match="b.tif has one band, which is not a spectrum"):
        open_cube(save("b.tif", reflectance[:, :, :1], lambda nm: f"{nm:g}"))


@pytest.mark.parametrize("line", [{"data ignore value": "n/a"}, {"interleave": "foo"}, {"header offset": -4}])
def test_a_header_that_makes_no_sense_is_one_sentence(tmp_path, reflectance, line):
    file = write_envi(tmp_path / "cube.hdr", reflectance)
    name, value = next(iter(line.items()))
    kept = [own for own in file.read_text().splitlines() if not own.startswith(name)]
    file.write_text("\n".join([*kept, f"{name} = {value}"]) + "\n")
    with pytest.raises(UserError, match="cube.hdr"):
        open_cube(file)
