"""Mineral tiles as rasters of all good bands: what is written, what a model is started from, what is shown."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from overlays import paths
from overlays.data import rasters
from overlays.domains.base import data_of
from overlays.domains.cuprite.cube import open_cube
from overlays.domains.cuprite.domain import visible
from overlays.domains.cuprite.prepare import Settings, prepare, window_raster
from overlays.errors import UserError
from overlays.files import write_json

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def all_bands(scene, tmp_path_factory):
    """(folder, metadata) of the small scene as rasters, labelled by a map so that it is quick."""
    folder = tmp_path_factory.mktemp("all") / "cuprite_all"
    codes = np.zeros((120, 144), np.uint8)
    codes[:, 50:] = 3
    np.save(folder.parent / "labels.npy", codes)
    return folder, prepare(Settings(cube=scene, labels=str(folder.parent / "labels.npy"), output=folder, tile_size=16,
                                    stride=16, channels="all", workers=1))


def tiles(folder, split):
    rows = [json.loads(line) for line in (folder / "tiles.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def test_a_tile_is_the_reflectance_of_its_good_bands(all_bands, scene):
    folder, metadata = all_bands
    good = np.flatnonzero([not band["skip_reason"] for band in metadata["bands"]])
    cube = open_cube(scene)
    for tile in tiles(folder, "train")[::7]:
        found = rasters.read(folder / "tiles" / f"{tile['id']}.npy")
        expected = cube.read(tile["row"], tile["col"], 16, 16, good).transpose(2, 0, 1)
        valid = np.isfinite(found)
        assert found.shape == (len(good), 16, 16) and valid.mean() == pytest.approx(tile["valid"])
        assert np.allclose(found[valid], expected[valid], rtol=1e-3, atol=1e-6)
        assert np.array_equal(window_raster(scene, tile["row"], tile["col"], metadata).astype(np.float32), found,
                              equal_nan=True)


def test_a_record_shows_one_raster_and_asks_what_it_asked_before(all_bands, scene):
    folder, _ = all_bands
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3 * len(tiles(folder, "train"))
    assert all(row["image"] == [f"tiles/{row['id'].rpartition('-')[0]}.npy"] for row in rows)
    assert rows[0]["conversations"][0]["value"].startswith("<image>\nOne tile of a hyperspectral scene.\n")


def test_the_projection_picks_the_bands_of_the_composite(all_bands):
    folder, metadata = all_bands
    wavelength = np.array([band["wavelength_nm"] for band in metadata["bands"] if not band["skip_reason"]])
    for name, expected in (("clay", (2200, 2100, 1650)), ("natural", (660, 550, 470))):
        projection = np.load(folder / f"projection_{name}.npy")
        assert projection.shape == (3, len(wavelength)) and projection.sum(1).tolist() == [1, 1, 1]
        assert np.allclose(projection @ wavelength, expected, atol=8)


def test_a_cube_with_other_bands_cannot_be_read_by_a_model_of_all_bands(all_bands, scene):
    _, metadata = all_bands
    with pytest.raises(UserError, match="has other bands than the cube that training used"):
        window_raster(scene, 0, 16, metadata | {"bands": metadata["bands"][:-1]})
    with pytest.raises(UserError, match="--channels must be composites or all"):
        prepare(Settings(cube=scene, channels="some"))


def test_evaluation_finds_the_data_of_a_run_and_what_can_be_looked_at(all_bands, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PREPARED", tmp_path / "prepared")
    write_json(tmp_path / "run" / "run.json", {"data": {"train": [{"name": "cuprite_all_train", "sha256": ""}]}})
    assert data_of(tmp_path / "run", "cuprite") == tmp_path / "prepared" / "cuprite"
    for name in ("metadata.json", "train.jsonl"):
        (tmp_path / "prepared" / "cuprite_all").mkdir(parents=True, exist_ok=True)
        shutil.copy(all_bands[0] / name, tmp_path / "prepared" / "cuprite_all")
    assert data_of(tmp_path / "run", "cuprite") == tmp_path / "prepared" / "cuprite_all"
    raster = next((all_bands[0] / "tiles").glob("*.npy"))
    assert [file.name for file in visible(raster)] == [f"{raster.stem}_{name}.png"
                                                       for name in ("clay", "iron", "natural")]


def test_the_launcher_of_all_bands_starts_from_the_clay_composite():
    environment = os.environ | {"CHANNELS": "all", "DRY_RUN": "1", "MODEL_PATH": "some/model", "PYTHON": sys.executable}
    printed = subprocess.run(["bash", "scripts/train_cuprite_single_gpu.sh", "--seed", "7"], cwd=ROOT, text=True,
                             capture_output=True, env=environment, check=True).stdout
    command = printed.splitlines()[-1]
    for words in ("--dataset_use cuprite_all_train", "--eval_dataset cuprite_all_val", "--channel_init project",
                  "--channel_projection data/prepared/cuprite_all/projection_clay.npy", "--seed 7"):
        assert words in command
