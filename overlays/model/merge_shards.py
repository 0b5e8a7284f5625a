"""An adapter merged into the files of its base model, one tensor at a time.

The model itself stays on the meta device: it tells names, shapes and what PEFT would merge. PEFT's own layers compute
each sum, so that rank and alpha patterns, rsLoRA and DoRA count as in PEFT.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from torch import nn
from transformers.core_model_loading import revert_weight_conversion

from overlays.files import write_json
from overlays.model import adapters, extensions, load, unloaded
from overlays.model.weight_file import NAMES, TYPES, Row, bytes_of, read_header, read_tensor, size_of, write


class Unsupported(Exception):
    """Why a model cannot be merged tensor by tensor."""


@dataclass
class Adapter:
    """A LoRA folder.

    Attributes:
        layers: PEFT's layers on the meta device, by the plain name of the weight that they change.
        full: file and stored name of each tensor that was trained in full, by its plain name.
    """

    folder: Path
    layers: dict[str, Linear]
    full: dict[str, tuple[Path, str]]

    def value(self, name: str, value: torch.Tensor | None) -> torch.Tensor:
        """The fp32 weight `name` with this adapter, from the one without."""
        if name in self.full:
            file, stored = self.full[name]
            value = _read(file, stored).float()
            load.check_tensor(name, value, self.folder)
        return self._merged(name, value) if name in self.layers else value

    def _merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        layer, path = self.layers[name], name.removesuffix("weight")
        values = {"base_layer.weight": weight.float()}
        for key, _ in layer.named_parameters():
            if "lora_" in key:
                stored = adapters.bare_name(f"{adapters.PREFIX}{path}{key}")
                values[key] = _read(self.folder / adapters.WEIGHTS, stored).float()
                load.check_tensor(key, values[key], self.folder)
        layer.load_state_dict(values, strict=False, assign=True)
        with torch.no_grad():
            layer.merge()
        merged = layer.get_base_layer().weight.detach()
        layer.to("meta")
        return merged


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name).clone()


def _chain(checkpoint: str, base_model: str | None) -> tuple[str, list[tuple[str, str]]]:
    """(the base model, [(LoRA folder, its base)] from the innermost on)."""
    found, folder = [], checkpoint
    while (base := adapters.adapter_base(folder)) is not None:
        base = load.locate(base_model if base_model and not found else base)
        found.append((folder, base))
        folder = base
    return folder, found[::-1]


def _adapter(folder: str, model: nn.Module) -> Adapter:
    """What a LoRA folder changes. Raises Unsupported where that is more than PEFT's linear layers and full tensors."""
    if not (Path(folder) / adapters.WEIGHTS).is_file():
        raise Unsupported(f"{folder} holds its adapter as a pickle")
    layers = {}
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise Unsupported(f"PEFT trained {path} as a copy")
        if isinstance(module, BaseTunerLayer):
            if type(module) is not Linear or any(module.lora_bias.values()):
                raise Unsupported(f"the adapter changes more than the weight of the linear layer {path}")
            layers[f"{path}.weight"] = module
    full = {name: (file, stored) for name, stored, file in adapters.full_names(folder)}
    return Adapter(Path(folder), layers, full)


def _changed_names(model: nn.Module, changed: set[str], there: Mapping[str, Path]) -> dict[str, str]:
    """{name in the base's files: name in the model} of the tensors that an adapter changes."""
    state, found = model.state_dict(), {}
    for name in changed:
        names = list(revert_weight_conversion(model, {name: state[name]}))
        stored = names[0] if len(names) == 1 and names[0] in there else name
        if stored not in there:
            raise Unsupported(f"the base's files hold {name} in another form")
        found[stored] = name
    return found


def write_merged(checkpoint: str, base_model: str | None, dtype: torch.dtype, folder: Path) -> nn.Module:
    """Write configuration and weights of the merged model to the empty `folder`, in `dtype`.

    Returns:
        The model on the meta device.

    Raises:
        Unsupported: the adapter or the base's files have something that needs the model in memory.
        UserError: as `load.load_model`.
    """
    base, chain = _chain(load.locate(checkpoint), base_model)
    files = unloaded.tensor_files(base)
    if not files or getattr(load.load_config(base), "quantization_config", None) is not None:
        raise Unsupported("the base's weights are not plain safetensors")
    found, model = [], None
    for path, below in chain:
        peft_model = load.load_model(path, below, "sdpa", dtype, device="meta")
        found.append(_adapter(path, peft_model))
        model = peft_model.unload()
    state = model.state_dict()
    changed = {name for adapter in found for name in (*adapter.layers, *adapter.full)}
    added = {name for name in state if extensions.owns(name)}
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = {"lm_head.weight"} if head is not None and head.weight is embeddings.weight else set()
    names = _changed_names(model, changed - added - tied, files)

    model.save_pretrained(folder, state_dict={})
    extensions.write(model, folder)
    _write_shards(model, folder, files, names, tied, partial(_rows, base=base, found=found, dtype=dtype))
    if added:
        _write_added(folder, base, found, {name: state[name] for name in added}, dtype)
    unloaded.carry_over(model, folder)
    return model


def _write_shards(model, folder, files, names, tied, rows) -> None:
    """The base's shards with the changed tensors in their places, and the index of several."""
    state, shards = model.state_dict(), defaultdict(dict)
    for stored, file in files.items():
        if stored not in model._unloaded and stored not in tied:
            name = names.get(stored)
            shards[file][stored] = (name, state[name].shape if name else None)
    index, total = {}, 0
    for number, file in enumerate(sorted(shards), start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else unloaded.SINGLE
        total += write(folder / name, rows(file, shards[file]))
        index |= dict.fromkeys(shards[file], name)
    if len(shards) > 1:
        metadata = {"total_parameters": model.num_parameters(), "total_size": total}
        write_json(folder / unloaded.INDEX, {"metadata": metadata, "weight_map": index})


def _rows(file: Path, wanted: Mapping[str, tuple], base: str, found: list[Adapter], dtype: torch.dtype
          ) -> Iterator[Row]:
    """The tensors of one shard; integers keep their type."""
    entries, start = read_header(file)
    for stored, (name, shape) in wanted.items():
        entry = entries[stored]
        if entry["dtype"] not in TYPES:
            width = size_of(entry) / max(1, torch.Size(entry["shape"]).numel())
            yield Row(stored, entry["dtype"], entry["shape"], width, size_of(entry),
                      partial(unloaded.blocks, file, start + entry["data_offsets"][0], size_of(entry)))
            continue
        shape = tuple(entry["shape"] if shape is None else shape)
        yield Row(stored, NAMES[dtype], shape, dtype.itemsize, torch.Size(shape).numel() * dtype.itemsize,
                  partial(_bytes, file, entry, start, stored, name, base, found, dtype))


def _bytes(file, entry, start, stored, name, base, found, dtype) -> Iterator[memoryview]:
    value = read_tensor(file, entry, start)
    load.check_tensor(stored, value, base)
    for adapter in found if name else ():
        value = adapter.value(name, value)
    yield bytes_of(value.to(dtype).contiguous())


def _write_added(folder: Path, base: str, found: list[Adapter], state: dict[str, torch.Tensor], dtype) -> None:
    """The tensors of extensions, which plain transformers has no module for; the last folder that has one counts."""
    places = {name: (file, stored) for level in (base, *(adapter.folder for adapter in found))
              for name, stored, file in adapters.full_names(level)}

    def blocks(name: str) -> Iterator[memoryview]:
        value = _read(*places[name])
        yield bytes_of((value.to(dtype) if value.is_floating_point() else value).contiguous())

    rows = []
    for name, value in state.items():
        if not value.is_floating_point():
            raise Unsupported(f"{name} is of {value.dtype}")
        rows.append(Row(name, NAMES[dtype], tuple(value.shape), dtype.itemsize, value.numel() * dtype.itemsize,
                        partial(blocks, name)))
    write(folder / load.TRAINED_PARTS, rows)
