"""Masked autoencoder on the vision tower of a Qwen-VL: the tower runs on visible patches, a small decoder fills in.

He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377, for any number of channels and
images of any grid. Patches are hidden one by one, not in merge units: the blocks of the tower need positions only,
and the merger, which needs whole units, has no part in this.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.utils.generic import get_max_seqlen
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

EPSILON = 1e-6  # variance under which a patch counts as flat, as in the paper's code
UNUSED = ("merger.", "deepstack_merger_list.")  # parts of a tower that no reconstruction passes through


def encode(tower: nn.Module, frames: torch.Tensor, grid_thw: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Output of the tower's last block on visible patches alone, each at its true position.

    Attention stays inside an image and, in the window blocks of Qwen2.5-VL, inside a window: windows keep those of
    their patches that are visible. With nothing hidden this is the output of the plain tower's last block.

    Args:
        tower: vision tower of a family in `overlays.families`.
        frames: (P, N * patch * patch) normalised pixels of all images' patches in the processor's order, one frame
            each; NaN, where there is no data, counts as 0, the channel's mean.
        grid_thw: (images, 3) patches in time, height and width.
        visible: (P,) bool.

    Returns:
        (V, hidden) in the processor's order.
    """
    merge = tower.spatial_merge_size
    rows = visible.nonzero().squeeze(1)  # (V,) places in the processor's order
    lengths = _visible_seqlens(get_vision_cu_seqlens(grid_thw), visible)
    window_lengths, full = lengths, range(len(tower.blocks))
    windows = hasattr(tower, "fullatt_block_indexes")
    if windows:
        index, window_lengths = get_vision_window_index(grid_thw, merge, tower.window_size, tower.patch_size)
        unit = torch.arange(tower.spatial_merge_unit)
        order = (index[:, None] * tower.spatial_merge_unit + unit).flatten().to(visible.device)  # (P,) by window
        window_lengths = _visible_seqlens(window_lengths, visible[order])
        rows, full = order[visible[order]], tower.fullatt_block_indexes
    hidden = _embed(frames[rows].nan_to_num(nan=0.0), tower.patch_embed.proj)  # (V, hidden)
    if hasattr(tower, "pos_embed"):
        places, weights = get_vision_interpolation_indices_and_weights(
            grid_thw, num_grid_per_side=tower.num_grid_per_side, mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners, spatial_merge_size=merge,
        )
        learned = (tower.pos_embed(places[rows]) * weights[rows, :, None]).sum(1)
        hidden = hidden + learned.to(hidden.dtype)
    rotary = tower.rotary_pos_emb(hidden, get_vision_position_ids(grid_thw, merge)[rows])
    longest = [get_max_seqlen(each, tower.config) for each in (lengths, window_lengths)]
    for layer, block in enumerate(tower.blocks):
        whole = layer in full
        hidden = block(
            hidden, cu_seqlens=lengths if whole else window_lengths, position_embeddings=rotary,
            max_seqlen=longest[0] if whole else longest[1],
        )
    return hidden[torch.argsort(rows)] if windows else hidden


def _visible_seqlens(lengths: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Cumulative lengths of segments after hidden patches are gone; segments without any left are dropped."""
    kept = F.pad(visible.cumsum(0), (1, 0))  # (P + 1,) visible patches before each place
    return torch.unique_consecutive(kept[lengths.to(kept.device).long()]).to(torch.int32)


def _embed(frames: torch.Tensor, proj: nn.Conv3d) -> torch.Tensor:
    """The patch embedding of still images, (V, N * p * p) -> (V, hidden).

    A processor fills the temporal patch with copies of the one frame; the kernel's sum over time sees it once.
    """
    weight = proj.weight.sum(2).flatten(1)  # (hidden, N, T, p, p) -> (hidden, N * p * p)
    return F.linear(frames.to(weight.dtype), weight, proj.bias)


def sincos_positions(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """Fixed 2-D positions: (P, 2) rows and columns -> (P, dim), one half of the channels for each, sines then cosines.

    Frequencies 10000^(-i / (dim / 4)) as in Vaswani et al. 2017.
    """
    quarter = dim // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, device=positions.device) / quarter)
    angles = positions[..., None].float() * frequencies  # (P, 2, dim / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Decoder(nn.Module):
    """Transformer over visible tokens and a mask token at every hidden place -> pixels of hidden patches.

    Args:
        encoder_dim: width of the tower.
        values: pixels of a patch over all channels, N * patch * patch.
        dim: width, a multiple of 4 and of `heads`.
    """

    def __init__(self, encoder_dim: int, values: int, dim: int = 512, depth: int = 4, heads: int = 8):
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList([
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        ])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)
        self.gradient_checkpointing = False
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, encoded: torch.Tensor, positions: torch.Tensor, lengths: list[int],
                visible: torch.Tensor) -> torch.Tensor:
        """
        Args:
            encoded: (V, encoder_dim) visible tokens.
            positions: (P, 2) rows and columns of all patches.
            lengths: patches of each image.
            visible: (P,) bool.

        Returns:
            (P - V, values) in the order of the hidden patches.
        """
        # Row 0 is the mask token, row i the i-th visible token.
        rows = torch.where(visible, visible.cumsum(0), 0)
        tokens = torch.cat([self.mask_token, self.embed(encoded).to(self.mask_token.dtype)])[rows]
        tokens = (tokens + sincos_positions(positions, tokens.shape[1])).split(lengths)
        padding = None
        if len(set(lengths)) > 1:
            counts = torch.tensor(lengths, device=visible.device)
            padding = torch.arange(max(lengths), device=visible.device) >= counts[:, None]  # (images, longest)
        tokens = nn.utils.rnn.pad_sequence(tokens, batch_first=True)  # (images, longest, dim)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                tokens = checkpoint(block, tokens, src_key_padding_mask=padding, use_reentrant=False)
            else:
                tokens = block(tokens, src_key_padding_mask=padding)
        tokens = tokens.flatten(0, 1) if padding is None else tokens[~padding]  # (P, dim)
        return self.head(self.norm(tokens[~visible]))


def patch_moments(pixels: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each patch over all its valid pixels and channels, both (H, 1).

    One pair for all channels, as in the paper: what tells the channels of a patch apart, which in an embedding is
    nearly everything, stays in the target.

    Args:
        pixels: (H, D).
        valid: (H, D) bool; None: all are.
    """
    if valid is None:
        variance, mean = torch.var_mean(pixels, 1, correction=0, keepdim=True)
    else:
        count = valid.sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(valid, pixels, 0.0).sum(1, keepdim=True) / count
        variance = torch.where(valid, pixels - mean, 0.0).square().sum(1, keepdim=True) / count
    return mean, (variance + EPSILON).sqrt()


def patch_errors(prediction: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each patch over its valid pixels and channels, (H, D) each -> (H,); 0 where none is."""
    return torch.where(valid, prediction - target, 0.0).square().sum(1) / valid.sum(1).clamp(min=1)


class MaskedAutoencoder(nn.Module):
    """Vision tower, decoder and their loss.

    Args:
        visual: vision tower of a family in `overlays.families`, with its number of input channels.
        decoder_dim, decoder_depth, decoder_heads: size of the decoder.
        norm_pix: whether the targets are normalised patch by patch (`patch_moments`).
        encoder: "full" trains the tower, "patch_embed" its patch embedding alone; the mergers are never trained.

    A batch: `pixel_values` (P, N * patch * patch), one frame of every patch in the processor's order with channels
    first, NaN where there is no data; `image_grid_thw` (images, 3); `visible` (P,) bool.
    """

    def __init__(self, visual: nn.Module, decoder_dim: int = 512, decoder_depth: int = 4, decoder_heads: int = 8,
                 norm_pix: bool = True, encoder: str = "full"):
        super().__init__()
        self.visual = visual
        embed = visual.patch_embed
        self.decoder = Decoder(
            embed.embed_dim, embed.in_channels * embed.patch_size**2, decoder_dim, decoder_depth, decoder_heads
        )
        self.norm_pix = norm_pix
        for name, parameter in visual.named_parameters():
            inside = name.startswith("patch_embed.") if encoder == "patch_embed" else not name.startswith(UNUSED)
            parameter.requires_grad_(inside)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **_) -> None:
        """Recompute the blocks of tower and decoder in the backward pass; called by the Trainer."""
        options = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False}
        if hasattr(self.visual, "activation_checkpointing_enable"):
            self.visual.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            self.visual.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        self.decoder.gradient_checkpointing = True

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None, **_) -> None:
        """The name that older releases of transformers call."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def encode(self, frames: torch.Tensor, grid_thw: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """(V, hidden) tokens of visible patches, see the function `encode`."""
        return encode(self.visual, frames, grid_thw, visible)

    def reconstruct(self, pixel_values, image_grid_thw, visible) -> torch.Tensor:
        """Predicted pixels of hidden patches, (H, N * patch * patch), in the units of the target."""
        encoded = self.encode(pixel_values, image_grid_thw, visible)
        positions = get_vision_position_ids(image_grid_thw, self.visual.spatial_merge_size)
        return self.decoder(encoded, positions, image_grid_thw.prod(1).tolist(), visible)

    def forward(self, pixel_values, image_grid_thw, visible) -> dict[str, torch.Tensor]:
        """{"loss"}: the mean over hidden patches that hold data of their mean squared error over valid pixels."""
        prediction = self.reconstruct(pixel_values, image_grid_thw, visible).float()
        target = pixel_values[~visible].float()
        missing = target.isnan()
        whole = not missing.any()  # nearly always, and then several times as fast
        if self.norm_pix:
            mean, scale = patch_moments(target, None if whole else ~missing)
            target = (target - mean) / scale
        if whole:
            return {"loss": F.mse_loss(prediction, target)}
        errors = patch_errors(prediction, target, ~missing)
        return {"loss": errors.sum() / (~missing).any(1).sum().clamp(min=1)}
