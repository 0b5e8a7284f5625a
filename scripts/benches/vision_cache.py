"""Training steps (LoRA and merger) with a frozen vision tower against steps with its kept features.

The model has the shapes of Qwen3-VL-2B, smaller in a way that keeps the shares of tower, language model and head: a
quarter of width and depth, a sixteenth of the vocabulary; two mergers for four, which is twice their share. Images of
14 x 14 patches and 24 tokens of text stand for 28 x 28 and 96.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from overlays import paths
from overlays.data.collate import vision_keys
from overlays.model import forward, parts, vision_cache

IMAGES, TEXT, STEPS, SIDE = 4, 24, 8, 14


def _model():
    torch.manual_seed(0)
    text = dict(
        vocab_size=9_500, hidden_size=512, intermediate_size=1536, num_hidden_layers=7, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10],
                         "mrope_interleaved": True},
    )
    vision = dict(depth=6, hidden_size=256, num_heads=4, intermediate_size=1024, out_hidden_size=512,
                  num_position_embeddings=256, deepstack_visual_indexes=[2])
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, image_token_id=9_000,
                           video_token_id=9_001, vision_start_token_id=9_002, vision_end_token_id=9_003)
    core = forward.install(Qwen3VLForConditionalGeneration(config).train())
    model = get_peft_model(core, LoraConfig(r=8, target_modules=parts.lora_target_pattern(config)))
    parts.set_trainable(model, config, dict.fromkeys(parts.PARTS, 0.0) | {"adapter": 1e-5, "merger": 1e-4})
    return model, core


def _batch(config) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    visual = (SIDE // 2) ** 2
    ids = torch.randint(10, 8_000, (IMAGES, visual + TEXT), generator=generator)
    ids[:, 4:4 + visual] = config.image_token_id
    labels = torch.where(torch.arange(visual + TEXT) < visual + TEXT // 2, -100, ids)
    types = (ids == config.image_token_id).int()
    grid = torch.tensor([[1, SIDE, SIDE]] * IMAGES)
    positions = parts.position_function(config)
    rows = [positions(ids[i:i + 1], types[i:i + 1], grid[i:i + 1]) for i in range(IMAGES)]
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "mm_token_type_ids": types,
        "position_ids": torch.cat(rows, dim=1), "image_grid_thw": grid,
        "pixel_values": torch.randn(IMAGES * SIDE**2, 3 * 2 * 16 * 16, generator=generator),
    }


def _cpu_seconds(model, batch) -> tuple[float, float]:
    start = time.process_time()
    loss = model(**batch).loss
    loss.backward()
    return time.process_time() - start, loss.item()


def run() -> dict[str, float]:
    """Median CPU seconds of a step, tower and cache in turn."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        paths.CACHE = Path(folder)
        model, core = _model()
        batch = _batch(core.config)
        vision_cache.install(core)
        cached = batch | {"vision_keys": vision_keys(batch)}
        _cpu_seconds(model, batch)
        figures["first step with the cache, CPU s"] = _cpu_seconds(model, cached)[0]
        for name, checkpointing in (("", False), (", checkpointing", True)):
            if checkpointing:
                core.gradient_checkpointing_enable({"use_reentrant": False})
            rows = [(_cpu_seconds(model, batch), _cpu_seconds(model, cached)) for _ in range(STEPS)]
            tower, kept = (statistics.median(row[side][0] for row in rows) for side in (0, 1))
            figures |= {f"tower, CPU s{name}": tower, f"kept features, CPU s{name}": kept,
                        f"ratio{name}": tower / kept,
                        f"difference of loss{name}": max(abs(a[1] - b[1]) for a, b in rows)}
    return figures
