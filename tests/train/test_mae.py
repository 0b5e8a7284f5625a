"""The pretraining entry: flags, rasters, held-out tiles, resume, and the checkpoint that plain transformers loads."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from overlays.data import rasters, tiles
from overlays.errors import UserError
from overlays.train import arguments, mae
from overlays.train.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = 6


def write_tiles(folder, count: int, channels: int = CHANNELS, side: int = 64):
    """Smooth rasters whose channels go together, so that there is something to fill in."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        slope = rng.standard_normal((channels, 2))
        y, x = np.mgrid[:side, :side] / side
        array = slope[:, :1, None] * y + slope[:, 1:, None] * x + 3 + rng.standard_normal(channels)[:, None, None]
        np.save(folder / f"tile{number}.npy", array.astype(np.float16))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiles(tmp_path_factory.mktemp("mae") / "rasters", 10)


def words(model, data, output, *more: str) -> list[str]:
    return [
        "--model_name_or_path", str(model), "--dataset_use", str(data), "--output_dir", str(output), "--min_pixels",
        "4096", "--max_pixels", "4096", "--decoder_dim", "32", "--decoder_depth", "1", "--decoder_heads", "2",
        "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0", "--report_to", "none", "--disable_tqdm",
        "True", "--learning_rate", "1e-3", "--logging_steps", "1", "--eval_share", "0.2", "--seed", "7", *more,
    ]


def parse(words):
    return arguments.parse(words, arguments.MAE)


def flags(*more: str):
    return parse(words("model", "data", "out", *more))


def test_flags_come_from_a_yaml_file_and_later_ones_override_it(tmp_path):
    file = tmp_path / "mae.yaml"
    file.write_text(yaml.safe_dump({"model_name_or_path": "model", "dataset_use": "a,b", "mask_ratio": 0.6,
                                    "num_train_epochs": 3}))
    model, data, training = parse([str(file), "--mask_ratio", "0.5"])
    assert (model.mask_ratio, data.dataset_use, training.num_train_epochs) == (0.5, "a,b", 3)
    assert training.lr_scheduler_type == "cosine" and model.decoder_dim == 512 and model.decoder_depth == 4


@pytest.mark.parametrize("more, sentence", [
    (["--mask_ration", "0.5"], "unknown flag --mask_ration; did you mean --mask_ratio?"),
    (["--mask_ratio", "1"], "--mask_ratio must be above 0 and below 1"),
    (["--encoder", "head"], "--encoder: invalid choice: 'head' .choose from 'full', 'patch_embed'"),
    (["--decoder_dim", "30"], "--decoder_dim must be a multiple of 4"),
    (["--dataset_use", ""], "no rasters are given"),
    (["--lora_r", "8"], "unknown flag --lora_r"),
])
def test_mistakes_in_flags_are_one_sentence(more, sentence):
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        flags(*more)


def test_a_place_without_rasters_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no rasters"):
        tiles.find(str(tmp_path / "empty"))
    (tmp_path / "rgb.jsonl").write_text(json.dumps({"image": "a.png", "conversations": []}) + "\n")
    with pytest.raises(UserError, match=r"rgb.jsonl holds no rasters"):
        tiles.find(str(tmp_path / "rgb.jsonl"))
    with pytest.raises(UserError, match="unknown data set"):
        tiles.find("satelite_train")


def test_records_and_folders_give_each_raster_once_and_windows_apart(tmp_path):
    write_tiles(tmp_path / "t", 3)
    rows = [{"image": "t/tile1.npy"}, {"image": "t/tile0.npy"}, {"image": "t/tile1.npy"},
            {"image": "t/tile1.npy", "window": [0, 0, 32, 32]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tiles.find(f"{tmp_path / 'a.jsonl'},{tmp_path / 't'}")
    assert [(s.path.stem, s.window) for s in found] == [
        ("tile1", None), ("tile0", None), ("tile1", (0, 0, 32, 32)), ("tile2", None)]


def test_rasters_that_do_not_fit_stop_the_run_or_are_listed(tmp_path):
    write_tiles(tmp_path, 3)
    np.save(tmp_path / "void.npy", np.full((CHANNELS, 64, 64), np.nan, np.float16))
    sources = tiles.find(str(tmp_path))
    kept, dropped, channels = tiles.check(sources)
    assert len(kept) == 3 and channels == CHANNELS
    assert dropped == [{"file": str(tmp_path / "void.npy"), "reason": "no pixel holds data"}]
    np.save(tmp_path / "other.npy", np.zeros((3, 64, 64), np.float32))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    sources = tiles.find(str(tmp_path))
    with pytest.raises(UserError, match="torn.npy"):
        tiles.check(sources)
    kept, dropped, _ = tiles.check(sources, "skip")
    assert len(kept) == 3 and len(dropped) == 3
    (tmp_path / "torn.npy").unlink()
    with pytest.raises(UserError, match="other.npy: it has 3 channels where 6 are needed"):
        tiles.check(tiles.find(str(tmp_path)))


def test_hidden_files_and_projections_are_no_tiles(tmp_path):
    write_tiles(tmp_path / "tiles", 2)
    write_tiles(tmp_path / ".data.1234.tmp", 1)
    (tmp_path / "tiles" / "._tile0.npy").write_bytes(b"\0\5\x16\7")
    for name in ("pca_projection.npy", "projection_clay.npy"):
        np.save(tmp_path / name, np.zeros((3, CHANNELS), np.float32))
    write_tiles(tmp_path / "own", 1)
    (tmp_path / "own" / "tile0.npy").rename(tmp_path / "own" / "projection_1.npy")  # a raster by that name
    assert [source.path.name for source in tiles.find(str(tmp_path))] == ["projection_1.npy", "tile0.npy", "tile1.npy"]


def test_rasters_too_long_for_a_processor_are_found_before_training(tmp_path, processor):
    array = np.random.default_rng(0).standard_normal((CHANNELS, 2, 390)).astype(np.float32)
    for number in range(60):  # some crops would be 1 x 234
        tiles.frames_of(tiles.augment(array, np.random.default_rng(number)), processor)
    np.save(tmp_path / "a.npy", array[:, :1])
    np.save(tmp_path / "b.npy", array)
    sources = tiles.find(str(tmp_path))
    with pytest.raises(UserError, match="a.npy: it has 1 x 390 pixels, and no side may be above 200 times the other"):
        tiles.check(sources)
    kept, dropped, _ = tiles.check([*sources, tiles.Source(tmp_path / "b.npy", (0, 0, 1, 300))], "skip")
    assert [source.path.name for source in kept] == ["b.npy"] and len(dropped) == 2


def test_held_out_files_are_apart_and_the_same_for_a_seed(folder):
    sources = tiles.find(str(folder))
    train, held = tiles.hold_out(sources, 0.3, seed=1)
    assert len(held) == 3 and not set(train) & set(held) and sorted(train + held) == sorted(sources)
    assert (train, held) == tiles.hold_out(sources, 0.3, seed=1) != tiles.hold_out(sources, 0.3, seed=2)


@pytest.fixture(scope="module")
def processor(tiny_model_dir):
    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.model import load

    own = load.load_processor(tiny_model_dir("qwen3_vl"))
    apply_resolution(own, MediaOptions(min_pixels=4096, max_pixels=4096))
    rasters.set_statistics(own, np.arange(CHANNELS), np.arange(CHANNELS) + 1.0)
    return own


def test_frames_are_the_processors_patches_without_their_copies_in_time(processor):
    array = np.random.default_rng(0).standard_normal((CHANNELS, 48, 48)).astype(np.float32)
    frames, grid = tiles.frames_of(array, processor)
    plain, plain_grid = rasters.patches(array, processor)
    copies = frames.unflatten(1, (CHANNELS, 1, 256)).expand(-1, -1, 2, -1).flatten(1)
    assert torch.equal(copies, plain) and torch.equal(grid, plain_grid[0])


def test_places_without_data_are_nan_wherever_they_take_part_after_resizing(processor):
    array = np.random.default_rng(0).standard_normal((CHANNELS, 32, 32)).astype(np.float32)  # resized to 64 x 64
    array[:, :8] = np.nan
    array[2, 20, 20] = np.nan  # in one channel alone
    frames, grid = tiles.frames_of(array, processor)
    image = torch.empty(4, 4, CHANNELS, 16, 16)
    from transformers.vision_utils import get_vision_position_ids

    row, column = get_vision_position_ids(grid[None], 2).unbind(1)
    image[row, column] = frames.unflatten(1, (CHANNELS, 16, 16))
    missing = image.permute(2, 0, 3, 1, 4).reshape(CHANNELS, 64, 64).isnan()
    assert missing[:, :16].all() and not missing[:, 22:][[0, 1, 3, 4, 5]].any()
    assert missing[2, 38:44, 38:44].any() and 1 <= int(missing[2, 22:].sum()) <= 81


def test_places_without_data_are_found_whatever_the_channels_mean_and_spread(tiny_model_dir):
    from overlays.model import load

    own = load.load_processor(tiny_model_dir("qwen3_vl"))
    shares = []
    for mean, std in ((0.0, 1.0), (1e4, 0.01)):
        array = mean + std * np.random.default_rng(0).standard_normal((2, 60, 60))
        array[:, :10, :10] = np.nan
        rasters.set_statistics(own, [mean, mean], [std, std])
        frames, _ = tiles.frames_of(array.astype(np.float32), own)
        shares.append(float(frames.isnan().float().mean()))
    assert shares[0] == shares[1] < 0.06


def test_samples_depend_on_seed_epoch_and_number_alone(folder, processor):
    sources = tiles.find(str(folder))
    one, two = (tiles.Tiles(sources, processor, seed=3, augment=True, samples_per_file=2) for _ in range(2))
    assert len(one) == 20

    def same(a, b):
        return torch.equal(a["visible"], b["visible"]) and torch.equal(a["pixel_values"], b["pixel_values"])

    first = one[4]
    assert same(first, two[4]) and not same(first, one[14])  # the same file, another sample
    one.set_epoch(1)
    assert not same(first, one[4])
    one.set_epoch(0)
    assert same(first, one[4])
    assert int(first["visible"].sum()) == 4 and len(first["visible"]) == 16


class Killed(BaseException):
    pass


def test_a_run_resumed_after_a_kill_ends_as_one_that_was_not_and_plain_transformers_loads_it(
        folder, tiny_model_dir, tmp_path, monkeypatch):
    base = tiny_model_dir("qwen3_vl")

    def pretrain(name: str):
        return mae.train(*parse(words(base, folder, tmp_path / name, "--max_steps", "4",
                                                               "--save_strategy", "steps", "--save_steps", "2")))

    found = pretrain("straight")
    assert found["tiles"] == 2 and found["normalised"]["patch_mean"] == pytest.approx(1, abs=1e-3)
    assert json.loads((tmp_path / "straight/metrics.json").read_text()) == found
    assert (tmp_path / "straight/reconstruction.png").is_file()

    step = Trainer.training_step
    with monkeypatch.context() as patch:
        def killed(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise Killed
            return step(self, *args, **kwargs)

        patch.setattr(Trainer, "training_step", killed)
        with pytest.raises(Killed):
            pretrain("killed")
    assert not (tmp_path / "killed/config.json").exists() and (tmp_path / "killed/checkpoint-2/manifest.json").is_file()
    pretrain("killed")
    from safetensors.torch import load_file

    for file in ("model.safetensors", "decoder.safetensors"):
        straight, resumed = load_file(tmp_path / "straight" / file), load_file(tmp_path / "killed" / file)
        assert straight.keys() == resumed.keys()
        for name, value in straight.items():
            torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5, msg=name)

    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "straight")
    before = load_file(base / "model.safetensors")
    assert model.config.vision_config.in_channels == CHANNELS
    for name, value in model.state_dict().items():
        if name in before and not name.startswith("model.visual."):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(model.state_dict()["model.visual.blocks.0.attn.qkv.weight"],
                           before["model.visual.blocks.0.attn.qkv.weight"])
    # It goes on from its own folder: statistics and decoder are those that lie there.
    model, data, training = parse(words(tmp_path / "straight", folder, tmp_path / "on"))
    again = mae.build_data(model, data, 7)
    stored = json.loads((tmp_path / "straight/processor_config.json").read_text())["image_processor"]
    assert list(again.processor.image_processor.image_mean) == stored["image_mean"] and again.channels == CHANNELS
    model = mae.build_model(model, CHANNELS, training)
    assert torch.equal(model.decoder.head.weight, load_file(tmp_path / "straight/decoder.safetensors")["head.weight"])
    with pytest.raises(UserError, match="another pretraining"):
        mae.train(*parse(words(base, folder, tmp_path / "straight", "--mask_ratio", "0.5")))


def test_a_run_on_tiles_that_all_lack_a_channel_ends_with_its_model_saved_first(tiny_model_dir, tmp_path, monkeypatch):
    for number, file in enumerate(sorted(write_tiles(tmp_path / "rasters", 5).iterdir())):
        array = np.load(file)
        array[number % CHANNELS] = np.nan
        np.save(file, array)
    measure = mae.measure

    def measured(model, data, training, folder):
        assert (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
        return measure(model, data, training, folder)

    monkeypatch.setattr(mae, "measure", measured)
    output = tmp_path / "out"
    flags = words(tiny_model_dir("qwen3_vl"), tmp_path / "rasters", output, "--max_steps", "1")
    monkeypatch.setattr(sys, "argv", ["pretrain_mae", *flags])
    runpy.run_module("overlays.pretrain_mae", run_name="__main__")
    assert (output / "reconstruction.png").is_file() and (output / "metrics.json").is_file()
