"""Entry: the memory that a fine-tuning takes on each GPU, and flags that make it fit. No weights are loaded.

    python -m overlays.plan scripts/configs/gui_global.yaml --gpu 80
    python -m overlays.plan outputs/gui-global --gpu 24              # as a run was trained
    python -m overlays.plan models/my-model --gpu 24 --lora_enable True --tokens 2000

The first word is a YAML file of flags, a run folder or a folder with a config.json. Flags of `overlays.train` follow.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

from overlays import runs
from overlays.errors import UserError, run
from overlays.train import arguments, inherited

GB = 1e9  # a card has a little more than its name says, which is left to the allocator's fragments
OVERHEAD = 1.0  # GB on a GPU that no tensor takes: CUDA context, cuBLAS workspaces
TEXT_TOKENS = 256  # of a sample, where only the size of its images is known
NO_DATA = "no-data"
# What decides memory, of the flags that run.json keeps.
READ_OF_A_RUN = {
    *(item.name for group in (arguments.ModelArguments, arguments.DataArguments) for item in fields(group)),
    "model_max_length", "learning_rate", "mm_projector_lr", "vision_tower_lr", "patch_embed_lr", "additions_lr",
    "lora_enable", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "pure_bf16", "bf16", "optim",
    "optim_args", "gradient_checkpointing", "per_device_train_batch_size", "gradient_accumulation_steps", "deepspeed",
    "load_in_4bit", "load_in_8bit", "seed", "on_bad_sample",
}
# Numbers that an optimizer keeps for a weight; all others keep 2.
STATES = {"adafactor": 0, "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion": 1}
FOUR_BIT = 0.516  # bytes a weight in NF4 with double quantisation: 4 bits, 8 for 64 weights, 32 for 64 x 256
# DeepSpeed's defaults, in weights: what stage 3 gathers at once, and a group of the optimizer's step.
ZERO_LIVE = ZERO_GROUP = 1e9
ZERO_3 = {"zero_optimization": {"stage": 3}}  # of scripts/zero3.json
PROCESSES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Tokens:
    """Tokens of a sample: `longest` and, where the data say it, `median`; those of images among the longest."""

    longest: int
    median: int
    visual: int
    images: int
    source: str


@dataclass(frozen=True)
class Estimate:
    """GB by kind at the peak of a step, and the parameters behind them."""

    kinds: dict[str, float]
    rows: list

    @property
    def total(self) -> float:
        """GB on one GPU."""
        return sum(self.kinds.values())


def read_flags(words: Sequence[str]) -> SimpleNamespace:
    """Values of the training flags that a configuration, run or model folder and the flags behind it give.

    Raises:
        UserError: the file or folder does not exist, or a flag is wrong.
    """
    place, others = Path(words[0]), list(words[1:])
    if place.suffix in (".yaml", ".yml"):
        words = [str(place), *others]
    elif place.is_dir() and (place / "run.json").is_file():
        kept = (runs.read_run(place) or {}).get("arguments", {})
        if "mask_ratio" in kept or "loss_type" in kept:
            raise UserError(f"{place} is not a run of overlays.train, whose memory alone is planned")
        words = [*_as_words(kept), *others]
    elif (place / "config.json").is_file():
        words = ["--model_name_or_path", str(place), *others]
    else:
        raise UserError(f"{place} is not a YAML file of flags, a run folder or a folder with a config.json")
    if not any(word.split("=")[0] == "--dataset_use" for word in words) and place.suffix not in (".yaml", ".yml"):
        words += ["--dataset_use", NO_DATA]
    return SimpleNamespace(**arguments.read(words, arguments.SFT))


def _as_words(kept: Mapping) -> list[str]:
    """Flags of a run's arguments, those that decide memory."""
    words = []
    for name, value in kept.items():
        if name in READ_OF_A_RUN and value not in (None, ""):
            words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def load_config(flags: SimpleNamespace):
    """(config of the model as it is trained, learning rate by part)."""
    from overlays.model import channels, load, parts
    from overlays.train import sft

    config = load.load_config(flags.model_name_or_path, flags.cache_dir)
    rates = parts.learning_rates(flags)
    sft.check_trained(rates, adds=flags.head != "none" or flags.use_3d_features)
    wanted = channels.wanted(config, flags)
    if wanted:
        count = wanted["channels"]["in_channels"]
        rates["patch_embed"] = channels.patch_embed_rate(channels.channels_of(config), count, rates["vision"], flags)
        channels.set_channels(config.vision_config, count)
    if flags.attn_implementation == "eager":
        raise UserError("--attn_implementation eager keeps L x L scores, whose memory is not planned: use sdpa")
    sft.check_lora_modules(config, flags)
    flags.data_flatten = sft.flattens(flags, flags, config)
    return config, rates


def make_model(config, flags: SimpleNamespace, rates: Mapping[str, float], device: str = "meta"):
    """The model as a run trains it: adapter, trained parts, precision, checkpointing. Random weights off "meta"."""
    import torch

    from overlays.model import forward, load
    from overlays.train import sft

    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = load.model_class_of(config)._from_config(config, attn_implementation="sdpa").train()
        model.tie_weights()
        for value in model.parameters():
            value.data = value.data.to(sft.weight_dtype(flags))
        forward.install(model)
        if flags.lora_enable:
            model = sft.add_adapter(model, flags).train()
        sft.set_parts(model, flags, rates)
        if is_checkpointed(flags):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def is_checkpointed(flags: SimpleNamespace) -> bool:
    """Whether activations are recomputed, by either name of the flag."""
    return bool(flags.gradient_checkpointing or getattr(flags, "activation_checkpointing", False))


def count_tokens(flags: SimpleNamespace, config, given: int | None, images: int) -> Tokens:
    """Tokens of a sample: `given`, else those of the data, else `--model_max_length` or the size of its images."""
    vision = config.vision_config
    of_image = flags.max_pixels // (vision.patch_size * vision.spatial_merge_size) ** 2
    why = "given by --tokens"
    if given is None and flags.dataset_use != NO_DATA:
        try:
            return _of_data(flags, config, of_image)
        except UserError as error:
            why = f"assumed, since the data cannot be measured: {error}"
    elif given is None:
        why = "assumed, without data"
    longest = given or min(flags.model_max_length, of_image * images + TEXT_TOKENS)
    return Tokens(longest, longest, min(of_image * images, longest - 1), images, why)


def _of_data(flags: SimpleNamespace, config, of_image: int) -> Tokens:
    import numpy as np

    from overlays.data import rasters
    from overlays.data.media import apply_resolution
    from overlays.model import channels, load
    from overlays.train import sft

    processor = load.load_processor(flags.model_name_or_path, flags.cache_dir)
    rasters.expect(processor, channels.channels_of(config), bool(flags.in_channels))
    apply_resolution(processor, sft.media_options(flags))
    flags = SimpleNamespace(**vars(flags) | {"eval_dataset": ""})
    samples, _, _ = sft.build_data(flags, flags, processor, config)
    visual = int(samples.visual.max())
    return Tokens(int(samples.lengths.max()), int(np.median(samples.lengths)), visual,
                  max(1, round(visual / max(of_image, 1))), f"measured, {len(samples.lengths)} samples")


def batch_shape(flags: SimpleNamespace, tokens: Tokens):
    """The largest batch: the longest sample in every row, with a label at all of its text; packed rows are full."""
    from overlays.model.dry_run import Shape

    batch, longest, visual = flags.per_device_train_batch_size, tokens.longest, tokens.visual
    if flags.data_packing:
        batch *= max(1, flags.model_max_length // tokens.median)
        longest, visual = tokens.median, min(visual, tokens.median - 1)
    return Shape(batch, longest, visual, tokens.images, longest - visual, flags.data_flatten,
                 masked=flags.attn_implementation != "flash_attention_2")


def optimizer_bytes(optim: str, trained: int, size: int) -> tuple[float, float]:
    """(bytes of the state, bytes that only the step takes) for `trained` weights of `size` bytes each."""
    states = next((count for name, count in STATES.items() if name in optim), 2)
    width = 1 if "8bit" in optim else 0.5 if "4bit" in optim else size
    return states * width * trained, size * trained if optim == "adamw_torch" else 0.0  # foreach makes a copy


class Planner:
    """Estimates for one model and changed flags; a pass on the meta device is made once for each kind of step."""

    def __init__(self, config, rates: Mapping[str, float], tokens: Tokens):
        self.config, self.rates, self.tokens = config, rates, tokens
        self._steps: dict[tuple, tuple] = {}

    def estimate(self, flags: SimpleNamespace, processes: int = 1) -> Estimate:
        """Memory of the most loaded of `processes` GPUs."""
        sharded = bool(flags.deepspeed)
        sizes, step, rows = self._step(flags, sharded)
        trained, trained_bytes, frozen_bytes, quantised = sizes
        weights = trained_bytes + frozen_bytes
        if flags.load_in_4bit:
            weights -= quantised[1] - quantised[0] * FOUR_BIT
        elif flags.load_in_8bit:
            weights -= quantised[1] - quantised[0]
        size = trained_bytes // max(trained, 1)
        state, once = optimizer_bytes(flags.optim, trained, size)
        kinds = {"weights": weights, "optimizer": state, "gradients": step.get("gradients", 0),
                 "activations": step.get("activations", 0), "logits": step.get("logits", 0)}
        if sharded:
            total = sum(row.parameters for row in rows)
            kinds |= _sharded(inherited.zero_optimization(flags.deepspeed), processes, weights, total, trained, size)
        else:
            if kinds["gradients"] + kinds["activations"] + kinds["logits"] < trained_bytes + once:
                kinds |= {"gradients": trained_bytes, "optimizer": state + once, "activations": 0, "logits": 0}
            if processes > 1:  # DistributedDataParallel keeps a second copy of them in its buckets
                kinds["gradients"] += trained_bytes
        kinds["overhead"] = OVERHEAD * GB
        return Estimate({name: value / GB for name, value in kinds.items()}, rows)

    def _step(self, flags: SimpleNamespace, sharded: bool) -> tuple:
        from overlays.families import family_of
        from overlays.model import dry_run, parts

        shape = batch_shape(flags, self.tokens)
        accumulated = flags.gradient_accumulation_steps > 1
        key = (shape, is_checkpointed(flags), flags.lora_enable, flags.tune_mm_llm, sharded, accumulated)
        if key not in self._steps:
            rates = {**self.rates, **parts.learning_rates(flags)}
            model = make_model(self.config, flags, rates)
            prefix = family_of(self.config).language_model[0]
            values = list(model.parameters())
            trained = [value for value in values if value.requires_grad]
            linear = [value for name, value in model.named_parameters() if not value.requires_grad and value.ndim == 2
                      and parts.plain_name(name).startswith(f"{prefix}layers.")]
            sizes = (
                sum(value.numel() for value in trained),
                sum(value.numel() * value.element_size() for value in trained),
                sum(value.numel() * value.element_size() for value in values if not value.requires_grad),
                (sum(value.numel() for value in linear), sum(value.numel() * value.element_size() for value in linear)),
            )
            step = dry_run.peak(model, shape, bf16=flags.bf16 and not flags.pure_bf16 and not flags.deepspeed,
                                accumulated=accumulated, keep_gradients=not sharded, head=flags.head)
            self._steps[key] = sizes, step, parts.table(model, self.config, rates)
        return self._steps[key]

    def fitting(self, flags: SimpleNamespace, gpu: float) -> list[tuple[float, str]]:
        """(GB, flags) of changes that fit into `gpu` GB, from the smallest change on."""
        saving = {} if is_checkpointed(flags) else {"gradient_checkpointing": True}
        eight_bit = {"optim": "adamw_8bit"} if "8bit" not in flags.optim and flags.optim.startswith("adamw") else {}
        adapter = {"tune_mm_llm": False, "lora_enable": True} if flags.tune_mm_llm and not flags.lora_enable else {}
        four_bit = {"load_in_4bit": True} if not flags.load_in_4bit else {}
        found = []
        for changes in _different([saving, saving | eight_bit, saving | adapter, saving | adapter | four_bit]):
            fit = self._largest_batch(flags, changes, gpu)
            if fit is not None:
                found.append(fit)
        if not flags.deepspeed:
            for processes in PROCESSES:
                fit = self._largest_batch(flags, saving | {"deepspeed": ZERO_3}, gpu, processes)
                if fit is not None:
                    found.append(fit)
                    break
        return found

    def _largest_batch(self, flags: SimpleNamespace, changes: dict, gpu: float,
                       processes: int = 1) -> tuple[float, str] | None:
        """The change with the largest batch that fits, by halving; the samples of a step stay as many."""
        batch, steps = flags.per_device_train_batch_size, flags.gradient_accumulation_steps
        while True:
            smaller = {} if batch == flags.per_device_train_batch_size else {
                "per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
            made = self.estimate(SimpleNamespace(**vars(flags) | changes | smaller), processes)
            if made.total <= gpu and changes | smaller:
                words = " ".join(f"--{name} {'scripts/zero3.json' if value is ZERO_3 else value}"
                                 for name, value in (changes | smaller).items())
                return made.total, words + (f" on {processes} GPUs" if processes > 1 else "")
            if batch == 1:
                return None
            batch, steps = (batch // 2, steps * 2) if batch % 2 == 0 else (1, steps * batch)


def _different(changes: list[dict]) -> list[dict]:
    return [row for i, row in enumerate(changes) if row not in changes[:i]]


def _sharded(zero: dict, processes: int, weights: float, total: int, trained: int, size: int) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer of one process under ZeRO, by DeepSpeed's description of its stages.

    Masters and both moments are fp32, and so are the gradients of a group in the optimizer's step.
    """
    stage = zero.get("stage", 0)
    if stage == 3:
        gathered = min(weights, weights / total * zero.get("stage3_max_live_parameters", ZERO_LIVE))
        weights = (0 if "offload_param" in zero else weights / processes) + gathered
    share = trained / processes if stage else trained
    optimizer = 12 * share + 4 * min(share, ZERO_GROUP)
    return {"weights": weights, "gradients": size * (share if stage >= 2 else trained),
            "optimizer": 0 if "offload_optimizer" in zero else optimizer}


def format_estimate(made: Estimate, gpu: float) -> str:
    """The table of an estimate."""
    lines = [f"{'memory':<15}{'GB':>8}"]
    lines += [f"{name:<15}{value:>8.1f}" for name, value in made.kinds.items()]
    verdict = "fits" if made.total <= gpu else "does not fit"
    return "\n".join([*lines, f"{'sum':<15}{made.total:>8.1f}  {verdict} into {gpu:g} GB"])


def _gigabytes(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return float(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(words: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    from overlays.flags import at_least

    words = list(sys.argv[1:] if words is None else words)
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                     usage="plan CONFIG|RUN|MODEL --gpu GB [flags of overlays.train]")
    parser.add_argument("--gpu", type=_gigabytes, required=True, metavar="GB", help="memory of a card: 24, 40, 80, 141")
    parser.add_argument("--processes", type=at_least(1), default=1, help="GPUs that train together (default: 1)")
    parser.add_argument("--tokens", type=at_least(2), help="tokens of the longest sample (default: from the data)")
    parser.add_argument("--images", type=at_least(0), default=1, help="images of a sample without data (default: 1)")
    if not words or words[0].startswith("-"):
        parser.parse_args(words[:1] if words and words[0] in ("-h", "--help") else ["--gpu", "1"])
        raise UserError("the first word is a YAML file of flags, a run folder or a folder with a config.json")
    own, others = parser.parse_known_args(words[1:])
    flags = read_flags([words[0], *others])
    from overlays.model import parts

    config, rates = load_config(flags)
    tokens = count_tokens(flags, config, own.tokens, own.images)
    planner = Planner(config, rates, tokens)
    made = planner.estimate(flags, own.processes)
    print(f"{flags.model_name_or_path} ({config.model_type})\n\n{parts.format_table(made.rows)}\n")
    print(f"tokens a sample: median {tokens.median}, max {tokens.longest}, of which {tokens.visual} visual "
          f"({tokens.source})")
    print(f"batch: {flags.per_device_train_batch_size} x {flags.gradient_accumulation_steps} accumulated"
          + (f" x {own.processes} processes" if own.processes > 1 else "")
          + f", {'bf16' if flags.bf16 or flags.pure_bf16 else 'fp32'}"
          + (", gradient checkpointing" if is_checkpointed(flags) else "") + f", {flags.optim}\n")
    print(format_estimate(made, own.gpu))
    print("overhead: CUDA context and cuBLAS workspaces")
    if flags.head != "none" or flags.use_3d_features:
        print("not counted: the weights of the regression head and of 3-D features")
    if made.total > own.gpu:
        found = planner.fitting(flags, own.gpu)
        print("\nfits with:" if found else f"\nno flags that were tried make it fit into {own.gpu:g} GB")
        for size, text in found:
            print(f"{size:>8.1f} GB  {text}")


if __name__ == "__main__":
    run(main)
