"""Two changes to how a loaded model runs, none to what it computes.

One vision call a batch: images and videos go through the tower together, and a text-only batch sends a dummy image
of whose output nothing is used, so that every rank of a sharded run takes part in every collective.
Logits at supervised positions only: the head is applied where a label is, and the loss is the same.
"""


import functools

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from overlays.model import heads
from overlays.model.spatial import with_parameter


class PatchProjection(nn.Conv3d):
    """A Conv3d whose kernel equals its stride, computed as the matrix product that it is.

    nn.Conv3d is 5-50 times slower on some torch and cuDNN versions (pytorch issues 174051, 166122).
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(P, C, T, H, W) patches of exactly the kernel's size -> (P, embed_dim, 1, 1, 1)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def install(model: nn.Module) -> nn.Module:
    """Give a Qwen-VL generation model (see parts.FAMILIES) the forward described above; returns it.

    Gradients, parameters and state dict stay as they are. Without `labels` the logits are those of the plain model.
    """
    if getattr(model, "_overlay_installed", False):
        return model
    model._overlay_installed = True
    projection = model.model.visual.patch_embed.proj
    if isinstance(projection, nn.Conv3d) and projection.kernel_size == projection.stride:
        projection.__class__ = PatchProjection
    _replace_forward(model.model, _core_forward)
    _replace_forward(model, _generation_forward)
    return model


def _replace_forward(module: nn.Module, function) -> None:
    """Let `module` run function(module, its plain forward, ...), showing `generate` what it takes."""
    plain = module.forward

    @functools.wraps(plain)
    def forward(**kwargs):
        return function(module, plain, **kwargs)

    forward.__signature__ = with_parameter(plain, "coordinates")
    module.forward = forward


def _core_forward(self, plain, input_ids=None, pixel_values=None, pixel_values_videos=None, image_grid_thw=None,
                  video_grid_thw=None, inputs_embeds=None, mm_encoder_outputs=None, coordinates=None, **kwargs):
    """The family's model forward after a single call of the vision tower.

    `coordinates` (visual tokens, 3) go to the vision features, where a model takes them (see model/spatial.py).
    """
    if pixel_values is None and pixel_values_videos is None:
        return plain(
            input_ids=input_ids, inputs_embeds=inputs_embeds, image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw, mm_encoder_outputs=mm_encoder_outputs, **kwargs,
        )
    pixels = [part for part in (pixel_values, pixel_values_videos) if part is not None]
    grids = [grid for grid in (image_grid_thw, video_grid_thw) if grid is not None]
    # (P, channels * T * patch * patch), (images + videos, 3) -> one (tokens_i, hidden) tensor for each of them
    extra = {"coordinates": coordinates} if hasattr(self, "spatial") else {}
    patches = pixels[0] if len(pixels) == 1 else torch.cat(pixels)  # those of 200 channels are not copied for nothing
    features = self.get_image_features(patches, torch.cat(grids), return_dict=True, **extra)

    if input_ids is not None and pixel_values_videos is None and not (input_ids == self.config.image_token_id).any():
        # No row of the features is used, yet the backward pass goes through the tower. The ids stay an argument:
        # Qwen4-Exp looks up n-grams of them and would have to guess them from embeddings.
        return plain(input_ids=input_ids, mm_encoder_outputs={"image": _rows(features, slice(0))}, **kwargs)

    images = 0 if pixel_values is None else len(image_grid_thw)
    outputs = {}
    if pixel_values is not None:
        outputs["image"] = _part(features, slice(None, images))
    if pixel_values_videos is not None:
        outputs["video"] = _part(features, slice(images, None))
    return plain(
        input_ids=input_ids, inputs_embeds=inputs_embeds, image_grid_thw=image_grid_thw,
        video_grid_thw=video_grid_thw, mm_encoder_outputs=outputs, **kwargs,
    )


def _levels(features) -> list[tuple[torch.Tensor, ...]]:
    """DeepStack features, a tuple of per-image tensors for each level; none in families without DeepStack."""
    return getattr(features, "deepstack_features", None) or []


def _part(features, items: slice):
    """The vision output of some of the images and videos that were encoded together."""
    values = {"pooler_output": features.pooler_output[items]}
    if _levels(features):
        values["deepstack_features"] = [level[items] for level in _levels(features)]
    return type(features)(**values)


def _rows(features, rows: slice):
    """The vision output with some rows of all its images together."""
    values = {"pooler_output": (torch.cat(features.pooler_output)[rows],)}
    if _levels(features):
        values["deepstack_features"] = [(torch.cat(level)[rows],) for level in _levels(features)]
    return type(features)(**values)


def _generation_forward(self, plain, labels=None, num_items_in_batch=None, targets=None, **kwargs):
    """With labels: loss and the logits of supervised positions, (supervised, vocabulary). Without: the plain forward.

    The loss is summed over supervised tokens and divided by `num_items_in_batch` (tokens of the whole optimisation
    step, all ranks and accumulated batches) or, where that is not given, by this batch's own count.

    A model with a regression head learns `targets` instead of words.
    """
    if labels is not None and hasattr(self, "regression"):
        return heads.loss_forward(self, targets, num_items_in_batch, labels=labels, **kwargs)
    text = self.config.get_text_config()
    if labels is None or getattr(text, "output_router_logits", False):
        if labels is not None:
            kwargs["labels"] = labels
            if num_items_in_batch is not None:
                kwargs["num_items_in_batch"] = num_items_in_batch
        return plain(**kwargs)
    kwargs.pop("logits_to_keep", None)
    outputs = self.model(**kwargs)
    supervised = labels[:, 1:] != -100  # (B, L - 1): the token at i + 1 is predicted from position i
    hidden = outputs[0][:, :-1][supervised]  # (supervised, hidden)
    logits = self.lm_head(hidden)
    total = F.cross_entropy(logits.float(), labels[:, 1:][supervised], reduction="sum")
    count = max(len(hidden), 1) if num_items_in_batch is None else num_items_in_batch
    return CausalLMOutputWithPast(loss=total / count, logits=logits)
