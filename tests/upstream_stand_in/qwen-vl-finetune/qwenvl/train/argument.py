"""Flags of the stand-in: some of upstream's."""

from dataclasses import dataclass, field

import transformers


@dataclass
class ModelArguments:
    model_name_or_path: str = field(default="")
    tune_mm_mlp: bool = field(default=False)


@dataclass
class DataArguments:
    dataset_use: str = field(default="")
    max_pixels: int = field(default=50176)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    lora_enable: bool = field(default=False)
    lora_r: int = field(default=64)
