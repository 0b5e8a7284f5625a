"""The training set: what is sampled, what is dropped and why, and what a broken sample does."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from overlays import paths
from overlays.data import records
from overlays.data.collate import PaddedCollator
from overlays.data.dataset import SupervisedDataset, sample_rows
from overlays.data.media import MediaOptions
from overlays.errors import UserError
from overlays.model.load import load_config, load_processor
from overlays.model.parts import position_function
from overlays.registry import Dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def tiny(tiny_model_dir):
    folder = tiny_model_dir("qwen3_vl")
    return load_processor(folder), position_function(load_config(folder))


@pytest.fixture
def media(tmp_path):
    noise = np.random.default_rng(0)
    for i in range(4):
        pixels = noise.integers(0, 255, (64 + 32 * i, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def row(i, question="<image>\nWhat?", answer="A rock.", **extra):
    return {"id": f"r{i}", "image": f"{i % 4}.png", **extra, "conversations": [
        {"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def build(media, rows, tiny, rate=1.0, name="set", **options):
    file = media / f"{name}.jsonl"
    records.write(file, rows)
    return SupervisedDataset([Dataset(name, file, media, rate)], *tiny, MediaOptions(), **options)


def test_a_sample_has_what_the_collators_need(media, tiny):
    data = build(media, [row(0, target={"share": 0.5}), row(1)], tiny)
    sample = data[0]
    length = len(sample["input_ids"])
    assert sample["position_ids"].shape == (3, length) and sample["position_ids"].dtype == torch.int64
    assert sample["labels"].shape == sample["mm_token_type_ids"].shape == (length,)
    assert sample["id"] == "r0" and sample["target"] == {"share": 0.5} and "target" not in data[1]
    assert sample["position_ids"][0].max() < length - 1  # an image takes fewer positions than tokens


def test_lengths_are_those_of_the_samples(media, tiny):
    data = build(media, [row(i, answer="word " * (7 * i)) for i in range(4)], tiny)
    assert data.lengths.tolist() == [len(data[i]["input_ids"]) for i in range(4)]


def test_percent_sampling_is_the_same_everywhere_and_grows(media, tiny):
    rows = [row(i) for i in range(40)]
    data = build(media, rows, tiny, rate=0.3, seed=5)
    assert len(data) == 12 and data.report["datasets"][0] == {
        "name": "set", "file": str(media / "set.jsonl"), "records": 40, "sampled": 12, "kept": 12}
    again = build(media, rows, tiny, rate=0.3, seed=5)
    ids = [data.record(i)["id"] for i in range(12)]
    assert ids == [again.record(i)["id"] for i in range(12)]
    other = build(media, rows, tiny, rate=0.3, seed=6)
    assert ids != [other.record(i)["id"] for i in range(12)]
    assert set(sample_rows(40, 0.3, "s")) < set(sample_rows(40, 0.5, "s"))
    assert sample_rows(10, 0.3, "0:set") == [5, 6, 9]  # does not change from release to release


def test_over_long_samples_are_dropped_and_counted_and_none_is_cut(media, tiny):
    rows = [row(0), row(1, answer="long " * 500), row(2)]
    data = build(media, rows, tiny, model_max_length=200)
    assert [data.record(i)["id"] for i in range(len(data))] == ["r0", "r2"]
    assert data.report["too_long"] == 1 and data.report["bad"] == 0 and data.report["kept"] == 2
    dropped = data.report["dropped"]
    assert [(d["id"], d["row"]) for d in dropped] == [("r1", 2)] and "more than 200" in dropped[0]["reason"]
    assert data.report["tokens"]["max"] == data.lengths.max() <= 200
    json.dumps(data.report)
    with pytest.raises(UserError, match="no sample is left of set: 3 have more than 10 tokens"):
        build(media, rows, tiny, model_max_length=10)


def bad_rows():
    return [row(0), row(1, question="no placeholder"), {**row(2), "image": "gone.png"}, row(3)]


def test_a_broken_record_stops_before_training_with_its_place(media, tiny):
    with pytest.raises(UserError, match=r"set.jsonl, row 2 \(id r1\): 0 <image> in the human turns but 1 image file"):
        build(media, bad_rows(), tiny)
    with pytest.raises(UserError, match="stop or skip"):
        build(media, bad_rows(), tiny, on_bad_sample="ignore")


def test_skip_drops_lists_and_never_replaces(media, tiny):
    whole = (media / "3.png").read_bytes()
    (media / "3.png").write_bytes(whole[: len(whole) // 2])  # its header is sound
    (media / "set.jsonl").unlink(missing_ok=True)
    data = build(media, bad_rows(), tiny, on_bad_sample="skip")
    assert [data.record(i)["id"] for i in range(len(data))] == ["r0"]
    assert [d["id"] for d in data.report["dropped"]] == ["r1", "r2", "r3"] and data.report["bad"] == 3
    assert "gone.png is missing" in data.report["dropped"][1]["reason"]
    assert "damaged or cut short" in data.report["dropped"][2]["reason"]


def test_a_row_that_is_no_json_is_a_bad_sample(media, tiny):
    file = media / "x.jsonl"
    file.write_text(json.dumps(row(0)) + "\n{oops\n")
    sets = [Dataset("x", file, media, 1.0)]
    with pytest.raises(UserError, match=r"x.jsonl, row 2 \(id x:2\): not JSON"):
        SupervisedDataset(sets, *tiny, MediaOptions())
    assert SupervisedDataset(sets, *tiny, MediaOptions(), on_bad_sample="skip").report["bad"] == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_during_training_is_named(media, tiny, workers, capfd):
    data = build(media, [row(0), row(1)], tiny)
    skipping = build(media, [row(0), row(1)], tiny, on_bad_sample="skip")
    (media / "1.png").unlink()
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=workers, collate_fn=PaddedCollator(tiny[0]))
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == f"{media}/set.jsonl, row 2 (id r1): image file {media}/1.png is missing"
    loader = torch.utils.data.DataLoader(skipping, batch_size=1, num_workers=workers,
                                         collate_fn=PaddedCollator(tiny[0]))
    first, second = list(loader)
    assert (first["labels"] != -100).any() and not (second["labels"] != -100).any()
    assert "skipped: " in capfd.readouterr().err


def test_workers_measure_what_one_process_measures(media, tiny):
    rows = [row(i, answer="word " * i) for i in range(70)]
    one, two = build(media, rows, tiny, workers=0), build(media, rows, tiny, workers=2)
    assert one.lengths.tolist() == two.lengths.tolist()


def test_annotations_are_converted_once_and_again_when_they_change(media, tiny, cache):
    build(media, [row(0)], tiny)
    assert len(list(cache.glob("*.arrow"))) == 1
    build(media, [row(0)], tiny)
    assert len(list(cache.glob("*.arrow"))) == 1
    assert len(build(media, [row(0), row(1)], tiny)) == 2
    assert len(list(cache.glob("*.arrow"))) == 2


def measured(monkeypatch):
    """Numbers of the samples that are measured from now on."""
    seen, plain = [], SupervisedDataset.inspect
    monkeypatch.setattr(SupervisedDataset, "inspect", lambda self, i: seen.append(i) or plain(self, i))
    return seen


def test_a_second_start_measures_only_what_changed(media, tiny, monkeypatch):
    rows = [row(0), row(1), row(2, "no picture", image=None)]
    first = build(media, rows, tiny)
    seen = measured(monkeypatch)
    second = build(media, rows, tiny)
    assert not seen and second.lengths.tolist() == first.lengths.tolist()
    assert second.visual.tolist() == first.visual.tolist() and second.visual[2] == 0 < second.visual[0]
    larger = Image.open(media / "1.png").resize((400, 300))
    larger.save(media / "1.png")
    third = build(media, rows, tiny)
    assert seen == [1] and third.lengths[1] > first.lengths[1] and third.lengths[0] == first.lengths[0]
    assert third.lengths.tolist() == [len(third[i]["input_ids"]) for i in range(3)]
    seen.clear()
    build(media, rows, tiny)
    assert not seen
    (media / "0.png").unlink()
    with pytest.raises(UserError, match="0.png"):
        build(media, rows, tiny)


def test_lengths_of_other_pixels_are_measured_anew_and_a_damaged_file_too(media, tiny, cache, monkeypatch):
    build(media, [row(0)], tiny)
    seen = measured(monkeypatch)
    processor, positions = copy.deepcopy(tiny[0]), tiny[1]
    processor.image_processor.size = {"shortest_edge": 1024, "longest_edge": 2048}
    smaller = build(media, [row(0)], (processor, positions))
    assert seen == [0] and smaller.lengths[0] == len(smaller[0]["input_ids"])
    for file in cache.glob("lengths-*.npz"):
        file.write_bytes(file.read_bytes()[:-40])
    seen.clear()
    assert build(media, [row(0)], tiny).lengths[0] == len(build(media, [row(0)], tiny)[0]["input_ids"]) and seen == [0]


def test_rows_of_different_shape_fit_one_table(media, tiny):
    rows = [row(0), {**row(1, "<image><image>"), "image": ["0.png", "1.png"]},
            {**row(2, "Q"), "image": None, "extra": [1]}]
    data = build(media, rows, tiny)
    assert [len(data[i].get("image_grid_thw", [])) for i in range(3)] == [1, 2, 0]


def test_a_dataset_travels_to_another_process(media, tiny):
    data = build(media, [row(0)], tiny)
    again = pickle.loads(pickle.dumps(data))
    assert again[0]["input_ids"].equal(data[0]["input_ids"])
    assert again[0]["position_ids"].equal(data[0]["position_ids"])


def test_a_key_that_is_not_read_stops_training_with_its_place(media, tiny):
    rows = [row(0), {**row(1), "audio": "a.wav"}]
    with pytest.raises(UserError, match=r"set.jsonl, row 2 \(id r1\): the key 'audio' is not read"):
        build(media, rows, tiny)
    data = build(media, rows, tiny, on_bad_sample="skip")
    assert [d["id"] for d in data.report["dropped"]] == ["r1"]


def test_empty_answers_are_counted_and_said(media, tiny, capsys, monkeypatch):
    rows = [row(0), row(1, answer=" \n"), row(2, answer=""), row(3, answer="long " * 500)]
    data = build(media, rows, tiny, model_max_length=200)
    assert data.report["empty_answers"] == 2 and len(data) == 3
    said = capsys.readouterr().err
    assert "warning: 2 answers of 2 samples are empty" in said and "row 2 (id r1)" in said
    assert said.count("warning:") == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    build(media, rows, tiny)
    assert "warning:" not in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert build(media, rows[:1], tiny, name="other").report["empty_answers"] == 0
    assert "warning:" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["set.parquet", "set"])
def test_tables_train_by_their_path(media, tiny, name):
    import datasets

    from overlays import registry
    from overlays.train import run

    table = datasets.Dataset.from_list([
        {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A rock."}],
         "images": [{"bytes": (media / f"{i}.png").read_bytes(), "path": None}]} for i in range(3)])
    path = media / name
    table.to_parquet(str(path)) if path.suffix else table.save_to_disk(str(path))
    sources = registry.resolve(f"{path}%70")
    assert sources[0].media_root == media
    data = SupervisedDataset(sources, *tiny, MediaOptions())
    assert len(data) == 2 and data.record(0)["image"].startswith("embedded:")
    assert {tuple(data[i]["input_ids"].tolist()) for i in range(2)} <= {
        tuple(sample["input_ids"].tolist()) for sample in build(media, [row(i) for i in range(3)], tiny)}
    assert run.data_rows(str(path))[0]["sha256"]
    gone = media / "nothing"
    gone.mkdir()
    with pytest.raises(UserError, match="state.json is missing"):
        SupervisedDataset(registry.resolve(str(gone)), *tiny, MediaOptions())
