"""LoRA folders in PEFT's layout: modules trained in full lie in the adapter's own file, as PEFT's `modules_to_save`.

PEFT trains such a module as a copy beside the original. Here the model's own module is trained and only the folder has
PEFT's layout, so training holds one copy, and `PeftModel.from_pretrained` on the plain base model loads everything.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from overlays.errors import UserError
from overlays.files import atomic_path, read_json, write_json
from overlays.model import extensions
from overlays.model.parts import plain_name
from overlays.paths import ROOT

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"  # in the place of WEIGHTS in folders of older PEFT
BESIDE = "trained_parts.safetensors"  # what plain transformers has no module for; in older folders all that is full
PREFIX = "base_model.model."  # PEFT's, before a name in the plain model


def local_folder(name: str | Path, *roots: Path) -> str | None:
    """Absolute path of the folder `name`, relative to the working folder, the repository or `roots`; None for none."""
    for candidate in (Path(name), ROOT / name, *(root / name for root in roots)):
        if candidate.is_dir():
            return os.path.abspath(candidate)
    return None


def read_config(folder: str | Path) -> dict | None:
    """adapter_config.json of a folder; None where there is none. Raises UserError where it is damaged."""
    file = Path(folder) / CONFIG
    if not file.is_file():
        return None
    return read_json(file, {"base_model_name_or_path": (str, None), "modules_to_save?": [str]},
                     "copy the checkpoint again")


def adapter_base(folder: str | Path) -> str | None:
    """Hub name or absolute path of the base model that a LoRA folder names; None where `folder` is not one.

    A relative path is looked up in the working folder, the repository and the LoRA folder.
    """
    config = read_config(folder)
    if config is None:
        return None
    base = config["base_model_name_or_path"]
    if not base:
        raise UserError(f"{Path(folder) / CONFIG} names no base model: write its hub name or folder there")
    found, chain = local_folder(base, Path(folder)) or base, [os.path.abspath(folder)]
    while os.path.isdir(found) and (below := (read_config(found) or {}).get("base_model_name_or_path")):
        if found in chain:
            raise UserError(f"{Path(folder) / CONFIG} names {base} as its base model, and the base models lead back to "
                            f"{found}: write the hub name or folder of the base model there")
        chain.append(found)
        found = local_folder(below, Path(found)) or below
    return local_folder(base, Path(folder)) or base


def stores_full_modules(config: dict | None) -> bool:
    """Whether the adapter file holds modules trained in full, written by `complete` and not by PEFT."""
    modules = (config or {}).get("modules_to_save") or []
    return bool(modules) and all(name.startswith("model.") for name in modules)


@contextmanager
def open_weights(file: Path, floats: Collection[str] | None = None) -> Iterator[Any]:
    """safetensors' reader of a file of weights.

    Args:
        floats: names that must be of floats; None for all.

    Raises:
        UserError: the file is damaged, or a tensor is not of floats: a library would turn its integers into weights.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                kind = tensors.get_slice(name).get_dtype()
                if not kind.startswith(("F", "BF")) and (floats is None or name in floats):
                    raise UserError(f"{file} is damaged: by its header {name} is of type {kind}, and weights are "
                                    "floats; copy the folder again, or use another checkpoint")
            yield tensors
    except SafetensorError as error:
        raise UserError(f"{file} is damaged or cut short: {error}") from None


def full_names(folder: str | Path) -> Iterator[tuple[str, str, Path]]:
    """(name in the plain model, name in the file, file) of every weight in a folder that is not the adapter's.

    Raises:
        UserError: a file is damaged.
    """
    files = [Path(folder) / BESIDE]
    if stores_full_modules(read_config(folder)):
        files.append(Path(folder) / WEIGHTS)
    tied = (read_config(folder) or {}).get("ensure_weight_tying")
    for file in filter(Path.is_file, files):
        with open_weights(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                # A tied lm_head is the embeddings' tensor, in the file for PEFT.
                if ".lora_" not in name and not (tied and plain_name(name) == "lm_head.weight"):
                    yield plain_name(name), name, file


def full_parameters(folder: str | Path) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """(name in the plain model, value, file) of the weights of `full_names`, one at a time."""
    for name, stored, file in full_names(folder):
        with safe_open(file, framework="pt") as tensors:
            yield name, tensors.get_tensor(stored), file


def lora_names(folder: str | Path) -> set[str]:
    """Names of the adapter's own tensors in a LoRA folder, as PEFT's model has them but for the adapter's name.

    Raises:
        UserError: the file is missing or damaged.
    """
    file, older = Path(folder) / WEIGHTS, Path(folder) / PICKLED
    if older.is_file() and not file.is_file():
        try:
            return {bare_name(name) for name in torch.load(older, map_location="meta", weights_only=True)
                    if ".lora_" in name}
        except Exception as error:  # of pickle, zip or torch
            raise UserError(f"{older} is damaged or cut short: {' '.join(str(error).split())[:200]}") from None
    if not file.is_file():
        raise UserError(f"{folder} lacks {WEIGHTS}: copy the folder again, or use another checkpoint")
    with open_weights(file) as tensors:
        return {bare_name(name) for name in tensors.keys() if ".lora_" in name}  # noqa: SIM118 (not a mapping)


def bare_name(name: str) -> str:
    """A tensor's name in the file or the model, without the adapter's; PEFT stores DoRA's magnitudes under less."""
    name = name.replace(".default", "")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def check_tensors(folder: str | Path, model: nn.Module) -> None:
    """Compare the adapter in a folder with the one of a PeftModel, of which PEFT leaves a missing tensor random.

    Raises:
        UserError: the file is missing or damaged, lacks a tensor, or holds one that the model has no place for.
    """
    file, stored = Path(folder) / WEIGHTS, lora_names(folder)
    # Beside the adapter "default", TRL's model has a frozen copy, which is not stored.
    wanted = {bare_name(name) for name, _ in model.named_parameters()
              if ".lora_" in name and ".default" in name}
    for names, what in ((wanted - stored, "lacks"), (stored - wanted, "does not fit this base model and its own "
                                                     f"{CONFIG}, it also holds")):
        if names:
            raise UserError(f"{file} {what} {len(names)} tensors of the adapter, the first is {min(names)}: copy the "
                            "folder again, or use another checkpoint")


def whole_modules(model: nn.Module, names: Collection[str], path: str = "") -> list[str]:
    """Names of the largest modules all of whose parameters are in `names` (plain names of parameters)."""
    inside = {plain_name(f"{path}{name}") for name, _ in model.named_parameters()}
    if inside.isdisjoint(names):
        return []
    has_forward = not isinstance(model, (nn.ModuleList, nn.ModuleDict))
    if path and inside.issubset(names) and has_forward:
        return [path.removesuffix(".")]
    return [found for name, child in model.named_children() for found in whole_modules(child, names, f"{path}{name}.")]


def complete(folder: str | Path, model: nn.Module, full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Move what was trained in full into the adapter that PEFT wrote to `folder`; returns what has no place there.

    Args:
        model: the PeftModel.
        full: plain name -> value of the parameters that are trained beside the adapter.

    The base model's name becomes a hub name or an absolute path.
    """
    folder, base = Path(folder), model.get_base_model()
    config = read_config(folder)
    named = config["base_model_name_or_path"]
    config["base_model_name_or_path"] = named and (local_folder(named) or named)
    changed = extensions.settings(model)
    plain = {name for name in full if not extensions.owns(name) and not extensions.reshapes(name, changed)}
    modules = whole_modules(base, plain)
    if modules:
        stored = load_file(folder / WEIGHTS)
        for module in modules:
            for key, value in base.get_submodule(module).state_dict().items():
                name = f"{module}.{key}"
                stored[PREFIX + name] = full[name] if name in full else value.cpu()
        embeddings, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
        if head is embeddings and any(base.get_submodule(module).weight is head for module in modules
                                      if hasattr(base.get_submodule(module), "weight")):
            # PEFT ties the two again at load, and wants both in the file.
            config["ensure_weight_tying"] = True
            name = next(name for name, value in base.named_parameters() if value is embeddings)
            stored[PREFIX + "lm_head.weight"] = stored[PREFIX + name].clone()
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(stored, temporary, metadata={"format": "pt"})
        config["modules_to_save"] = modules
    write_json(folder / CONFIG, config)
    return {name: value for name, value in full.items() if not name.startswith(tuple(f"{m}." for m in modules))}
