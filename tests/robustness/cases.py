"""The entry points that are killed, on data of a few records."""

import functools
import os
from pathlib import Path

import numpy as np

from tests.robustness.kills import Case


def entry(module: str, *words):
    """The command line of a module in this process, as a user types it."""
    import importlib

    from overlays import errors

    main = importlib.import_module(module).main
    errors.run(lambda: main([str(word) for word in words]))


def warm() -> None:
    """Import here what every child needs."""
    import peft  # noqa: F401

    import overlays.evaluate  # noqa: F401
    import overlays.merge  # noqa: F401
    import overlays.train.mae  # noqa: F401
    import overlays.train.sft  # noqa: F401


def stage(name: str, *words) -> None:
    """One training from flags to run folder."""
    import importlib

    from overlays import errors
    from overlays.train import arguments

    def train():
        groups = arguments.parse([str(word) for word in words], getattr(arguments, name.upper()))
        importlib.import_module(f"overlays.train.{name}").train(*groups)

    errors.run(train)


COMMON = ("--report_to", "none", "--logging_steps", "1", "--dataloader_num_workers", "0", "--min_pixels", "1024",
          "--max_pixels", "4096", "--per_device_train_batch_size", "2", "--disable_tqdm", "True",
          "--save_total_limit", "2")


def colours(folder: Path, pairs: bool = False) -> Path:
    """Eight coloured pictures with a question each, or with a chosen and a rejected answer."""
    from PIL import Image

    from overlays.files import write_jsonl

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(8):
        name, value = (("red", (220, 30, 30)), ("green", (30, 200, 30)))[number % 2]
        Image.new("RGB", (64, 64), value).save(folder / f"{number}.png")
        turn = {"from": "human", "value": "<image>\nWhich colour?"}
        other = ("green", "red")[number % 2]
        answers = {"chosen": name, "rejected": other} if pairs else {}
        rows.append({"id": str(number), "image": f"{number}.png", **answers,
                     "conversations": [turn, *([] if pairs else [{"from": "gpt", "value": name}])]})
    write_jsonl(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


def rasters(folder: Path) -> Path:
    """Ten smooth rasters of six channels."""
    folder.mkdir(parents=True)
    for number in range(10):
        slope = np.random.default_rng(number).standard_normal((6, 2))
        y, x = np.mgrid[:64, :64] / 64
        np.save(folder / f"{number}.npy", (slope[:, :1, None] * y + slope[:, 1:, None] * x + 3).astype(np.float16))
    return folder


class Inputs:
    """What the commands read, made at its first use below one folder."""

    def __init__(self, place: Path):
        self.place = place

    @functools.cached_property
    def model(self) -> Path:
        from overlays.model import tiny

        return tiny.build("qwen3_vl", self.place / "model")

    @functools.cached_property
    def rows(self) -> Path:
        return colours(self.place / "colours")

    @functools.cached_property
    def pairs(self) -> Path:
        import overlays.train.dpo  # noqa: F401 (takes seconds; not for the other cases)

        return colours(self.place / "pairs", pairs=True)

    @functools.cached_property
    def tiles(self) -> Path:
        return rasters(self.place / "rasters")

    @functools.cached_property
    def run(self) -> Path:
        """A finished LoRA run."""
        output = self.place / "lora"
        self.sft(output)
        return output

    @functools.cached_property
    def taps(self) -> Path:
        """Prepared data of the domain gui."""
        self.prepare_gui(self.place / "taps")
        return self.place / "taps"

    def raw(self, domain: str) -> Path:
        """The domain's sample, a small one."""
        from importlib import import_module

        options = {"cuprite": {"lines": 64, "samples": 96}, "driving": {"clips": 3, "seconds": 3, "workers": 1},
                   "satellite": {"cities": 20}, "scenes": {"scenes": 12, "workers": 1},
                   "gui": {"users": [1, 11, 74], "episodes": {"test": 2, "train": 1, "val": 1}, "steps": 2,
                           "workers": 1}}[domain]
        folder = self.place / "raw" / domain
        if (folder / "done").is_file():
            return Path((folder / "done").read_text())
        made = import_module(f"overlays.samples.{domain}").write(folder / "sample", **options)
        (folder / "done").write_text(str(made))
        return made

    def sft(self, output: Path, *words) -> None:
        stage("sft", "--model_name_or_path", self.model, "--dataset_use", self.rows, "--output_dir", output, *COMMON,
              "--learning_rate", "1e-3", "--save_steps", "2", "--engine", "native",
              *(words or ("--max_steps", "6", *LORA)))

    def prepare_gui(self, output: Path) -> None:
        entry("overlays.prepare", "gui", "--raw", self.raw("gui"), "--output", output, "--screenshot-pixels", "5000",
              "--train-users", "11", "--val-users", "74", "--test-users", "1")


LORA = ("--lora_enable", "True", "--lora_r", "4", "--lora_dropout", "0.1", "--tune_mm_mlp", "True")


def all_cases(place: Path) -> list[Case]:
    """Every entry point; inputs are made below `place`."""
    warm()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given = Inputs(place / "inputs")

    def mae(folder):
        stage("mae", "--model_name_or_path", given.model, "--dataset_use", given.tiles, "--output_dir", folder / "run",
              *COMMON, "--decoder_dim", "32", "--decoder_depth", "1", "--decoder_heads", "2", "--learning_rate", "1e-3",
              "--eval_share", "0.2", "--per_device_train_batch_size", "4", "--num_train_epochs", "3", "--save_steps",
              "2")

    def dpo(folder):
        stage("dpo", "--model_name_or_path", given.model, "--dataset_use", given.pairs, "--eval_dataset", given.pairs,
              "--output_dir", folder / "run", *COMMON, "--learning_rate", "1e-3", "--max_steps", "4", "--save_steps",
              "2", "--lora_enable", "True", "--lora_r", "4")

    def prepare(domain, words):
        def run(folder):
            entry("overlays.prepare", domain, *words(given.raw(domain)), "--output", folder / "out")
        return run

    def predict(folder):
        entry("overlays.predict", "--checkpoint", given.run, "--dataset-use", given.rows, "--output",
              folder / "predictions.jsonl", "--batch-size", "2", "--max-new-tokens", "4")

    def evaluate(folder):
        entry("overlays.evaluate", "--domain", "gui", "--checkpoint", given.model, "--data", given.taps, "--output-dir",
              folder, "--max-new-tokens", "4", "--batch-size", "1", "--min-pixels", "4096", "--max-pixels", "8192")

    def folds(folder):
        entry("overlays.domains.gui.train_personal", "--checkpoint", given.model, "--data", given.taps, "--output-dir",
              folder / "personal", "--folds", "2", "--folds-by", "episode", "--max-new-tokens", "4", "--report_to",
              "none", "--num_train_epochs", "2", "--gradient_accumulation_steps", "1", "--min_pixels", "4096",
              "--max_pixels", "8192", "--lora_r", "2")

    def sample(folder):
        from overlays.samples.driving import write

        write(folder / "sample", clips=3, seconds=2, workers=1)

    def merge(folder):
        entry("overlays.merge", "--checkpoint", given.run, "--output", folder / "merged")

    def full(folder):
        given.sft(folder / "run", "--max_steps", "4", "--tune_mm_llm", "True", "--tune_mm_mlp", "True",
                  "--tune_mm_vision", "True", "--eval_dataset", given.rows, "--eval_strategy", "steps",
                  "--eval_steps", "1", "--load_best_model_at_end", "True", "--save_steps", "1", "--save_total_limit",
                  "1")

    def need(*names):
        return lambda: [getattr(given, name) for name in names]

    cases = [
        Case("sft", lambda folder: given.sft(folder / "run"), inputs=need("model", "rows"), share=16),
        Case("sft-continued", lambda folder: given.sft(folder / "run", "--max_steps", "6", *LORA),
             start=lambda folder: given.sft(folder / "run", "--max_steps", "2", *LORA), inputs=need("model", "rows"),
             share=16),
        Case("sft-full-best", full, inputs=need("model", "rows"), share=10),
        Case("mae", mae, inputs=need("model", "tiles"), share=12),
        Case("dpo", dpo, inputs=need("model", "pairs"), share=12),
        Case("predict", predict, inputs=need("run"), share=3),
        Case("evaluate", evaluate, inputs=need("model", "taps"), share=3),
        Case("gui-folds", folds, inputs=need("model", "taps"), share=6),
        Case("merge", merge, inputs=need("run"), share=4, repeated="is not an empty folder"),
        Case("sample-driving", sample, share=2),
    ]
    words = {
        "cuprite": lambda raw: ("--cube", raw, "--tile-size", "16", "--workers", "1"),
        "driving": lambda raw: ("--raw", raw, "--workers", "1"),
        "satellite": lambda raw: ("--tiles", raw, "--rgb-pca"),
        "scenes": lambda raw: ("--data", raw),
        "gui": lambda raw: ("--raw", raw, "--train-users", "11", "--val-users", "74", "--test-users", "1"),
    }
    for domain, flags in words.items():
        cases.append(Case(f"prepare-{domain}", prepare(domain, flags), inputs=functools.partial(given.raw, domain),
                          share=3))
    # Data that are there already are replaced.
    cases.append(Case("prepare-again", prepare("gui", words["gui"]), inputs=need("taps"), share=3,
                      start=lambda folder: given.prepare_gui(folder / "out")))
    return cases
