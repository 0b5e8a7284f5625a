"""What the trainer saves is what it had in memory."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from overlays.model import load, parts
from overlays.trainer import Trainer, draw_losses

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
