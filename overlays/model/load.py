"""Checkpoint to model and processor: a full one, a LoRA one (its base is found), a merged one."""

import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from overlays import runs
from overlays.data.template import check_template
from overlays.data.thinking import set_thinking
from overlays.errors import UserError, need_package
from overlays.families import family_of
from overlays.files import misfit
from overlays.model import adapters, extensions, forward, heads, unloaded
from overlays.model.adapters import adapter_base
from overlays.model.parts import part_of, plain_name

log = logging.getLogger(__name__)

LARGEST = {  # what a config.json may ask for before its weights are looked at
    "num_hidden_layers": 1000, "depth": 1000, "hidden_size": 1 << 16, "intermediate_size": 1 << 18, "num_heads": 1024,
    "num_attention_heads": 1024, "num_key_value_heads": 1024, "vocab_size": 1 << 22, "patch_size": 1024,
    "spatial_merge_size": 64, "temporal_patch_size": 64, "num_experts": 4096, "head_dim": 4096,
}
GENERATION = {  # what `generate` takes from generation_config.json as it is
    "eos_token_id?": (int, [int]), "bos_token_id?": int, "pad_token_id?": int, "repetition_penalty?": float,
    "no_repeat_ngram_size?": int, "bad_words_ids?": [[int]], "suppress_tokens?": [int], "begin_suppress_tokens?": [int],
    "forced_bos_token_id?": int, "forced_eos_token_id?": (int, [int]), "min_length?": int, "min_new_tokens?": int,
    "stop_strings?": (str, [str]), "max_time?": float, "exponential_decay_length_penalty?": [float],
}
NEUTRAL = {  # of what makes `generate` work in another way, or give another result than ids
    "guidance_scale": 1, "num_return_sequences": 1, "return_dict_in_generate": False, "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None, "dola_layers": None, "force_words_ids": None, "constraints": None,
    "watermarking_config": None, "sequence_bias": None,
}
TRAINED_PARTS = adapters.BESIDE
CHECKED_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # torch compares no fp8
PROCESSOR_FILES = (("tokenizer_config.json",), ("tokenizer.json", "vocab.json"),
                   ("preprocessor_config.json", "processor_config.json"))
OFFLINE_HINT = "give a local folder (MODEL_PATH or --model_name_or_path) or download it on a machine with network"


def model_class_of(config) -> type:
    """The family's generation class in transformers."""
    import transformers

    return getattr(transformers, family_of(config).model_class)


def attention_implementation(name: str, dtype: torch.dtype, config) -> str:
    """`auto` becomes flash_attention_2 where the model, a GPU, the package and a 16-bit type allow it, else sdpa."""
    if name != "auto":
        return name
    from transformers.utils import is_flash_attn_2_available

    usable = torch.cuda.is_available() and dtype in (torch.bfloat16, torch.float16) and is_flash_attn_2_available()
    return "flash_attention_2" if usable and model_class_of(config)._supports_flash_attn else "sdpa"


def locate(name: str | Path) -> str:
    """A model's name as `from_pretrained` wants it: an absolute path or a hub name.

    Relative folders are also looked for below the repository.

    Raises:
        UserError: the name looks like a folder and there is none, or the folder holds no model or a damaged one.
    """
    name = str(name)
    folder = adapters.local_folder(name)
    if folder is not None:
        if runs.has_model(Path(folder)):
            runs.check_model(Path(folder))
            return folder
        complete = runs.checkpoints(Path(folder))
        if complete:
            raise UserError(f"{name} is a run without a final model: give its newest checkpoint, {complete[-1]}")
        raise UserError(f"{name} holds no model: there is neither config.json nor adapter_config.json")
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or name.split("/")[0] in ("data", "outputs"):
        raise UserError(f"there is no model folder {name}; {OFFLINE_HINT}")
    return name


def _hub_is_out_of_reach() -> bool:
    """Whether the hub's name does not even resolve, so that waiting for retries is in vain."""
    from urllib.parse import urlsplit

    from huggingface_hub.constants import ENDPOINT

    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return False
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def _from_hub(name: str, call):
    """Run `call(**options)` around a `from_pretrained`; what it raises about files and network becomes one sentence."""
    try:
        return call(local_files_only=Path(name).is_dir() or _hub_is_out_of_reach())
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if "custom code" in reason:
            raise UserError(f"model {name} needs code of its own (auto_map in its files), which is never run: give a "
                            "model of a family that transformers itself has") from None
        if Path(name).is_dir():
            raise UserError(f"model {name} cannot be loaded: {reason}") from error
        if isinstance(error, OSError) or "offline" in reason.lower() or "connect" in reason.lower():
            raise UserError(f"model {name} is not on this machine and cannot be downloaded; {OFFLINE_HINT}") from error
        raise


def load_config(name: str | Path, cache_dir: str | None = None):
    """Config of a supported family.

    Raises:
        UserError: it cannot be had, the family is not supported, or `name` is an adapter and not a model.
    """
    from transformers import AutoConfig

    name = locate(name)
    if adapters.read_config(name) is not None:
        raise UserError(f"{name} is an adapter and not a model: merge it into its base model with `python "
                        f"scripts/merge_lora.py --checkpoint {name} --output {name}-merged` and give {name}-merged")
    config = _from_hub(name, lambda **options: AutoConfig.from_pretrained(
        name, cache_dir=cache_dir, trust_remote_code=False, **options))
    row, stored = family_of(config), config.to_dict()
    for part, example in (("text_config", row.tiny_text), ("vision_config", row.tiny_vision)):
        problem = misfit(stored.get(part), _form_of(example), part)
        if problem:
            raise UserError(f"model {name}: {problem} in config.json")
    for part in (config, config.get_text_config(), config.vision_config):
        for key, most in LARGEST.items():
            value = getattr(part, key, None)
            if value is not None and not (type(value) is int and 0 < value <= most):
                raise UserError(f"model {name}: {key} in config.json must be a whole number from 1 to {most}, not "
                                f"{value!r}")
    return config


def _form_of(example: object) -> object:
    """A schema of `files.misfit` for values of the same types as an example; objects may lack keys."""
    if isinstance(example, Mapping):
        return {f"{key}?": _form_of(value) for key, value in example.items()}
    return [_form_of(example[0])] if isinstance(example, list | tuple) else type(example)


def load_processor(name: str | Path, cache_dir: str | None = None):
    """The processor that lies with a model or checkpoint; a LoRA folder without one takes its base model's."""
    from transformers import AutoProcessor

    name = locate(name)
    if Path(name).is_dir():
        there = [any((Path(name) / file).is_file() for file in files) for files in PROCESSOR_FILES]
        base = adapter_base(name)
        if not any(there) and base is not None:
            return load_processor(base, cache_dir)
        if not all(there):
            raise UserError(f"{name} lacks {' or '.join(PROCESSOR_FILES[there.index(False)])}: copy the tokenizer and "
                            f"processor files again{'' if base else ', or those of the base model'}")
    processor = _from_hub(name, lambda **options: AutoProcessor.from_pretrained(
        name, cache_dir=cache_dir, trust_remote_code=False, **options))
    if getattr(processor, "image_processor", None) is None:
        raise UserError(f"{name} holds a tokenizer but no image processor: preprocessor_config.json is missing")
    problem = misfit(processor.tokenizer.model_max_length, float, "model_max_length")
    if problem:
        raise UserError(f"model {name}: {problem} in tokenizer_config.json")
    for part in (processor.image_processor, getattr(processor, "video_processor", None)):
        problem = part and _processor_problem(part)
        if problem:
            raise UserError(f"model {name}: {problem} in its processor's configuration")
    check_template(processor)
    return processor


def _processor_problem(part) -> str | None:
    """What is wrong with the numbers of an image or video processor, which its library takes as they are."""
    for key in ("patch_size", "merge_size", "temporal_patch_size"):
        value = getattr(part, key, None)
        if type(value) is not int or not 0 < value <= LARGEST["patch_size"]:
            return f"{key} must be a whole number from 1 to {LARGEST['patch_size']}, not {value!r}"
    low, high = (getattr(part.size, key, None) for key in ("shortest_edge", "longest_edge"))
    if type(low) is not int or type(high) is not int or not 0 < low <= high:
        return f"size must have a shortest_edge from 1 on and a longest_edge not below it, not {low!r} and {high!r}"
    for key, least in (("image_mean", None), ("image_std", 0), ("rescale_factor", 0)):
        value = getattr(part, key, None)
        value = list(value) if isinstance(value, tuple) else value
        problem = misfit(value, ([float], float), key)
        if problem or least is not None and min(value if isinstance(value, list) else [value], default=1) <= least:
            return problem or f"{key} must be above 0, not {value!r}"
    for key in ("fps", "min_frames", "max_frames"):
        value = getattr(part, key, None)
        if value is not None and (misfit(value, float) or value <= 0):
            return f"{key} must be a number above 0, not {value!r}"
    return None


def quantization(config, bits: int, dtype: torch.dtype):
    """transformers' configuration that quantises the linear layers of the language model and of nothing else.

    Args:
        bits: 4 (NF4, its constants quantised once more) or 8.
        dtype: in which a 4-bit layer computes.

    Raises:
        UserError: the model in the files is quantised already, or bitsandbytes is not installed.
    """
    need_package("bitsandbytes", f"--load_in_{bits}bit")
    from transformers import BitsAndBytesConfig

    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"--load_in_{bits}bit quantises a model in full precision, and this one is quantised already: "
                        "give the model that it was made from")
    others = [rf"(?!{re.escape(family_of(config).language_model[0])}).*"]
    if bits == 8:
        # It says at every product that the inputs are rounded to fp16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=others)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=others)


def load_base(name: str | Path, dtype: torch.dtype, attn: str = "auto", cache_dir: str | None = None,
              bits: int | None = None, device: str | torch.device | None = None):
    """A generation model with its weights in `dtype`, the overlay's forward and the extensions stored with it.

    Tensors of the base that the model class does not know are named in one line on stderr.

    Args:
        bits: 4 or 8 quantise the linear layers of the language model, see `quantization`.
        device: where the weights go; "meta": nowhere, and only the files' headers are read.

    Raises:
        UserError: the model cannot be had, or lacks weights that its class has, which would be random numbers.
    """
    config = load_config(name, cache_dir)
    name = locate(name)
    model_class = model_class_of(config)
    _check_size(name, config, model_class)
    placed = {} if device is None else {"device_map": {"": device}}
    if bits:
        placed["quantization_config"] = quantization(config, bits, dtype)
    with _without_load_report():
        model, report = _from_hub(
            name,
            lambda **options: model_class.from_pretrained(
                name, dtype=dtype, attn_implementation=attention_implementation(attn, dtype, config),
                trust_remote_code=False, cache_dir=cache_dir, output_loading_info=True, ignore_mismatched_sizes=True,
                **placed, **options
            ),
        )
    _check_weights(name, model_class.__name__, report)
    if getattr(config, "quantization_config", None) is None:  # which may store integers
        floats = {key for key, value in model.named_parameters() if value.is_floating_point()}
        for file in sorted(Path(name).glob("model*.safetensors")):
            with adapters.open_weights(file, floats):
                pass
    problem = _generation_problem(model.generation_config.to_diff_dict())
    if problem:
        raise UserError(f"model {name}: {problem} in generation_config.json")
    unloaded.find(model, name, report["unexpected_keys"], cache_dir)
    forward.install(model)
    extensions.attach(model, extensions.read(name))
    load_trained_parts(model, name)
    check_finite(model, name)
    return model


def check_finite(model: torch.nn.Module, name: str | Path, among: Callable[[str], bool] = lambda key: True) -> None:
    """Refuse a model whose weights hold NaN or infinity. Raises UserError that names the first of them.

    Args:
        among: whether a parameter, by its name, is looked at.
    """
    for key, value in model.named_parameters():
        if among(key):
            check_tensor(key, value, name)


def check_tensor(key: str, value: torch.Tensor, name: str | Path) -> None:
    """Raise UserError where a weight `key` of the model `name` holds NaN or infinity."""
    if value.numel() and value.dtype in CHECKED_TYPES and not value.is_meta:
        low, high = torch.aminmax(value.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise UserError(f"{name} holds weights that are not finite numbers, the first is {plain_name(key)}: copy "
                            "the model again, or use another checkpoint")


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Leave out transformers' table of weights that do not fit: `_check_weights` says it in one line."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _generation_problem(values: Mapping) -> str | None:
    """What `generate` cannot work with in the values of a generation_config.json."""
    for key, neutral in NEUTRAL.items():
        if values.get(key) not in (None, neutral):
            return f"{key} is {values[key]!r}, which is not supported,"
    if not misfit(values, GENERATION) and (values.get("repetition_penalty") or 1) <= 0:
        return f"repetition_penalty must be above 0, not {values['repetition_penalty']!r}"
    return misfit(values, GENERATION)


def check_vocabulary(model: torch.nn.Module, processor) -> None:
    """Raise UserError where the tokenizer has ids without an embedding, or other ids of images and videos."""
    rows, largest = model.config.get_text_config().vocab_size, max(processor.tokenizer.get_vocab().values())
    problem = f"ids up to {largest}, but the model has embeddings for {rows} tokens" if largest >= rows else ""
    for name in ("image_token_id", "video_token_id"):
        own, wanted = getattr(processor, name, None), getattr(model.config, name, None)
        if not problem and None not in (own, wanted) and own != wanted:
            problem = f"{name} {own}, but the model's config.json says {wanted}"
    if problem:
        raise UserError(f"the tokenizer of {processor.tokenizer.name_or_path} has {problem}: give the tokenizer that "
                        "belongs to the model")


def _check_size(name: str, config, model_class: type) -> None:
    """Raise UserError where config.json makes a model many times larger than its files: it would fill memory first."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    stored = sum(file.stat().st_size for pattern in ("*.safetensors", "*.bin") for file in Path(name).glob(pattern))
    if not stored or is_deepspeed_zero3_enabled():  # ZeRO-3 divides weights as they are made, which meta ones cannot be
        return
    with torch.device("meta"):
        made = _from_hub(name, lambda **_: sum(value.numel() for value in model_class(config).parameters()))
    if made > 4 * stored:
        raise UserError(f"model {name}: its config.json makes {made} weights, but its files have {stored} bytes: give "
                        "the weights that belong to this config.json")


def _check_weights(name: str, model_class: str, report: dict) -> None:
    """Compare stored weights with those of the class, from the report of `from_pretrained`."""
    missing, unknown = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing:
        raise UserError(f"model {name} lacks {len(missing)} weights of {model_class}, the first is {missing[0]}: copy "
                        "the complete model, or give the one that belongs to this config.json")
    if report["mismatched_keys"]:
        key, stored, wanted = sorted(report["mismatched_keys"])[0]
        raise UserError(f"model {name} holds {key} with shape {tuple(stored)}, but its config.json makes it "
                        f"{tuple(wanted)}: give the weights that belong to this config.json")
    if unknown and os.environ.get("RANK", "0") == "0":
        log.warning("model %s holds %d tensors that %s does not know and does not use, the first is %s", name,
                    len(unknown), model_class, unknown[0])


def load_trained_parts(model: torch.nn.Module, checkpoint: str | Path) -> None:
    """Copy what was trained in full beside an adapter, and weights of extensions, from a checkpoint; there may be none.

    Raises:
        UserError: a file is damaged or lacks what an extension learned, or a stored tensor has no place in this model
            or another shape there.
    """
    own = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    there = extensions.read(checkpoint)
    lost = dict.fromkeys(name for name in own if extensions.owns(name, there))
    own |= {plain_name(name): buffer for name, buffer in model.named_buffers()}
    for name, value, file in adapters.full_parameters(checkpoint):
        lost.pop(name, None)
        if name not in own or own[name].shape != value.shape:
            raise UserError(f"{file} holds {name} {tuple(value.shape)}, which this base model has no place for")
        with torch.no_grad():
            own[name].copy_(value)
    if lost:
        raise UserError(f"{Path(checkpoint) / TRAINED_PARTS} does not hold {next(iter(lost))}, which {extensions.FILE} "
                        "beside it speaks of")


def full_parameter_names(checkpoint: str | Path) -> frozenset[str]:
    """Plain names of the parameters that a checkpoint stores in full beside its adapter."""
    return frozenset(name for name, *_ in adapters.full_names(locate(checkpoint)))


def load_model(checkpoint: str | Path, base_model: str | None = None, attn: str = "auto",
               dtype: torch.dtype = torch.float32, cache_dir: str | None = None, bits: int | None = None,
               device: str | torch.device | None = None):
    """A model from any of the three kinds of checkpoint; a LoRA one comes as PeftModel on its base.

    Modules that were trained in full are loaded into the base model's own, without PEFT's second copy of them.

    Args:
        base_model: overrides the base that the adapter names.
        bits, device: of the base, see `load_base`.
    """
    checkpoint = locate(checkpoint)
    stored = adapters.read_config(checkpoint)
    if stored is None:
        return load_base(checkpoint, dtype, attn, cache_dir, bits, device)
    from peft import PeftConfig, PeftModel

    adapters.lora_names(checkpoint)  # damage is told before the base is loaded
    base = base_model or adapter_base(checkpoint)
    if base_model is None and os.path.isabs(base) and not os.path.isdir(base):
        raise UserError(f"{checkpoint} names {base} as its base model, and there is no such folder: give --base_model, "
                        f"or the right name in {adapters.CONFIG}")
    if adapter_base(locate(base)) is None:
        model = load_base(base, dtype, attn, cache_dir, bits, device)
    elif bits:
        raise UserError(f"--load_in_{bits}bit: the base model {base} of {checkpoint} is itself an adapter, whose sum "
                        "cannot be kept in so few bits: merge it, and give the result as the base model")
    else:  # an adapter on an adapted model, e.g. a user's on the one of all users
        model = load_model(base, None, attn, dtype, cache_dir, device=device).merge_and_unload()
    if (Path(checkpoint) / extensions.FILE).is_file():  # trained without the head that its base has
        heads.detach(model, extensions.read(checkpoint).get("regression"))
    extensions.attach(model, extensions.read(checkpoint))
    load_trained_parts(model, checkpoint)
    config = _from_hub(checkpoint, lambda **_: PeftConfig.from_pretrained(checkpoint))
    if adapters.stores_full_modules(stored):
        config.modules_to_save, config.ensure_weight_tying = None, False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks by the old name
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # see `check_tensors`
        if device == "meta":
            warnings.filterwarnings("ignore", message=".*to a meta parameter in the current model")
        model = _from_hub(checkpoint, lambda **_: PeftModel.from_pretrained(model, checkpoint, config=config))
    adapters.check_tensors(checkpoint, model)
    full = full_parameter_names(checkpoint)
    _check_parameter_groups(model, checkpoint, full)
    # All other weights are the base's, which were looked at.
    check_finite(model, checkpoint, lambda key: "lora_" in key or "modules_to_save" in key or plain_name(key) in full)
    return model


def _check_parameter_groups(model: torch.nn.Module, checkpoint: str, stored: Collection[str]) -> None:
    """Refuse an adapter's folder whose full parameters `stored` lack what run.json says was trained with it."""
    rows = (runs.read_run(Path(checkpoint)) or {}).get("parts", []) if runs.is_run(Path(checkpoint)) else []
    trained = {row["part"]: row["trainable"] > 0 and row["part"] != "adapter" for row in rows}
    family = family_of(model.config)
    for name, _ in model.named_parameters():
        part = part_of(name, family, trained)
        if trained.get(part) and plain_name(name) not in stored:
            raise UserError(f"{checkpoint} lacks the {part} that its run trained, the first tensor is "
                            f"{plain_name(name)}: copy the folder again, or use another checkpoint")


def load_for_inference(checkpoint: str | Path, base_model: str | None = None, attn_implementation: str = "auto",
                       thinking: str = "auto", bits: int | None = None):
    """Model in eval mode, on the GPU in bf16 where there is one, else fp32 on the CPU; and its processor.

    Args:
        bits: 4 or 8 quantise the base, see `load_base`; by default it has full precision, also where an adapter was
            trained on a quantised one.
        thinking: "on" or "off" asks with or without room for reasoning, "auto" in the checkpoint's own form.

    Raises:
        UserError: checkpoint, base model or processor is missing, damaged or of an unsupported family, or the chat
            template has no block of reasoning that `thinking` could choose.
    """
    processor = load_processor(checkpoint)
    set_thinking(processor, thinking)
    gpu = torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else None
    device = f"{gpu}:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu"
    model = load_model(checkpoint, base_model, attn_implementation, torch.bfloat16 if gpu else torch.float32,
                       bits=bits, device=device if bits else None)
    check_vocabulary(model, processor)
    return (model if bits else model.to(device)).eval(), processor
