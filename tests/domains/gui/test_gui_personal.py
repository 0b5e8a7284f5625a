"""Labels of GUI records, frozen parts, and the personal stage: small adapters, resumable, on an unchanged base."""

import pytest
import torch

from overlays.data import chat, records
from overlays.data.media import MediaOptions, apply_resolution
from overlays.domains.gui import personal
from overlays.domains.gui.prepare import Settings, prepare
from overlays.domains.gui.sample import sample
from overlays.errors import UserError
from overlays.model import load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gui-personal")
    sample(folder / "raw", users=[1, 11, 74], episodes={"test": 2, "train": 1, "val": 1}, steps=2, workers=1)
    prepare(Settings(raw=folder / "raw", output=folder / "data", screenshot_pixels=5000,
                     users={"train": "11", "val": "74", "test": "1"}))
    return folder / "data"


def test_labels_are_the_answer_and_its_end_token(data, tiny_model_dir):
    processor = load.load_processor(tiny_model_dir("qwen3_vl"))
    apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=8192))
    tokenizer = processor.tokenizer
    for record in records.read(data / "test.jsonl"):
        record = record | {"conversations": [{"from": "system", "value": "Be short."}, *record["conversations"]]}
        found = chat.encode(record, processor, data)
        labels = found["labels"][found["labels"] != -100].tolist()
        said = record["conversations"][-1]["value"]
        assert labels == [*tokenizer(said, add_special_tokens=False)["input_ids"],
                          tokenizer.convert_tokens_to_ids("<|im_end|>")]
        text = tokenizer.decode(found["input_ids"])
        assert text.startswith("<|im_start|>system\nBe short.<|im_end|>")


def test_folds_train_small_adapters_once_and_leave_the_base_alone(data, tiny_model_dir, tmp_path, monkeypatch):
    settings = personal.Settings(folds=2, kinds=("episode",), epochs=1, lr=1e-2, warmup_steps=0, batch_size=2,
                                 grad_accum=1, max_new_tokens=4, min_pixels=4096, max_pixels=8192, lora_r=2)
    work = list(personal.jobs(list(records.read(data / "test.jsonl")), settings))
    said, base = [], tiny_model_dir("qwen3_vl")
    assert [(job.user, job.fold, len(job.train), len(job.test)) for job in work] == [("1", 0, 2, 2), ("1", 1, 2, 2)]
    personal.run(work, base, data, tmp_path, settings, "base", said.append)
    folder = work[0].folder(tmp_path)
    assert {row["id"] for rows in personal.read(tmp_path).values() for row in rows} == \
        {record["id"] for record in records.read(data / "test.jsonl")}

    model, _ = load.load_for_inference(folder)
    plain, _ = load.load_for_inference(base)
    own = dict(model.named_parameters())
    for name, value in plain.named_parameters():  # vision, merger and language model: bit for bit
        stem, _, last = f"base_model.model.{name}".rpartition(".")
        same = own.get(f"{stem}.{last}", own.get(f"{stem}.base_layer.{last}"))
        assert torch.equal(same, value), name
    adapters = [name for name in own if ".lora_" in name]
    assert adapters and all("language_model" in name for name in adapters)
    assert any(own[name].abs().max() > 0 for name in adapters if "lora_B" in name)

    def fail(*_):
        raise AssertionError("a finished fold was trained again")

    monkeypatch.setattr(personal, "_train", fail)
    personal.run(work, base, data, tmp_path, settings, "base", said.append)
    assert sum("done before" in line for line in said) == 2
    (folder / personal.DONE).unlink()  # as a kill leaves it
    with pytest.raises(AssertionError, match="trained again"):
        personal.run(work, base, data, tmp_path, settings, "base", said.append)


def test_an_adapter_on_an_adapter_is_found(data, tiny_model_dir, tmp_path):
    """A user's adapter whose base is the global adapter answers as the two together."""
    from peft import LoraConfig, get_peft_model

    base = load.load_base(tiny_model_dir("qwen3_vl"), torch.float32)
    torch.manual_seed(0)
    for name, below in (("global", str(tiny_model_dir("qwen3_vl"))), ("own", str(tmp_path / "global"))):
        model = get_peft_model(base, LoraConfig(r=2, target_modules="model.language_model.*q_proj",
                                                init_lora_weights=False, base_model_name_or_path=below))
        model.peft_config["default"].base_model_name_or_path = below
        model.save_pretrained(tmp_path / name)
        base = model.merge_and_unload()
    again = load.load_model(tmp_path / "own").merge_and_unload()
    ids = torch.arange(5)[None]
    assert torch.allclose(again(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-5)


def test_a_folder_without_folds_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no finished fold"):
        personal.read(tmp_path)
