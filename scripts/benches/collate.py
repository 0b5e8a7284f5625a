"""Cost of labels: encoding a sample against the processor's own work on the same messages; and cost of collating."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from overlays.data import chat
from overlays.data.collate import FlattenedCollator, PaddedCollator
from overlays.data.media import Media
from overlays.data.rendering import to_messages

ROUNDS = 100


class _CachedImages:
    """An image processor that works once and then hands out its result: only the text's cost is left to measure."""

    def __init__(self, processor):
        self._processor, self._result = processor, None

    def __getattr__(self, name):
        return getattr(self._processor, name)

    def __call__(self, images, **kwargs):
        self._result = self._result or self._processor(images, **kwargs)
        return self._result.copy()


def _records(processor) -> dict[str, tuple[dict, Media]]:
    """Samples of somewhat above 4,096 tokens: an image with a question, and words alone in twelve turns."""
    side = 64 * processor.image_processor.patch_size * processor.image_processor.merge_size  # 64 x 64 tokens
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    image = {"conversations": [{"from": "human", "value": "<image>\nWhich minerals does the assistant see here?"},
                               {"from": "gpt", "value": "Alunite and kaolinite in the core of the alteration. " * 12}]}
    words = {"conversations": [
        {"from": speaker, "value": "Kaolinite surrounds the alunite, muscovite follows outside of it. " * 15}
        for _ in range(6) for speaker in ("human", "gpt")
    ]}
    return {"image": (image, Media([Image.fromarray(noise)])), "text": (words, Media())}


def _processor():
    from overlays.model import tiny
    from overlays.model.load import load_processor

    with tempfile.TemporaryDirectory() as folder:
        return load_processor(tiny.build("qwen3_vl", Path(folder) / "model"))


def _milliseconds(work) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def run() -> dict[str, float]:
    """Milliseconds, the best of alternating rounds: what else the machine does only ever adds to them.

    labels_ms: what `encode_messages` takes beyond one rendering of the template and one call of the processor that
    gives ids and pixels only; template_ms: the same beyond `apply_chat_template(tokenize=True)`.
    """
    figures, processor = {}, _processor()
    processor.image_processor.size = {"shortest_edge": 4096, "longest_edge": 2**26}
    for name, (record, media) in _records(processor).items():
        plain = processor.image_processor
        processor.image_processor = _CachedImages(plain)
        messages = to_messages(record, media)
        images = list(media.images) or None

        def least(messages=messages, images=images):
            text = processor.apply_chat_template(messages, tokenize=False)
            processor(text=[text], images=images, return_mm_token_type_ids=False)

        def template(messages=messages):
            processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")

        def encode(messages=messages, media=media):
            chat.encode_messages(messages, media, processor)

        rounds = np.array([
            [_milliseconds(work) for work in (least, encode, template)]
            for _ in tqdm(range(ROUNDS), desc=f"labels, {name}")
        ]).min(axis=0)
        processor.image_processor = plain
        sample = chat.encode_messages(messages, media, processor)
        figures |= {
            f"{name}_tokens": float(len(sample["input_ids"])),
            f"{name}_processor_ms": float(rounds[0]),
            f"{name}_labels_ms": float(rounds[1] - rounds[0]),
            f"{name}_template_ms": float(rounds[1] - rounds[2]),
        }
        sample["position_ids"] = sample["input_ids"].expand(3, -1)
        for kind, collator in (("padded", PaddedCollator(processor)), ("flattened", FlattenedCollator(processor))):
            times = [_milliseconds(lambda run=collator, one=sample: run([one] * 4)) for _ in range(5)]
            figures[f"{name}_{kind}_batch_ms"] = statistics.median(times)
    figures["labels_ms"] = max(figures["image_labels_ms"], figures["text_labels_ms"])
    return figures
