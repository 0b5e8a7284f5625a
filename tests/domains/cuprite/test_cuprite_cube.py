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


# ---------------------------------------------------------------- files as people have them

def listed(values):
    return "{" + ", ".join(map(str, values)) + "}"


def save_cube_tif(path, stored, band_tags=None, **options):
    """A GeoTIFF of (rows, cols, bands) values with tags of each band, scales and offsets."""
    import rasterio

    scales, offsets, mask = (options.pop(name, None) for name in ("scales", "offsets", "mask"))
    with rasterio.open(path, "w", driver="GTiff", width=stored.shape[1], height=stored.shape[0],
                       count=stored.shape[2], dtype=stored.dtype, **options) as out:
        out.write(stored.transpose(2, 0, 1))
        for band in range(stored.shape[2]):
            if band_tags:
                out.update_tags(band + 1, **band_tags(band))
        if scales is not None:
            out.scales, out.offsets = scales, offsets
        if mask is not None:
            out.write_mask(mask)
    return path


def nm_tags(band):
    return {"wavelength": str(CENTRES[band]), "wavelength_units": "Nanometers"}


def test_each_band_has_its_own_scale_and_offset(tmp_path, reflectance):
    bands = len(CENTRES)
    scales, offsets = np.linspace(1e-4, 2e-4, bands), np.linspace(-0.1, 0.0, bands)
    stored = np.rint((reflectance - offsets) / scales).astype(np.uint16)
    tif = open_cube(save_cube_tif(tmp_path / "a.tif", stored, nm_tags, scales=scales, offsets=offsets))
    write_envi(tmp_path / "b.hdr", (reflectance - offsets) / scales, scale=1,
               **{"reflectance scale factor": None, "data gain values": listed(scales),
                  "data offset values": listed(offsets)})
    for cube in (tif, open_cube(tmp_path / "b.hdr")):
        assert cube.scale_source == "header" and len(cube.scale) == bands
        np.testing.assert_allclose(cube.read(0, 0, 9, 7), reflectance, atol=2e-4)
    stored[:] = 3000
    same = save_cube_tif(tmp_path / "c.tif", stored, nm_tags, scales=[1e-4] * bands, offsets=[-0.1] * bands)
    np.testing.assert_allclose(open_cube(same).read(0, 0, 2, 2), 0.2, atol=1e-6)


@pytest.mark.parametrize("fill", [1e10, -9999, -3.4e38, -1, np.inf])
def test_fill_that_no_tag_names_is_no_data(tmp_path, reflectance, fill):
    reflectance[0, :3] = fill
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance, dtype="<f4", scale=1,
                                **{"reflectance scale factor": None}))
    values = cube.read(0, 0, 9, 7)
    assert np.isnan(values[0, :3]).all() and np.isfinite(values[1:]).all()
    assert not {"fill", "constant"} & set(skip_reasons(cube))


def test_a_band_of_fill_is_left_out(tmp_path, reflectance):
    reflectance[:, :, 20] = -0.9
    reflectance[0, 0, 20] = 0.3
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance, dtype="<f4", scale=1))
    assert skip_reasons(cube)[20] == "fill"


def test_a_gdal_mask_is_no_data(tmp_path, reflectance):
    mask = np.full(reflectance.shape[:2], 255, np.uint8)
    mask[2] = 0
    stored = np.rint(reflectance * 10000).astype(np.uint16)
    values = open_cube(save_cube_tif(tmp_path / "a.tif", stored, nm_tags, mask=mask)).read(0, 0, 9, 7)
    assert np.isnan(values[2]).all() and np.isfinite(values).sum() == 8 * 7 * len(CENTRES)


@pytest.mark.parametrize(("unit", "factor", "width"), [("Nanometers", 1, 0.0094), ("Micrometers", 0.001, 9.4),
                                                       ("Nanometers", 1, 9.4), ("Micrometers", 0.001, 0.0094)])
def test_the_unit_of_widths_is_told_by_the_spacing(tmp_path, reflectance, unit, factor, width):
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance, **{
        "wavelength units": unit, "wavelength": listed(CENTRES * factor), "fwhm": listed([width] * len(CENTRES))}))
    np.testing.assert_allclose(cube.fwhm_nm, 9.4)
    assert len(cube.file.notes) == (width != 9.4 * factor)


def test_wavenumbers(tmp_path, reflectance):
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance, **{
        "wavelength units": "Wavenumber", "wavelength": listed(1e7 / CENTRES)}))
    np.testing.assert_allclose(cube.wavelength_nm, CENTRES)


@pytest.mark.parametrize("order", ["descending", "prisma"])
def test_bands_from_long_to_short_are_sorted(tmp_path, reflectance, order):
    vnir, swir = np.flatnonzero(np.arange(len(CENTRES)) < 61), np.flatnonzero(np.arange(len(CENTRES)) >= 61)
    index = np.concatenate([vnir[::-1], swir[::-1]]) if order == "prisma" else np.arange(len(CENTRES))[::-1]
    straight = open_cube(write_envi(tmp_path / "a.hdr", reflectance))
    cube = open_cube(write_envi(tmp_path / "b.hdr", reflectance[:, :, index], wavelength=listed(CENTRES[index])))
    good = [good_bands(skip_reasons(each), each.wavelength_nm) for each in (straight, cube)]
    assert len(good[1]) == len(good[0]) > 150
    np.testing.assert_allclose(cube.wavelength_nm[good[1]], CENTRES[good[0]])
    np.testing.assert_allclose(cube.read(0, 0, 2, 2, good[1]), straight.read(0, 0, 2, 2, good[0]), atol=2e-3)


def test_the_header_of_a_data_file_is_gdals(tmp_path, reflectance):
    write_envi(tmp_path / "a.hdr", reflectance)
    write_envi(tmp_path / "b.hdr", reflectance[::-1])
    (tmp_path / "a.img").rename(tmp_path / "a.dat")
    (tmp_path / "b.img").unlink()
    assert open_cube(tmp_path / "a.hdr").files == (tmp_path / "a.hdr", tmp_path / "a.dat")
    (tmp_path / "b.hdr").rename(tmp_path / "a.dat.hdr")
    assert open_cube(tmp_path / "a.dat").files[0] == tmp_path / "a.dat.hdr"
    assert open_cube(tmp_path / "a.dat.hdr").files[1] == tmp_path / "a.dat"
    write_envi(tmp_path / "SCENE.HDR", reflectance)
    (tmp_path / "SCENE.img").rename(tmp_path / "SCENE.RAW")
    for name in ("SCENE.RAW", "SCENE.HDR"):
        assert open_cube(tmp_path / name).shape == reflectance.shape


@pytest.mark.parametrize("change", [
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.replace("Nanometers", "Micrometers").replace("byte order = 0\n", "").encode(),
    lambda text: (text + "description = { caf\u00e9 }\n").encode("latin-1"),
    lambda text: (text + "; \u03bcm, a comment\nsensor type = \u03bcm\n").encode(),
    lambda text: text.replace("factor = 10000", "factor = {10000}").encode(),
    lambda text: text.replace("}", ", }").encode(),
    lambda text: (text + "bbl = " + listed([0] * len(CENTRES)) + "\n").encode(),
    lambda text: text.replace("\n", "\r\n").encode(),
])
def test_header_text_as_people_have_it(tmp_path, reflectance, change):
    path = write_envi(tmp_path / "cube.hdr", reflectance)
    text = path.read_text()
    content = change(text)
    if b"Micrometers" in content:
        content = content.replace(listed(CENTRES).encode(), listed(CENTRES / 1000).encode())
    path.write_bytes(content)
    cube = open_cube(path)
    np.testing.assert_allclose(cube.wavelength_nm, CENTRES)
    np.testing.assert_allclose(cube.read(0, 0, 9, 7), reflectance, atol=6e-5)
    assert cube.good is None


def test_an_open_brace_is_named_by_its_line(tmp_path, reflectance):
    path = write_envi(tmp_path / "cube.hdr", reflectance)
    path.write_text(path.read_text() + "fwhm = { 1, 2\n")
    with pytest.raises(UserError, match=r"brace of line 12 \('fwhm'\) is not closed"):
        open_cube(path)


@pytest.mark.parametrize("layout", ["aviris-3", "emit-ortho", "bands-first"])
def test_netcdf_is_read_by_the_names_of_its_dimensions(tmp_path, reflectance, layout):
    netcdf = pytest.importorskip("netCDF4")
    rows, cols, bands = reflectance.shape
    with netcdf.Dataset(tmp_path / "cube.nc", "w") as out:
        if layout == "aviris-3":
            sizes, order, where = {"wavelength": bands, "northing": rows, "easting": cols}, (2, 0, 1), "reflectance"
        elif layout == "emit-ortho":
            sizes, order, where = {"latitude": rows, "longitude": cols, "bands": bands}, (0, 1, 2), ""
        else:
            sizes, order, where = {"band": bands, "x": cols, "y": rows}, (2, 1, 0), ""
        for name, size in sizes.items():
            out.createDimension(name, size)
        group = out.createGroup(where) if where else out
        group.createVariable("reflectance", "f4", tuple(sizes), fill_value=-9999)[:] = reflectance.transpose(order)
        holder = out.createGroup("sensor_band_parameters") if layout == "emit-ortho" else group
        name = "wavelengths" if layout == "emit-ortho" else "wavelength"
        holder.createVariable(name, "f4", (next(key for key in sizes if key[:4] in ("wave", "band")),))[:] = CENTRES
    cube = open_cube(tmp_path / "cube.nc")
    np.testing.assert_allclose(cube.wavelength_nm, CENTRES)
    np.testing.assert_allclose(cube.read(1, 2, 3, 4), reflectance[1:4, 2:6], atol=1e-6)


def test_netcdf_of_another_kind_is_one_sentence(tmp_path):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "a.nc", "w") as out:
        for name in "abc":
            out.createDimension(name, 4)
        out.createVariable("radiance", "f4", tuple("abc"))[:] = 1
    with pytest.raises(UserError, match="holds radiance"):
        open_cube(tmp_path / "a.nc")
    (tmp_path / "b.nc").write_bytes(b"no netcdf")
    with pytest.raises(UserError, match="b.nc cannot be read as NetCDF"):
        open_cube(tmp_path / "b.nc")
    with netcdf.Dataset(tmp_path / "c.nc", "w") as out:  # EMIT's RFLUNCERT file
        for name, size in (("downtrack", 4), ("crosstrack", 5), ("bands", 6)):
            out.createDimension(name, size)
        out.createVariable("reflectance_uncertainty", "f4", ("downtrack", "crosstrack", "bands"))[:] = 0.01
        out.createVariable("wavelengths", "f4", ("bands",))[:] = np.arange(500, 1100, 100)
    with pytest.raises(UserError, match="c.nc is not a reflectance cube"):
        open_cube(tmp_path / "c.nc")


def test_geotiff_metadata_of_bands_and_of_the_data_set(tmp_path, reflectance):
    import rasterio
    from rasterio.transform import from_origin

    stored = np.rint(reflectance * 10000).astype(np.int16)
    marks = (np.arange(len(CENTRES)) % 10 > 0).astype(int)
    enmap = save_cube_tif(tmp_path / "a.tif", stored, lambda band: {
        **nm_tags(band), "fwhm": "9.4", "bbl": str(marks[band])})
    cube = open_cube(enmap)
    assert np.array_equal(cube.good, marks > 0) and cube.fwhm_nm[0] == 9.4
    place = from_origin(0, 90, 10, 10)
    flipped = rasterio.Affine(10, 0, 0, 0, 10, 0)
    with rasterio.open(save_cube_tif(tmp_path / "b.tif", stored[::-1], transform=flipped), "r+") as out:
        out.update_tags(wavelength=listed(CENTRES / 1000), wavelength_units="Micrometers")
    cube = open_cube(tmp_path / "b.tif")
    np.testing.assert_allclose(cube.wavelength_nm, CENTRES)
    np.testing.assert_allclose(cube.read(1, 2, 3, 4), reflectance[1:4, 2:6], atol=6e-5)
    with rasterio.open(save_cube_tif(tmp_path / "c.tif", stored, transform=place), "r+") as out:
        out.descriptions = [f"band {band} ({centre:.1f} nm)" for band, centre in enumerate(CENTRES)]
    np.testing.assert_allclose(open_cube(tmp_path / "c.tif").wavelength_nm, CENTRES)


def test_prisma(tmp_path):
    netcdf = pytest.importorskip("netCDF4")
    rng, ranges = np.random.default_rng(0), {"Vnir": (-0.02, 1.1), "Swir": (0.0, 0.9)}
    centres = {"Vnir": np.r_[0, 0, 0, np.arange(1010, 402, -10.0)], "Swir": np.r_[0, 0, np.arange(2497, 940, -9.1)]}
    level = rng.uniform(0.1, 0.4, (12, 9, 1))
    expected = level + 0.05 * np.sin(np.concatenate(list(centres.values())) / 200)
    expected[0, 0] = np.nan
    with netcdf.Dataset(tmp_path / "a.he5", "w") as out:
        for name, size in (("y", 12), ("x", 9)):
            out.createDimension(name, size)
        fields = out.createGroup("HDFEOS/SWATHS/PRS_L2D_HCO/Data Fields")
        for name, (low, high) in ranges.items():
            nm = centres[name]
            fields.createDimension(name, len(nm))
            stored = np.rint((level + 0.05 * np.sin(nm / 200) - low) / (high - low) * 65535).astype(np.uint16)
            stored[:, :, nm == 0] = stored[0, 0] = 0
            fields.createVariable(f"{name.upper()}_Cube", "u2", ("y", name, "x"))[:] = stored.transpose(0, 2, 1)
            out.setncatts({f"List_Cw_{name}": nm, f"List_Fwhm_{name}": np.where(nm > 0, 11.5, 0),
                           f"L2Scale{name}Min": low, f"L2Scale{name}Max": high})
        out.setncatts({"Epsg_Code": 32611, "Product_ULcorner_easting": 5e5, "Product_ULcorner_northing": 4.2e6,
                       "Product_LRcorner_easting": 5e5 + 8 * 30, "Product_LRcorner_northing": 4.2e6 - 11 * 30})
    cube = open_cube(tmp_path / "a.he5")
    good = good_bands(skip_reasons(cube), cube.wavelength_nm)
    nm = cube.wavelength_nm[good]
    assert (np.diff(nm) > 0).all() and len(nm) > 180 and nm[0] == 410 and nm[-1] == 2497
    picked = good[[5, -3, 100]]
    np.testing.assert_allclose(cube.read(0, 0, 12, 9, picked), expected[:, :, picked], atol=1e-5)
    np.testing.assert_allclose(cube.read(3, 2, 4, 5, picked), expected[3:7, 2:7, picked], atol=1e-5)
    assert cube.georeference().transform == (30, 0, 499985, 0, -30, 4200015)
    with netcdf.Dataset(tmp_path / "b.he5", "w") as out:
        out.createGroup("HDFEOS/SWATHS/PRS_L1_HCO/Data Fields")
    with pytest.raises(UserError, match="b.he5 holds radiance"):
        open_cube(tmp_path / "b.he5")


@pytest.mark.parametrize("product", ["EnMAP", "DESIS"])
def test_the_metadata_of_a_product_lie_beside_its_geotiff(tmp_path, reflectance, product):
    stored = np.rint(reflectance * 10000).astype(np.int16)
    stored[0, 0] = -32768
    names = {"EnMAP": ("bandID", "FWHMOfBand", "GainOfBand", "OffsetOfBand"),
             "DESIS": ("band", "wavelengthWidthOfBand", "gainOfBand", "offsetOfBand")}[product]
    rows = "".join(f"<{names[0]}><wavelengthCenterOfBand>{nm}</wavelengthCenterOfBand><{names[1]}>6.5</{names[1]}>"
                   f"<{names[2]}>0.0001</{names[2]}><{names[3]}>0</{names[3]}></{names[0]}>" for nm in CENTRES)
    path = save_cube_tif(tmp_path / "A-SPECTRAL_IMAGE.TIF", stored, nodata=-32768)
    with pytest.raises(UserError, match="has no wavelengths"):
        open_cube(path)
    beside = tmp_path / "A-METADATA.XML"
    beside.write_text(f"<level_X><specific><bandCharacterisation>{rows}</bandCharacterisation></specific></level_X>")
    cube = open_cube(path)
    np.testing.assert_allclose(cube.wavelength_nm, CENTRES)
    assert cube.scale == 10000 and cube.scale_source == "header" and cube.fwhm_nm[0] == 6.5 and beside in cube.files
    reflectance[0, 0] = np.nan
    np.testing.assert_allclose(cube.read(0, 0, 9, 7), reflectance, atol=6e-5)
    beside.write_text(f"<level_X>{rows[:2000]}")
    with pytest.raises(UserError, match="A-METADATA.XML cannot be read"):
        open_cube(path)


def test_an_envi_header_beside_a_geotiff_names_its_wavelengths(tmp_path, reflectance):
    path = save_cube_tif(tmp_path / "a.tif", np.rint(reflectance * 10000).astype(np.int16))
    (tmp_path / "a.hdr").write_text(f"ENVI\nfile type = TIFF\nwavelength units = nm\nwavelength = {listed(CENTRES)}\n")
    np.testing.assert_allclose(open_cube(path).wavelength_nm, CENTRES)
    with pytest.raises(UserError, match="describes the GeoTIFF a.tif: name that file"):
        open_cube(tmp_path / "a.hdr")


@pytest.mark.parametrize("lines", [
    {"wavelength": "{" + ", ".join(f"{nm} nm" for nm in CENTRES) + "}", "wavelength units": None},
    {"wavelength": listed([f'"{nm}"' for nm in CENTRES]), "wavelength units": None},
    {"wavelength": None, "band names": listed([f"Band ({nm} Nanometers)" for nm in CENTRES])},
    {"wavelength units": "Micrometers"},  # which they are not
])
def test_wavelengths_as_drone_software_writes_them(tmp_path, reflectance, lines):
    cube = open_cube(write_envi(tmp_path / "cube.hdr", reflectance, "bil", "<f4", fwhm=listed([5] * len(CENTRES)),
                                **lines))
    np.testing.assert_allclose(cube.wavelength_nm, CENTRES)
    assert cube.fwhm_nm[0] == 5 and len(cube.file.notes) == (lines.get("wavelength units") == "Micrometers")


def test_a_scale_that_is_not_named_is_noted_or_asked_for(tmp_path, reflectance):
    cube = open_cube(write_envi(tmp_path / "a.hdr", reflectance, dtype="<f4", scale=100,
                                **{"reflectance scale factor": None}))
    assert cube.scale == 100 and "taken as reflectance x 100;" in cube.file.notes[0]
    np.testing.assert_allclose(cube.read(0, 0, 9, 7), reflectance, rtol=1e-5)
    for scale in (255, 100):
        path = write_envi(tmp_path / "b.hdr", reflectance, scale=scale, **{"reflectance scale factor": None})
        with pytest.raises(UserError, match="names no scale: give --scale"):
            open_cube(path)
        assert open_cube(path, scale=scale).scale == scale


def matlab_73(path, arrays):
    """As MATLAB writes it with -v7.3: 512 bytes of text, then HDF5 with the dimensions reversed."""
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(path, "w") as out:
        for name, value in arrays.items():
            sides = [f"{name}{side}" for side in range(value.ndim)]
            for side, size in zip(sides, value.T.shape, strict=True):
                out.createDimension(side, size)
            variable = out.createVariable(name, value.dtype, sides)
            variable[:] = value.T
            variable.MATLAB_class = {"int16": "int16", "uint16": "char"}.get(value.dtype.name, "double")
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(384)
                     + path.read_bytes())


def test_matlab_73(tmp_path, reflectance):
    rows, cols, bands = reflectance.shape
    np.savetxt(tmp_path / "bands.txt", CENTRES)
    stored = np.rint(reflectance * 10000).astype(np.int16)
    matlab_73(tmp_path / "a.mat", {"X": stored, "text": np.zeros((4, 5, 6), np.uint16)})
    matlab_73(tmp_path / "b.mat", {"Y": reflectance.reshape(-1, bands, order="F").T.astype(float),
                                   "nRow": np.full((1, 1), float(rows)), "nCol": np.full((1, 1), float(cols))})
    for name in "ab":
        cube = open_cube(tmp_path / f"{name}.mat", tmp_path / "bands.txt")
        np.testing.assert_allclose(cube.read(1, 2, 3, 4), reflectance[1:4, 2:6], atol=6e-5)
    (tmp_path / "c.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:3000])
    with pytest.raises(UserError, match="c.mat cannot be read"):
        open_cube(tmp_path / "c.mat", tmp_path / "bands.txt")


def test_matlab_matrices_and_several_arrays(tmp_path, reflectance):
    from scipy.io import savemat

    rows, cols, bands = reflectance.shape
    matrix = reflectance.reshape(-1, bands, order="F").T
    np.savetxt(tmp_path / "bands.txt", CENTRES)
    savemat(tmp_path / "a.mat", {"Y": matrix})
    with pytest.raises(UserError, match="--mat-shape ROWS,COLUMNS"):
        open_cube(tmp_path / "a.mat", tmp_path / "bands.txt")
    savemat(tmp_path / "b.mat", {"Y": matrix, "nRow": rows, "nCol": cols})
    savemat(tmp_path / "c.mat", {"X": reflectance, "other": reflectance + 1})
    with pytest.raises(UserError, match="name it with --mat-variable"):
        open_cube(tmp_path / "c.mat", tmp_path / "bands.txt")
    for name, options in (("a", {"mat_shape": (rows, cols)}), ("a", {"mat_shape": [rows, cols]}), ("b", {}),
                          ("c", {"mat_variable": "X"})):
        cube = open_cube(tmp_path / f"{name}.mat", tmp_path / "bands.txt", **options)
        np.testing.assert_allclose(cube.read(1, 2, 3, 4), reflectance[1:4, 2:6], atol=1e-6)


def test_composites_are_those_that_the_cube_has_bands_for(tmp_path, reflectance):
    from overlays.domains.cuprite.composites import available_composites

    for low, high, names in ((400, 2500, {"clay", "iron", "natural"}), (400, 1000, {"iron", "natural"}),
                             (1990, 2480, {"swir"})):
        inside = np.flatnonzero((CENTRES >= low) & (CENTRES <= high))
        cube = open_cube(write_envi(tmp_path / f"{low}-{high}.hdr", reflectance[:, :, inside],
                                    wavelength=listed(CENTRES[inside])))
        assert set(available_composites(cube, good_bands(skip_reasons(cube), cube.wavelength_nm))) == names


def test_the_seeds_scene_keeps_as_many_bands_as_the_seed(hyperspectral, tmp_path):
    nm = 1000 * np.load(hyperspectral / "cuprite_f970619_1051px.npz")["wavelength_um"]
    cube = np.random.default_rng(0).uniform(0.2, 0.4, (4, 4, len(nm)))
    opened = open_cube(write_envi(tmp_path / "cube.hdr", cube, wavelength=listed(nm)))
    kept = len(good_bands(skip_reasons(opened), opened.wavelength_nm))
    assert len(nm) == 224 and abs(kept - 188) <= 3, kept
