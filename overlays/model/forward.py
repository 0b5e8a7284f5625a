"""Three changes to how a loaded model runs, none to what it computes.

One vision call a batch: images and videos go through the tower together, and a text-only batch sends a dummy image
of whose output nothing is used, so that every rank of a sharded run takes part in every collective.
Logits at supervised positions only: the head is applied where a label is, in blocks (see model/loss.py).
Attention sample by sample where several stand in one row, without a mask over the whole row.
"""

import functools
import inspect
import itertools

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import AttentionInterface
from transformers.utils import TransformersKwargs

from overlays import families
from overlays.errors import UserError
from overlays.model import heads, loss, vision_cache
from overlays.model.subclass import Extension, extend

# What the extensions below hand to a family's own forward. One that does not name it would swallow it in **kwargs.
CORE_ARGUMENTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "image_grid_thw", "video_grid_thw",
                  "mm_token_type_ids", "mm_encoder_outputs")

SAMPLE_SDPA = "sample_sdpa"  # name of the attention below in transformers' registry


def sample_sdpa(module, query, key, value, attention_mask, sample_lengths: list[int] | None = None, **kwargs):
    """SDPA; with `sample_lengths`, causal attention inside each of the samples that a row consists of.

    Args:
        query, key, value: (1, heads, L, head size), L the sum of `sample_lengths`.
    """
    if sample_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    samples = zip(*(states.split(sample_lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *sample, None, **kwargs)[0] for sample in samples], dim=1), None


AttentionInterface.register(SAMPLE_SDPA, sample_sdpa)
AttentionMaskInterface.register(SAMPLE_SDPA, sdpa_mask)


class PatchProjection(nn.Conv3d):
    """A Conv3d whose kernel equals its stride, computed as the matrix product that it is.

    nn.Conv3d is 5-50 times slower on some torch and cuDNN versions (pytorch issues 174051, 166122).
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(P, C, T, H, W) patches of exactly the kernel's size -> (P, embed_dim, 1, 1, 1)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def install(model: nn.Module) -> nn.Module:
    """Give a Qwen-VL generation model (see overlays.families) the forward described above; returns it.

    Gradients, parameters and state dict stay as they are. Without `labels` the logits are those of the plain model.

    Raises:
        UserError: this version of transformers does not take an argument that the forward hands over.
    """
    if isinstance(model, SupervisedLoss):
        return model
    check_arguments(type(model.model))
    projection = model.model.visual.patch_embed.proj
    if isinstance(projection, nn.Conv3d) and projection.kernel_size == projection.stride:
        projection.__class__ = PatchProjection
    text = model.config.get_text_config()
    if text._attn_implementation == "sdpa" and families.family_of(model.config).packing:
        text._attn_implementation = SAMPLE_SDPA
    loss.install(model.lm_head)
    extend(model.model, OneVisionCall)
    extend(model, SupervisedLoss)
    return model


def check_arguments(core_class: type) -> None:
    """Raise UserError where a family's model class takes an argument of CORE_ARGUMENTS only in its **kwargs."""
    taken = inspect.signature(core_class.forward).parameters
    lacking = [name for name in CORE_ARGUMENTS if name not in taken]
    if lacking:
        raise UserError(f"transformers {transformers.__version__}: {core_class.__name__} does not take "
                        f"{', '.join(lacking)}; install a version that requirements.txt allows")


def is_packed(position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> bool:
    """Whether a batch holds several samples in one row (see FlattenedCollator): four planes of positions, no mask."""
    return position_ids is not None and attention_mask is None and position_ids.ndim == 3 and len(position_ids) == 4


class OneVisionCall(Extension):
    """The family's model: a single call of the vision tower for all images and videos of a batch.

    `coordinates` (visual tokens, 3) go to the vision features, where a model takes them (see model/spatial.py), and
    `vision_keys` (images + videos, bytes of a digest) to a tower that keeps its features (see model/vision_cache.py).
    """

    added_parameters = {"forward": ("coordinates", "vision_keys")}

    def forward(self, input_ids=None, pixel_values=None, pixel_values_videos=None, image_grid_thw=None,
                video_grid_thw=None, inputs_embeds=None, mm_encoder_outputs=None, coordinates=None,
                vision_keys=None, **kwargs):
        """The plain forward after the vision call."""
        if is_packed(kwargs.get("position_ids"), kwargs.get("attention_mask")):
            if kwargs.get("use_cache") is None:
                kwargs["use_cache"] = False  # transformers keeps attention inside the samples only without a cache
            if self.config.get_text_config()._attn_implementation == SAMPLE_SDPA and not kwargs["use_cache"]:
                # Without the first plane transformers makes no mask.
                places, kwargs["position_ids"] = kwargs["position_ids"][0, 0], kwargs["position_ids"][1:]
                starts = (places == 0).nonzero().flatten().tolist()
                kwargs["sample_lengths"] = [end - start for start, end in itertools.pairwise([*starts, len(places)])]
        plain = functools.partial(super().forward, image_grid_thw=image_grid_thw, video_grid_thw=video_grid_thw,
                                  **kwargs)
        if mm_encoder_outputs is not None or (pixel_values is None and pixel_values_videos is None):
            return plain(input_ids=input_ids, inputs_embeds=inputs_embeds, mm_encoder_outputs=mm_encoder_outputs,
                         pixel_values=pixel_values, pixel_values_videos=pixel_values_videos)
        pixels = [part for part in (pixel_values, pixel_values_videos) if part is not None]
        grids = [grid for grid in (image_grid_thw, video_grid_thw) if grid is not None]
        # (P, channels * T * patch * patch), (images + videos, 3) -> one (tokens_i, hidden) tensor for each of them
        extra = vision_cache.keys_argument(self, vision_keys)
        if hasattr(self, "spatial"):
            extra["coordinates"] = coordinates
        patches = pixels[0] if len(pixels) == 1 else torch.cat(pixels)  # hundreds of channels are not copied in vain
        features = self.get_image_features(patches, torch.cat(grids), return_dict=True, **extra)

        if input_ids is not None and self._is_dummy(input_ids, pixel_values_videos, image_grid_thw):
            # No row of the features is used, yet the backward pass goes through the tower. The ids stay an argument:
            # Qwen4-Exp looks up n-grams of them and would have to guess them from embeddings.
            return super().forward(input_ids=input_ids, mm_encoder_outputs={"image": _rows(features, slice(0))},
                                   **kwargs)

        images = 0 if pixel_values is None else len(image_grid_thw)
        outputs = {}
        if pixel_values is not None:
            outputs["image"] = _part(features, slice(None, images))
        if pixel_values_videos is not None:
            outputs["video"] = _part(features, slice(images, None))
        return plain(input_ids=input_ids, inputs_embeds=inputs_embeds, mm_encoder_outputs=outputs)

    def _is_dummy(self, input_ids, pixel_values_videos, image_grid_thw) -> bool:
        """Whether the pixels are the collators' dummy: one image of one token that no position of the text shows."""
        if pixel_values_videos is not None or len(image_grid_thw) > 1:
            return False
        one_token = int(image_grid_thw.prod()) == self.config.vision_config.spatial_merge_size ** 2
        return one_token and not (input_ids == self.config.image_token_id).any()


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


class SupervisedLoss(Extension):
    """The family's generation model: the head is applied where a label is.

    With labels: the loss alone. Without: the plain forward.

    The loss is summed over supervised tokens and divided by `num_items_in_batch` (tokens of the whole optimisation
    step, all ranks and accumulated batches) or, where that is not given, by this batch's own count.

    A model with a regression head learns `targets` instead of words.
    """

    added_parameters = {"forward": ("coordinates", "vision_keys")}

    def forward(self, labels=None, num_items_in_batch=None, targets=None, **kwargs):
        """The loss.

        Raises:
            TypeError: with labels, an argument that no forward reads.
        """
        if labels is None:
            return super().forward(**kwargs)
        unread = kwargs.keys() - _read_arguments(type(self))
        if unread:
            raise TypeError(f"{type(self).__name__} does not read {', '.join(sorted(unread))} of the batch")
        if hasattr(self, "regression"):
            return heads.loss_forward(self, targets, num_items_in_batch, labels=labels, **kwargs)
        kwargs["use_cache"] = False  # with a cache, samples of one row would see each other
        if getattr(self.config.get_text_config(), "output_router_logits", False):
            step = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            return super().forward(labels=labels, **step, **kwargs)
        kwargs.pop("logits_to_keep", None)
        outputs = self.model(**kwargs)
        supervised = labels[:, 1:] != -100  # (B, L - 1): the token at i + 1 is predicted from position i
        hidden, targets = outputs[0][:, :-1][supervised], labels[:, 1:][supervised]  # (supervised, hidden)
        count = max(len(hidden), 1) if num_items_in_batch is None else num_items_in_batch
        if isinstance(self.lm_head, loss.LossHead):
            return CausalLMOutputWithPast(loss=self.lm_head(hidden, targets=targets, count=count))
        total = F.cross_entropy(self.lm_head(hidden).float(), targets, reduction="sum")
        return CausalLMOutputWithPast(loss=total / count)


@functools.cache
def _read_arguments(model_class: type) -> frozenset[str]:
    """Names of the arguments that the forward of a generation class, or what it calls, reads."""
    named = inspect.signature(model_class.forward).parameters
    return frozenset(named) | frozenset(TransformersKwargs.__annotations__) | {"use_cache", "return_dict"}
