import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from overlays.data import records
from overlays.data.encodings import dequantise
from overlays.domains.satellite.pca import compute, load, prepare_rgb
from overlays.domains.satellite.prepare import Settings, prepare
from overlays.errors import UserError
from overlays.samples.satellite import quantise


def read_all(folder):
    return {name: list(records.read(folder / f"{name}.jsonl")) for name in ("train", "val", "test")}


def world(folder, write_tile, codes, cities=6):
    """Tiles and a table of so many cities."""
    for number in range(cities):
        write_tile(folder / "tiles" / f"city{number}.tif", codes(number))
    rows = "".join(f"City {number},{number / 4}\n" for number in range(cities))
    (folder / "labels.csv").write_text(f"city,growth\n{rows}")
    return Settings(tiles=folder / "tiles", labels=folder / "labels.csv", output=folder / "out",
                    split_fractions=(0.5, 0.25, 0.25))


def test_records_are_sound_and_hold_the_label(prepared):
    folder, metadata = prepared
    splits = read_all(folder)
    rows = [row for part in splits.values() for row in part]
    assert [len(part) for part in splits.values()] == [metadata["counts"][name] for name in splits]
    assert len(rows) == 24 and not any(records.check_record(row, folder) for row in rows)
    groups = [{row["group"] for row in part} for part in splits.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    for row in rows:
        said = row["conversations"][1]["value"]
        assert float(said) == pytest.approx(row["target"]["population_growth"], abs=0.005)
        assert row["image"].endswith(".npy") and len(row["lonlat"]) == 2


def test_arrays_are_the_decoded_tiles(prepared, cities):
    import rasterio

    folder, _ = prepared
    means = np.load(folder / "means.npz")
    for row in [row for part in read_all(folder).values() for row in part][:12]:
        with rasterio.open(cities / row["source"]) as file:
            stored = file.read()
            expected = dequantise(stored[:, ::-1] if file.transform.e > 0 else stored)
        found = np.load(folder / row["image"])
        assert found.dtype == np.float16 and np.nanmax(np.abs(found - expected)) < 1e-3
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        assert np.allclose(means[row["id"]], np.nanmean(expected, (1, 2)), atol=1e-5)
        assert row["valid_share"] == pytest.approx(np.isfinite(expected[0]).mean(), abs=1e-4)


def test_the_sample_counts_what_does_not_match(prepared):
    metadata = prepared[1]
    assert {(row["what"], row["reason"]) for row in metadata["dropped"]} == {
        ("tile", "no label for it"), ("label", "no tile for it")}
    assert metadata["channels"] == 64 and 0 < metadata["ceiling"]["train"] < 1


def test_the_split_depends_on_names_and_seed_alone(cities, prepared, tmp_path):
    again = prepare(Settings(tiles=cities, output=tmp_path / "again"))
    assert again["counts"] == prepared[1]["counts"]
    assert read_all(tmp_path / "again") == read_all(prepared[0])
    prepare(Settings(tiles=cities, output=tmp_path / "other", seed=1))
    assert read_all(tmp_path / "other")["test"] != read_all(prepared[0])["test"]


def test_every_drop_is_counted_and_listed(write_tile, codes, tmp_path):
    settings = world(tmp_path, write_tile, codes)
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("Few,1\nEmpty,2\nHoles,3\nAbsent,4\nWordy,many\n")
    write_tile(settings.tiles / "few.tif", codes(bands=4))
    write_tile(settings.tiles / "empty.tif", np.full((8, 6, 5), -128, np.int8))
    holes = codes(9)
    holes[:, 2:] = -128
    write_tile(settings.tiles / "holes.tif", holes)
    write_tile(settings.tiles / "stranger.tif", codes(10))
    metadata = prepare(settings)
    found = {(row["what"], row["name"]): row["reason"] for row in metadata["dropped"]}
    assert found == {
        ("tile", "few.tif"): "4 bands, the others have 8", ("tile", "empty.tif"): "no pixel with data",
        ("tile", "holes.tif"): "data in only 33% of its pixels", ("tile", "stranger.tif"): "no label for it",
        ("label", "Few"): "its tiles were left out", ("label", "Empty"): "its tiles were left out",
        ("label", "Holes"): "its tiles were left out", ("label", "Absent"): "no tile for it",
        ("label", "Wordy"): "no number in column growth: 'many'"}
    assert metadata["counts"]["dropped_tiles"] == 4 and metadata["counts"]["dropped_labels"] == 5
    assert metadata["counts"]["tiles"] == 6 == len(list((settings.output / "tiles").iterdir()))


def test_a_tile_without_data_is_dropped_and_a_hidden_file_is_none(write_tile, codes, tmp_path):
    settings = replace(world(tmp_path, write_tile, codes), min_valid=0.0)
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("Empty,2\nZero,3\nFile,4\n")
    write_tile(settings.tiles / "empty.tif", np.full((8, 6, 5), -128, np.int8))
    write_tile(settings.tiles / "zero.tif", np.zeros((8, 6, 5), np.int8))
    write_tile(settings.tiles / "file.tif", codes(9))  # np.savez has an argument of that name
    for name in ("._city1.tif", ".city2.1234.tmp.tif", ".trash/city3.tif"):
        (settings.tiles / name).parent.mkdir(exist_ok=True)
        (settings.tiles / name).write_bytes(b"none")
    metadata = prepare(settings)
    assert {(row["name"], row["reason"]) for row in metadata["dropped"] if row["what"] == "tile"} == {
        ("empty.tif", "no pixel with data"), ("zero.tif", "no pixel with data")}
    assert metadata["counts"]["tiles"] == 7 == len(np.load(settings.output / "means.npz").files)


@pytest.mark.parametrize("change, words", [
    ({"min_valid": 1.5}, "--min-valid"), ({"min_valid": float("nan")}, "--min-valid"), ({"decimals": -1}, "--decimals"),
    ({"seed": -1}, "--seed"), ({"split_fractions": (0, 0.5, 0.5)}, "nothing to train on")])
def test_settings_that_make_no_sense_are_refused(change, words, write_tile, codes, tmp_path):
    with pytest.raises(UserError, match=words):
        prepare(replace(world(tmp_path, write_tile, codes), **change))


def test_only_the_samples_own_labels_have_a_ceiling(cities, tmp_path):
    rows = json.loads((cities / "truth.json").read_text())["signal"]
    names = list(rows)
    few = "".join(f"{name},{number}\n" for number, name in enumerate(names[:4]))
    for text, known in ((f"city,population_growth\n{few}", True), (f"city,area\n{few}", False),
                        (f"city,population_growth\n{few.upper()}", False)):
        (tmp_path / "labels.csv").write_text(text)
        found = prepare(Settings(tiles=cities, labels=tmp_path / "labels.csv", output=tmp_path / "out"))["ceiling"]
        assert set(found or {}) <= {"train"} and (found is not None) == known  # one city in val and in test has no R2


def test_decoded_tiles_are_taken_and_nan_is_no_data(write_tile, codes, tmp_path):
    settings = world(tmp_path, write_tile, codes)
    values = dequantise(codes(3))
    values[0, 1, 1] = np.nan
    write_tile(settings.tiles / "city3.tif", values)
    metadata = prepare(settings)
    found = np.load(settings.output / "tiles" / "city3.npy")
    assert np.isnan(found[:, 1, 1]).all() and np.isnan(found).sum() == 8
    assert np.nanmax(np.abs(found - values)) < 1e-3
    assert metadata["counts"]["partly_empty"] == 1


@pytest.mark.parametrize("values, words", [
    (lambda codes: (dequantise(codes) * 2.5).astype(np.float32), r"length 2\.50 where embeddings have 1: decode it"),
    (lambda codes: quantise(dequantise(codes) ** 2), "these int8 values are not codes"),
    (lambda codes: codes.astype(np.int16), "holds int16: embeddings are int8 codes")])
def test_values_that_are_no_embeddings_stop(values, words, write_tile, codes, tmp_path):
    settings = world(tmp_path, write_tile, codes)
    write_tile(settings.tiles / "city2.tif", values(codes(2)))
    with pytest.raises(UserError, match=words):
        prepare(settings)
    assert not settings.output.exists()


def test_inputs_that_are_missing_are_one_sentence(write_tile, codes, tmp_path):
    settings = world(tmp_path, write_tile, codes)
    with pytest.raises(UserError, match="no folder of tiles"):
        prepare(Settings(tiles=tmp_path / "none", output=settings.output))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="holds no GeoTIFF"):
        prepare(Settings(tiles=tmp_path / "bare", labels=settings.labels, output=settings.output))
    (tmp_path / "foreign.csv").write_text("city,growth\nX,1\nY,2\n")
    with pytest.raises(UserError, match="only 0 cities have both .* tiles are named like city0.tif, cities like X"):
        prepare(Settings(tiles=settings.tiles, labels=tmp_path / "foreign.csv", output=settings.output))
    with pytest.raises(UserError, match=r"holds 2 tables \(foreign.csv, labels.csv\)"):
        prepare(Settings(tiles=settings.tiles, output=settings.output))


def test_pca_is_fitted_on_the_training_split_alone(prepared):
    from overlays.data.rasters import fit_statistics

    folder = prepared[0]
    pca = compute(folder)
    files = [folder / row["image"] for row in read_all(folder)["train"]]
    pixels = np.concatenate([np.load(file).astype(np.float64).reshape(64, -1).T for file in files])
    pixels = pixels[np.isfinite(pixels).all(1)]
    values, axes = np.linalg.eigh(np.cov(pixels.T))
    assert np.allclose(np.abs(np.sum(pca.components * axes[:, :-4:-1].T, 1)), 1, atol=1e-2)
    assert np.allclose(pca.explained, values[:-4:-1] / values.sum(), atol=1e-3)
    mean, std = fit_statistics(files)
    assert np.allclose(pca.mean, mean, atol=1e-6) and np.allclose(pca.std, std, rtol=1e-5)


def test_a_damaged_prepared_folder_is_one_sentence(prepared, tmp_path):
    compute(prepared[0])
    first = read_all(prepared[0])["train"][0]["image"]

    def damaged(name, size):
        folder = shutil.copytree(prepared[0], tmp_path / "damaged", dirs_exist_ok=True)
        with (folder / name).open("r+b") as file:
            file.truncate(size)
        return folder

    with pytest.raises(UserError, match=f"{first} is no raster that can be read"):
        compute(damaged(first, 5000))
    with pytest.raises(UserError, match=f"{first} is no raster that can be read"):
        prepare_rgb(tmp_path / "damaged", tmp_path / "rgb")
    with pytest.raises(UserError, match="pca.npz is not a PCA"):
        prepare_rgb(damaged("pca.npz", 1000), tmp_path / "rgb")
    with pytest.raises(UserError, match="metadata.json is damaged"):
        compute(damaged("metadata.json", 10))
    (tmp_path / "damaged" / "metadata.json").write_text('{"domain": "scenes"}')
    with pytest.raises(UserError, match="holds other data than the domain satellite prepares"):
        compute(tmp_path / "damaged")
    shutil.copytree(prepared[0], tmp_path / "damaged", dirs_exist_ok=True)
    (tmp_path / "damaged" / first).unlink()
    with pytest.raises(UserError, match=f"{first} is no raster that can be read"):
        compute(tmp_path / "damaged")
    assert not (tmp_path / "rgb").exists()


def test_three_components_need_three_bands(write_tile, tmp_path):
    settings = world(tmp_path, write_tile, lambda seed: quantise(np.full((2, 6, 5), 0.5**0.5)))
    prepare(settings)
    with pytest.raises(UserError, match="have 2 bands"):
        compute(settings.output)


def test_the_projection_gives_the_pictures_colours(prepared):
    from overlays.model.channels import read_projection

    folder = prepared[0]
    pca = compute(folder)
    matrix = read_projection(folder / "pca_projection.npy").numpy()
    values = np.load(folder / read_all(folder)["train"][0]["image"]).astype(np.float64)
    normalised = (values - pca.mean[:, None, None]) / pca.std[:, None, None]
    shown = np.tensordot(matrix, normalised, 1)  # -1..1, up to a constant for each component
    colours = pca.picture(values).transpose(2, 0, 1) / 127.5 - 1
    inside = (colours > -0.99) & (colours < 0.99) & np.isfinite(shown)
    for band in range(3):
        difference = (shown - colours)[band][inside[band]]
        assert difference.std() < 0.005


def test_rgb_pictures_keep_records_and_labels(prepared, tmp_path):
    from PIL import Image

    folder = prepared[0]
    metadata = prepare_rgb(folder, tmp_path / "rgb")
    assert metadata["channels"] == 3 and len(metadata["pca"]["explained_variance"]) == 3
    arrays, pictures = read_all(folder), read_all(tmp_path / "rgb")
    for name in arrays:
        for row, other in zip(arrays[name], pictures[name], strict=True):
            assert other == row | {"image": row["image"].replace(".npy", ".png")}
            values, shown = np.load(folder / row["image"]), np.asarray(Image.open(tmp_path / "rgb" / other["image"]))
            assert shown.shape == (*values.shape[1:], 3) and not shown[np.isnan(values[0])].any()
    assert json.loads((tmp_path / "rgb" / "metadata.json").read_text())["target"] == metadata["target"]
    with pytest.raises(UserError, match="holds pictures, not arrays"):
        compute(tmp_path / "rgb")
    with pytest.raises(UserError, match="is not a PCA"):
        load(folder / "means.npz")


@pytest.mark.parametrize("fill", [-1.0, -9999.0, -3.4e38])
def test_fill_that_no_tag_names_is_no_data(fill, write_tile, codes, tmp_path):
    settings = world(tmp_path, write_tile, codes)
    values = dequantise(codes(3))
    values[:, 1] = fill
    values[:, 0, 0] *= 1.3  # an embedding has length 1
    write_tile(settings.tiles / "city3.tif", values)
    prepare(settings)
    found = np.load(settings.output / "tiles" / "city3.npy")
    assert np.isnan(found[:, 1]).all() and np.isnan(found[:, 0, 0]).all() and np.isfinite(found[:, 2:]).all()
    mean = np.load(settings.output / "means.npz")["city3"]
    assert np.abs(mean).max() < 1


def test_other_embeddings_have_encodings(write_tile, codes, tmp_path):
    rng = np.random.default_rng(0)
    clay = rng.normal(0, 5, (1024, 6, 5)).astype("f4")
    settings = world(tmp_path, lambda path, values: write_tile(path, clay), codes)
    with pytest.raises(UserError, match="--encoding float"):
        prepare(settings)
    assert prepare(replace(settings, encoding="float"))["channels"] == 1024
    settings = replace(world(tmp_path / "tessera", lambda path, values: write_tile(
        path, rng.integers(-99, 99, (128, 6, 5)).astype(np.int8), nodata=None), codes), encoding="tessera")
    with pytest.raises(UserError, match="no scale: put its scales beside it as city0_scales.tif"):
        prepare(settings)
    for tile in list(settings.tiles.glob("*.tif")):
        write_tile(tile.with_name(f"{tile.stem}_scales.tif"), np.full((1, 6, 5), 0.02, "f4"))
    assert prepare(settings)["channels"] == 128
    found = np.load(settings.output / "tiles" / "city0.npy")
    assert 0.5 < np.nanstd(found) < 1.5
    for file in list(settings.tiles.glob("*_scales.tif")):  # as TESSERA publishes them
        file.unlink()
        np.save(file.with_suffix(".npy"), np.full((6, 5), 0.02, "f4"))
    assert prepare(settings)["channels"] == 128
    np.testing.assert_array_equal(np.load(settings.output / "tiles" / "city0.npy"), found)


def test_what_training_cannot_use_is_listed(write_tile, codes, tmp_path):
    settings = world(tmp_path, write_tile, codes)
    long = codes(2)[:, :1, :1].repeat(900, 2)
    long[:, :, ::2] = codes(3)[:, :1, :1]
    write_tile(settings.tiles / "city2.tif", long)
    reasons = {row["name"]: row["reason"] for row in prepare(settings)["dropped"]}
    assert reasons["city2.tif"] == "1 x 900 pixels: training takes no side above 200 times the other"


def test_tiles_with_too_few_valid_pixels_are_said_to_be_that(write_tile, codes, tmp_path):
    def half(path, values):
        values[:, 2:] = -128
        return write_tile(path, values)

    with pytest.raises(UserError, match="6 tiles have too few valid pixels .*, see --min-valid"):
        prepare(world(tmp_path, half, codes))


def test_tiles_that_are_left_out_for_their_shape_are_said_to_be_that(write_tile, codes, tmp_path):
    def long(path, values):
        return write_tile(path, np.repeat(values[:, :1, :1], 900, 2))

    with pytest.raises(UserError, match="6 tiles were left out, the first because of 1 x 900 pixels"):
        prepare(world(tmp_path, long, codes))


def test_decimals_that_merge_most_labels_are_refused(write_tile, codes, tmp_path):
    settings = world(tmp_path, write_tile, codes)
    (tmp_path / "labels.csv").write_text("city,growth\n" + "".join(f"City {i},0.00{i}\n" for i in range(6)))
    with pytest.raises(UserError, match="--decimals 2 leaves 2 different answers to 6 different labels|leaves 1"):
        prepare(settings)
    prepare(replace(settings, decimals=3))


def test_statistics_of_codes_do_not_normalise_decoded_values(tmp_path, tiny_model_dir):
    from overlays.data import rasters
    from overlays.model.load import load_processor

    processor = load_processor(tiny_model_dir("qwen3_vl"))
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(0, 0.09, (4, 8, 8)).astype("f4"))
    rasters.set_statistics(processor, np.zeros(4), np.full(4, 30.0))
    assert "deviation 30" in rasters.misfit(processor, [(tmp_path / "a.npy", None)])
    rasters.set_statistics(processor, np.zeros(4), np.full(4, 0.1))
    assert rasters.misfit(processor, [(tmp_path / "a.npy", None)]) == ""
