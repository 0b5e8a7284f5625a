"""Regression head: numbers instead of words, from the pooled vision tokens or from the last token of the prompt.

It predicts targets normalised by their mean and standard deviation in the training split. With `vision` the language
model does not run at all.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from overlays.errors import UserError
from overlays.model import vision_cache

MODES = ("vision", "text")
HIDDEN = 512  # width of the hidden layer at most


class RegressionHead(nn.Module):
    """LayerNorm and a perceptron with one hidden layer, whose output starts at 0: every target's mean.

    Args:
        width: size of a merged vision token and of a hidden state of the language model.
        names: of the K targets.
        mode: "vision" (mean of a sample's merged vision tokens) or "text" (hidden state of the prompt's last token).
        mean, std: (K,) of the targets in the training split, in their own units.
    """

    def __init__(self, width: int, names: Sequence[str], mode: str, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.names, self.mode = tuple(names), mode
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, min(width, HIDDEN))
        self.out = nn.Linear(self.hidden.out_features, len(self.names))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, width) -> (B, K) normalised predictions, fp32."""
        features = features.to(self.norm.weight.dtype)
        return self.out(nn.functional.gelu(self.hidden(self.norm(features)))).float()

    def normalise(self, targets: torch.Tensor) -> torch.Tensor:
        """(B, K) targets in their own units -> mean 0, standard deviation 1 over the training split."""
        return (targets.float() - self.mean) / self.std

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """(B, K) normalised values -> the targets' own units."""
        return values * self.std + self.mean


def attach(model: nn.Module, names: Sequence[str], mode: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Put a RegressionHead at `model.regression`.

    Raises:
        UserError: an unknown mode, or numbers that do not belong to the names.
    """
    if mode not in MODES:
        raise UserError(f"a regression head reads {' or '.join(MODES)}, not {mode!r}")
    if not names or not len(names) == len(mean) == len(std):
        raise UserError(f"a regression head of {len(names)} targets has {len(mean)} means and {len(std)} deviations")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = RegressionHead(model.config.get_text_config().hidden_size, names, mode, mean, std)
    model.regression = head.to(next(model.parameters()).device)


def detach(model: nn.Module, wanted: dict | None) -> bool:
    """Take a head with other settings than the wanted ones off a model that training starts from; whether it did."""
    there = getattr(model, "_extensions", {})
    if "regression" not in there or there["regression"] == wanted:
        return False
    del model.regression
    model._taken_off = True
    model._extensions = {name: settings for name, settings in there.items() if name != "regression"}
    return True


# ---------------------------------------------------------------- forward

def sample_numbers(input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
    """(B, L) number of the sample that each token belongs to: its row, or its place in a concatenated row."""
    if position_ids is not None and position_ids.ndim == 3 and len(position_ids) == 4:
        return (position_ids[0] == 0).cumsum(dim=1) - 1
    return torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)


def pooled_vision(model: nn.Module, samples: torch.Tensor, count: int, mm_token_type_ids: torch.Tensor,
                  pixel_values=None, image_grid_thw=None, pixel_values_videos=None,
                  video_grid_thw=None, vision_keys=None) -> torch.Tensor:
    """(count, hidden) mean of every sample's merged vision tokens, by one call of the vision tower; 0 without any.

    Args:
        samples: (B, L) see `sample_numbers`.
        mm_token_type_ids: (B, L) 1 at an image's tokens, 2 at a video's.
    """
    pixels = [part for part in (pixel_values, pixel_values_videos) if part is not None]
    grids = [grid for grid in (image_grid_thw, video_grid_thw) if grid is not None]
    if not pixels:
        raise UserError("--head vision needs an image or a video in a record")
    features = model.model.get_image_features(torch.cat(pixels), torch.cat(grids), return_dict=True,
                                              **vision_cache.keys_argument(model.model, vision_keys))
    tokens = torch.cat(list(features.pooler_output))  # (tokens of all images, then of all videos; hidden)
    # Nothing else of the tower's output is used; without it DDP would miss the gradients of DeepStack's mergers.
    unused = sum(part.sum() for level in getattr(features, "deepstack_features", None) or [] for part in level)
    owners = torch.cat([samples[mm_token_type_ids == kind] for kind in (1, 2)])  # sample of each token
    tokens = tokens.float() + 0.0 * unused
    if not len(owners):  # the dummy image of a batch of text
        return tokens.new_zeros(count, tokens.shape[1]) + 0.0 * tokens.sum()
    total = tokens.new_zeros(count, tokens.shape[1]).index_add(0, owners, tokens)
    return total / torch.bincount(owners, minlength=count).clamp(min=1)[:, None]


def prompt_ends(samples: torch.Tensor, count: int, labels: torch.Tensor | None,
                attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(count,) place in the flattened (B * L) tokens of the last token before each sample's last answer.

    Without an answer it is the sample's last token.
    """
    place = torch.arange(samples.numel(), device=samples.device)
    real = torch.ones_like(place, dtype=torch.bool) if attention_mask is None else attention_mask.flatten().bool()
    owners = samples.flatten()

    def last(chosen: torch.Tensor) -> torch.Tensor:
        start = torch.full((count,), -1, device=samples.device)
        return start.scatter_reduce(0, owners[chosen], place[chosen], "amax")

    ends = last(real)
    if labels is None:
        return ends
    learned = labels != -100
    before = nn.functional.pad(learned, (1, 0))[:, :-1]
    opened = last((learned & ~before).flatten())  # first token of the last answer
    return torch.where(opened > 0, opened - 1, ends)


def values(model: nn.Module, input_ids, mm_token_type_ids, labels=None, attention_mask=None, position_ids=None,
           count: int | None = None, **inputs) -> torch.Tensor:
    """(B, K) normalised predictions of a batch of any of our collators. `model` is the generation model itself."""
    samples = sample_numbers(input_ids, position_ids)
    count = int(samples.max()) + 1 if count is None else count
    if model.regression.mode == "vision":
        media = {key: inputs.get(key) for key in
                 ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "vision_keys")}
        return model.regression(pooled_vision(model, samples, count, mm_token_type_ids, **media))
    outputs = model.model(input_ids=input_ids, mm_token_type_ids=mm_token_type_ids, attention_mask=attention_mask,
                          position_ids=position_ids, use_cache=False, **inputs)
    ends = prompt_ends(samples, count, labels, attention_mask)
    return model.regression(outputs[0].flatten(0, 1)[ends])


def loss_forward(model: nn.Module, targets: torch.Tensor | None, num_items_in_batch=None,
                 **inputs) -> CausalLMOutputWithPast:
    """Squared error of normalised targets, NaN ones left out; `logits` are the predictions in the targets' units.

    The loss is summed over targets and divided by `num_items_in_batch` (targets of the whole optimisation step) or,
    where that is not given, by this batch's own count.
    """
    inputs.pop("logits_to_keep", None)
    count = None if targets is None else len(targets)
    predicted = values(model, count=count, **inputs)
    if targets is None:  # every sample of the batch was skipped
        targets = torch.full_like(predicted, torch.nan)
    known = torch.isfinite(targets)
    errors = torch.where(known, predicted - model.regression.normalise(torch.where(known, targets, 0.0)), 0.0)
    count = known.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=errors.device)
    loss = errors.square().sum() / count.clamp(min=1)
    return CausalLMOutputWithPast(loss=loss, logits=model.regression.restore(predicted))
