"""A YAML file of LLaMA-Factory as flags of this trainer."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

MARKS = ("finetuning_type", "stage", "cutoff_len")  # keys that only such a file has
RENAMED = {"dataset": "dataset_use", "lora_rank": "lora_r", "cutoff_len": "model_max_length",
           "image_max_pixels": "max_pixels", "image_min_pixels": "min_pixels", "video_maxlen": "video_max_frames",
           "packing": "data_packing", "neat_packing": "data_packing", "evaluation_strategy": "eval_strategy"}
# Key -> its value there -> flags here. Other values of these keys have no counterpart.
VALUES: dict[str, dict[Any, dict[str, Any]]] = {
    "stage": {"sft": {}}, "do_train": {True: {}}, "trust_remote_code": {False: {}},
    "finetuning_type": {"lora": {"lora_enable": True}, "full": {"lora_enable": False}},
    "flash_attn": {"auto": {"attn_implementation": "auto"}, "disabled": {"attn_implementation": "eager"},
                   "sdpa": {"attn_implementation": "sdpa"}, "fa2": {"attn_implementation": "flash_attention_2"}},
    "quantization_bit": {4: {"load_in_4bit": True}, 8: {"load_in_8bit": True}},
    "overwrite_output_dir": {True: {"resume": "never"}, False: {}},
    "disable_gradient_checkpointing": {value: {"gradient_checkpointing": not value} for value in (True, False)},
}
FROZEN = {"freeze_vision_tower": ("tune_mm_vision", True), "freeze_multi_modal_projector": ("tune_mm_mlp", True),
          "freeze_language_model": ("tune_mm_llm", False)}  # key -> flag, and the key's default
# What such a file leaves out has that program's default. Where both programs take transformers' own, none is needed.
DEFAULTS = {"lora_enable": True, "model_max_length": 2048, "max_pixels": 768 * 768, "min_pixels": 32 * 32,
            "video_max_pixels": 256 * 256, "video_min_pixels": 16 * 16, "video_fps": 2.0, "video_max_frames": 128,
            "gradient_checkpointing": True}
WITHOUT_EFFECT = ("template", "overwrite_cache", "plot_loss", "preprocessing_num_workers")  # nothing to set here


def is_one(values: Mapping, flags: Collection[str]) -> bool:
    """Whether a mapping of names to values is a file of LLaMA-Factory; `flags` are the trainer's names."""
    return any(mark in values and mark not in flags for mark in MARKS)


def translate(values: Mapping[str, Any], flags: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """(values by the trainer's flag, keys that have no counterpart); what is left out has LLaMA-Factory's default."""
    found: dict[str, Any] = {}
    lacking, silent = [], []
    for key, value in values.items():
        if value is None:
            continue
        if key in VALUES:
            counterpart = VALUES[key].get(value) if isinstance(value, str | bool | int) else None
            if counterpart is None:
                lacking.append(f"{key}: {value}")
            else:
                found |= counterpart
        elif key == "lora_target":
            found["lora_target_modules"] = None if value == "all" else value
        elif key in WITHOUT_EFFECT:
            silent.append(key)
        elif key in RENAMED or key in flags:
            found[RENAMED.get(key, key)] = value
        elif key not in FROZEN:
            lacking.append(key)
    found = DEFAULTS | found
    for key, (flag, frozen) in FROZEN.items():
        found[flag] = not values.get(key, frozen)
    if found["lora_enable"]:
        found["tune_mm_llm"] = False  # the adapter stands for it
        rank = str(found.setdefault("lora_r", 8))
        found.setdefault("lora_alpha", 2 * int(rank) if rank.isdecimal() else rank)
    if silent:
        logging.getLogger(__name__).warning("keys of LLaMA-Factory that set nothing here: %s", ", ".join(silent))
    return found, lacking
