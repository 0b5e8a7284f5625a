"""Prepared data are complete, apart by area, rendered alike later, and whole even after a kill."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overlays.domains.cuprite.classes import RULES
from overlays.domains.cuprite.cube import open_cube
from overlays.domains.cuprite.domain import DOMAIN, save_prediction_map
from overlays.domains.cuprite.labellers import NearestLabeller
from overlays.domains.cuprite.prepare import Settings, prepare, render_window
from overlays.errors import UserError
from overlays.files import sha256
from tests.commands import run_script

ROOT = Path(__file__).resolve().parents[3]


def records(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_counts_add_up_and_every_tile_has_three_tasks_in_both_languages(prepared):
    folder, metadata = prepared
    counts = metadata["counts"]
    assert counts["tiles"] == sum(value for name, value in counts.items() if name != "tiles")
    assert counts["dropped_invalid"] > 0 and counts["dropped_buffer"] > 0
    for split in ("train", "val", "test"):
        rows = records(folder, split)
        assert counts[split] > 0 and len(rows) == 6 * counts[split]
        assert {(row["task"], row["language"]) for row in rows} == {
            (task, language) for task in ("alteration", "minerals", "analysis") for language in ("en", "zh")}
        assert {row["split"] for row in rows} == {split} and len({row["group"] for row in rows}) == 1
        assert len({row["id"] for row in rows}) == len(rows)


def test_every_picture_exists_and_has_the_tile_size(prepared):
    folder, metadata = prepared
    named = {path for split in ("train", "val", "test") for row in records(folder, split) for path in row["image"]}
    assert len(named) == 3 * sum(metadata["counts"][split] for split in ("train", "val", "test"))
    assert named == {f"tiles/{path.name}" for path in (folder / "tiles").iterdir()}
    assert Image.open(folder / sorted(named)[0]).size == (16, 16)
    for name in ("composite.png", "label_map.png", "split_map.png"):
        assert min(Image.open(folder / name).size) > 300


def test_no_pixel_is_in_two_splits(prepared):
    folder, metadata = prepared
    owner = np.full(metadata["cube"]["shape"][:2], "", dtype=object)
    for line in (folder / "tiles.jsonl").read_text().splitlines():
        tile = json.loads(line)
        window = owner[tile["row"]:tile["row"] + 16, tile["col"]:tile["col"] + 16]
        assert set(np.unique(window.astype(str))) <= {"", tile["split"]}
        window[:] = tile["split"]
        assert tile["valid"] >= 0.8
    assert min(metadata["buffer_px"].values()) >= 16


def test_targets_are_the_shares_of_the_label_map(prepared):
    folder, _ = prepared
    labels = np.load(folder / "labels.npz", allow_pickle=False)
    rules = NearestLabeller(np.arange(2000.0, 2500, 10), np.full(50, 10.0)).rules
    tile = json.loads((folder / "tiles.jsonl").read_text().splitlines()[40])
    window = np.s_[tile["row"]:tile["row"] + 16, tile["col"]:tile["col"] + 16]
    rule = labels["rule"][window][labels["valid"][window]]
    named = [RULES.get(rules[number], {}) if number >= 0 else {} for number in rule]
    assert tile["shares"]["muscovite"] == pytest.approx(np.mean([parts.get("muscovite", 0) for parts in named]))
    assert sum(tile["rules"].values()) == pytest.approx((rule >= 0).mean(), abs=1e-5)


def test_limits_of_the_stretch_come_from_the_training_area_alone(prepared, scene):
    from overlays.domains.cuprite.cube import open_cube

    _, metadata = prepared
    composite, area = metadata["composites"]["clay"], metadata["areas"]["train"]
    values = open_cube(scene).read(area["row"], area["col"], area["row_stop"] - area["row"],
                                   area["col_stop"] - area["col"], np.array(composite["bands"]))
    values = values[np.isfinite(values).all(-1)]
    np.testing.assert_allclose(composite["limits"], np.percentile(values, (2, 98), axis=0).T, rtol=1e-4)


def test_a_window_of_the_raw_cube_is_rendered_as_in_training(prepared, scene):
    folder, metadata = prepared
    for line in (folder / "tiles.jsonl").read_text().splitlines()[::25]:
        tile = json.loads(line)
        images = render_window(scene, tile["row"], tile["col"], folder / "metadata.json")
        assert list(images) == ["clay", "iron", "natural"]
        for name, image in images.items():
            stored = np.asarray(Image.open(folder / "tiles" / f"{tile['id']}_{name}.png"))
            np.testing.assert_array_equal(np.asarray(image), stored)
    with pytest.raises(UserError, match="rows go from 0 to 104"):
        render_window(scene, 119, 0, metadata)


def test_metadata_names_parameters_bands_and_checksums(prepared, scene):
    folder, metadata = prepared
    assert json.loads((folder / "metadata.json").read_text()) == json.loads(json.dumps(metadata))
    assert metadata["cube"]["files"][1]["sha256"] == sha256(scene.with_suffix(".img"))
    assert len(metadata["bands"]) == 224 and metadata["parameters"]["tile_size"] == 16
    assert sum(metadata["labels"]["rules_won"].values()) > 1000


def test_two_processes_give_the_same_files_as_one(prepared, scene, tmp_path):
    folder, _ = prepared
    prepare(Settings(cube=scene, output=tmp_path / "out", tile_size=16, stride=8, language="both", workers=2))
    for name in ("train.jsonl", "test.jsonl", "tiles.jsonl", "label_map.png"):
        assert sha256(tmp_path / "out" / name) == sha256(folder / name)


def test_labels_of_others_are_taken_as_they_are(scene, tmp_path):
    codes = np.zeros((120, 144), np.uint8)
    codes[:, 100:] = 3
    np.save(tmp_path / "labels.npy", codes)
    settings = Settings(cube=scene, labels=str(tmp_path / "labels.npy"), output=tmp_path / "out", tile_size=16,
                        composites=("natural",), workers=1)
    metadata = prepare(settings)
    rows = records(tmp_path / "out", "test")
    assert all(len(row["image"]) == 1 for row in rows)
    assert {row["target"]["muscovite"] for row in rows} <= {0.0, 1.0} or metadata["areas"]["test"]["col"] < 100
    assert metadata["mineral_shares"]["train"]["alunite"] == 0
    np.save(tmp_path / "labels.npy", codes[1:])
    with pytest.raises(UserError, match="119 x 144 pixels, the cube is 120 x 144"):
        prepare(replace(settings, output=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.filterwarnings("error")
def test_real_aviris_scene(hyperspectral, tmp_path):
    done = run_script("prepare_cuprite.py", "--cube", hyperspectral / "salton_sea_aviris.hdr", "--tile-size", "16",
                      "--workers", "1", "--output", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower()
    counts = json.loads((tmp_path / "out" / "metadata.json").read_text())["counts"]
    assert counts["tiles"] == sum(value for name, value in counts.items() if name != "tiles")
    assert min(counts[split] for split in ("train", "val", "test")) > 0


def test_a_mistake_ends_in_one_sentence_and_status_2(scene, tmp_path):
    done = run_script("prepare_cuprite.py", "--cube", scene, "--tile-size", "110", "--output", tmp_path / "out",
                      cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_kill_in_the_middle_leaves_the_last_good_state_and_a_rerun_works(scene, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    before = {"metadata.json": '{"domain": "cuprite"}', "train.jsonl": "{}"}
    for name, text in before.items():
        (output / name).write_text(text)
    command = [sys.executable, str(ROOT / "scripts" / "prepare_cuprite.py"), "--cube", str(scene), "--tile-size", "16",
               "--output", str(output), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".out.*.tmp")) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert {path.name: path.read_text() for path in output.iterdir()} == before
    prepare(Settings(cube=scene, output=output, tile_size=16, workers=1))
    assert records(output, "train")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_other_files_is_not_replaced(scene, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        prepare(Settings(cube=scene, output=tmp_path, tile_size=16, workers=1))
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("change, words", [
    ({"composites": ("clay", "thermal")}, "--composites"), ({"composites": ()}, "--composites"),
    ({"language": "fr"}, "--language"), ({"min_valid": 1.5}, "--min-valid"), ({"workers": 0}, "--workers"),
    ({"split_fractions": (0.5, 0.2, 0.2)}, "sum to 1")])
def test_wrong_parameters_are_named(scene, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        prepare(Settings(**{"cube": scene, "output": tmp_path / "out", "tile_size": 16, "workers": 1, **change}))




def test_another_cube_is_rendered_with_its_own_scale_and_the_very_cube_with_trainings(prepared, scene, tmp_path):
    folder, metadata = prepared
    metadata = metadata | {"parameters": metadata["parameters"] | {"scale": 20000.0}}
    for name in (scene.name, scene.with_suffix(".img").name):
        shutil.copy(scene.with_name(name), tmp_path / name)
    with (tmp_path / scene.with_suffix(".img").name).open("r+b") as stream:
        stream.write(b"\x01")  # another cube by its checksum

    def clay(cube, **options):
        return np.array(render_window(cube, 20, 40, metadata, **options)["clay"]).mean()

    assert clay(tmp_path / scene.name) > 1.5 * clay(scene)
    assert clay(tmp_path / scene.name, scale=20000) == pytest.approx(clay(scene))


def test_windows_of_a_matlab_matrix_with_a_band_without_a_centre(scene, tmp_path):
    """The prepared matrix is known by its checksum; a copy with other bytes needs the flags."""
    from scipy.io import savemat

    cube = open_cube(scene)
    values = np.nan_to_num(cube.read(0, 0, *cube.shape[:2]))
    rows, cols, bands = values.shape
    centres = cube.wavelength_nm.copy()
    centres[3] = np.nan
    np.save(tmp_path / "bands.npy", centres)
    matrix = values.reshape(-1, bands, order="F").T
    savemat(tmp_path / "a.mat", {"Y": matrix})
    savemat(tmp_path / "b.mat", {"Y": matrix, "Z": matrix})
    settings = Settings(cube=tmp_path / "a.mat", wavelengths=tmp_path / "bands.npy", mat_shape=(rows, cols),
                        output=tmp_path / "out", tile_size=16, workers=1)
    assert prepare(settings)["bands"][3]["wavelength_nm"] is None
    file = tmp_path / "out" / "metadata.json"
    tile = json.loads((tmp_path / "out" / "tiles.jsonl").read_text().splitlines()[0])
    place = tile["row"], tile["col"]
    own = render_window(tmp_path / "a.mat", *place, file)
    other = render_window(tmp_path / "b.mat", *place, file, wavelengths=tmp_path / "bands.npy", mat_variable="Z",
                          mat_shape=(rows, cols))
    for name in ("clay", "iron", "natural"):
        stored = np.array(Image.open(tmp_path / "out" / "tiles" / f"{tile['id']}_{name}.png"))
        assert np.array_equal(own[name], stored) and np.array_equal(other[name], stored)
    with pytest.raises(UserError, match="belong to a MATLAB cube"):
        open_cube(scene, mat_variable="Z")


def test_a_cube_of_short_wave_infrared_alone_is_prepared_on_what_it_has(scene, tmp_path):
    text = scene.read_text()
    good = [float(x) > 1990 for x in re.search(r"wavelength = {([^}]*)}", text)[1].split(",")]
    bbl = "bbl = {" + ", ".join("01"[keep] for keep in good) + "}"
    (tmp_path / "swir.hdr").write_text(re.sub(r"bbl = {[^}]*}", bbl, text))
    (tmp_path / "swir.img").symlink_to(scene.with_suffix(".img"))
    metadata = prepare(Settings(cube=tmp_path / "swir.hdr", output=tmp_path / "out", tile_size=16, workers=1,
                                channels="all"))
    assert list(metadata["composites"]) == ["swir"] and metadata["iron_share"] is None
    assert (tmp_path / "out" / "projection_swir.npy").is_file()
    assert any("swir" in line for line in DOMAIN.summary(metadata, tmp_path / "out"))


def test_a_georeferenced_scene_has_maps(prepared):
    import rasterio

    folder, metadata = prepared
    labels = np.load(folder / "labels.npz")
    assert metadata["georeference"]["transform"][:3] == [15.5, 0.0, 494000.0]
    with rasterio.open(folder / "labels.tif") as found:
        assert found.crs.to_epsg() == 32611
        np.testing.assert_array_equal(found.read(1), np.where(labels["valid"], labels["codes"], 255))
    with rasterio.open(folder / "confidence.tif") as found:
        np.testing.assert_allclose(found.read(1)[labels["valid"]], labels["confidence"][labels["valid"]])
    with sqlite3.connect(folder / "tiles.gpkg") as data:
        assert data.execute("SELECT count(*), sum(split = 'test') FROM tiles").fetchone() == (
            sum(metadata["counts"][name] for name in ("train", "val", "test")), metadata["counts"]["test"])
    assert (folder / "clay_index.png").is_file()


def test_predictions_are_laid_on_the_map(prepared, tmp_path):
    import rasterio

    folder, _ = prepared
    rows = [{**{key: record[key] for key in ("id", "task", "language", "target")}, "question": "", "image": [],
             "answer": (text := record["conversations"][-1]["value"]), "prediction": text}
            for record in records(folder, "test")]
    save_prediction_map(rows, folder, tmp_path)
    with rasterio.open(tmp_path / "predicted_share.tif") as one, rasterio.open(tmp_path / "target_share.tif") as other:
        values = one.read(1)
        np.testing.assert_array_equal(values, other.read(1))
    tile = next(json.loads(line) for line in (folder / "tiles.jsonl").open() if '"test"' in line)
    assert np.isfinite(values[tile["row"], tile["col"]]) and np.isnan(values[0, 0])
    with sqlite3.connect(tmp_path / "predictions.gpkg") as data:
        assert data.execute("SELECT count(*), min(right) FROM predictions").fetchone() == (len(rows), 1)


def test_predictions_of_a_swath_need_its_lookup_table_for_a_map(prepared, tmp_path, caplog):
    folder = tmp_path / "data"
    shutil.copytree(prepared[0], folder)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["georeference"]["lookup_table"] = str(tmp_path / "emit.nc")
    (folder / "metadata.json").write_text(json.dumps(metadata))
    row = {**records(folder, "test")[0], "question": "", "image": [], "answer": "", "prediction": ""}
    save_prediction_map([row], folder, tmp_path)
    assert "emit.nc" in caplog.text and not (tmp_path / "predictions.gpkg").exists()


def test_prepared_data_are_verified_in_seven_steps(prepared, tmp_path, capsys):
    from overlays import check

    folder = tmp_path / "data"
    shutil.copytree(prepared[0], folder)
    check.main(["--prepared", str(folder)])
    out = capsys.readouterr().out
    assert all(f"{step}: ok" in out for step in ("metadata", "splits", "records", "media", "separation", "answers",
                                                 "balance"))
    assert "0 bad" in out
    rows = records(folder, "test")
    rows[0]["group"] = records(folder, "train")[0]["group"]
    rows[1]["conversations"][-1]["value"] = "who knows"
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="fails at separation, answers"):
        check.main(["--prepared", str(folder)])
    assert "is in test and train" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no prepared data"):
        check.main(["--prepared", str(tmp_path)])
