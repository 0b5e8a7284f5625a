"""Samples -> batches: padded, concatenated, or left-padded prompts."""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from overlays.data.chat import IGNORE

_PIXELS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


def count(batch: Mapping[str, torch.Tensor]) -> tuple[int | torch.Tensor, int | torch.Tensor]:
    """(samples, tokens without padding) of a batch; of tiles without words their number and 0.

    A packed row has the samples that it consists of. Numbers are tensors on the batch's device where they had to be
    computed: to read one would wait for a GPU.
    """
    if "input_ids" not in batch:
        return len(batch.get("image_grid_thw", ())), 0
    ids, mask, positions = batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")
    packed = positions is not None and len(positions) == 4
    return (positions[0] == 0).sum() if packed else len(ids), ids.numel() if mask is None else mask.sum()


def vision_keys(media: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(images + videos, 16) uint8: a digest of the pixels and grid of each image, then of each video."""
    keys = []
    for pixels, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        if grids in media:
            parts = media[pixels].split(media[grids].prod(dim=1).tolist())
            for grid, patches in zip(media[grids], parts, strict=True):
                digest = hashlib.blake2b(grid.numpy(), digest_size=16)
                digest.update(patches.view(torch.uint8).numpy())
                keys.append(list(digest.digest()))
    return torch.tensor(keys, dtype=torch.uint8)


class _Collator:
    """What the collators share.

    Args:
        vision_keys: batches with media get `vision_keys`, for --cache_vision (see model/vision_cache.py).
    """

    def __init__(self, processor, vision_keys: bool = False):
        self.vision_keys = vision_keys
        self.pad_id = processor.tokenizer.pad_token_id
        if self.pad_id is None:
            self.pad_id = processor.tokenizer.eos_token_id
        image = processor.image_processor
        self.merge = image.merge_size
        # values of one patch: channels x frames x height x width
        self.patch_values = getattr(image, "in_channels", 3) * image.temporal_patch_size * image.patch_size**2

    def _usable(self, samples: Sequence[dict]) -> list[dict]:
        """Samples without those that were skipped; where none is left, one of padding with nothing to learn.

        Packed rows (see data/packing.py) give their samples one by one.
        """
        every = [sample for item in samples for sample in item.get("samples", [item])]
        usable = [sample for sample in every if "input_ids" in sample]
        if usable:
            return usable
        ids = torch.full((2,), self.pad_id)
        return [{
            "input_ids": ids, "labels": torch.full_like(ids, IGNORE), "mm_token_type_ids": torch.zeros_like(ids),
            "position_ids": torch.arange(2).expand(3, 2),
        }]

    def _media(self, samples: Sequence[dict], dummy: bool) -> dict:
        """Pixels and grids of all samples, in the order of their tokens; a dummy image where there are none."""
        media = {
            key: torch.cat([sample[key] for sample in samples if key in sample])
            for key in _PIXELS if any(key in sample for sample in samples)
        }
        if media and self.vision_keys:
            media["vision_keys"] = vision_keys(media)
        if not media and dummy:
            media["pixel_values"] = torch.zeros(self.merge**2, self.patch_values)
            media["image_grid_thw"] = torch.tensor([[1, self.merge, self.merge]])
        if any("coordinates" in sample for sample in samples):
            media["coordinates"] = self._coordinates(samples)
        if any("targets" in sample for sample in samples):
            count = next(len(sample["targets"]) for sample in samples if "targets" in sample)
            media["targets"] = torch.stack(
                [sample.get("targets", torch.full((count,), torch.nan)) for sample in samples]
            )
        return media

    def _coordinates(self, samples: Sequence[dict]) -> torch.Tensor:
        """(merged tokens, 3): those of all images, then those of all videos; zeros where a sample has none."""
        images, videos = [], []
        for sample in samples:
            tokens = [int(sample[key].prod(dim=1).sum()) // self.merge**2 if key in sample else 0
                      for key in ("image_grid_thw", "video_grid_thw")]
            points = sample.get("coordinates", torch.zeros(sum(tokens), 3))
            images.append(points[:tokens[0]])
            videos.append(points[tokens[0]:])
        return torch.cat(images + videos)


class PaddedCollator(_Collator):
    """Samples padded on the right to the longest.

    Samples of 3 and 2 tokens, the second without media, become

        input_ids          [[5, 7, 9], [5, 8, pad]]      (B, L)
        labels             [[-100, 7, 9], [-100, 8, -100]]
        attention_mask     [[1, 1, 1], [1, 1, 0]]
        mm_token_type_ids  [[0, 1, 0], [0, 0, 0]]        0 text, 1 image, 2 video
        position_ids       (3, B, L): time, height, width of M-RoPE; 0 at padding
        pixel_values       (P, D) patches of all images, image_grid_thw (n, 3); the same for videos
        coordinates        (merged tokens of all images, then of all videos, 3), where a sample has a scene
        targets            (B, K) numbers to regress, NaN where a sample has none
        vision_keys        (n, 16) uint8, see `vision_keys`, where the collator makes them

    A batch without media gets `pixel_values` (merge^2, D) of zeros and `image_grid_thw` [[1, merge, merge]] though no
    token is an image: the model runs its vision tower on it and adds 0 times the result, so that every batch makes
    exactly one vision call.
    """

    def __call__(self, samples: Sequence[dict]) -> dict[str, torch.Tensor]:
        samples = self._usable(samples)

        def pad(key: str, value: int) -> torch.Tensor:
            return pad_sequence([sample[key] for sample in samples], batch_first=True, padding_value=value)

        positions = pad_sequence([sample["position_ids"].T for sample in samples], batch_first=True)  # (B, L, 3)
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        return {
            "input_ids": pad("input_ids", self.pad_id),
            "labels": pad("labels", IGNORE),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "mm_token_type_ids": pad("mm_token_type_ids", 0),
            "position_ids": positions.permute(2, 0, 1).contiguous(),
            **self._media(samples, dummy=True),
        }


class FlattenedCollator(_Collator):
    """Samples in one row without padding (--data_flatten, --data_packing).

    Samples of 3 and 2 tokens become

        input_ids          [[5, 7, 9, 5, 8]]             (1, L1 + L2)
        labels             [[-100, 7, 9, -100, 8]]       the first of each sample is -100: no loss crosses a border
        mm_token_type_ids  [[0, 1, 0, 0, 0]]
        position_ids       (4, 1, L1 + L2): first [0, 1, 2, 0, 1], from which transformers tells the samples apart and
                           keeps attention inside them; then time, height, width of M-RoPE
        pixel_values, ...  as in PaddedCollator, the dummy image of a text-only batch included

    There is no attention_mask: with one, transformers would take the row for a single sample.
    """

    def __call__(self, samples: Sequence[dict]) -> dict[str, torch.Tensor]:
        samples = self._usable(samples)
        labels = [torch.cat([torch.full_like(s["labels"][:1], IGNORE), s["labels"][1:]]) for s in samples]
        own = torch.cat([torch.arange(len(sample["input_ids"])) for sample in samples])
        positions = torch.cat([sample["position_ids"] for sample in samples], dim=1)
        return {
            "input_ids": torch.cat([sample["input_ids"] for sample in samples])[None],
            "labels": torch.cat(labels)[None],
            "mm_token_type_ids": torch.cat([sample["mm_token_type_ids"] for sample in samples])[None],
            "position_ids": torch.cat([own[None], positions])[:, None],
            **self._media(samples, dummy=True),
        }


class PromptCollator(_Collator):
    """Prompts (`chat.encode_prompt`) padded on the left, so that generation continues each at its end.

    Prompts of 3 and 2 tokens become

        input_ids          [[5, 7, 9], [pad, 5, 8]]      (B, L)
        attention_mask     [[1, 1, 1], [0, 1, 1]]
        mm_token_type_ids  [[0, 1, 0], [0, 0, 0]]
        pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw, second_per_grid_ts: where there are any
        ids                ["a", "b"]: the records' own, where the prompts have "id"; not for the model
    """

    def __call__(self, prompts: Sequence[dict]) -> dict:
        def pad(key: str, value: int) -> torch.Tensor:
            rows = [prompt[key].flip(0) for prompt in prompts]
            return pad_sequence(rows, batch_first=True, padding_value=value).flip(1)

        lengths = torch.tensor([len(prompt["input_ids"]) for prompt in prompts])
        longest = int(lengths.max())
        batch = {
            "input_ids": pad("input_ids", self.pad_id),
            "attention_mask": (torch.arange(longest) >= longest - lengths[:, None]).long(),
            "mm_token_type_ids": pad("mm_token_type_ids", 0),
            **self._media(prompts, dummy=False),
        }
        if any("second_per_grid_ts" in prompt for prompt in prompts):
            batch["second_per_grid_ts"] = torch.cat(
                [prompt["second_per_grid_ts"] for prompt in prompts if "second_per_grid_ts" in prompt]
            )
        if all("id" in prompt for prompt in prompts):
            batch["ids"] = [prompt["id"] for prompt in prompts]
        return batch
