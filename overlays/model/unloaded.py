"""Tensors of a base model that transformers does not load, such as Qwen3.5's multi-token prediction (`mtp.*`).

A merged or fully trained model keeps them as they are in the base, for programs that use them (vLLM's speculation).
"""

import logging
import math
import os
import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from torch import nn

from overlays.files import read_json, write_json
from overlays.model.weight_file import Row, read_header, size_of, write

log = logging.getLogger(__name__)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
INDEX_FORM = {"weight_map": {str: str}, "metadata?": dict}
BLOCK = 1 << 24  # bytes copied at a time


def find(model: nn.Module, name: str, unexpected: Collection[str], cache_dir: str | None = None) -> None:
    """Note on `model` which tensors in the files of the base model `name` it did not load.

    Args:
        unexpected: names that `from_pretrained` reported; those that the class ignores are found here.
    """
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    model._unloaded = {}
    if not ignored and not unexpected:
        return
    loaded = model.state_dict().keys()
    for tensor, file in tensor_files(name, cache_dir).items():
        if tensor in unexpected or tensor not in loaded and any(pattern.search(tensor) for pattern in ignored):
            model._unloaded[tensor] = file


def carry_over(model: nn.Module, folder: str | Path) -> None:
    """Add the tensors that `find` noted to the model saved in `folder`, as one more shard; says so in one line."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    tensors, folder = getattr(base, "_unloaded", {}), Path(folder)
    if not tensors:
        return
    gone = {file for file in tensors.values() if not file.is_file()}
    if gone:
        log.warning("not carried over: %d tensors of the base model that transformers does not load, because %s is no "
                    "longer there", len(tensors), min(gone))
        return
    if (folder / SINGLE).is_file():
        entries, _ = read_header(folder / SINGLE)
        index = {"metadata": {"total_size": sum(size_of(entry) for entry in entries.values())},
                 "weight_map": dict.fromkeys(entries, SINGLE)}
    else:
        index = read_json(folder / INDEX, INDEX_FORM)
    shards = sorted(set(index["weight_map"].values()))
    names = {shard: f"model-{number:05}-of-{len(shards) + 1:05}.safetensors"
             for number, shard in enumerate([*shards, None], start=1)}
    added = _copy(tensors, folder / names[None])
    for shard in shards:
        os.replace(folder / shard, folder / names[shard])
    index["metadata"]["total_size"] += added
    index["weight_map"] = {tensor: names[shard] for tensor, shard in index["weight_map"].items()}
    index["weight_map"] |= dict.fromkeys(tensors, names[None])
    write_json(folder / INDEX, index)
    log.info("carried over %d tensors of the base model that transformers does not load, the first is %s", len(tensors),
             min(tensors))


def tensor_files(name: str, cache_dir: str | None = None) -> dict[str, Path]:
    """Tensor name -> safetensors file of a local or cached model; empty where it has other kinds of files."""
    from transformers.utils import cached_file

    def local(file: str) -> Path | None:
        path = cached_file(name, file, cache_dir=cache_dir, local_files_only=True,
                           _raise_exceptions_for_missing_entries=False)
        return None if path is None else Path(path)

    single = local(SINGLE)
    if single is not None:
        return dict.fromkeys(read_header(single)[0], single)
    index = local(INDEX)
    if index is None:
        return {}
    weight_map = read_json(index, INDEX_FORM, "copy the model again")["weight_map"]
    return {tensor: index.with_name(shard) for tensor, shard in weight_map.items()}


def _copy(tensors: dict[str, Path], target: Path) -> int:
    """Write tensors of other safetensors files to `target`, block by block; returns their bytes."""
    rows = []
    for file in sorted(set(tensors.values())):
        entries, start = read_header(file)
        for name, entry in entries.items():
            if tensors.get(name) == file:
                size = size_of(entry)
                rows.append(Row(name, entry["dtype"], entry["shape"], size / max(1, math.prod(entry["shape"])), size,
                                partial(blocks, file, start + entry["data_offsets"][0], size)))
    return write(target, rows)


def blocks(file: Path, position: int, left: int) -> Iterator[bytes]:
    """`left` bytes of a file from `position` on. Raises OSError where it ends before."""
    with file.open("rb") as stream:
        stream.seek(position)
        while left:
            block = stream.read(min(BLOCK, left))
            if not block:
                raise OSError(5, "file ends early", str(file))
            yield block
            left -= len(block)
