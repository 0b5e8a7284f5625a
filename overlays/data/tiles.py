"""Unlabelled rasters for pretraining: found, checked, cropped and turned by seed, cut into patches, masked."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from overlays import registry
from overlays.data import geotiff, memory, rasters, records
from overlays.data.augment import draw
from overlays.data.dataset import SampleError, sample_rows
from overlays.data.media import MAX_ASPECT
from overlays.errors import UserError
from overlays.paths import ROOT

MATRICES = re.compile(r"(pca_)?projection(_.*)?\.npy")  # scripts write such matrices beside prepared arrays
TOUCHED = 1e-3  # weight of pixels without data in a resized pixel from which on it counts as one of them


class Source(NamedTuple):
    """A raster, or a window (row, column, height, width) of it."""

    path: Path
    window: tuple[int, int, int, int] | None = None

    def __str__(self) -> str:
        return str(self.path) if self.window is None else f"{self.path}, window {list(self.window)}"


def find(names: str, seed: int = 0, root: Path = ROOT) -> list[Source]:
    """Rasters of folders and of data sets (see `registry.resolve`), by comma; each once, in a fixed order.

    Raises:
        UserError: an unknown name, a folder or data set without rasters, or a record that names another file.
    """
    found: dict[Source, None] = {}
    for word in filter(None, (word.strip() for word in names.split(","))):
        own = _below(Path(word)) if Path(word).is_dir() else _of_records(word, seed, root)
        if not own:
            raise UserError(f"{word} holds no rasters ({', '.join(rasters.SUFFIXES)}), which pretraining learns from")
        found |= dict.fromkeys(own)
    if not found:
        raise UserError(f"no data set and no folder is named in {names!r}")
    return list(found)


def _below(folder: Path) -> list[Source]:
    """Rasters below a folder; none of hidden files and folders, nor the matrices of channel projections."""
    found = []
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and rasters.is_raster(file) and file.is_file() and not _is_matrix(file):
            found.append(Source(file))
    return found


def _is_matrix(file: Path) -> bool:
    if not MATRICES.fullmatch(file.name):
        return False
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False).ndim == 2
    except rasters.NUMPY_ERRORS:
        return False


def _of_records(word: str, seed: int, root: Path) -> list[Source]:
    chosen = []
    for data_set in registry.resolve(word, root):
        own: dict[Source, None] = {}
        for record in records.read(data_set.annotation):
            for name, window in zip(records.media_names(record, "image"), records.windows(record), strict=True):
                if rasters.is_raster(name):
                    path = records.media_file(data_set.media_root, name)
                    own[Source(path, None if window is None else tuple(window))] = None
        rows = sample_rows(len(own), data_set.rate, f"{seed}:{data_set.name}") if own else []
        chosen += [list(own)[row] for row in rows]
    return chosen


def hold_out(sources: Sequence[Source], share: float, seed: int) -> tuple[list[Source], list[Source]]:
    """(training sources, held-out ones): a share of the files, at least one, by seed; the order stays.

    Raises:
        UserError: there are fewer than two files.
    """
    files = list(dict.fromkeys(source.path for source in sources))
    if len(files) < 2:
        raise UserError(f"{len(files)} raster cannot be divided: name held-out data with --eval_dataset")
    held = {files[row] for row in sample_rows(len(files), min(share, 1 - 1 / len(files)), f"{seed}:held out")}
    return [s for s in sources if s.path not in held], [s for s in sources if s.path in held]


def check(sources: Sequence[Source], on_bad: str = "stop", channels: int | None = None
          ) -> tuple[list[Source], list[dict], int]:
    """(what can be used, [{file, reason}] left out, channels).

    A tile without any data is always left out. A raster that cannot be read, whose number of channels is not that of
    the others, or that is too long is an error, or left out with on_bad="skip".

    Args:
        channels: what the rasters must have; None: what most of them have.

    Raises:
        UserError: such a raster under "stop", or nothing is left.
    """
    counts = {source: _guarded(lambda source=source: rasters.shape(source.path)[0], on_bad) for source in sources}
    known = Counter(count for count in counts.values() if isinstance(count, int))
    if channels is None and known:
        channels = known.most_common(1)[0][0]
    kept, dropped = [], []
    for source in tqdm(sources, desc="checking", unit="tile", disable=len(sources) < 200):
        problem = counts[source]
        if isinstance(problem, int):
            problem = _problem(source, problem, channels, on_bad)
        if problem is None:
            kept.append(source)
        else:
            dropped.append({"file": str(source), "reason": problem})
    if not kept:
        first = f"; {dropped[0]['file']}: {dropped[0]['reason']}" if dropped else ""
        raise UserError(f"none of {len(dropped)} rasters can be used{first}")
    return kept, dropped, channels


def _guarded(call, on_bad: str):
    """What `call` returns; the sentence of its UserError under "skip"."""
    try:
        return call()
    except UserError as error:
        if on_bad == "stop":
            raise
        return str(error)


def _problem(source: Source, count: int, channels: int, on_bad: str) -> str | None:
    if count != channels:
        problem = f"it has {count} channels{geotiff.note(source.path)} where {channels} are needed"
        if on_bad == "stop":
            raise UserError(f"raster {source}: {problem}; leave it out, or let --on_bad_sample skip do so")
        return problem
    sides = source.window[2:] if source.window else rasters.size(source.path)
    if not _fits(*sides):
        problem = _too_long(*sides)
        if on_bad == "stop":
            raise UserError(f"raster {source}: {problem}; leave it out, or let --on_bad_sample skip do so")
        return problem
    array = _guarded(lambda: rasters.read(*source), on_bad)
    if isinstance(array, str):
        return array
    return None if np.isfinite(array).any() else "no pixel holds data"


def _fits(height: int, width: int) -> bool:
    return max(height, width) <= MAX_ASPECT * min(height, width)


def _too_long(height: int, width: int) -> str:
    return f"it has {height} x {width} pixels, and no side may be above {MAX_ASPECT} times the other"


def augment(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A crop, flip and quarter turn of a raster (C, H, W), drawn by `augment.draw`; without the crop if it is empty
    or too long.

    The crop keeps its own size: whatever is resized is resized once, by the processor, and knows what holds no data.
    """
    change = draw(rng)
    row, column, height, width = change.box(*array.shape[1:])
    crop = array[:, row : row + height, column : column + width]
    crop = crop if _fits(height, width) and np.isfinite(crop).any() else array
    crop = crop[:, :, ::-1] if change.mirrored else crop
    return np.ascontiguousarray(np.rot90(crop, change.turns, axes=(1, 2)))


def frames_of(array: np.ndarray, processor) -> tuple[torch.Tensor, torch.Tensor]:
    """One frame of every patch of a raster (C, H, W), normalised and resized as `rasters.patches` does it.

    Returns:
        ((P, C * patch * patch) float32 with NaN where a pixel without data takes part, (3,) grid of patches).

    Raises:
        UserError: one side is above MAX_ASPECT times the other, or as `rasters.as_image`.
    """
    if not _fits(*array.shape[1:]):
        raise UserError(_too_long(*array.shape[1:]))
    image = getattr(processor, "image_processor", processor)

    def frame(values: np.ndarray, image) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, grid = rasters.patches(values, image)
        pixels = pixels.unflatten(1, (len(values), image.temporal_patch_size, image.patch_size**2))
        return pixels[:, :, 0].flatten(1), grid[0]

    frames, grid = frame(array, image)
    empty = ~np.isfinite(array)
    if empty.any():
        # The same way through resizing and cutting, of values that are 1 where there is no data, else 0.
        plain = copy.copy(image)
        plain.image_mean, plain.image_std, plain.do_rescale = [0.0] * len(array), [1.0] * len(array), False
        frames = frames.masked_fill(frame(empty.astype(np.float32), plain)[0].abs() > TOUCHED, torch.nan)
    return frames, grid


def random_masking(patches: int, mask_ratio: float, rng: np.random.Generator) -> torch.Tensor:
    """Which patches of an image stay visible, (patches,) bool: at least one and, from two patches on, not all."""
    kept = min(max(round(patches * (1 - mask_ratio)), 1), max(patches - 1, 1))
    visible = torch.zeros(patches, dtype=torch.bool)
    visible[torch.from_numpy(rng.permutation(patches)[:kept])] = True
    return visible


class Tiles(torch.utils.data.Dataset):
    """Masked tiles: {"pixel_values" (P, C * patch * patch), "grid" (3,), "visible" (P,) bool}.

    Args:
        sources: rasters, or windows of them.
        processor: with resolution and statistics set.
        mask_ratio: share of the patches that is hidden.
        seed: of crops, turns and masks; they depend on it, the epoch and the sample's number, and on nothing else.
        augment: whether tiles are cropped, flipped and turned.
        samples_per_file: samples that an epoch takes of each file.

    Attributes:
        epoch: set before an epoch, also where worker processes persist.
    """

    def __init__(self, sources: Sequence[Source], processor, mask_ratio: float = 0.75, seed: int = 0,
                 augment: bool = False, samples_per_file: int = 1):
        self.sources, self.processor, self.mask_ratio, self.seed = list(sources), processor, mask_ratio, seed
        self.augment, self.samples_per_file = augment, samples_per_file
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Let the next epoch draw its own crops and masks."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.sources) * self.samples_per_file

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        memory.settle_worker()
        source = self.sources[i % len(self.sources)]
        rng = np.random.default_rng((self.seed, int(self._epoch), i))
        try:
            array = rasters.read(*source)
            if self.augment:
                array = augment(array, rng)
            frames, grid = frames_of(array, self.processor)
        except UserError as error:
            raise SampleError(f"{source}: {error}") from None
        return {"pixel_values": frames, "grid": grid, "visible": random_masking(len(frames), self.mask_ratio, rng)}


def collate(samples: Sequence[dict]) -> dict[str, torch.Tensor]:
    """A batch of `MaskedAutoencoder`. The grid comes first: by its length the Trainer counts the samples."""
    return {
        "image_grid_thw": torch.stack([sample["grid"] for sample in samples]),
        "pixel_values": torch.cat([sample["pixel_values"] for sample in samples]),
        "visible": torch.cat([sample["visible"] for sample in samples]),
    }
