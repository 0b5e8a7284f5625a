"""What the trainer saves is what it had in memory."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

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
    model = torch.nn.Linear(2, 2)  # 6 parameters, 24 bytes
    model.config = transformers.PretrainedConfig()
    trainer = Trainer(model=model, rates=RATES, args=transformers.TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True))
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    assert trainer.checkpoint_bytes() == (24, 24 + 48)
    trainer.state.global_step = 1
    assert trainer.checkpoint_bytes() == (24, 24)  # SGD without momentum
    trainer.is_deepspeed_enabled = True
    assert trainer.checkpoint_bytes() == (24, 24 + 72)


def test_dropping_the_last_batch_may_not_drop_everything(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, dataloader_drop_last=True)
    with pytest.raises(UserError, match="--dataloader_drop_last leaves nothing of 5 samples"):
        count_steps(args, 5)
