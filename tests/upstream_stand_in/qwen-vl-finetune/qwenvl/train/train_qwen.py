"""A train() that looks up the names that upstream's looks up."""

import pathlib

import torch
import transformers
from qwenvl.data.data_processor import make_supervised_data_module
from qwenvl.train.argument import DataArguments, ModelArguments, TrainingArguments
from trainer import replace_qwen2_vl_attention_class
from transformers import (
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
    Trainer,
)


def set_model(model_args, model):
    raise AssertionError("the stand-in's set_model was used")


def safe_save_model_for_hf_trainer(trainer, output_dir):
    raise AssertionError("the stand-in's saving was used")


def train(attn_implementation="eager"):
    parser = transformers.HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    pathlib.Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
    name = model_args.model_name_or_path
    if "3" in name:
        loader = Qwen3VLMoeForConditionalGeneration if name.endswith("moe") else Qwen3VLForConditionalGeneration
    else:
        loader = Qwen2_5_VLForConditionalGeneration if "2.5" in name else Qwen2VLForConditionalGeneration
    model = loader.from_pretrained(name, attn_implementation=attn_implementation)
    data_args.model_type = "a guess"
    processor = AutoProcessor.from_pretrained(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, use_fast=False)
    replace_qwen2_vl_attention_class()
    if training_args.lora_enable:
        raise AssertionError("the stand-in's own adapter was built")
    set_model(model_args, model)
    if torch.distributed.get_rank() == 0:
        raise AssertionError("the stand-in printed its own list of parts")
    module = make_supervised_data_module(processor, data_args=data_args)
    trainer = Trainer(model=model, processing_class=tokenizer, args=training_args, **module)
    trainer.train(resume_from_checkpoint=True)  # always, so that resuming has to be settled elsewhere
    trainer.save_state()
    safe_save_model_for_hf_trainer(trainer=trainer, output_dir=training_args.output_dir)
    processor.save_pretrained(training_args.output_dir)
