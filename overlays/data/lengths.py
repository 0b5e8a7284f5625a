"""Lengths of samples, kept beside the annotation table: a second start, or a second process, measures nothing again.

A kept length holds as long as the annotation file, how records become tokens, and size and time of the sample's media
are as they were.
"""

import hashlib
import logging
import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from overlays.files import atomic_path
from overlays.paths import cache_folder

log = logging.getLogger(__name__)
VERSION = 1  # of what is kept and of how lengths are counted
UNKNOWN = -1


class Measured(NamedTuple):
    """A sample's tokens, how many of them are of images and videos, and what is wrong with it ("" for nothing)."""

    tokens: int
    visual: int
    problem: str = ""


def digest(*facts: object) -> str:
    """Key of what lengths depend on."""
    words = "\0".join(map(str, (VERSION, metadata.version("transformers"), *facts)))
    return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def of_processor(processor) -> str:
    """Digest of how a processor makes tokens."""
    tokenizer = getattr(processor.tokenizer, "backend_tokenizer", None)
    words = tokenizer.to_str() if tokenizer is not None else sorted(processor.tokenizer.get_vocab().items())
    tools = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    return digest(type(processor).__name__, words, *(tool and tool.to_dict() for tool in tools),
                  getattr(processor, "chat_template", None))


def stat_of(path: str | Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns) of a file; (-1, -1) where there is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return UNKNOWN, UNKNOWN
    return stat.st_size, stat.st_mtime_ns


class Lengths:
    """Kept lengths of one annotation table of `rows` records.

    Attributes:
        tokens, visual: (rows,) int32; UNKNOWN where nothing is known that still holds.
    """

    def __init__(self, key: str, rows: int):
        self.file = cache_folder() / f"lengths-{key}.npz"
        self.tokens, self.visual = (np.full(rows, UNKNOWN, dtype=np.int32) for _ in range(2))
        self._files: dict[str, int] = {}  # path -> its number
        self._stats: list[tuple[int, int]] = []
        self._media: dict[int, list[int]] = {}  # row -> numbers of its files
        # What was kept: paths, (bytes, time) of each, and pairs of a row and the number of one of its files.
        self._kept = [], np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._read(rows)

    def _read(self, rows: int) -> None:
        try:
            with np.load(self.file, allow_pickle=False) as kept:
                values = {name: kept[name] for name in kept.files}
            text = values["names"].tobytes().decode("utf-8", "surrogateescape")
            names = text.split("\0") if text else []
            stats, owner, number = values["stats"], values["owner"], values["number"]
            if not len(values["tokens"]) == len(values["visual"]) == rows or len(names) != len(stats):
                raise ValueError("other sizes")
            changed = np.array([stat_of(name) != tuple(stat) for name, stat in zip(names, stats.tolist(), strict=True)],
                               dtype=bool)
            stale = np.unique(owner[changed[number]]) if len(number) else []
        except Exception as error:  # whatever is wrong with the file, lengths can be measured
            if self.file.exists():
                log.debug("%s is measured anew: %s", self.file, error)
            return
        self.tokens, self.visual = values["tokens"].copy(), values["visual"].copy()
        self.tokens[stale] = UNKNOWN
        self._kept = names, stats, owner, number

    def add(self, row: int, found: Measured, files: Iterable[tuple[str, tuple[int, int]]]) -> None:
        """Take up a row without problems, with each of its files and what `stat_of` said of it."""
        self.tokens[row], self.visual[row] = found.tokens, found.visual
        self._media[row] = [self._number(*file) for file in files]

    def _number(self, path: str, stat: tuple[int, int]) -> int:
        number = self._files.setdefault(path, len(self._stats))
        if number == len(self._stats):
            self._stats.append(stat)
        return number

    def save(self) -> None:
        """Write what `add` was told, if anything, beside what was known."""
        if not self._media:
            return
        names, stats, owner, number = self._kept
        stays = (self.tokens[owner] != UNKNOWN) & ~np.isin(owner, np.fromiter(self._media, np.int64))
        rows = np.repeat(np.fromiter(self._media, np.int64), [len(files) for files in self._media.values()])
        files = np.array([len(names) + file for files in self._media.values() for file in files], dtype=np.int64)
        owner, number = np.concatenate([owner[stays], rows]), np.concatenate([number[stays], files])
        names, stats = [*names, *self._files], np.concatenate([stats, np.array(self._stats, np.int64).reshape(-1, 2)])
        used, number = np.unique(number, return_inverse=True)
        text = "\0".join(names[file] for file in used).encode("utf-8", "surrogateescape")
        try:
            with atomic_path(self.file) as temporary, temporary.open("wb") as out:
                np.savez(out, tokens=self.tokens, visual=self.visual, names=np.frombuffer(text, np.uint8),
                         stats=stats[used], owner=owner, number=number)
        except OSError as error:  # only the next start takes longer
            log.warning("lengths cannot be kept in %s: %s", self.file, error)
