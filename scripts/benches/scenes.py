"""Cost of 3-D features at 32 frames: coordinates in the loading of a sample, and a training step with the methods."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

FRAMES = 32
COLOR, DEPTH = (968, 1296), (480, 640)  # height, width: ScanNet's
COLOR_K = np.array([[1170.19, 0, 647.75], [0, 1170.19, 483.75], [0, 0, 1]])
DEPTH_K = np.array([[577.87, 0, 319.5], [0, 577.87, 239.5], [0, 0, 1]])
MAX_PIXELS = 200704  # of one image, as in scripts/train_scenes.sh
ROUNDS, STEPS = 7, 9
METHODS = ("sin3d_pe", "mlp_pe")


def write_scene(folder: Path) -> dict:
    """32 posed frames of a room, as a depth sensor and a camera give them; returns a record."""
    generator = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    for number in tqdm(range(FRAMES), desc="writing frames"):
        _color(generator, number).save(folder / f"{number:05d}.jpg", quality=90)
        Image.fromarray(_depth(generator, number)).save(folder / f"{number:05d}.png")
        angle = 2 * np.pi * number / FRAMES
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        poses[number, :3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]) @ turn
        poses[number, :3, 3] = 2, 2, 1.5

    def rows(value) -> np.ndarray:
        return np.stack([np.asarray(value)] * FRAMES)

    np.savez(
        folder / "scene_metadata.npz", pose=poses, axis_align=rows(np.eye(4)), depth_intrinsic=rows(DEPTH_K),
        color_intrinsic=rows(COLOR_K), depth_size=rows(DEPTH), color_size=rows(COLOR), depth_scale=rows(1000.0),
        depth=np.array([f"{i:05d}.png" for i in range(FRAMES)]),
        image=np.array([f"{i:05d}.jpg" for i in range(FRAMES)]),
    )
    return {
        "image": [f"{number:05d}.jpg" for number in range(FRAMES)],
        "scene": {"metadata": "scene_metadata.npz", "frames": list(range(FRAMES))},
        "conversations": [{"from": "human", "value": "<image>" * FRAMES + "\nWhich chair is nearer to the window?"},
                          {"from": "gpt", "value": "the red one"}],
    }


def _color(generator, number: int) -> Image.Image:
    """Furniture-like patches with grain."""
    patches = generator.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(patches).resize(COLOR[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
    grain = generator.normal(0, 4, (*COLOR, 1)).astype(np.int16)
    return Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8))


def _depth(generator, number: int) -> np.ndarray:
    """Slanted surfaces with a structured-light sensor's noise, steps of an eighth of a disparity, and holes."""
    rows, columns = np.mgrid[:DEPTH[0], :DEPTH[1]]
    parts = generator.uniform(1.0, 4.0, (4, 5))
    metres = parts[rows * 4 // DEPTH[0], columns * 5 // DEPTH[1]] + 0.0005 * columns + 0.0008 * rows
    disparity = 577.87 * 0.075 / metres + generator.normal(0, 0.03, DEPTH)
    metres = 577.87 * 0.075 / (np.round(disparity * 8) / 8)
    holes = np.asarray(Image.fromarray(generator.random((24, 32))).resize(DEPTH[::-1])) < 0.15
    return np.where(holes, 0, np.round(metres * 1000)).astype(np.uint16)


def loading(folder: Path, processor, config) -> dict[str, float]:
    """Milliseconds of a sample with coordinates, and of the coordinates alone: the best of alternating rounds."""
    import json

    from overlays.data import geometry
    from overlays.data.dataset import SupervisedDataset
    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.model.parts import position_function
    from overlays.registry import Dataset

    record = write_scene(folder)
    file = folder / "record.jsonl"
    file.write_text(json.dumps(record) + "\n")
    options = MediaOptions(min_pixels=12544, max_pixels=MAX_PIXELS)
    apply_resolution(processor, options)
    samples = SupervisedDataset([Dataset("bench", file, folder)], processor, position_function(config), options,
                                max_depth_m=10.0)
    sample = samples[0]
    times = []
    for _ in tqdm(range(ROUNDS), desc="loading"):
        start = time.perf_counter()
        samples[0]
        middle = time.perf_counter()
        geometry.token_coordinates(record, sample, processor, folder)
        times.append((middle - start, time.perf_counter() - middle))
    whole, coordinates = np.array(times).min(axis=0) * 1e3
    depth = np.array([
        [_seconds(lambda i=i: geometry.read_depth(folder / f"{i:05d}.png", DEPTH)) for i in range(FRAMES)]
        for _ in range(ROUNDS)
    ]).min(axis=0).sum() * 1e3
    return {"tokens": float(len(sample["coordinates"])), "sample_ms": float(whole),
            "coordinates_ms": float(coordinates), "of_that_reading_depth_ms": float(depth),
            "coordinates_share": float(coordinates / whole)}


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def steps(folder: Path) -> dict[str, float]:
    """Seconds of a forward and backward pass by method, median of alternating rounds; the base model's is 1."""
    from overlays.model import extensions, load

    models = {"base": load.load_base(folder, torch.float32).train()}
    settings = {"position_encoding_dim": 0, "voxel_size_m": 2.0, "max_depth_m": 10.0}
    for method in METHODS:
        models[method] = load.load_base(folder, torch.float32)
        extensions.attach(models[method], {"spatial": {**settings, "method": method}})
        models[method].train()
    config = models["base"].config
    tokens = 12  # of a frame: 4 x 3 blocks
    ids = torch.full((2, FRAMES * (tokens + 2) + 24), 10)
    for frame in range(FRAMES):
        start = 4 + frame * (tokens + 2)
        ids[:, start:start + tokens] = config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, -8:] = ids[:, -8:]
    batch = {
        "input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "position_ids": torch.arange(ids.shape[1]).expand(3, *ids.shape),
        "pixel_values": torch.randn(2 * FRAMES * tokens * 4, 6 * config.vision_config.patch_size**2),
        "image_grid_thw": torch.tensor([[1, 6, 8]] * 2 * FRAMES),
    }
    points = torch.rand(2 * FRAMES * tokens, 3) * 4
    times = {name: [] for name in models}
    for round_number in tqdm(range(STEPS + 1), desc="steps"):
        for name, model in models.items():
            extra = {} if name == "base" else {"coordinates": points}
            start = time.perf_counter()
            model(**batch, **extra).loss.backward()
            if round_number:
                times[name].append(time.perf_counter() - start)
            model.zero_grad()
    # What else the machine does comes in waves: compare each step with the base step beside it.
    base = np.array(times["base"])
    ratios = {f"{name}_step_ratio": statistics.median(np.array(times[name]) / base) for name in METHODS}
    return {"base_step_seconds": statistics.median(base), **ratios}


def run() -> dict[str, float]:
    """Milliseconds of a sample of 32 frames and the share of its coordinates; step time against the base model."""
    from overlays.model import load, tiny

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="scenes-bench-") as name:
        folder = Path(name)
        model = tiny.build("qwen3_vl", folder / "model")
        figures = loading(folder, load.load_processor(model), load.load_config(model))
        return figures | steps(model)
