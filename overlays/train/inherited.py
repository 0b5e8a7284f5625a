"""Flags inherited from transformers and TRL: each is supported or refused in one sentence; none is ignored.

SUPPORTED and REFUSED name every field of transformers.TrainingArguments and trl.DPOConfig. A field of a newer library
that is in neither is refused as soon as it is given. `check` looks at the values before a library is imported,
`check_together` at what needs the library; both run before weights are loaded.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from overlays.errors import UserError, need_package
from overlays.files import parse_json

SUPPORTED = frozenset("""
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps max_grad_norm bf16 tf32 activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id
    eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start eval_accumulation_steps
    save_only_model save_strategy save_steps save_total_limit load_best_model_at_end metric_for_best_model
    greater_is_better full_determinism seed data_seed use_cpu dataloader_drop_last dataloader_num_workers
    dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context train_sampling_strategy
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout deepspeed
    skip_memory_metrics do_train do_eval resume_from_checkpoint local_rank
    disable_dropout precompute_ref_log_probs precompute_ref_batch_size loss_type loss_weights ld_alpha
    f_divergence_type f_alpha_divergence_coef label_smoothing beta use_weighting discopop_tau
""".split())

_HUB = "a run folder stays on this machine; upload it afterwards with `hf upload`"
_METRICS = "the metrics of a run are fixed; scripts/inference_*.py and scripts/evaluate_*.py score a checkpoint"
_TRUNCATION = "nothing is cut; --model_max_length drops longer samples and counts them"
_COLLATOR = "the batches come from overlays.data.preferences"
_REFERENCE = "the reference is the model that training starts from, for the whole run"
REFUSED = {
    "optim_target_modules": "only GaLore and APOLLO read it, which are not supported",
    "average_tokens_across_devices": "the loss is the mean over the supervised tokens of all processes",
    "label_smoothing_factor": "the library does not shift the labels of Qwen-VL models, which would learn to repeat "
                              "their input",
    "fp16": "the weights are bfloat16, whose range float16 does not have; use --bf16 True, or neither for fp32",
    "bf16_full_eval": "evaluation runs in the precision of training",
    "fp16_full_eval": "evaluation runs in the precision of training",
    "torch_compile": "batches differ in shape, and each shape would be compiled anew",
    "torch_compile_backend": "--torch_compile is not supported",
    "torch_compile_mode": "--torch_compile is not supported",
    "use_liger_kernel": "it replaces the forward of overlays.model.forward, which already computes logits at "
                        "supervised positions only",
    "liger_kernel_config": "--use_liger_kernel is not supported",
    "use_cache": "a cache takes the borders between flattened samples away; training needs none",
    "neftune_noise_alpha": "its noise depends on the length of the padded row, so the loss would depend on the batch",
    "auto_find_batch_size": "a resumed run could not tell which samples were seen; set --per_device_train_batch_size",
    "prediction_loss_only": "--head decides whether predictions are gathered",
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": "evaluation gathers tensors only",
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "save_on_each_node": "all nodes share one run folder",
    "enable_jit_checkpoint": "a run continues from its newest complete checkpoint; use --save_steps",
    "push_to_hub": _HUB, "hub_token": _HUB, "hub_private_repo": _HUB, "hub_model_id": _HUB, "hub_strategy": _HUB,
    "hub_always_push": _HUB, "hub_revision": _HUB,
    "ignore_data_skip": "a resumed run would see samples twice",
    "restore_callback_states_from_checkpoint": "a resumed run restores the count of --early_stopping_patience itself",
    "accelerator_config": "it changes which samples a step sees; set batch size, accumulation and processes",
    "parallelism_config": "each process holds a whole batch; use --deepspeed to split a model",
    "dataloader_in_order": "a resumed run could not tell which samples were seen",
    "remove_unused_columns": "it would drop inputs of the model",
    "label_names": "--head decides what the labels are",
    "length_column_name": "lengths are measured when the data sets are read",
    "ddp_static_graph": "--freeze_encoder_epochs and batches without media change the graph",
    "fsdp": "use --deepspeed scripts/zero3.json",
    "fsdp_config": "use --deepspeed scripts/zero3.json",
    "debug": "a run stops at the first loss that is not finite; use torch.autograd.set_detect_anomaly in a script",
    "do_predict": "use python -m overlays.predict",
    # trl.DPOConfig
    "model_init_kwargs": "use --attn_implementation and --pure_bf16",
    "trust_remote_code": "code from a checkpoint is never run",
    "router_aux_loss_coef": "the forward of overlays.model.forward returns no router logits",
    "dataset_num_proc": _COLLATOR,
    "max_length": _TRUNCATION, "truncation_mode": _TRUNCATION,
    "padding_free": _COLLATOR, "pad_to_multiple_of": _COLLATOR,
    "pad_token": "it is the tokenizer's own",
    "activation_offloading": "use --gradient_checkpointing True",
    "sync_ref_model": _REFERENCE, "ref_model_mixup_alpha": _REFERENCE, "ref_model_sync_steps": _REFERENCE,
}

# Flags of older versions of the library, which it does not know any more, and what to use now.
RENAMED = {
    "evaluation_strategy": "--eval_strategy",
    "group_by_length": "--train_sampling_strategy group_by_length",
    "no_cuda": "--use_cpu True",
    "overwrite_output_dir": "--resume never",
    "predict_with_generate": "python -m overlays.predict",
}

# optimizer -> (package or None, keys of --optim_args that it reads, whether it reads --adam_*)
OPTIMIZERS = {
    "adamw_torch": (None, (), True),
    "adamw_torch_fused": (None, (), True),
    "adafactor": (None, (), False),
    "sgd": (None, ("momentum", "dampening", "nesterov"), False),
    "adagrad": (None, ("lr_decay", "eps"), False),
    "rmsprop": (None, ("momentum", "alpha", "eps", "centered"), False),
    "adamw_torch_4bit": ("torchao", ("bf16_stochastic_round",), True),
    "adamw_torch_8bit": ("torchao", ("bf16_stochastic_round",), True),
    **{name: ("bitsandbytes", (), True) for name in (
        "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_8bit", "lion_32bit",
        "paged_lion_32bit", "paged_lion_8bit")},
}
SCHEDULES_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
SCHEDULES_WITHOUT_OPTIONS = ("constant", "constant_with_warmup")
CHECKPOINTING_OPTIONS = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop",
                         "every_n_layers", "offload")
LOSSES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
          "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")
# flag -> least value, and whether that value itself is allowed
RANGES = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
                     "save_total_limit", "eval_accumulation_steps", "torch_empty_cache_steps", "ddp_timeout",
                     "dataloader_prefetch_factor", "precompute_ref_batch_size"), (1, True)),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay",
                     "dataloader_num_workers", "early_stopping_patience", "label_smoothing"), (0, True)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "adam_epsilon", "beta", "model_max_length",
                     "ddp_bucket_cap_mb"), (0, False)),
}


def library_flags(training_class: type) -> set[str]:
    """Names of the fields that a class of training flags inherits from transformers or TRL."""
    return {
        field.name for base in training_class.__mro__
        if dataclasses.is_dataclass(base) and base.__module__.split(".")[0] in ("transformers", "trl")
        for field in dataclasses.fields(base)
    }


def check(training_class: type, values: Mapping, defaults: Mapping) -> None:
    """Refuse inherited flags that are not supported, and values that no run can use, before the library reads them.

    Args:
        values: what was given, or the default, by the name of each field.
        defaults: what the same flags are where nothing is given.

    Raises:
        UserError: a flag in REFUSED, or one that this table does not know, differs from its default; a number is out
            of its range; something ignores a flag.
    """
    known = library_flags(training_class)
    for name in sorted(known - SUPPORTED):
        if values.get(name) == defaults.get(name):
            continue
        if name not in REFUSED:
            raise UserError(f"this version of the overlay does not know --{name}, a flag of a newer library")
        raise UserError(f"--{name} is not supported: {REFUSED[name]}")
    if values["optim"] not in OPTIMIZERS:
        raise UserError(f"--optim {values['optim']} is not supported; supported are {', '.join(OPTIMIZERS)}")
    for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if isinstance(values.get(name), str):
            _json_object(name, values[name], values[name])
    _check_ranges(values)
    _check_checkpointing(values)
    _check_loading(values)
    _check_preferences(values)
    if values["ddp_backend"] and "RANK" not in os.environ:
        raise UserError("--ddp_backend is for several processes: start them with python -m torch.distributed.run")
    _check_best_model(values)
    if values.get("deepspeed"):
        _check_deepspeed(values["deepspeed"])


def _check_best_model(values: Mapping) -> None:
    if values["eval_strategy"] != "no":
        return
    for name in ("load_best_model_at_end", "eval_steps", "eval_delay", "do_eval"):
        if values[name] not in (None, False, 0):
            raise UserError(f"--{name} needs --eval_strategy steps or epoch")
    if values["save_strategy"] == "best":
        raise UserError("--save_strategy best needs --eval_strategy steps or epoch")


def _json_object(name: str, given: str, text: str) -> dict:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise UserError(f"--{name} {given} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"--{name} {given} must be a JSON object")
    return found


def _deepspeed_config(given: str | dict) -> dict:
    """The configuration that --deepspeed gives as a file or as JSON. Raises UserError where it cannot be read."""
    if not isinstance(given, str):
        return given
    try:
        text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--deepspeed {given} cannot be read: {' '.join(str(error).split())}") from None
    return _json_object("deepspeed", given, text)


def zero_optimization(given: str | dict) -> dict:
    """What a configuration that --deepspeed gives says about ZeRO: "stage" and its options."""
    zero = _deepspeed_config(given).get("zero_optimization")
    return zero if isinstance(zero, dict) else {}


def _check_deepspeed(given: str | dict) -> None:
    """Refuse a configuration that cannot be read, or that would replace optimizer or learning rates."""
    config = _deepspeed_config(given)
    for name in ("optimizer", "scheduler"):
        if name in config:
            raise UserError(f"--deepspeed {given} has its own {name}, which would replace the learning rates of the "
                            f"parts: remove the key {name!r}")
    need_package("deepspeed", "--deepspeed")


def check_together(training: Any, values: Mapping) -> bool | None:
    """Refuse values and combinations of supported flags that fail later or that something ignores.

    Args:
        training: the flags as the library has read them (transformers.TrainingArguments).
        values: as for `check`.

    Returns:
        Whether a greater --metric_for_best_model is better; None without one.
    """
    _check_tracking(training, values)
    _check_optimizer(training, values)
    _check_schedule(training)
    return _check_evaluation(training, values)


def _check_ranges(values: Mapping) -> None:
    for name, (least, included) in RANGES.items():
        value = values.get(name)
        if value is None:
            continue
        if not math.isfinite(value) or value < least or (value == least and not included):
            raise UserError(f"--{name} must be {'at least' if included else 'above'} {least}, not {value}")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= values[name] < 1:
            raise UserError(f"--{name} must be at least 0 and below 1, not {values[name]}")
    for name in ("seed", "data_seed"):
        value = values[name]
        if value is not None and not 0 <= value < 2 ** 32:
            raise UserError(f"--{name} must be at least 0 and below 2^32, not {value}")
    if values["max_steps"] != -1 and values["max_steps"] < 1:
        raise UserError(f"--max_steps must be at least 1, or -1 for --num_train_epochs, not {values['max_steps']}: "
                        "a run without steps would save a model that has learned nothing")
    if values["max_steps"] == -1 and not 0 < values["num_train_epochs"] < math.inf:
        raise UserError(f"--num_train_epochs must be above 0, not {values['num_train_epochs']:g}: a run without steps "
                        "would save a model that has learned nothing")


def _check_tracking(training, values: Mapping) -> None:
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    for name in training.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UserError(f"--report_to (REPORT_TO) does not know {name!r}")
        if name not in get_available_reporting_integrations():
            raise UserError(f"--report_to (REPORT_TO) {name} needs a package that is not installed: "
                            f"{sys.executable} -m pip install {name}")
    fields = type(training).__dataclass_fields__
    for name in ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"):
        if name in fields and values.get(name) != fields[name].default and "trackio" not in training.report_to:
            raise UserError(f"--{name} needs --report_to trackio")


def _check_optimizer(training, values: Mapping) -> None:
    name = training.optim.value
    package, keys, adam = OPTIMIZERS[name]
    if package:
        need_package(package, f"--optim {name}")
    for pair in filter(None, (training.optim_args or "").replace(" ", "").split(",")):
        key, equals, _ = pair.partition("=")
        if not equals or key not in keys:
            usable = f"takes {', '.join(f'{key}=VALUE' for key in keys)}" if keys else "takes none"
            raise UserError(f"--optim_args {training.optim_args}: --optim {name} {usable}")
    fields = type(training).__dataclass_fields__
    for flag in ("adam_beta1", "adam_beta2", "adam_epsilon") if not adam else ():
        if values[flag] != fields[flag].default:
            raise UserError(f"--{flag}: --optim {name} does not read it")
    import torch
    import transformers

    try:
        optimizer_class, options = transformers.Trainer.get_optimizer_cls_and_kwargs(training)
        weight = torch.nn.Parameter(torch.zeros(2, device=training.device))
        optimizer = optimizer_class([weight], **options)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    except (ImportError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(f"--optim {name} cannot be used: {' '.join(str(error).split())}") from None


def _check_schedule(training) -> None:
    name, options = training.lr_scheduler_type.value, training.lr_scheduler_kwargs
    if training.warmup_steps and name in SCHEDULES_WITHOUT_WARMUP:
        other = ", or --lr_scheduler_type constant_with_warmup" if name == "constant" else ""
        raise UserError(f"--lr_scheduler_type {name} has no warm-up: use --warmup_steps 0{other}")
    if options and name in SCHEDULES_WITHOUT_OPTIONS:
        raise UserError(f"--lr_scheduler_type {name} takes no --lr_scheduler_kwargs")
    import torch
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate or 1e-3)
    try:
        schedule = transformers.get_scheduler(name, optimizer, 2, 10, options)
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            for step in range(11):
                schedule.lr_lambdas[0](step)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"--lr_scheduler_type {name} with --lr_scheduler_kwargs {options}: "
                        f"{' '.join(str(error).split())}") from None


def _check_checkpointing(values: Mapping) -> None:
    # The library has two names for each of these flags; before 5.24 it had one.
    given = values["gradient_checkpointing_kwargs"] or values.get("activation_checkpointing_kwargs")
    if given is None:
        return
    options = _json_object("gradient_checkpointing_kwargs", given, given)
    for key in options:
        if key not in CHECKPOINTING_OPTIONS:
            raise UserError(f"--gradient_checkpointing_kwargs does not know {key!r}; it knows "
                            f"{', '.join(CHECKPOINTING_OPTIONS)}")
    if options and not (values["gradient_checkpointing"] or values.get("activation_checkpointing")):
        raise UserError("--gradient_checkpointing_kwargs needs --gradient_checkpointing True")


def _check_loading(values: Mapping) -> None:
    for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_prefetch_factor"):
        if values[name] and not values["dataloader_num_workers"]:
            raise UserError(f"--{name} needs --dataloader_num_workers above 0")
    if values["train_sampling_strategy"] == "batch_rebalance":
        raise UserError("--train_sampling_strategy batch_rebalance is not supported: it would open every sample; use "
                        "group_by_length")


def metric_name(metric: str) -> str:
    """A metric of --metric_for_best_model without the library's prefix."""
    return metric.removeprefix("eval_")


def check_metric(training, known: Collection[str] = ()) -> None:
    """Refuse a --metric_for_best_model that evaluation will not give.

    Args:
        known: names of the metrics, without "eval_"; empty where they are not known yet.
    """
    metric = training.metric_for_best_model
    if metric is None:
        return
    if training.eval_strategy == "no":
        raise UserError(f"--metric_for_best_model {metric} needs --eval_strategy steps or epoch")
    if known and metric_name(metric) not in known:
        raise UserError(f"--metric_for_best_model {metric}: evaluation gives {', '.join(sorted(known))}")


def _check_evaluation(training, values: Mapping) -> bool | None:
    metric, best = training.metric_for_best_model, training.save_strategy == "best"
    if best and metric is None:
        raise UserError("--save_strategy best needs --metric_for_best_model, for example loss")
    if training.save_only_model and training.deepspeed and training.load_best_model_at_end:
        raise UserError("--save_only_model does not go with --deepspeed and --load_best_model_at_end")
    if metric is None:
        if values["greater_is_better"] is not None:
            raise UserError("--greater_is_better needs --metric_for_best_model")
        return None
    greater = metric_name(metric).startswith("r2")
    if values["greater_is_better"] not in (None, greater):
        raise UserError(f"--greater_is_better {values['greater_is_better']} would keep the worst model: "
                        f"{'higher' if greater else 'lower'} is better for {metric}")
    return greater  # the library takes every name that does not end in "loss" for a gain


def _check_preferences(values: Mapping) -> None:
    losses = values.get("loss_type")
    if losses is None:
        return
    for name in losses:
        if name not in LOSSES:
            raise UserError(f"--loss_type does not know {name!r}; it knows {', '.join(LOSSES)}")
    if "exo_pair" in losses and not values["label_smoothing"]:
        raise UserError("--loss_type exo_pair needs --label_smoothing above 0, for example 1e-3")
    if not 0 <= values["label_smoothing"] < 0.5:
        raise UserError(f"--label_smoothing must be at least 0 and below 0.5, not {values['label_smoothing']:g}")
    if values["use_weighting"] and {"aot", "aot_unpaired"} & set(losses):
        raise UserError("--use_weighting does not go with --loss_type aot and aot_unpaired, which sort the pairs")
    without = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
    kinds = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    if values["f_divergence_type"] not in kinds:
        raise UserError(f"--f_divergence_type is one of {', '.join(kinds)}, not {values['f_divergence_type']!r}")
    if values["f_divergence_type"] != "reverse_kl" and not set(losses) <= without:
        raise UserError(f"--f_divergence_type {values['f_divergence_type']} goes with --loss_type "
                        f"{', '.join(sorted(without))}")
    if values["disable_dropout"] and values["lora_dropout"]:
        raise UserError(f"--lora_dropout {values['lora_dropout']:g} has no effect, because --disable_dropout is True: "
                        "set --lora_dropout 0 or --disable_dropout False")


def resume_of(values: Mapping) -> str:
    """--resume, or what its alias --resume_from_checkpoint names."""
    given = values.get("resume_from_checkpoint")
    if given is None:
        return values["resume"]
    if given.lower() == "false":
        raise UserError("--resume_from_checkpoint False: use --resume never, which starts over in the same folder")
    wanted = "auto" if given.lower() == "true" else given
    if values["resume"] not in ("auto", wanted):
        raise UserError(f"--resume {values['resume']} and --resume_from_checkpoint {given} contradict each other")
    return wanted
