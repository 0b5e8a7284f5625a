"""Training steps with the head on supervised positions against the head on all positions."""

import resource
import time

import torch
from tqdm import tqdm
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from overlays.model import forward
from overlays.model.parts import position_function

VOCABULARY = 151_936  # of the published Qwen-VL models
LENGTHS = (96, 160, 256, 384)  # tokens of the samples of one batch, most of them image and prompt
SUPERVISED = 24
STEPS = 5


def _model() -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(0)
    text = dict(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5],
                         "mrope_interleaved": True},
    )
    vision = dict(depth=4, hidden_size=128, num_heads=4, intermediate_size=384, out_hidden_size=128,
                  num_position_embeddings=256, deepstack_visual_indexes=[1, 2])
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    ).train()


def _batch(config) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    count, longest = len(LENGTHS), max(LENGTHS)
    ids = torch.randint(10, 1000, (count, longest), generator=generator)
    mask = torch.zeros(count, longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, length in enumerate(LENGTHS):
        ids[row, 4:20] = config.image_token_id  # 8 x 8 patches, merged 2 x 2
        mask[row, :length] = 1
        labels[row, length - SUPERVISED:length] = ids[row, length - SUPERVISED:length]
    types = (ids == config.image_token_id).int()
    grid = torch.tensor([[1, 8, 8]] * count)
    positions = position_function(config)
    rows = [positions(ids[i:i + 1], types[i:i + 1], grid[i:i + 1]) for i in range(count)]
    return {
        "input_ids": ids, "attention_mask": mask, "labels": labels, "mm_token_type_ids": types,
        "position_ids": torch.cat(rows, dim=1), "image_grid_thw": grid,
        "pixel_values": torch.randn(64 * count, 3 * 2 * 16 * 16, generator=generator),
    }


def _seconds(model, batch, name: str) -> tuple[float, float]:
    """Median seconds of a step after one for warming up, and the loss."""
    times = []
    for step in tqdm(range(STEPS + 1), desc=name):
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        model.zero_grad()
        if step:
            times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2], float(loss)


def run() -> dict[str, float]:
    """Samples per second of both, their ratio, and by how much the losses differ."""
    model = _model()
    batch = _batch(model.config)
    # The cheaper one first: peak memory only grows.
    fast, loss_fast = _seconds(forward.install(model), batch, "supervised positions")
    peak_fast = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model.forward = model.forward.__wrapped__
    slow, loss_slow = _seconds(model, batch, "all positions")
    return {
        "supervised_samples_per_second": len(LENGTHS) / fast,
        "all_samples_per_second": len(LENGTHS) / slow,
        "ratio": slow / fast,
        "loss_difference": abs(loss_fast - loss_slow),
        "supervised_peak_mb": peak_fast,
        "all_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
