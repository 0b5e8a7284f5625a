"""Training steps of the masked autoencoder: the tower on visible patches against the same tower on all patches.

The tower has the shape of Qwen3-VL-2B's (24 layers x 1024, 16-pixel patches) with 64 channels, the decoder that of the
launcher (4 layers x 512). In both arms it decodes all patches and the loss is over the hidden ones; in the second arm
hidden patches, blanked, go through the tower too, as in pretraining with mask tokens at the encoder's input. On a
tower not larger than the decoder the gain is smaller: the decoder runs on all patches either way.
"""

import time

import numpy as np
import torch
from tqdm import tqdm
from transformers import Qwen3VLVisionConfig, Qwen3VLVisionModel

from overlays.data import tiles
from overlays.model import mae

CHANNELS, SIDE_PATCHES, IMAGES, STEPS = 64, 14, 4, 2
SHAPE = dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, out_hidden_size=2048, patch_size=16,
             num_position_embeddings=2304, deepstack_visual_indexes=[5, 11, 17])


class AllPatches(mae.MaskedAutoencoder):
    """The tower runs on every patch, the hidden ones blanked; the decoder gets the visible ones."""

    def encode(self, frames, grid_thw, visible):
        """(V, hidden) tokens of visible patches that have seen the places of the hidden ones."""
        blanked = torch.where(visible[:, None], frames, 0.0)
        return mae.encode(self.visual, blanked, grid_thw, torch.ones_like(visible))[visible]


def _batch() -> dict[str, torch.Tensor]:
    count = SIDE_PATCHES**2
    return {
        "image_grid_thw": torch.tensor([[1, SIDE_PATCHES, SIDE_PATCHES]] * IMAGES),
        "pixel_values": torch.randn(IMAGES * count, CHANNELS * 16 * 16, generator=torch.Generator().manual_seed(0)),
        "visible": torch.cat([tiles.random_masking(count, 0.75, np.random.default_rng(i)) for i in range(IMAGES)]),
    }


def _seconds(model, batch) -> float:
    """Seconds of forward and backward; gradients stay allocated, so that both arms find them there."""
    model.zero_grad(set_to_none=False)
    start = time.perf_counter()
    model(**batch)["loss"].backward()
    return time.perf_counter() - start


def run() -> dict[str, float]:
    """Images per second of both, in turns, each by its fastest step; and their ratio, `speedup`."""
    torch.manual_seed(0)
    config = Qwen3VLVisionConfig(in_channels=CHANNELS, **SHAPE)
    model = mae.MaskedAutoencoder(Qwen3VLVisionModel._from_config(config, attn_implementation="sdpa")).train()
    batch, times = _batch(), {mae.MaskedAutoencoder: [], AllPatches: []}
    for _ in tqdm(range(STEPS + 1), desc="steps of both"):
        for model.__class__ in times:
            times[model.__class__].append(_seconds(model, batch))
    visible, everything = (min(own[1:]) for own in times.values())
    return {
        "visible_images_per_second": IMAGES / visible,
        "all_images_per_second": IMAGES / everything,
        "speedup": everything / visible,
        "tower_parameters_m": sum(p.numel() for p in model.visual.blocks.parameters()) / 1e6,
        "decoder_parameters_m": sum(p.numel() for p in model.decoder.parameters()) / 1e6,
    }
