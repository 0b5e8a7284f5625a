"""Full, LoRA and mixed training of one small Qwen3-VL by this project, TRL and ms-swift, in turn.

MODEL_PATH names the folder of a small Qwen3-VL with the published tokenizer, whose token numbers ms-swift has in its
code; without it a model of random weights with a tokenizer of its own is made, and ms-swift is left out.
Each runs as a user starts it, in fp32. ms-swift gets a virtual environment of its own. Figures: samples/s by each
trainer's own last line, and the ratio of this project's to the best peer's, of the medians.
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from overlays.errors import UserError
from overlays.files import write_json, write_jsonl
from overlays.model import tiny
from overlays.paths import OUTPUTS, ROOT

FOLDER = OUTPUTS / "bench-peers"
RECORDS, STEPS, ROUNDS, BATCH = 160, 20, 3, 4
VOCABULARY = 151_936  # of the published Qwen-VL models
SIZES = ((224, 224), (256, 384), (448, 448), (640, 480))
QUESTION = "Name the minerals of this tile and their share."
WORDS = "alunite kaolinite muscovite chlorite epidote calcite zone argillic phyllic share centre band depth".split()
PIXELS = {"min": 65_536, "max": 16_777_216}
COMMON = ["--learning_rate", "1e-4", "--logging_steps", "5", "--save_strategy", "no", "--report_to", "none"]
TRL = """
    import json, sys
    from datasets import Dataset, Image, Sequence
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    model, rows, out, steps, batch, lora = sys.argv[1:7]
    table = [{"prompt": row["messages"][:1], "completion": row["messages"][1:], "images": row.get("images", [])}
             for row in map(json.loads, open(rows))]
    for row in table:
        row["prompt"][0]["content"] = row["prompt"][0]["content"].replace("<image>", "")
    SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(model, dtype="float32", attn_implementation="sdpa"),
        args=SFTConfig(output_dir=out, max_steps=int(steps), per_device_train_batch_size=int(batch), learning_rate=1e-4,
                       report_to="none", logging_steps=5, save_strategy="no", max_length=None, bf16=False,
                       gradient_checkpointing=False),
        train_dataset=Dataset.from_list(table).cast_column("images", Sequence(Image())),
        processing_class=AutoProcessor.from_pretrained(model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if lora == "1" else None,
    ).train()
"""


def _model() -> Path:
    """A Qwen3-VL of 50 M parameters with the published vocabulary, random weights."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    folder = Path(os.environ.get("MODEL_PATH") or FOLDER / "model")
    if (folder / "model.safetensors").is_file():
        return folder
    tiny.build("qwen3_vl", folder)
    known = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=4, head_dim=32, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5],
                             "mrope_interleaved": True}),
        vision_config=dict(depth=6, hidden_size=192, intermediate_size=768, num_heads=6, out_hidden_size=256,
                           num_position_embeddings=2304, deepstack_visual_indexes=[1, 2, 3]),
        tie_word_embeddings=True,
        **{name: known[name] for name in ("image_token_id", "video_token_id", "vision_start_token_id",
                                          "vision_end_token_id")},
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def _data(name: str, share: float) -> dict[str, Path]:
    """Records of mixed size and length, of which `share` have a picture, in this project's form and in messages."""
    choice, folder = random.Random(0), FOLDER / name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    own, messages = [], []
    for i in range(RECORDS):
        width, height = choice.choice(SIZES)
        answer = " ".join(choice.choice(WORDS) for _ in range(min(400, int(choice.lognormvariate(3.2, 1.0)) + 2)))
        media = {}
        if i < share * RECORDS:
            file = folder / "images" / f"{i:04d}.png"
            noise = np.random.default_rng(i).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((width, height)).save(file)
            media = {"image": f"images/{file.name}"}
        question = ("<image>\n" if media else "") + QUESTION
        own.append({"id": str(i), **media, "conversations": [{"from": "human", "value": question},
                                                             {"from": "gpt", "value": answer}]})
        messages.append({**({"images": [str(file)]} if media else {}),
                         "messages": [{"role": "user", "content": question.replace("\n", "")},
                                      {"role": "assistant", "content": answer}]})
    choice.shuffle(order := list(range(RECORDS)))
    write_json(folder / "own.json", [own[i] for i in order])
    write_jsonl(folder / "messages.jsonl", [messages[i] for i in order])
    return {"own": folder / "own.json", "messages": folder / "messages.jsonl"}


def _swift() -> Path:
    """The Python of ms-swift's environment, made where there is none."""
    python = FOLDER / "venv-swift" / "bin" / "python"
    if not (python.parent / "swift").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "torch", "torchvision", "ms-swift", "qwen-vl-utils"],
                       check=True)
    return python


def _commands(model: Path, data: Mapping[str, Path], lora: bool) -> dict[str, list[str]]:
    """The command of each trainer and setting; the run folder comes last, in place of OUT."""
    parts = ["--lora_enable", "True", "--lora_r", "16", "--lora_alpha", "32"] if lora else [
        "--tune_mm_llm", "True", "--tune_mm_mlp", "True", "--tune_mm_vision", "True"]
    cpu = [] if torch.cuda.is_available() else ["--use_cpu", "True"]
    ours = [sys.executable, "-m", "overlays.train", "--engine", "native", "--model_name_or_path", str(model),
            "--dataset_use", str(data["own"]), "--max_steps", str(STEPS), "--min_pixels", str(PIXELS["min"]),
            "--max_pixels", str(PIXELS["max"]), "--resume", "never", *COMMON, *cpu, *parts]
    swift = ["sft", "--model", str(model), "--model_type", "qwen3_vl", "--template", "qwen3_vl", "--dataset",
             str(data["messages"]), "--torch_dtype", "float32", "--max_steps", str(STEPS),
             "--gradient_checkpointing", "false", "--split_dataset_ratio", "0", "--dataset_num_proc", "1",
             "--dataloader_num_workers", "0", "--attn_impl", "sdpa", *COMMON, *(cpu and ["--use_cpu", "true"]),
             *(["--tuner_type", "lora", "--lora_rank", "16", "--lora_alpha", "32"] if lora else
               ["--tuner_type", "full", "--freeze_vit", "false", "--freeze_aligner", "false"])]
    batched = ["--per_device_train_batch_size", str(BATCH)]
    single = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", str(BATCH)]
    peers = {} if "MODEL_PATH" not in os.environ else {
        f"ms-swift {name}": [str(_swift().parent / "swift"), *swift, *batch, "--output_dir", "OUT"]
        for name, batch in (("batch 4", batched), ("batch 1 x 4", single))}
    return {
        "ours batch 4": [*ours, *batched, "--output_dir", "OUT"],
        "ours batch 1 x 4": [*ours, *single, "--output_dir", "OUT"],
        "ours packed": [*ours, "--data_packing", "True", "--model_max_length", "1024", "--per_device_train_batch_size",
                        "1", "--output_dir", "OUT"],
        **peers,
        "TRL batch 4": [sys.executable, "-c", textwrap.dedent(TRL), str(model), str(data["messages"]), "OUT",
                        str(STEPS), str(BATCH), str(int(lora))],
    }


def _samples_per_second(name: str, command: list[str]) -> float:
    out = FOLDER / "runs" / name.replace(" ", "-")
    done = subprocess.run([str(out) if word == "OUT" else word for word in command], cwd=ROOT,
                          env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}, capture_output=True, text=True)
    found = re.findall(r"train_samples_per_second\W+([\d.]+)", done.stdout + done.stderr)
    if done.returncode or not found:
        raise UserError(f"{name} ended with status {done.returncode}: " + " ".join(done.stderr.split())[-300:])
    return float(found[-1])


def run() -> dict[str, float]:
    """Median samples/s of each setting, and the ratio of our best to the best peer's, by case."""
    model, figures = _model(), {}
    for case, share, lora in (("full", 1.0, False), ("LoRA", 1.0, True), ("mixed", 0.5, False)):
        commands = _commands(model, _data(case, share), lora)
        seen: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in tqdm(commands.items(), desc=case):
                seen[name].append(_samples_per_second(f"{case} {name}", command))
        middle = {name: statistics.median(values) for name, values in seen.items()}
        for name, values in seen.items():
            figures |= {f"{case}, {name}": middle[name], f"{case}, {name}, spread": max(values) - min(values)}
        best = {ours: max(value for name, value in middle.items() if name.startswith("ours") == ours)
                for ours in (True, False)}
        figures[f"{case}, ratio of the best"] = best[True] / best[False]
        for setting in ("batch 4", "batch 1 x 4"):
            others = [value for name, value in middle.items() if name.endswith(setting) and name.split()[0] != "ours"]
            if others:
                figures[f"{case}, ratio at {setting}"] = middle[f"ours {setting}"] / max(others)
    return figures
