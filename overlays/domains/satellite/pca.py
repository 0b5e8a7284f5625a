"""Route B: embeddings as RGB pictures by a PCA of the training cities, for a model that is left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from overlays.data import records
from overlays.data.raster_file import NUMPY_ERRORS
from overlays.data.rasters import open_npy
from overlays.domains.base import SPLITS, prepared_folder, write_metadata
from overlays.domains.satellite.metadata import read_metadata
from overlays.errors import UserError
from overlays.files import atomic_path, write_jsonl

NAME, PROJECTION = "pca.npz", "pca_projection.npy"
PERCENT = (2.0, 98.0)
BLOCK_PX = 1 << 16  # pixels looked at together
SHOWN_PX = 2000  # pixels of a tile that the stretch is fitted on


@dataclass(frozen=True)
class Pca:
    """Three principal components and how they are shown.

    Attributes:
        components: (3, bands), rows of unit length; mean, std: (bands,) over all pixels with data.
        explained: (3,) share of the variance.
        low, high: (3,) 2nd and 98th percentile of the components, shown as 0 and 255.
    """

    components: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    explained: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def picture(self, values: np.ndarray) -> np.ndarray:
        """(bands, h, w) embeddings -> (h, w, 3) uint8; black where there is no data."""
        shown = np.tensordot(values.astype(np.float32), self.components.T, ([0], [0])) - self.components @ self.mean
        shown = (shown - self.low) / (self.high - self.low)
        return np.rint(255 * np.clip(np.nan_to_num(shown), 0, 1)).astype(np.uint8)

    def projection(self) -> np.ndarray:
        """(3, bands) float32 for --channel_projection: RGB of about -1..1 from normalised channels (x - mean) / std.

        A projection has no constant, so the components are centred on their mean, not on the middle of the stretch.
        """
        return (2 / (self.high - self.low)[:, None] * self.components * self.std).astype(np.float32)


def compute(folder: str | Path) -> Pca:
    """Fit on the training split of prepared arrays, block by block, and write pca.npz and pca_projection.npy there.

    Raises:
        UserError: the folder holds no prepared arrays, one is damaged, or there is too little to fit on.
    """
    from sklearn.decomposition import IncrementalPCA

    folder = Path(folder)
    files = _training_files(folder)
    model, left = IncrementalPCA(n_components=3), None
    for block in tqdm(_pixels(files), desc="fitting", unit="block"):
        left = block if left is None else np.concatenate([left, block])
        if len(left) >= BLOCK_PX:
            model.partial_fit(left)
            left = None
    if left is not None and len(left) >= 3:
        model.partial_fit(left)
    if not hasattr(model, "components_"):
        raise UserError(f"the training tiles in {folder} hold fewer than three pixels with data")
    # The sign of a component is arbitrary: its largest weight is made positive.
    turned = np.sign(model.components_[np.arange(3), np.abs(model.components_).argmax(1)])
    components = model.components_ * turned[:, None]
    shown_pixels = np.concatenate([_some(file, number) for number, file in enumerate(files)])
    if not len(shown_pixels):
        raise UserError(f"the training tiles in {folder} hold hardly any pixel with data")
    low, high = np.percentile((shown_pixels - model.mean_) @ components.T, PERCENT, axis=0)
    pca = Pca(components, model.mean_, np.sqrt(model.var_), model.explained_variance_ratio_, low,
                np.maximum(high, low + 1e-6))
    with atomic_path(folder / NAME) as temporary:
        np.savez(temporary, **vars(pca))
    with atomic_path(folder / PROJECTION) as temporary:
        np.save(temporary, pca.projection())
    return pca


def load(path: str | Path) -> Pca:
    """What `compute` wrote. Raises UserError where the file is something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Pca(**{name: stored[name] for name in Pca.__dataclass_fields__})
    except NUMPY_ERRORS as error:
        raise UserError(f"{path} is not a PCA of scripts/compute_pca.py: {error}; run that again") from None


def prepare_rgb(folder: Path, output: Path) -> dict:
    """Prepared arrays -> the same records with PNG pictures, in `output`; the PCA is fitted where it is missing.

    Returns:
        metadata, as in output/metadata.json.
    """
    _training_files(folder)
    metadata = read_metadata(folder)
    pca = load(folder / NAME) if (folder / NAME).is_file() else compute(folder)
    with prepared_folder(output, "satellite") as temporary:
        (temporary / "tiles").mkdir()
        for split in SPLITS:
            rows = list(records.read(folder / f"{split}.jsonl"))
            for row in tqdm(rows, desc=f"pictures of {split}", unit="tile"):
                values = open_npy(folder / row["image"])
                row["image"] = f"{row['image'].removesuffix('.npy')}.png"
                Image.fromarray(pca.picture(values)).save(temporary / row["image"])
            write_jsonl(temporary / f"{split}.jsonl", rows)
        (temporary / "means.npz").write_bytes((folder / "means.npz").read_bytes())
        metadata |= {"channels": 3, "pca": {"explained_variance": [round(float(part), 4) for part in pca.explained],
                                            "low": pca.low.tolist(), "high": pca.high.tolist()}}
        return write_metadata(temporary, "satellite", metadata)


def _training_files(folder: Path) -> list[Path]:
    annotation = folder / "train.jsonl"
    if not annotation.is_file():
        raise UserError(f"there is no prepared data in {folder}: run python -m overlays.prepare satellite first")
    if (folder / "metadata.json").is_file():
        read_metadata(folder)
    names = [row.get("image") for row in records.read(annotation)]
    if any(not isinstance(name, str) or Path(name).suffix != ".npy" for name in names):
        raise UserError(f"{folder} holds pictures, not arrays: name the folder of arrays")
    files = [folder / name for name in names]
    if files and (bands := len(open_npy(files[0]))) < 3:
        raise UserError(f"the tiles in {folder} have {bands} bands, and three components need at least three")
    return files


def _pixels(files: list[Path]) -> Iterator[np.ndarray]:
    """(n, bands) float64 pixels with data, at most BLOCK_PX at a time."""
    for file in files:
        stored = open_npy(file)
        rows = max(1, BLOCK_PX // stored.shape[2])
        for start in range(0, stored.shape[1], rows):
            block = np.asarray(stored[:, start:start + rows], np.float64).reshape(len(stored), -1).T
            yield block[np.isfinite(block).all(1)]


def _some(file: Path, number: int) -> np.ndarray:
    """Up to SHOWN_PX pixels with data of a tile, drawn by its number."""
    stored = open_npy(file)
    area = stored.shape[1] * stored.shape[2]
    places = np.sort(np.random.default_rng([0, number]).choice(area, min(area, SHOWN_PX), replace=False))
    pixels = np.asarray(stored[:, places // stored.shape[2], places % stored.shape[2]], np.float64).T
    return pixels[np.isfinite(pixels).all(1)]
