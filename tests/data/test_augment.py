import numpy as np
import pytest
import torch
from PIL import Image

from overlays import registry
from overlays.data.augment import CROPS, Change, Repeats, draw
from overlays.data.dataset import SupervisedDataset
from overlays.data.media import Media, MediaOptions, apply_resolution
from overlays.errors import UserError
from overlays.files import write_jsonl

STILL = Change(1.0, 0, 0, False, 0)


def raster(height=12, width=12):
    return torch.arange(2 * height * width, dtype=torch.float32).reshape(2, height, width)


def test_changes_are_drawn_from_all_crops_flips_and_turns():
    drawn = [draw(np.random.default_rng(seed)) for seed in range(200)]
    assert {change.share for change in drawn} == set(CROPS) and {change.turns for change in drawn} == {0, 1, 2, 3}
    assert {change.mirrored for change in drawn} == {True, False}


def test_no_change_is_none():
    assert torch.equal(STILL(raster()), raster())


def test_rasters_and_pictures_are_changed_alike():
    values = np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    picture = Image.fromarray(values.transpose(1, 2, 0))
    for change in (STILL._replace(mirrored=True), STILL._replace(turns=1), STILL._replace(turns=3, mirrored=True),
                   Change(0.6, 0.3, 0.9, True, 2)):
        one, other = change(torch.from_numpy(values)).numpy(), np.asarray(change(picture)).transpose(2, 0, 1)
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).max() <= (0 if change.share == 1 else 3)


def test_a_crop_is_brought_back_to_the_old_size():
    smooth = torch.linspace(0, 1, 20)[None, :, None].expand(2, 20, 30).contiguous()
    crop = Change(0.6, 1.0, 0.0, False, 0)(smooth)
    assert crop.shape == smooth.shape and crop.min() > 0.35 and crop.max() > 0.97
    turned = Change(0.6, 1.0, 0.0, False, 1)(smooth)
    assert turned.shape == (2, 30, 20)
    assert Change(0.8, 0.5, 0.5, False, 0).box(10, 20) == (1, 2, 8, 16)


def test_a_crop_without_anything_in_it_is_not_taken():
    filled = torch.full((2, 20, 20), 5.0)
    filled[:, :4] = torch.rand(2, 4, 20)
    assert torch.equal(Change(0.6, 1.0, 0.5, False, 0)(filled), filled)


def test_repetitions_depend_on_seed_record_and_number_alone():
    media = Media([raster()])

    def shown(repeats, repetition, *record):
        return repeats.apply(media, repetition, *record).images[0]

    repeats = Repeats(50, seed=3)
    assert torch.equal(shown(repeats, 0, 0, 1), raster())
    assert torch.equal(shown(repeats, 7, 0, 1), shown(Repeats(50, seed=3), 7, 0, 1))
    variants = {tuple(shown(repeats, n, 0, 1).flatten().tolist()) for n in range(50)}
    assert len(variants) > 30
    others = [shown(repeats, n, 0, 2) for n in range(1, 20)]
    assert not all(torch.equal(one, shown(repeats, n, 0, 1)) for n, one in enumerate(others, start=1))
    assert torch.equal(shown(Repeats(50, changed=False), 7, 0, 1), raster())
    with pytest.raises(UserError, match="at least 1, not 0"):
        Repeats(0)


@pytest.fixture(scope="module")
def build(tiny_model_dir, tmp_path_factory):
    """Function: repeats -> data set of two 3-channel rasters and one picture."""
    from transformers import AutoConfig, AutoProcessor

    from overlays.model.parts import position_function

    folder, model = tmp_path_factory.mktemp("repeats"), tiny_model_dir("qwen3_vl")
    rng = np.random.default_rng(0)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "2"}]
    rows = []
    for number, (height, width) in enumerate(((64, 64), (64, 96))):
        np.save(folder / f"{number}.npy", rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        rows.append({"id": f"r{number}", "image": f"{number}.npy", "conversations": turns, "target": {"y": 1.0}})
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "2.png")
    rows.append({"id": "p", "image": "2.png", "conversations": turns})
    write_jsonl(folder / "mine.jsonl", rows)
    processor = AutoProcessor.from_pretrained(model)
    apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=16384))
    positions = position_function(AutoConfig.from_pretrained(model))

    def make(repeats=None, **options):
        return SupervisedDataset(registry.resolve(str(folder / "mine.jsonl")), processor, positions, MediaOptions(),
                                 repeats=repeats, **options)

    return make


def test_an_epoch_takes_each_file_so_often(build):
    once, often = build(), build(Repeats(6, seed=1))
    assert len(once) == 3 and len(often) == 18 == len(often.lengths)
    assert often.report["samples"] == 18 and often.report["kept"] == 3 and "samples" not in once.report
    for i in range(18):
        sample = often[i]
        assert len(sample["input_ids"]) == often.lengths[i] and sample["id"] == once[i % 3]["id"]
    assert torch.equal(often[1]["pixel_values"], once[1]["pixel_values"])


def test_repetitions_differ_and_come_again(build):
    one, again = build(Repeats(6, seed=1)), build(Repeats(6, seed=1))
    pixels = [one[i]["pixel_values"] for i in range(0, 18, 3)]
    assert len({tuple(pixel.flatten().tolist()) for pixel in pixels}) > 3
    assert all(torch.equal(again[i]["pixel_values"], pixel) for i, pixel in zip(range(0, 18, 3), pixels, strict=True))
    unchanged = build(Repeats(6, changed=False))
    assert torch.equal(unchanged[15]["pixel_values"], unchanged[0]["pixel_values"])


def test_a_record_keeps_its_changes_when_another_is_dropped(build):
    every, fewer = build(Repeats(4)), build(Repeats(4), model_max_length=int(sorted(build().lengths)[1]))
    assert len(fewer) == 8
    assert torch.equal(every[9]["pixel_values"], fewer[6]["pixel_values"]) and every[9]["id"] == fewer[6]["id"]


def test_depth_and_crops_do_not_go_together(build):
    with pytest.raises(UserError, match="depth would no longer fit"):
        build(Repeats(2), max_depth_m=10.0)
