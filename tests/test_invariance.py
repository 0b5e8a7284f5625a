"""How a step is computed does not change what it computes.

Padded or flattened, with or without gradient checkpointing, by SDPA, eager or flash attention, in one batch or
accumulated: the same loss and the same gradients, for every family and every kind of input, in the path that the
command line takes. The reference is the plain model of transformers on one sample at a time.

The default run takes a covering set of the combinations, `./scripts/test.sh --slow` all of them.
"""

import itertools
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from overlays import families
from overlays.errors import UserError
from overlays.files import write_jsonl
from overlays.model import load, parts
from overlays.train import arguments, sft
from overlays.upstream import engine

KINDS = ("text", "image", "video", "mixed")
FAMILIES = tuple(families.FAMILIES)
PACKING = tuple(name for name, row in families.FAMILIES.items() if row.packing)


def record(name, question, answer, **media):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns, **media}


ROWS = (
    record("text-0", "Which rock is this?", "Alunite, with a little kaolinite."),
    record("text-1", "Why?", "Because."),
    record("text-2", "Name three minerals of a dry lake.", "Halite, gypsum and trona."),
    record("image-0", "<image>\nWhich colour?", "Red.", image="a.png"),
    record("image-1", "<image> and <image>: which is wider?", "The first one of both.", image=["a.png", "b.png"]),
    record("image-2", "<image>", "Blue and green, from left to right.", image="b.png"),
    record("video-0", "<video>\nWhat moves?", "A square.", video="a.mp4"),
    record("video-1", "How fast? <video>", "Two pixels a frame, then one.", video="b.mp4"),
    record("video-2", "<video> against <video>", "Slower.", video=["b.mp4", "a.mp4"]),
    record("mixed-0", "<image> or <video>?", "The picture.", image="b.png", video="a.mp4"),
)


@pytest.fixture(scope="module")
def annotation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invariance")
    noise = np.random.default_rng(0)
    for name, (height, width) in (("a.png", (64, 160)), ("b.png", (96, 64))):
        Image.fromarray(noise.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / name)
    for name, frames in (("a.mp4", 2), ("b.mp4", 5)):
        with av.open(str(folder / name), "w") as out:
            stream = out.add_stream("mpeg4", rate=4)
            stream.width, stream.height = 96, 64
            for _ in range(frames):
                pixels = noise.integers(0, 255, (64, 96, 3), dtype=np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(pixels)):
                    out.mux(packet)
            for packet in stream.encode(None):
                out.mux(packet)
    write_jsonl(folder / "rows.jsonl", ROWS)
    return folder / "rows.jsonl"


def words(family_folder, annotation, output, *more):
    return [
        "--model_name_or_path", str(family_folder), "--dataset_use", str(annotation), "--output_dir", str(output),
        "--tune_mm_llm", "True", "--tune_mm_mlp", "True", "--tune_mm_vision", "True", "--report_to", "none",
        "--video_min_pixels", "4096", "--video_max_pixels", "9216", "--video_fps", "4", "--video_min_frames", "2",
        "--min_pixels", "4096", "--max_pixels", "16384", "--learning_rate", "1e-3", "--lr_scheduler_type", "constant",
        *more,
    ]


SAMPLES = {}  # {(model folder, annotation): {row: its sample}}


class Case:
    """A run as the command line makes it, whose trainer takes steps on chosen samples."""

    def __init__(self, folder, annotation, output, *more):
        model_args, data, training = arguments.parse(words(folder, annotation, output, *more))
        self.run = sft.prepare(model_args, data, training, engine.choose("native", {}))
        self.model = self.run.load_model()
        self.run.set_parts(self.model)
        self.trainer = self.run.build_trainer(self.model)
        # What Trainer.train does before its first step.
        if training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(training.gradient_checkpointing_kwargs)
        assert self.model.is_gradient_checkpointing == ("--gradient_checkpointing" in more and
                                                        more[more.index("--gradient_checkpointing") + 1] == "True")
        self.model.train()
        self.prepared = SAMPLES.setdefault((folder, annotation), {})  # no flag of these tests changes a sample

    @staticmethod
    def numbers(kind):
        return (9, 0, 4, 7) if kind == "mixed" else [i for i, row in enumerate(ROWS) if row["id"].startswith(kind)]

    def samples(self, kind):
        for number in self.numbers(kind):
            if number not in self.prepared:
                self.prepared[number] = self.run.train_set[number]
        return [self.prepared[number] for number in self.numbers(kind)]

    def step(self, kind, batches=1):
        """(loss, gradients) of one optimisation step on the samples of a kind."""
        samples = self.samples(kind)
        size = -(-len(samples) // batches)
        split = [self.run.collator(samples[start:start + size]) for start in range(0, len(samples), size)]
        self.trainer.current_gradient_accumulation_steps = len(split)
        tokens = self.trainer._get_num_items_in_batch(split, torch.device("cpu"))
        self.model.zero_grad(set_to_none=True)
        loss = sum(float(self.trainer.training_step(self.model, batch, tokens)) for batch in split)
        return loss, gradients(self.model)


def gradients(model):
    return {parts.plain_name(name): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worst(found, expected):
    """Largest difference of two sets of gradients in shares of the largest gradient; one that is absent counts as 0."""
    largest = max(float(value.abs().max()) for value in expected.values())
    differences = [found.get(name, 0.0) - expected.get(name, 0.0) for name in found.keys() | expected.keys()]
    return max(float(difference.abs().max()) for difference in differences) / largest


def alone(folder, kinds):
    """{kind: (loss, gradients)} of the plain model on one sample at a time, without padding or chosen positions.

    Args:
        kinds: {kind: its samples}; a sample of two kinds is computed once.
    """
    import transformers

    config = load.load_config(folder)
    model = getattr(transformers, families.family_of(config).model_class).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").train()
    totals = {kind: sum(int((sample["labels"][1:] != -100).sum()) for sample in rows) for kind, rows in kinds.items()}
    losses, sums = dict.fromkeys(kinds, 0.0), {kind: {} for kind in kinds}
    for sample in {id(sample): sample for rows in kinds.values() for sample in rows}.values():
        media = {key: sample[key] for key in ("pixel_values", "image_grid_thw", "pixel_values_videos",
                                              "video_grid_thw") if key in sample}
        extra = {} if "second_per_grid_ts" not in sample else {"position_ids": sample["position_ids"][:, None]}
        ids, labels = sample["input_ids"][None], sample["labels"][1:]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False,
                       mm_token_type_ids=sample["mm_token_type_ids"][None], **media, **extra).logits[0, :-1]
        model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        loss.backward()
        for kind in (kind for kind, rows in kinds.items() if any(sample is row for row in rows)):
            losses[kind] += loss.item() / totals[kind]
            for name, grad in gradients(model).items():
                sums[kind][name] = sums[kind].get(name, 0) + grad / totals[kind]
    return {kind: (losses[kind], sums[kind]) for kind in kinds}


def compare(case, expected, batches):
    """Check the steps of a case: `expected` {kind: (loss, gradients)}, `batches` {kind: numbers of batches to take}."""
    for kind, numbers in batches.items():
        loss, gradients_of_kind = expected[kind]
        for number in numbers:
            found, grads = case.step(kind, number)
            assert abs(found - loss) < 1e-5 * max(1, abs(loss)), (kind, number)
            assert worst(grads, gradients_of_kind) < 1e-4, (kind, number)


@pytest.fixture
def slow(request):
    """Whether `--slow` asks for the full matrix."""
    return request.config.getoption("--slow")


@pytest.fixture(scope="module")
def reference(tiny_model_dir, annotation):
    """Function: family, one of its cases -> {kind: (loss, gradients)} as `alone` gives them, computed once."""
    known = {}

    def get(family, case):
        if family not in known:
            known[family] = alone(tiny_model_dir(family), {kind: case.samples(kind) for kind in KINDS})
        return known[family]

    return get


# The default run takes a covering set: every value of every factor, and every pair of values of two factors, where the
# family allows it. `--slow` takes the full matrix.
WAYS = tuple(itertools.product((False, True), (False, True), ("sdpa", "eager")))  # flatten, checkpointing, attention


def default_ways(family):
    """{way: kinds} of the default run. Mixed holds each of the other kinds; text alone does not run the vision tower.

    A family takes two opposite ways, each with one of the kinds image and video. With those of the next families, they
    hold every pair. Where a family refuses flattened batches, that way stands for the refusal, and a padded one joins.
    Qwen4-Exp, the slowest, takes one way besides the refusal.
    """
    if family == "qwen4_exp":
        return {(False, False, "sdpa"): KINDS, (True, True, "eager"): KINDS}
    high, low = divmod(FAMILIES.index(family) % 4, 2)
    attentions, kinds = ("sdpa", "eager"), (("text", "image", "mixed"), ("text", "video", "mixed"))
    way, opposite = (bool(low), attentions[high]), (not low, attentions[not high])
    ways = {(False, *way): kinds[low ^ high], (True, *opposite): kinds[1 - (low ^ high)]}
    if family not in PACKING:
        ways[(False, *opposite)] = kinds[1 - (low ^ high)]
    return ways


def matrix():
    for family in FAMILIES:
        default = default_ways(family)
        for way in WAYS:
            flatten, checkpointing, attention = way
            name = "-".join((family, "flattened" if flatten else "padded", "checkpointed" if checkpointing else "kept",
                             attention))
            yield pytest.param(family, way, default.get(way, KINDS), id=name,
                               marks=() if way in default else (pytest.mark.slow,))


@pytest.mark.parametrize("family, way, kinds", list(matrix()))
def test_every_way_of_computing_a_step_gives_the_same_loss_and_gradients(
        tiny_model_dir, annotation, reference, slow, tmp_path, family, way, kinds):
    flatten, checkpointing, attention = way
    flags = ("--data_flatten", str(flatten), "--gradient_checkpointing", str(checkpointing),
             "--attn_implementation", attention)
    if flatten and family not in PACKING:
        with pytest.raises(UserError, match="does not fit"):
            Case(tiny_model_dir(family), annotation, tmp_path / "run", *flags)
        return
    case = Case(tiny_model_dir(family), annotation, tmp_path / "run", *flags)
    first = way == next(iter(default_ways(family)))
    batches = dict.fromkeys(KINDS, (1, 2)) if slow else {
        kind: {"text": (2,), "mixed": (1, 2) if first else (2,)}.get(kind, (1,)) for kind in kinds}
    compare(case, reference(family, case), batches)


def test_the_default_run_holds_every_pair_of_values():
    """Of flatten, checkpointing, attention and kind with each other, and of family with each of them."""
    rows = {(family, *way, kind) for family in FAMILIES if family != "qwen4_exp"
            for way, kinds in default_ways(family).items() for kind in kinds if not way[0] or family in PACKING}
    for first, second in itertools.combinations(range(5), 2):
        seen = {(row[first], row[second]) for row in rows}
        wanted = {(a, b) for a in {row[first] for row in rows} for b in {row[second] for row in rows}
                  if (first, second) != (0, 1) or not b or a in PACKING}
        assert seen == wanted


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", PACKING)
def test_a_sample_of_a_flattened_row_does_not_see_the_others(tiny_model_dir, annotation, tmp_path, family,
                                                             checkpointing):
    case = Case(tiny_model_dir(family), annotation, tmp_path / "run", "--data_flatten", "True",
                "--gradient_checkpointing", str(checkpointing))
    samples = case.samples("text")
    hidden = []
    case.model.model.language_model.register_forward_hook(lambda _, __, output: hidden.append(output[0][0]))

    def states(rows):
        """(tokens, hidden) of the last sample of a row, in the path of a training or evaluation step."""
        hidden.clear()
        case.trainer.compute_loss(case.model, case.run.collator(rows))
        return hidden[0][-len(samples[2]["input_ids"]):]

    other = dict(samples[0], input_ids=samples[0]["input_ids"].roll(1))
    for training in (True, False):
        case.model.train(training)
        together, single = states(samples), states(samples[2:])
        assert (together - single).abs().max() < 1e-6 * single.abs().max()
        assert torch.equal(states([other, *samples[1:]]), together)


@pytest.mark.parametrize("family", [
    pytest.param(name, marks=() if name in ("qwen2_5_vl", "qwen3_vl") else pytest.mark.slow) for name in PACKING])
def test_the_validation_loss_of_flattened_batches_is_that_of_padded_ones(tiny_model_dir, annotation, tmp_path, family):
    losses = []
    for flatten in ("False", "True"):
        case = Case(tiny_model_dir(family), annotation, tmp_path / flatten, "--data_flatten", flatten,
                    "--eval_dataset", str(annotation), "--eval_strategy", "epoch", "--per_device_eval_batch_size", "10")
        losses.append(case.trainer.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def flash_attention(query, key, value, attention_mask, query_length, is_causal, position_ids=None, softmax_scale=None,
                    cu_seq_lens_q=None, **_):
    """What transformers' flash-attention path computes, without the kernel: (B, L, heads, dim) -> the same shape.

    The borders of the samples come from `cu_seq_lens_q`, else from the padding mask, else from positions that restart.
    """
    batch, length = query.shape[:2]
    if cu_seq_lens_q is not None:
        borders = [cu_seq_lens_q.tolist()] * batch
    elif attention_mask is not None:
        borders = [[0, int(row.sum())] for row in attention_mask]
    elif position_ids is not None and batch == 1 and (position_ids[0].diff() != 1).any():
        borders = [[*(position_ids[0] == position_ids.min()).nonzero()[:, 0].tolist(), length]]
    else:
        borders = [[0, length]] * batch
    out = torch.zeros_like(query)
    for row, marks in enumerate(borders):
        for start, stop in zip(marks, marks[1:], strict=False):
            q, k, v = (part[row, start:stop].transpose(0, 1) for part in (query, key, value))
            k, v = (part.repeat_interleave(len(q) // len(part), dim=0) for part in (k, v))
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=softmax_scale)
            out[row, start:stop] = seen.transpose(0, 1)
    return out


@pytest.mark.parametrize("flatten", [False, True], ids=["padded", "flattened"])
@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_is_told_the_borders_of_the_samples(
        tiny_model_dir, annotation, reference, slow, tmp_path, monkeypatch, family, flatten):
    import transformers.integrations.flash_attention as integration

    if flatten and family not in PACKING:
        pytest.skip(f"{family} refuses --data_flatten")
    if not load.model_class_of(load.load_config(tiny_model_dir(family)))._supports_flash_attn:
        pytest.skip(f"{family} has no flash attention in transformers")
    calls = []
    monkeypatch.setattr(integration, "_flash_attention_forward",
                        lambda *args, **kwargs: calls.append(1) or flash_attention(*args, **kwargs))
    case = Case(tiny_model_dir(family), annotation, tmp_path / "run", "--data_flatten", str(flatten))
    config = case.model.config
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "flash_attention_2"  # past the check for the package, which CPUs cannot have
    batches = {kind: (1, len(case.numbers(kind))) for kind in KINDS} if slow else {"text": (3,), "mixed": (1, 4)}
    compare(case, reference(family, case), batches)
    assert calls


TRAJECTORY = Path(__file__).with_name("trajectory.json")


def trajectory(folder, annotation, output) -> list[float]:
    """Losses of 30 steps of a full training on the rows of text and images, in the path of the command line."""
    rows = annotation.with_name("trajectory.jsonl")
    write_jsonl(rows, ROWS[:6])
    case = Case(folder, rows, output, "--max_steps", "30", "--per_device_train_batch_size", "3", "--logging_steps", "1",
                "--save_strategy", "no", "--seed", "3", "--dataloader_num_workers", "0", "--learning_rate", "2e-4")
    case.run.fit(case.trainer)
    return [row["loss"] for row in case.trainer.state.log_history if "loss" in row]


def test_thirty_steps_follow_the_stored_trajectory(tiny_model_dir, annotation, tmp_path):
    stored = json.loads(TRAJECTORY.read_text(encoding="utf-8"))
    losses = trajectory(tiny_model_dir("qwen3_vl"), annotation, tmp_path / "run")
    assert len(losses) == len(stored) == 30
    assert losses == pytest.approx(stored, rel=2e-3)
