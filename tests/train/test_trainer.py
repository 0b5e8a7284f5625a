"""What the trainer saves is what it had in memory; what it resumes from may be damaged."""

import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from overlays import manifest, runs
from overlays.errors import UserError
from overlays.model import load, parts
from overlays.train.trainer import SeededLengthSampler, Trainer, count_steps, draw_losses

RATES = {"adapter": 1e-4, "merger": 1e-4, "vision": 0.0, "embeddings": 0.0, "language_model": 0.0}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_adapter_and_merger_reload_to_the_same_logits(tiny_model_dir, tmp_path, family):
    folder = tiny_model_dir(family)
    model = load.load_base(folder, torch.float32)
    model = get_peft_model(model, LoraConfig(
        r=2, target_modules=parts.lora_target_pattern(model.config), base_model_name_or_path=str(folder)
    ))
    parts.set_trainable(model, model.config, RATES)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    config = model.config
    merge, patch = config.vision_config.spatial_merge_size, config.vision_config.patch_size
    ids = torch.tensor([[5, 6, *[config.image_token_id] * 4, 7, 8, 9]])
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(4 * merge**2, 6 * patch**2, generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * merge, 2 * merge]]),
    }
    trainer = Trainer(
        model=model, args=transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True), rates=RATES,
        processing_class=load.load_processor(folder),
    )
    trainer.save_model(str(tmp_path / "saved"))
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        plain = load.load_base(folder, torch.float32).eval()(**inputs).logits
        again = load.load_model(tmp_path / "saved").eval()(**inputs).logits
    assert torch.equal(again, expected)
    assert (plain - expected).abs().max() > 1e-2


def test_an_empty_log_draws_nothing(tmp_path):
    draw_losses([], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_samples_of_like_length_come_together_in_an_order_of_seed_and_epoch():
    lengths = torch.randint(1, 1000, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    orders = [list(SeededLengthSampler(8, lengths, 7, lambda epoch=epoch: epoch)) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(400))
    gaps = [abs(lengths[a] - lengths[b]) for a, b in zip(orders[0], orders[0][1:], strict=False)]
    assert sum(gaps) / len(gaps) < 50  # 330 in a random order


@pytest.mark.parametrize(("words", "steps"), [
    ({}, 6), ({"gradient_accumulation_steps": 2}, 4), ({"num_train_epochs": 0.5}, 2), ({"max_steps": 5}, 5),
    ({"dataloader_drop_last": True}, 4),
])
def test_the_steps_of_a_run_are_those_of_the_library(tmp_path, words, steps):
    model = torch.nn.Linear(2, 2)
    model.config = transformers.PretrainedConfig()
    args = transformers.TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, per_device_train_batch_size=2,
        **{"num_train_epochs": 2, **words}
    )
    plain = transformers.Trainer(model=model, args=args, train_dataset=list(range(5)))
    assert count_steps(args, 5) == steps == plain.set_initial_training_values(args, plain.get_train_dataloader())[-1]


def test_the_size_of_a_checkpoint_counts_what_the_optimizer_holds(tmp_path):
    trainer = small_trainer(tmp_path)  # 6 parameters, 24 bytes
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    assert trainer.checkpoint_bytes() == (24, 24 + 48)
    trainer.state.global_step = 1
    assert trainer.checkpoint_bytes() == (24, 24)  # SGD without momentum
    trainer.is_deepspeed_enabled = True
    assert trainer.checkpoint_bytes() == (24, 24 + 72)


def test_dropping_the_last_batch_may_not_drop_everything(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, dataloader_drop_last=True)
    with pytest.raises(UserError, match="--dataloader_drop_last leaves nothing of 5 samples"):
        count_steps(args, 5)


def small_trainer(output):
    model = torch.nn.Linear(2, 2)
    model.config = transformers.PretrainedConfig()
    return Trainer(model=model, rates=RATES, args=transformers.TrainingArguments(
        str(output), report_to="none", use_cpu=True))


class Code:
    """A pickle that calls a function where it is loaded."""

    def __reduce__(self):
        return pytest.fail, ("code of a checkpoint was run",)


@pytest.mark.parametrize("content", ["pickle", b"", b"PK\x03\x04", {"state": 3}])
def test_a_damaged_training_state_is_one_sentence_and_no_code(tmp_path, content):
    folder, trainer = tmp_path / "checkpoint-2", small_trainer(tmp_path)
    folder.mkdir()
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    for name in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"):
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            torch.save(Code() if content == "pickle" else content, folder / name)
    for load_state in (trainer._load_optimizer_and_scheduler, trainer._load_scaler, trainer._load_rng_state):
        with pytest.raises(UserError, match="checkpoint-2 has a damaged training state .*--resume never"):
            load_state(str(folder))


@pytest.mark.parametrize(("state", "said"), [
    ({"global_step": 2}, "damaged training state"), ({"global_step": 2, "unknown": 1}, "damaged training state"),
    ({"global_step": 2, "log_history": 3}, "'log_history' must be a list"),
    ({"global_step": 2, "log_history": [1]}, "element 1 of 'log_history' must be an object"),
    ({"global_step": 2, "stateful_callbacks": [1]}, "'stateful_callbacks' must be an object"),
])
def test_a_damaged_trainer_state_is_one_sentence(tmp_path, state, said):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / runs.STATE).write_text(json.dumps(state))
    with pytest.raises(UserError, match=said):
        runs.check_steps(folder, 2)
        small_trainer(tmp_path)._init_training_state(1, 1, 1, str(folder), None)


def test_the_best_checkpoint_is_found_where_the_run_folder_has_moved(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    last = tmp_path / "checkpoint-2"
    last.mkdir()
    (last / runs.STATE).write_text(json.dumps({"global_step": 2, "train_batch_size": 8, "stateful_callbacks": {},
                                               "best_model_checkpoint": "elsewhere/checkpoint-1"}))
    trainer = small_trainer(tmp_path)
    trainer.args.load_best_model_at_end = True
    with pytest.raises(UserError, match="checkpoint-1, the best checkpoint so far, is not there or not complete"):
        trainer._init_training_state(9, 1, 1, str(last), None)
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"weights")
    manifest.write(tmp_path / "checkpoint-1")
    trainer._init_training_state(9, 1, 1, str(last), None)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(UserError, match="damaged: it has another checksum"):
        trainer._load_best_model()
