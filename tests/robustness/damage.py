"""Ways to damage a file: each is a name and a seed, so that a case can be run again."""

import json
import math
import random
import re
import shutil
from pathlib import Path

TEXT = (".json", ".jsonl", ".yaml", ".jinja", ".hdr", ".csv", ".txt", ".xml")
HUGE = 10**30
NASTY = (None, True, 0, -1, HUGE, 1.5, math.nan, math.inf, -math.inf, 1e308, "", "x", "0", "²", "\ud83d", "a\0b",
         "../x", "/etc/passwd", "<image>", [], {}, [None], ["x"], [[[]]], {"x": 1}, [1, "x", None])
NUMBERS = (b"0", b"-1", b"9" * 5000, b"1e400", b"NaN", b"10000000000", b"\xef\xbc\x91", b"")


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def empty(content: bytes, rng: random.Random) -> bytes:
    return b""


def flip_bytes(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        if changed:
            changed[min(int(rng.expovariate(4 / len(changed))), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zero_block(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    size = min(rng.choice((4, 64, 4096)), len(content) - start)
    return content[:start] + bytes(size) + content[start + size:]


def insert_bytes(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    new = rng.choice((b"\xff\xfe", b"\0" * 8, b"\xed\xa0\xbd", b"[" * 3000, b"{", "é½²".encode()))
    return content[:at] + new + content[at:]


def duplicate(content: bytes, rng: random.Random) -> bytes:
    return content + content


def swap_numbers(content: bytes, rng: random.Random) -> bytes:
    """One number of a text in other words: of thousands of digits, beyond a float's range, of another script."""
    found = list(re.finditer(rb"\d+(\.\d+)?", content))
    if not found:
        return content + b"1"
    match = rng.choice(found[:200])
    return content[:match.start()] + rng.choice(NUMBERS) + content[match.end():]


def _json(change):
    def damaged(content: bytes, rng: random.Random) -> bytes:
        lines = content.decode("utf-8").split("\n")
        try:
            values, joined = [json.loads(content)], None
        except ValueError:
            values, joined = [json.loads(line) for line in lines if line.strip()], "\n"
        which = rng.randrange(len(values))
        values[which] = change(values[which], rng)
        texts = [value if isinstance(value, _Text) else json.dumps(value) for value in values]
        return (texts[0] if joined is None else "\n".join(texts) + "\n").encode("utf-8")
    return damaged


class _Text(str):
    """JSON as text, for what json.dumps does not write."""


def _places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _set(value, path, new, delete=False):
    if not path:
        return new
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if delete:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def _pick(value, rng):
    return rng.choice(list(_places(value))[:300])


def swap_type(value, rng):
    return _set(value, _pick(value, rng), rng.choice(NASTY))


def remove_key(value, rng):
    path = _pick(value, rng)
    return _set(value, path, None, delete=True) if path else {}


def nest(value, rng):
    depth = rng.choice((40, 500, 3000, 100_000))
    marker = "@deep@"
    text = json.dumps(_set(value, _pick(value, rng), marker))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    return _Text(text.replace(f'"{marker}"', opened * depth + "1" + closed * depth))


def long_number(value, rng):
    text = json.dumps(_set(value, _pick(value, rng), "@number@"))
    return _Text(text.replace('"@number@"', rng.choice(("9" * 5000, "-" + "9" * 400, "1e400", "NaN", "-Infinity"))))


def repeat_key(value, rng):
    text = json.dumps(value)
    return _Text(text[:-1] + ", " + text[1:]) if text.startswith("{") and len(text) > 2 else _Text(text + text)


BYTES = (truncate, empty, flip_bytes, zero_block, insert_bytes, duplicate)
JSON = tuple(_json(change) for change in (swap_type, swap_type, remove_key, nest, long_number, repeat_key))
NAMES = ("truncate", "empty", "flip_bytes", "zero_block", "insert_bytes", "duplicate", "json_type", "json_type_too",
         "json_key", "json_depth", "json_number", "json_twice", "number", "folder", "missing", "loop")


def apply(file: Path, name: str, seed: int) -> None:
    """Damage a file in place. A damage of JSON on what is not JSON is one of bytes."""
    rng = random.Random(f"{name}:{seed}")
    content = file.read_bytes() if file.is_file() else b""
    is_folder = file.is_dir()
    if is_folder:
        shutil.rmtree(file)
    else:
        file.unlink()  # it may be a hard link to the sound one
    if name == "folder" and not is_folder:
        file.mkdir()
    elif name == "missing":
        pass
    elif name == "loop":
        file.symlink_to(file.name)
    elif is_folder:
        file.write_bytes(b"no folder")
    else:
        changes = dict(zip(NAMES, (*BYTES, *JSON), strict=False)) | {"number": swap_numbers}
        change = changes.get(name, truncate)
        if name.startswith("json") and file.suffix not in (".json", ".jsonl"):
            change = swap_numbers if file.suffix in TEXT else BYTES[seed % len(BYTES)]
        file.write_bytes(change(content, rng))
