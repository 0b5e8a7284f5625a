"""Batches: the same samples give the same loss padded, concatenated or one by one; prompts continue at their end."""

import numpy as np
import pytest
import torch
from PIL import Image

from overlays.data import chat
from overlays.data.collate import FlattenedCollator, PaddedCollator, PromptCollator, count
from overlays.families import FAMILIES
from overlays.model import load
from overlays.model.parts import position_function


@pytest.fixture
def images(tmp_path):
    noise = np.random.default_rng(0)
    for name, shape in (("a.png", (70, 130, 3)), ("b.png", (90, 60, 3))):
        Image.fromarray(noise.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def record(question, answer, **extra):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **extra}


ROWS = (
    record("<image>\nWhat rock?", "Alunite, with a little kaolinite.", image="a.png"),
    record("No picture. Why?", "Because."),
    record("<image> and <image>", "Both are clay. " * 4, image=["b.png", "a.png"]),
)


def samples(folder, images, rows=ROWS):
    processor = load.load_processor(folder)
    positions = position_function(load.load_config(folder))
    out = []
    for row in rows:
        sample = chat.encode(row, processor, images)
        sample["position_ids"] = positions(
            input_ids=sample["input_ids"][None], mm_token_type_ids=sample["mm_token_type_ids"][None],
            image_grid_thw=sample.get("image_grid_thw"))[:, 0]
        out.append(sample)
    return processor, out


def loss(model, batch):
    with torch.no_grad():
        return float(model(**batch).loss)


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.packing])
def test_padded_and_concatenated_batches_have_the_same_loss(tiny_model_dir, images, family):
    folder = tiny_model_dir(family)
    processor, batch = samples(folder, images)
    model = load.load_base(folder, torch.float32, "sdpa").eval()
    padded, flat = PaddedCollator(processor)(batch), FlattenedCollator(processor)(batch)
    assert abs(loss(model, padded) - loss(model, flat)) < 1e-4
    alone = [PaddedCollator(processor)([sample]) for sample in batch]
    counts = [int((one["labels"][:, 1:] != -100).sum()) for one in alone]
    mean = sum(loss(model, one) * count for one, count in zip(alone, counts, strict=True)) / sum(counts)
    assert abs(loss(model, flat) - mean) < 1e-4

    def last(batch):  # (tokens of the last sample, vocabulary)
        with torch.no_grad():
            batch = {name: value for name, value in batch.items() if name != "labels"}
            return model(**batch).logits[0, -len(sample_of_last["input_ids"]):]

    sample_of_last = batch[-1]

    borderless = {**flat, "position_ids": flat["position_ids"][1:]}
    assert (last(flat) - last(alone[-1])).abs().max() < 1e-4
    assert (last(borderless) - last(alone[-1])).abs().max() > 1e-3  # what this test would see if samples were mixed


def test_padding_is_what_the_docstring_shows(tiny_model_dir, images):
    processor, (first, second, third) = samples(tiny_model_dir("qwen3_vl"), images)
    batch = PaddedCollator(processor)([second, first, third])
    short, longest = len(second["input_ids"]), batch["input_ids"].shape[1]
    assert longest == max(len(s["input_ids"]) for s in (first, second, third))
    assert batch["input_ids"][0, :short].equal(second["input_ids"])
    assert (batch["input_ids"][0, short:] == processor.tokenizer.pad_token_id).all()
    assert (batch["labels"][0, short:] == -100).all()
    assert batch["attention_mask"][0].tolist() == [1] * short + [0] * (longest - short)
    assert batch["attention_mask"].dtype == torch.int64
    assert batch["position_ids"].shape == (3, 3, longest)
    assert batch["position_ids"][:, 1, : len(first["input_ids"])].equal(first["position_ids"])
    assert batch["image_grid_thw"].equal(torch.cat([first["image_grid_thw"], third["image_grid_thw"]]))
    assert batch["pixel_values"].equal(torch.cat([first["pixel_values"], third["pixel_values"]]))
    assert set(batch) == {"input_ids", "labels", "attention_mask", "mm_token_type_ids", "position_ids",
                          "pixel_values", "image_grid_thw"}


def test_a_row_of_samples_is_what_the_docstring_shows(tiny_model_dir, images):
    processor, batch = samples(tiny_model_dir("qwen3_vl"), images)
    batch[1]["labels"] = batch[1]["input_ids"].clone()  # as if the first token had a label
    flat = FlattenedCollator(processor)(batch)
    lengths = [len(sample["input_ids"]) for sample in batch]
    assert flat["input_ids"].shape == (1, sum(lengths)) and flat["position_ids"].shape == (4, 1, sum(lengths))
    starts = np.cumsum([0, *lengths[:-1]])
    assert (flat["labels"][0, starts] == -100).all() and (flat["position_ids"][0, 0, starts] == 0).all()
    assert flat["position_ids"][0, 0, -1] == lengths[-1] - 1
    assert flat["position_ids"][1:, 0, : lengths[0]].equal(batch[0]["position_ids"])
    assert "attention_mask" not in flat


@pytest.mark.parametrize("collator", (PaddedCollator, FlattenedCollator))
def test_a_batch_without_media_carries_a_dummy_image(tiny_model_dir, images, collator):
    folder = tiny_model_dir("qwen3_vl")
    processor, (_, text, _) = samples(folder, images)
    batch = collator(processor)([text])
    assert batch["image_grid_thw"].tolist() == [[1, 2, 2]]
    assert batch["pixel_values"].shape == (4, 3 * 2 * 16 * 16) and not batch["pixel_values"].any()
    assert not (batch["input_ids"] == processor.image_token_id).any()
    model = load.load_base(folder, torch.float32, "sdpa").eval()
    calls = []
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    with_dummy = loss(model, batch)
    assert len(calls) == 1
    bare = {key: value for key, value in batch.items() if key not in ("pixel_values", "image_grid_thw")}
    assert with_dummy == pytest.approx(loss(model, bare), abs=1e-6)


@pytest.mark.parametrize("collator", (PaddedCollator, FlattenedCollator))
def test_skipped_samples_are_left_out_even_when_none_remains(tiny_model_dir, images, collator):
    folder = tiny_model_dir("qwen3_vl")
    processor, (first, *_) = samples(folder, images)
    gone = {"id": "x", "skipped": "a reason"}
    assert collator(processor)([gone, first])["input_ids"].equal(collator(processor)([first])["input_ids"])
    batch = collator(processor)([gone])
    assert (batch["labels"] == -100).all() and len(batch["image_grid_thw"]) == 1
    model = load.load_base(folder, torch.float32, "sdpa").eval()
    assert loss(model, batch) == 0


@pytest.mark.parametrize("family", ("qwen2_5_vl", "qwen3_vl"))
def test_prompts_of_a_batch_are_answered_as_alone(tiny_model_dir, images, family):
    folder = tiny_model_dir(family)
    processor = load.load_processor(folder)
    prompts = [{**chat.encode_prompt(row, processor, images), "id": str(i)} for i, row in enumerate(ROWS)]
    batch = PromptCollator(processor)(prompts)
    assert batch.pop("ids") == ["0", "1", "2"]
    assert (batch["attention_mask"][:, -1] == 1).all() and batch["attention_mask"][1, 0] == 0
    assert batch["input_ids"][1, -len(prompts[1]["input_ids"]):].equal(prompts[1]["input_ids"])
    model = load.load_base(folder, torch.float32, "sdpa").eval()
    together = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch["input_ids"].shape[1]:]
    for prompt, answer in zip(prompts, together, strict=True):
        one = PromptCollator(processor)([prompt])
        del one["ids"]
        alone = model.generate(**one, max_new_tokens=5, do_sample=False)[0, one["input_ids"].shape[1]:]
        assert alone.tolist() == answer.tolist()[: len(alone)]


def test_samples_and_tokens_are_counted_without_padding(tiny_model_dir, images):
    processor, batch = samples(tiny_model_dir("qwen3_vl"), images)
    tokens = sum(len(sample["input_ids"]) for sample in batch)
    padded = PaddedCollator(processor)(batch)
    assert padded["input_ids"].numel() > tokens
    for made in (padded, FlattenedCollator(processor)(batch), FlattenedCollator(processor)([{"samples": batch}])):
        assert tuple(map(int, count(made))) == (len(batch), tokens)
    assert count({"pixel_values": torch.zeros(8, 3), "image_grid_thw": torch.ones(2, 3)}) == (2, 0)
