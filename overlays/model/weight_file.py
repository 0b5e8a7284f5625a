"""safetensors files read and written one tensor at a time, so that memory holds one tensor and not one file."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from overlays.files import atomic_path

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class Row:
    """One tensor of a file to write.

    Attributes:
        dtype: as safetensors names it.
        width: bytes of one element.
        size: bytes.
        blocks: makes the bytes, in one piece or several.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    width: float
    size: int
    blocks: Callable[[], Iterable]


def read_header(file: Path) -> tuple[dict[str, dict], int]:
    """({tensor: {"dtype", "shape", "data_offsets"}}, position of the first data byte) of a safetensors file."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entries = json.loads(stream.read(size))
    entries.pop("__metadata__", None)
    return entries, 8 + size


def size_of(entry: dict) -> int:
    """Bytes of a tensor, from its entry in a header."""
    start, end = entry["data_offsets"]
    return end - start


def read_tensor(file: Path, entry: dict, start: int) -> torch.Tensor:
    """A tensor of floats in memory of its own: the pages of a mapped file would stay resident.

    Args:
        entry, start: from `read_header`.

    Raises:
        OSError: the file ends early.
    """
    values = torch.empty(entry["shape"], dtype=TYPES[entry["dtype"]])
    if values.numel():
        with file.open("rb") as stream:
            stream.seek(start + entry["data_offsets"][0])
            if stream.readinto(bytes_of(values)) != size_of(entry):
                raise OSError(5, "file ends early", str(file))
    return values


def bytes_of(values: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    return memoryview(values.flatten().view(torch.uint8).numpy())


def write(target: Path, rows: Iterable[Row]) -> int:
    """Write a safetensors file, atomically; returns the bytes of its tensors."""
    rows = sorted(rows, key=lambda row: (-row.width, row.name))  # wide types first keeps every tensor aligned
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for row in rows:
        header[row.name] = {"dtype": row.dtype, "shape": list(row.shape), "data_offsets": [offset, offset + row.size]}
        offset += row.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(target) as temporary, temporary.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for row in rows:
            start = out.tell()
            for block in row.blocks():
                out.write(block)
            if out.tell() - start != row.size:
                raise RuntimeError(f"{row.name} has {out.tell() - start} bytes instead of {row.size}")
    return offset
