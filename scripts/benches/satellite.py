"""Memory of loading 660 tiles of 64 x 200 x 200 for an epoch, for pretraining and for fine-tuning: is it flat?"""

import gc
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FILES, CHANNELS, SIDE = 660, 64, 200
BATCH, WORKERS = 4, 2


def run() -> dict[str, float]:
    """By stage, of the process tree, shared pages counted once, in MB: the floor in the second quarter of an
    epoch (10th percentile, between the tiles that are being read), how much higher it lies in the last quarter, which
    is what a leak would raise, and the peak in each half; and tiles read a second."""
    with tempfile.TemporaryDirectory(prefix="satellite-bench-") as folder:
        folder = Path(folder)
        processor, positions = _processor(folder / "model")
        make_tiles(folder)
        figures = {}
        for name, loader in (("mae", _mae(folder, processor)), ("sft", _sft(folder, processor, positions))):
            figures |= {f"{name}_{key}": value for key, value in _epoch(loader(), name).items()}
            gc.collect()
    return figures


def make_tiles(folder: Path) -> None:
    """FILES tiles as prepare_satellite.py writes them, and their records in train.jsonl."""
    from overlays.domains.satellite.questions import GROWTH, answer, question
    from overlays.files import write_jsonl

    free = shutil.disk_usage(folder).free
    needed = FILES * CHANNELS * SIDE * SIDE * 2
    if free < 1.2 * needed:
        raise SystemExit(f"the tiles need {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((CHANNELS, SIDE, SIDE), dtype=np.float32)
    values = (values / np.linalg.norm(values, axis=0)).astype(np.float16)
    values[:, :3] = np.nan
    (folder / "tiles").mkdir()
    rows = []
    for number in range(FILES):
        np.save(folder / "tiles" / f"{number:03d}.npy", np.roll(values, number, axis=2))
        rows.append({"id": f"{number:03d}", "image": f"tiles/{number:03d}.npy", "target": {GROWTH: number / 100},
                     "conversations": [{"from": "human", "value": f"<image>\n{question(GROWTH)}"},
                                       {"from": "gpt", "value": answer(number / 100)}]})
    write_jsonl(folder / "train.jsonl", rows)


def _processor(folder: Path):
    from transformers import AutoConfig, AutoProcessor

    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.data.rasters import set_statistics
    from overlays.model import parts, tiny

    tiny.build("qwen3_vl", folder)
    processor = AutoProcessor.from_pretrained(folder)
    apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=SIDE * SIDE))
    set_statistics(processor, np.zeros(CHANNELS), np.full(CHANNELS, 0.125))
    return processor, parts.position_function(AutoConfig.from_pretrained(folder))


def _mae(folder: Path, processor):
    def loader():
        import torch

        from overlays.data import tiles

        sources, _, _ = tiles.check(tiles.find(str(folder / "tiles")))
        data = tiles.Tiles(sources, processor, augment=True)
        return torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, collate_fn=tiles.collate)

    return loader


def _sft(folder: Path, processor, positions):
    def loader():
        import torch

        from overlays import registry
        from overlays.data.augment import Repeats
        from overlays.data.collate import PaddedCollator
        from overlays.data.dataset import SupervisedDataset
        from overlays.data.media import MediaOptions

        data = SupervisedDataset(registry.resolve(str(folder / "train.jsonl")), processor, positions, MediaOptions(),
                                 repeats=Repeats(2))
        changed = torch.utils.data.Subset(data, range(FILES, 2 * FILES))  # each file once, cropped and turned
        return torch.utils.data.DataLoader(changed, BATCH, shuffle=True, num_workers=WORKERS,
                                           collate_fn=PaddedCollator(processor))

    return loader


def _epoch(loader, name: str) -> dict[str, float]:
    import psutil
    from tqdm import tqdm

    own, used, start = psutil.Process(), [], time.perf_counter()
    for batch in tqdm(loader, desc=name, file=sys.stderr):
        del batch
        used.append(sum(_share(process) for process in [own, *own.children(recursive=True)]) / 1e6)
    seconds, half, quarter = time.perf_counter() - start, len(used) // 2, len(used) // 4
    floors = [float(np.percentile(part, 10)) for part in (used[quarter:half], used[-quarter:])]
    return {"floor_mb": round(floors[0]), "floor_growth_mb": round(floors[1] - floors[0]),
            "peak_first_half_mb": round(max(used[:half])), "peak_second_half_mb": round(max(used[half:])),
            "tiles_per_second": round(FILES / seconds, 1)}


def _share(process) -> int:
    """Bytes of a process's memory, a page that n processes share counted as 1/n; 0 where it has just ended."""
    import psutil

    try:
        memory = process.memory_full_info()
        return getattr(memory, "pss", memory.uss)
    except psutil.Error:
        return 0
