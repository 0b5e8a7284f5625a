"""Rasters: what is read of each format, equality with the stock processor, statistics, and what a bad one says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from overlays import registry
from overlays.data import chat, rasters, records
from overlays.data.dataset import SupervisedDataset
from overlays.data.media import MediaOptions, apply_resolution, image_patches, open_media
from overlays.data.spectral_bands import spacing_nm, spectral
from overlays.errors import UserError
from overlays.model import parts
from overlays.model.load import load_config, load_processor

SALTON = Path(__file__).resolve().parents[3] / "shared" / "data" / "hyperspectral" / "salton_sea_aviris.hdr"


@pytest.fixture
def processor(tiny_model_dir, request):
    return load_processor(tiny_model_dir(getattr(request, "param", "qwen3_vl")))


def save_tif(path, values, **options):
    import rasterio
    from rasterio.transform import from_origin

    with rasterio.open(path, "w", driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2],
                       dtype=values.dtype, crs="EPSG:32611", transform=from_origin(0, 0, 10, 10), **options) as out:
        out.write(values)
    return path


def save_envi(path, values, **extra):
    """An ENVI cube (BIL) of values (C, H, W)."""
    from spectral.io import envi

    envi.save_image(str(path), values.transpose(1, 2, 0), interleave="bil", ext="img", metadata=extra)
    return path


def random(channels=3, height=70, width=90, dtype=np.float32):
    values = np.random.default_rng(0).integers(0, 256, (channels, height, width))
    return values.astype(dtype)


@pytest.mark.parametrize("processor", ("qwen2_vl", "qwen3_vl"), indirect=True)
@pytest.mark.parametrize("size", ((70, 90), (20, 31), (64, 64), (400, 130)))
def test_three_8_bit_channels_are_what_the_stock_processor_makes_of_the_picture(tmp_path, processor, size):
    values = random(3, *size, dtype=np.uint8)
    apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=16384))
    Image.fromarray(values.transpose(1, 2, 0)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", values)
    save_tif(tmp_path / "a.tif", values)
    save_envi(tmp_path / "a.hdr", values)
    stock = processor.image_processor(images=[Image.open(tmp_path / "a.png")], return_tensors="pt")
    expected = chat.encode(record("a.png"), processor, tmp_path)
    assert torch.equal(expected["pixel_values"], stock["pixel_values"])
    for name in ("a.npy", "a.tif", "a.hdr"):
        sample = chat.encode(record(name), processor, tmp_path)
        assert all(torch.equal(sample[key], expected[key]) for key in expected), name
        assert chat.count_tokens(record(name), processor, tmp_path)[0] == len(sample["input_ids"])
    pixels, grid = rasters.patches(values, processor)
    assert torch.equal(pixels, stock["pixel_values"]) and torch.equal(grid, stock["image_grid_thw"])


def record(*names, **keys):
    return {"image": list(names), **keys, "conversations": [
        {"from": "human", "value": "<image>" * len(names) + "What is this?"}, {"from": "gpt", "value": "clay"}]}


def test_no_data_is_nan_whatever_the_format_calls_it(tmp_path):
    values = random(4, 6, 8, np.int16)
    values[1, 2, 3] = values[:, 5, 5] = -9999
    expected = np.where(values == -9999, np.nan, values).astype(np.float32)
    save_tif(tmp_path / "a.tif", values, nodata=-9999)
    save_envi(tmp_path / "a.hdr", values, **{"data ignore value": -9999})
    infinite = np.where(values == -9999, -np.inf, values)
    np.save(tmp_path / "a.npy", infinite)
    save_envi(tmp_path / "inf.hdr", infinite.astype(np.float32), **{"data ignore value": "-inf"})
    for name in ("a.tif", "a.hdr", "a.npy", "inf.hdr"):
        found = rasters.read(tmp_path / name)
        assert found.dtype == np.float32 and np.array_equal(found, expected, equal_nan=True), name
        part = rasters.read(tmp_path / name, (2, 3, 4, 5))
        assert np.array_equal(part, expected[:, 2:6, 3:8], equal_nan=True), name
        with pytest.raises(UserError, match="leaves raster .*6 x 8"):
            rasters.read(tmp_path / name, (3, 3, 4, 5))
    save_envi(tmp_path / "whole.hdr", values, **{"data ignore value": "inf"})
    assert np.array_equal(rasters.read(tmp_path / "whole.hdr"), values)


def test_bad_bands_and_alpha_are_no_channels(tmp_path):
    values = random(5, 6, 8, np.int16)
    save_envi(tmp_path / "a.hdr", values, bbl=[1, 0, 1, 1, 0])
    assert rasters.shape(tmp_path / "a.hdr") == (3, 6, 8)
    assert np.array_equal(rasters.read(tmp_path / "a.hdr"), values[[0, 2, 3]])
    colours = np.concatenate([random(3, 6, 8, np.uint8), np.full((1, 6, 8), 255, np.uint8)])
    colours[3, 0, 0] = 0
    save_tif(tmp_path / "rgba.tif", colours, photometric="RGB", alpha="YES")
    found = rasters.read(tmp_path / "rgba.tif")
    assert len(found) == 3 and np.isnan(found[:, 0, 0]).all() and np.isfinite(found).sum() == 3 * 47


def test_a_fourth_8_bit_band_is_a_channel_unless_it_is_a_mask(tmp_path):
    values = random(4, 40, 30, np.uint8)
    values[3, :20] = 0  # GDAL would mask these, and a window of them alone looks like a mask
    save_tif(tmp_path / "near_infrared.tif", values, blockysize=8)
    assert rasters.shape(tmp_path / "near_infrared.tif") == (4, 40, 30)
    found = rasters.read(tmp_path / "near_infrared.tif")
    assert found.dtype == np.uint8 and np.array_equal(found, values)
    assert np.array_equal(rasters.read(tmp_path / "near_infrared.tif", (0, 0, 10, 10)), values[:, :10, :10])
    masked = values.copy()
    masked[3, 20:] = 255
    save_tif(tmp_path / "masked.tif", masked)
    found = rasters.read(tmp_path / "masked.tif")
    assert np.isnan(found[:, :20]).all() and np.array_equal(found[:, 20:], values[:3, 20:])
    with pytest.raises(UserError, match=r"has 4 channels, but .*has 3 \(band 4 is marked as alpha and not counted\)"):
        rasters.fit_statistics([tmp_path / "masked.tif", tmp_path / "near_infrared.tif"])


@pytest.mark.skipif(not SALTON.is_file(), reason=f"real data {SALTON} is not here")
def test_a_real_aviris_cube_is_read_without_its_bad_bands():
    found = rasters.read(SALTON, (10, 5, 20, 30))
    assert found.shape == (204, 20, 30) and rasters.shape(SALTON) == (204, 51, 56)
    assert np.isfinite(found).all() and found.min() > -1000
    mean, std = rasters.fit_statistics([SALTON])
    assert (std > 0).all() and np.allclose(mean, rasters.read(SALTON).mean((1, 2), dtype=np.float64))


def test_statistics_are_those_of_all_valid_values_together(tmp_path, monkeypatch):
    rng, paths, everything = np.random.default_rng(0), [], []
    for number in range(3):
        values = rng.normal(1000 * number, 3 + number, (2, 30, 20 + number)).astype(np.float32)
        values[rng.random(values.shape) < 0.2] = np.nan
        np.save(tmp_path / f"{number}.npy", values)
        paths.append(tmp_path / f"{number}.npy")
        everything.append(values.reshape(2, -1).astype(np.float64))
    monkeypatch.setattr(rasters, "_BLOCK", 100)  # several blocks a raster
    mean, std = rasters.fit_statistics(paths)
    together = np.concatenate(everything, axis=1)
    assert np.allclose(mean, np.nanmean(together, 1)) and np.allclose(std, np.nanstd(together, 1))
    part, _ = rasters.fit_statistics([(paths[0], (0, 5, 10, 10))])
    assert np.allclose(part, np.nanmean(rasters.read(paths[0])[:, :10, 5:15], (1, 2)))


def test_what_is_invalid_or_never_varies_becomes_zero(tmp_path, processor):
    values = np.random.default_rng(0).normal(5, 2, (4, 64, 64)).astype(np.float32)
    values[3] = 7
    np.save(tmp_path / "a.npy", values)
    rasters.set_statistics(processor, *rasters.fit_statistics([tmp_path / "a.npy"]))
    values[:2, :32] = np.nan  # two channels of the upper half
    pixels, grid = rasters.patches(values, processor)
    pixels = pixels.unflatten(1, (4, -1))  # (16 patches, channels, values)
    assert grid.tolist() == [[1, 4, 4]]
    assert pixels[:8, :2].abs().max() < 1e-6 and pixels[:, 3].abs().max() < 1e-6
    assert 0.9 < pixels[:, 2].std() < 1.1 and 0.9 < pixels[8:, :2].std() < 1.1


def test_statistics_are_saved_with_the_processor(tmp_path, processor):
    values = np.random.default_rng(0).normal(5, 2, (4, 70, 90)).astype(np.float32)
    rasters.set_statistics(processor, values.mean((1, 2)), values.std((1, 2)))
    processor.save_pretrained(tmp_path)
    again = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert rasters.takes_rasters(again) and again.image_processor.in_channels == 4
    assert torch.equal(rasters.patches(values, again)[0], rasters.patches(values, processor)[0])


def build(folder, processor, config, rows, **options):
    records.write(folder / "train.jsonl", [{"id": str(i), **row} for i, row in enumerate(rows)])
    return SupervisedDataset([registry.Dataset("train", folder / "train.jsonl", folder)], processor,
                             parts.position_function(config), MediaOptions(), **options)


def test_a_training_set_fits_its_own_statistics_and_drops_what_holds_no_data(tmp_path, tiny_model_dir, processor):
    values = np.random.default_rng(0).normal(5, 2, (4, 80, 64)).astype(np.float16)
    np.save(tmp_path / "a.npy", values)
    np.save(tmp_path / "empty.npy", np.full((4, 64, 64), np.nan, np.float32))
    np.save(tmp_path / "five.npy", np.zeros((5, 64, 64), np.float32))
    rows = [record("a.npy", window=[0, 0, 64, 64]), record("a.npy", window=[0, 0, 64, 64]), record("empty.npy"),
            record("five.npy")]
    config = load_config(tiny_model_dir("qwen3_vl"))
    assert rasters.expect(processor, 4, asked=False)
    kept = build(tmp_path, processor, config, rows, on_bad_sample="skip")
    assert [row["reason"].split(f"{tmp_path}/")[1] for row in kept.report["dropped"]] == [
        "empty.npy holds no valid value: every pixel is nodata or not a number",
        "five.npy has 5 channels, but the model takes 4"]
    rasters.fit_processor(processor, kept)
    expected = values[:, :64].astype(np.float64)
    assert np.allclose(processor.image_processor.image_mean, expected.mean((1, 2)))
    assert np.allclose(processor.image_processor.image_std, expected.std((1, 2)))
    sample = kept[0]
    assert sample["image_grid_thw"].tolist() == [[1, 4, 4]] and abs(sample["pixel_values"].mean()) < 1e-3
    assert len(sample["input_ids"]) == kept.lengths[0]
    assert not rasters.expect(processor, 4, asked=True)  # it has its statistics
    with pytest.raises(UserError, match="rasters of 4 channels, but the model takes 6"):
        rasters.expect(processor, 6, asked=False)


def test_statistics_are_fitted_again_where_only_the_data_file_of_a_header_changed(tmp_path, processor):
    header = save_envi(tmp_path / "a.hdr", random(3, 64, 64, np.int16))
    config = load_config(Path(processor.tokenizer.name_or_path))
    rasters.expect(processor, 3, asked=True)
    for factor in (1, 2):
        values = factor * random(3, 64, 64, np.int16)
        np.ascontiguousarray(values.transpose(1, 0, 2)).tofile(header.with_suffix(".img"))
        rasters.fit_processor(processor, build(tmp_path, processor, config, [record("a.hdr")]))
        assert np.allclose(processor.image_processor.image_mean, values.mean((1, 2)))


def test_what_a_model_cannot_take_is_said_before_training(tmp_path, processor):
    np.save(tmp_path / "four.npy", random(4, dtype=np.uint8))
    np.save(tmp_path / "three.npy", random(3))
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")

    def fails(words, name):
        for call in (lambda: image_patches(tmp_path / name, processor.image_processor),
                     lambda: open_media(record(name), tmp_path, processor)):
            with pytest.raises(UserError, match=words):
                call()

    fails(r"four.npy has 4 channels, but the model takes 3; train one with --in_channels 4", "four.npy")
    fails(r"three.npy holds float32 values.*--in_channels 3", "three.npy")
    rasters.set_statistics(processor, np.zeros(4), np.ones(4))
    fails("a.png is an RGB picture, but the model takes rasters of 4 channels.*cannot mix", "a.png")
    fails("three.npy has 3 channels, but the model takes 4$", "three.npy")
    with pytest.raises(UserError, match="clip.mp4 cannot be shown to a model that takes rasters of 4"):
        open_media({"video": "clip.mp4"}, tmp_path, processor)


@pytest.mark.parametrize(("values", "words"), [
    (np.zeros((3, 4, 4), np.complex64), "type complex64"),
    (np.zeros((3, 4, 4), bool), "type bool"),
    (np.array([[[None]]]), "Python objects"),
    (np.zeros((4, 4), np.float32), r"shape \(4, 4\); \(channels, height, width\)"),
    (np.zeros((3, 0, 4), np.float32), "is empty"),
])
def test_arrays_that_are_no_rasters(tmp_path, values, words):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match=f"a.npy.*{words}"):
        rasters.read(tmp_path / "a.npy")


def test_files_that_are_missing_damaged_or_too_large(tmp_path, monkeypatch):
    for suffix in rasters.SUFFIXES:
        with pytest.raises(UserError, match=f"gone{suffix} is missing"):
            rasters.read(tmp_path / f"gone{suffix}")
        (tmp_path / f"text{suffix}").write_text("no raster")
        with pytest.raises(UserError, match=f"text{suffix}"):
            rasters.read(tmp_path / f"text{suffix}")
    np.save(tmp_path / "a.npy", random(3, 64, 64))
    with (tmp_path / "a.npy").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(UserError, match="a.npy"):
        rasters.shape(tmp_path / "a.npy")
    save_envi(tmp_path / "a.hdr", random(3, 6, 8, np.int16))
    (tmp_path / "a.img").write_bytes(b"short")
    with pytest.raises(UserError, match="truncated"):
        rasters.shape(tmp_path / "a.hdr")
    np.save(tmp_path / "b.npy", random(3, 64, 64))
    monkeypatch.setattr(rasters, "MAX_VALUES", 1000)
    with pytest.raises(UserError, match="above the limit of 1000.*window"):
        rasters.read(tmp_path / "b.npy")


@pytest.mark.parametrize("line", [
    "data ignore value = n/a", "data ignore value = ", "data ignore value = {1, 2}", "interleave = foo",
    "interleave = {bil, bip}", "header offset = -4", "lines = 0", "lines = nan", "samples = 1e400", "bands = 2.5"])
def test_a_header_that_makes_no_sense_is_one_sentence(tmp_path, line):
    file = save_envi(tmp_path / "a.hdr", random(3, 6, 8, np.int16))
    name = line.split(" = ")[0]
    file.write_text("".join(own for own in file.read_text().splitlines(True) if not own.startswith(name)) + line + "\n")
    with pytest.raises(UserError, match="a.hdr"):
        rasters.read(file)


@pytest.mark.parametrize("old, new", [(b"'descr'", b"'des(r'"), (b"(3, 6, 8)", b"(3, 6, 8("), (b"'<f4'", b"'<,4'"),
                                      (b"(3, 6, 8)", b"(-3,6, 8)"), (b"\x93NUMPY", b"PK\x03\x04ab")])
def test_a_damaged_array_is_one_sentence(tmp_path, old, new):
    np.save(tmp_path / "a.npy", random(3, 6, 8))
    content = (tmp_path / "a.npy").read_bytes()
    assert old in content
    (tmp_path / "a.npy").write_bytes(content.replace(old, new))
    with pytest.raises(UserError, match="a.npy"):
        rasters.read(tmp_path / "a.npy")


def test_a_geotiff_says_why_it_cannot_be_read_and_names_no_other_file(tmp_path):
    file = save_tif(tmp_path / "a.tif", random(3, 64, 64))
    (tmp_path / "link.tif").write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
        f'<SourceFilename>{file}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>')
    with pytest.raises(UserError, match="link.tif cannot be read"):
        rasters.read(tmp_path / "link.tif")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 5000)
    with pytest.raises(UserError, match="a.tif cannot be read.*band .: IReadBlock failed"):
        rasters.read(file)


def test_rasters_that_do_not_fit_together_have_no_statistics(tmp_path):
    np.save(tmp_path / "a.npy", random(3))
    np.save(tmp_path / "b.npy", random(4))
    np.save(tmp_path / "c.npy", np.full((3, 8, 8), np.nan))
    values = random(3)
    values[1] = np.nan
    np.save(tmp_path / "d.npy", values)
    for names, words in ((["a", "b"], "b.npy has 4 channels, but .*a.npy has 3"), (["a", "c"], "c.npy holds no valid"),
                         (["d"], "channel 1 .*no valid value"), ([], "no raster")):
        with pytest.raises(UserError, match=words):
            rasters.fit_statistics([tmp_path / f"{name}.npy" for name in names])


@pytest.mark.parametrize("window", ([0, 0, 4], [[0, 0, 4, 4], None], "all", [0, 0, 4, 4.5]))
def test_a_window_is_four_whole_numbers_for_each_image(window):
    assert records.check_record(record("a.npy", window=window)) == [
        "window must be [row, column, height, width], or a list with one (or null) for each image"]
    assert json.dumps(records.windows(record("a.npy", window=[0, 0, 4, 4]))) == "[[0, 0, 4, 4]]"


def test_a_geotiff_is_scaled_masked_and_turned_as_it_says(tmp_path):
    import rasterio

    values = random(2, 6, 8, np.uint16)
    save_tif(tmp_path / "a.tif", values)
    with rasterio.open(tmp_path / "a.tif", "r+") as out:
        out.scales, out.offsets = (1e-4, 0.5), (-0.1, 0.0)
        out.write_mask(np.arange(48).reshape(6, 8) > 7)
        out.transform = rasterio.Affine(10, 0, 0, 0, 10, 0)
    found = rasters.read(tmp_path / "a.tif")
    expected = (values * np.array([1e-4, 0.5])[:, None, None] + np.array([-0.1, 0])[:, None, None])[:, ::-1]
    assert np.isnan(found[:, -1]).all() and np.allclose(found[:, :-1], expected[:, :-1])
    assert rasters.header(tmp_path / "a.tif").dtype == np.float32


def test_raw_alphaearth_tiles_are_decoded_and_other_int8_rasters_are_not(tmp_path):
    from overlays.samples.satellite import quantise

    vectors = np.random.default_rng(0).standard_normal((64, 6, 8))
    vectors /= np.linalg.norm(vectors, axis=0)
    codes = quantise(vectors)
    codes[:, 0, 0] = -128
    save_tif(tmp_path / "a.tif", codes)
    np.save(tmp_path / "a.npy", codes)
    for name in ("a.tif", "a.npy"):
        found = rasters.read(tmp_path / name)
        assert np.isnan(found[:, 0, 0]).all()
        assert np.allclose(found[:, 1:], vectors[:, 1:], atol=0.01) and abs(np.nanstd(found) - 0.125) < 0.01
    plain = np.random.default_rng(0).integers(-99, 99, (64, 6, 8)).astype(np.int8)
    np.save(tmp_path / "b.npy", plain)
    assert np.array_equal(rasters.read(tmp_path / "b.npy"), plain)
    sparse = np.full((64, 400, 8), -128, np.int8)
    sparse[:, 150:156] = codes
    np.save(tmp_path / "c.npy", np.full_like(sparse, -128))
    assert (rasters.read(tmp_path / "c.npy") == -128).all()
    np.save(tmp_path / "c.npy", sparse)
    assert np.allclose(rasters.read(tmp_path / "c.npy")[:, 151:156], vectors[:, 1:], atol=0.01)


def test_one_band_or_a_centre_that_is_nan_leaves_the_widths(tmp_path):
    import rasterio

    save_tif(tmp_path / "a.tif", random(1, 4, 5))
    with rasterio.open(tmp_path / "a.tif", "r+") as out:
        out.update_tags(1, wavelength="2200", fwhm="10")
    save_envi(tmp_path / "a.hdr", random(1, 4, 5), wavelength=[2.2], fwhm=[0.01], **{"wavelength units": "Micrometers"})
    for name in ("a.tif", "a.hdr"):
        file = rasters.open_raster(tmp_path / name)
        assert file.wavelength_nm == pytest.approx([2200]) and file.fwhm_nm == pytest.approx([10])
    centres = np.linspace(400, 2500, 200)
    centres[5] = np.nan
    _, widths, note = spectral(centres, "nm", np.full(200, 9.4), "nm", "x")
    assert (widths == 9.4).all() and not note
    assert np.allclose(spacing_nm(centres), 2100 / 199)


def test_fill_of_floats_that_no_tag_names_is_no_data(tmp_path):
    values = random(2, 4, 4)
    values[:, 0], values[:, 1, 2] = -3.4e38, -9999
    np.save(tmp_path / "a.npy", values)
    read = rasters.read(tmp_path / "a.npy")
    assert np.isnan(read[:, 0]).all() and np.isnan(read[:, 1, 2]).all() and np.isnan(read).sum() == 2 * 5


def test_a_strange_wavelength_matters_only_to_a_cube(tmp_path):
    header = save_envi(tmp_path / "a.hdr", random(3, 6, 8, np.int16))
    header.write_text(header.read_text() + "wavelength units = Index\nwavelength = { 1, 2, 3 }\n")
    assert rasters.shape(header) == (3, 6, 8)
