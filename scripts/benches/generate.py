"""Batched generation against one answer at a time: the same answers, and how many more samples a second."""

import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

QUESTIONS, BATCH, TOKENS = 64, 32, 32


def run() -> dict[str, float]:
    """Answers of a tiny model to questions about sample screens.

    Returns:
        speedup: samples a second, batched over one by one; same_answers: share of equal answers, of all; the rates.
    """
    from overlays.data import chat, records
    from overlays.data.media import MediaOptions, apply_resolution
    from overlays.domains.gui.prepare import Settings, prepare
    from overlays.model import tiny
    from overlays.model.load import load_for_inference
    from overlays.predict import answer_batch
    from overlays.samples.gui import write

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        users = [1, 11, 74]
        write(folder / "raw", users=users, episodes={"test": 11, "train": 1, "val": 1})
        prepare(Settings(raw=folder / "raw", output=folder / "data", screenshot_pixels=270 * 600,
                         train_users=("11",), val_users=("74",), test_users=("1",)))
        model, processor = load_for_inference(tiny.build("qwen3_vl", folder / "model"))
        apply_resolution(processor, MediaOptions(min_pixels=4096, max_pixels=36864))
        rows = list(records.read(folder / "data" / "test.jsonl"))[:QUESTIONS]
        prompts = [chat.encode_prompt(row, processor, folder / "data") for row in rows]
        answer_batch(model, processor, prompts[:2], 2)  # warm-up
        start = time.perf_counter()
        single = [answer_batch(model, processor, [prompt], TOKENS)[0] for prompt in tqdm(prompts, unit="answer")]
        one_by_one = time.perf_counter() - start
        start = time.perf_counter()
        batched = [text for i in range(0, len(prompts), BATCH)
                   for text in answer_batch(model, processor, prompts[i:i + BATCH], TOKENS)]
        together = time.perf_counter() - start
    return {
        "speedup": one_by_one / together,
        "same_answers": sum(a == b for a, b in zip(single, batched, strict=True)) / len(prompts),
        "batched_samples_per_second": len(prompts) / together,
        "single_samples_per_second": len(prompts) / one_by_one,
    }
