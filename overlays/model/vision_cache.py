"""Features of a frozen vision tower, computed once and kept on disk (--cache_vision).

What is kept of an image or clip is what goes into the mergers, which may be trained: the hidden states after each
DeepStack block and after the last block, (levels, patches, hidden) in the type of the tower.
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import get_vision_window_index

from overlays import paths
from overlays.errors import UserError
from overlays.families import family_of
from overlays.files import atomic_path, free_bytes
from overlays.model.subclass import Extension, extend

FORMAT = 1  # version of what the files hold
CHECKSUM_BYTES = 4


class Store:
    """Files of one tower, one for each image or clip: a .npy array and the CRC-32 of its values.

    bfloat16 is stored as int16.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._checked: set[str] = set()  # keys of files whose checksum this process has compared

    def file(self, key: str) -> Path:
        """Where the states of a key are kept."""
        return self.folder / key[:2] / f"{key}.npy"

    def read(self, key: str, shape: tuple[int, int, int]) -> torch.Tensor | None:
        """(levels, patches, hidden), memory-mapped; None where nothing is kept or the file is damaged."""
        file = self.file(key)
        try:
            values = np.load(file, mmap_mode="c", allow_pickle=False)
            if values.shape != shape:
                return None
            if key not in self._checked:
                with file.open("rb") as stream:
                    stream.seek(-CHECKSUM_BYTES, 2)
                    if int.from_bytes(stream.read(), "little") != zlib.crc32(values):
                        return None
                self._checked.add(key)
            states = torch.from_numpy(values)
        except (OSError, ValueError, EOFError, TypeError):
            return None
        return states.view(torch.bfloat16) if states.dtype is torch.int16 else states

    def write(self, key: str, states: torch.Tensor) -> None:
        """Keep (levels, patches, hidden) states. Raises OSError on a full disk."""
        values = states.detach().cpu().contiguous()
        values = (values.view(torch.int16) if values.dtype is torch.bfloat16 else values).numpy()
        with atomic_path(self.file(key)) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array(stream, values, allow_pickle=False)
            stream.write(zlib.crc32(values).to_bytes(CHECKSUM_BYTES, "little"))

    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.folder.glob("*/*.npy"))


class CachedTower(Extension):
    """The family's vision tower: images with `vision_keys` go through the blocks only where nothing is kept of them.

    Attributes:
        store: where the states are kept.
    """

    added_parameters = {"forward": ("vision_keys",)}

    def forward(self, hidden_states, grid_thw, vision_keys: torch.Tensor | None = None, **kwargs):
        """The plain forward; with `vision_keys` (images and clips, bytes of a digest) the same from kept states."""
        if vision_keys is None:
            return super().forward(hidden_states=hidden_states, grid_thw=grid_thw, **kwargs)
        keys = [bytes(key).hex() for key in vision_keys.tolist()]
        counts = grid_thw.prod(dim=1).tolist()  # patches
        levels, hidden = self.kept_shape
        kept = {key: self.store.read(key, (levels, count, hidden)) for key, count in zip(keys, counts, strict=True)}
        missing = {key: number for number, key in enumerate(keys) if kept[key] is None}
        if missing:
            pixels, numbers = hidden_states.split(counts), list(missing.values())
            states = self._states(torch.cat([pixels[number] for number in numbers]), grid_thw[numbers], kwargs)
            for key, part in zip(missing, states.split([counts[number] for number in numbers], dim=1), strict=True):
                self.store.write(key, part)
                kept[key] = part
        return self._merged(torch.cat([kept[key].to(hidden_states.device) for key in keys], dim=1))

    @property
    def kept_shape(self) -> tuple[int, int]:
        """(levels, hidden size)."""
        return 1 + len(self._deepstack()), self.patch_embed.proj.weight.shape[0]

    def _deepstack(self):
        return getattr(self, "deepstack_merger_list", ())

    @torch.no_grad()
    def _states(self, pixels: torch.Tensor, grids: torch.Tensor, kwargs: dict) -> torch.Tensor:
        """(levels, patches, hidden): what the mergers read, patches in the order of the pixels."""
        read = []
        hooks = [merger.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
                 for merger in (*self._deepstack(), self.merger)]
        try:
            super().forward(hidden_states=pixels, grid_thw=grids, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        states = torch.stack(read)
        if hasattr(self.config, "window_size"):  # Qwen2.5-VL: the blocks see the patches window by window
            unit = self.spatial_merge_size ** 2
            order, _ = get_vision_window_index(grids, self.spatial_merge_size, self.config.window_size,
                                               self.config.patch_size)
            states = states.unflatten(1, (-1, unit))[:, order.argsort().to(states.device)].flatten(1, 2)
        return states

    def _merged(self, states: torch.Tensor):
        """The tower's output from (levels, patches, hidden) states."""
        values = {"last_hidden_state": states[-1], "pooler_output": self.merger(states[-1])}
        if not self._deepstack():
            return BaseModelOutputWithPooling(**values)
        output = sys.modules[type(self).__module__].BaseModelOutputWithDeepstackFeatures
        return output(**values, deepstack_features=[
            merger(level) for merger, level in zip(self._deepstack(), states, strict=False)])


def install(model: nn.Module, precision: str = "") -> Store:
    """Let the vision tower of a generation model keep what it computes for batches with `vision_keys`.

    Args:
        precision: what decides on the precision of its computations beside the weights: autocast, device, ...

    Returns:
        The tower's store, below `paths.cache_folder()`.
    """
    visual = model.model.visual
    store = Store(paths.cache_folder() / "vision" / tower_digest(model, precision))
    extend(visual, CachedTower)
    visual.store = store
    return store


def tower_digest(model: nn.Module, precision: str = "") -> str:
    """Digest of config and weights of the vision tower without its mergers, and of how it computes."""
    visual, skipped = model.model.visual, ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    config = {key: value for key, value in visual.config.to_dict().items() if key not in skipped}
    how = [FORMAT, transformers.__version__, visual.config._attn_implementation, precision]
    digest = hashlib.blake2b(json.dumps([config, how], sort_keys=True, default=str).encode(), digest_size=16)
    mergers = family_of(model.config).merger
    for name, value in sorted(visual.state_dict().items()):
        if not f"model.visual.{name}".startswith(mergers):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_room(model: nn.Module, store: Store, visual_tokens: int) -> str:
    """A sentence about the size of the features of so many visual tokens.

    Raises:
        UserError: they do not fit into the free space.
    """
    visual = model.model.visual
    levels, hidden = visual.kept_shape
    weight = visual.patch_embed.proj.weight
    total = visual_tokens * visual.spatial_merge_size**2 * levels * hidden * weight.element_size()
    there, free = store.bytes(), free_bytes(store.folder)
    if free is not None and total - there > free:
        raise UserError(f"--cache_vision needs up to {total / 1e9:.3g} GB in {store.folder}, of which "
                        f"{there / 1e9:.3g} GB are there, and its file system has {free / 1e9:.3g} GB left: make room, "
                        "or leave it out")
    room = "" if free is None else f", {free / 1e9:.3g} GB are free"
    return f"vision features: up to {total / 1e9:.3g} GB in {store.folder}; {there / 1e9:.3g} GB are there{room}"


def keys_argument(core: nn.Module, vision_keys: torch.Tensor | None) -> dict:
    """`vision_keys` as arguments of `get_image_features`; none where the tower keeps nothing."""
    kept = vision_keys is not None and isinstance(core.visual, CachedTower)
    return {"vision_keys": vision_keys} if kept else {}
