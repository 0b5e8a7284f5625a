"""Checkpoint to model and processor: a full one, a LoRA one (its base is found), a merged one."""

import json
import os
import socket
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from overlays.data import chat
from overlays.errors import UserError
from overlays.model import additions, forward, heads
from overlays.model.parts import family_of, plain_name

ROOT = Path(__file__).resolve().parents[2]
TRAINED_PARTS = "trained_parts.safetensors"  # what was trained in full beside an adapter, and additions to a model
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


def adapter_base(checkpoint: str | Path) -> str | None:
    """The base model that a LoRA folder names; None where `checkpoint` is no LoRA folder."""
    file = Path(checkpoint) / "adapter_config.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def locate(name: str | Path) -> str:
    """A model's name as `from_pretrained` wants it: relative folders are also looked for below the repository.

    Raises:
        UserError: the name looks like a folder and there is none.
    """
    name = str(name)
    for candidate in (Path(name), ROOT / name):
        if candidate.is_dir():
            if not any((candidate / file).is_file() for file in ("config.json", "adapter_config.json")):
                raise UserError(f"{candidate} holds no model: there is neither config.json nor adapter_config.json")
            return str(candidate)
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
        reason = str(error).strip().split("\n")[0]
        if Path(name).is_dir():
            raise UserError(f"model {name} cannot be loaded: {reason}") from error
        if isinstance(error, OSError) or "offline" in reason.lower() or "connect" in reason.lower():
            raise UserError(f"model {name} is not on this machine and cannot be downloaded; {OFFLINE_HINT}") from error
        raise


def load_config(name: str | Path, cache_dir: str | None = None):
    """Config of a supported family. Raises UserError where it cannot be had or the family is not supported."""
    from transformers import AutoConfig

    name = locate(name)
    config = _from_hub(name, lambda **options: AutoConfig.from_pretrained(name, cache_dir=cache_dir, **options))
    family_of(config)
    return config


def load_processor(name: str | Path, cache_dir: str | None = None):
    """The processor that lies with a model or checkpoint; a LoRA folder without one takes its base model's."""
    from transformers import AutoProcessor

    name = locate(name)
    if Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file():
        base = adapter_base(name)
        if base is None:
            raise UserError(f"{name} holds no processor: copy the base model's tokenizer and processor files there")
        return load_processor(base, cache_dir)
    processor = _from_hub(name, lambda **options: AutoProcessor.from_pretrained(name, cache_dir=cache_dir, **options))
    if getattr(processor, "image_processor", None) is None:
        raise UserError(f"{name} holds a tokenizer but no image processor: preprocessor_config.json is missing")
    return processor


def load_base(name: str | Path, dtype: torch.dtype, attn: str = "auto", cache_dir: str | None = None):
    """A generation model with its weights in `dtype`, the overlay's forward and the additions stored with it."""
    config = load_config(name, cache_dir)
    name = locate(name)
    model = _from_hub(
        name,
        lambda **options: model_class_of(config).from_pretrained(
            name, dtype=dtype, attn_implementation=attention_implementation(attn, dtype, config), cache_dir=cache_dir,
            **options
        ),
    )
    forward.install(model)
    additions.attach(model, additions.read(name))
    load_trained_parts(model, name)
    return model


def load_trained_parts(model: torch.nn.Module, checkpoint: str | Path) -> None:
    """Put back what lies beside an adapter (merger, vision, embeddings) or a model (additions), if there is any.

    Raises:
        UserError: the file is damaged or lacks what an addition learned, or a stored tensor has no place in this model
            or another shape there.
    """
    file = Path(checkpoint) / TRAINED_PARTS
    own = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    try:
        stored = load_file(file) if file.is_file() else {}
    except SafetensorError as error:
        raise UserError(f"{file} is damaged or cut short: {error}") from None
    there = additions.read(checkpoint)
    lost = [name for name in own if additions.owns(name, there) and name not in stored]
    if lost:
        raise UserError(f"{file} does not hold {lost[0]}, which {additions.FILE} beside it speaks of")
    for name, value in stored.items():
        if name not in own or own[name].shape != value.shape:
            raise UserError(f"{file} holds {name} {tuple(value.shape)}, which this base model has no place for")
        with torch.no_grad():
            own[name].copy_(value)


def load_model(checkpoint: str | Path, base_model: str | None = None, attn: str = "auto",
               dtype: torch.dtype = torch.float32, cache_dir: str | None = None):
    """A model from any of the three kinds of checkpoint; a LoRA one comes as PeftModel on its base.

    Args:
        base_model: overrides the base that the adapter names.
    """
    base = adapter_base(locate(checkpoint))
    if base is None:
        return load_base(checkpoint, dtype, attn, cache_dir)
    from peft import PeftModel

    checkpoint = locate(checkpoint)
    base = base_model or base
    if adapter_base(locate(base)) is None:
        model = load_base(base, dtype, attn, cache_dir)
    else:  # an adapter on an adapted model, e.g. a user's on the one of all users
        model = load_model(base, None, attn, dtype, cache_dir).merge_and_unload()
    if (Path(checkpoint) / additions.FILE).is_file():  # trained without the head that its base has
        heads.detach(model, additions.read(checkpoint).get("regression"))
    additions.attach(model, additions.read(checkpoint))
    load_trained_parts(model, checkpoint)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft asks by the old name
        return _from_hub(checkpoint, lambda **_: PeftModel.from_pretrained(model, checkpoint))


def load_for_inference(checkpoint: str | Path, base_model: str | None = None, attn_implementation: str = "auto",
                       thinking: str = "auto"):
    """Model in eval mode, on the GPU in bf16 where there is one, else fp32 on the CPU; and its processor.

    Args:
        thinking: "on" or "off" asks with or without room for reasoning, "auto" in the checkpoint's own form.

    Raises:
        UserError: checkpoint, base model or processor is missing, damaged or of an unsupported family, or the chat
            template has no block of reasoning that `thinking` could choose.
    """
    processor = load_processor(checkpoint)
    chat.set_thinking(processor, thinking)
    cuda = torch.cuda.is_available()
    model = load_model(checkpoint, base_model, attn_implementation, torch.bfloat16 if cuda else torch.float32)
    model = model.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu").eval()
    return model, processor
