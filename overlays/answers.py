"""Answers of an interrupted job: kept beside its output line by line, and taken up by the next run of the same job."""

import json
from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from overlays.files import named_errors, to_json, write_jsonl


class Answers(dict):
    """Key -> answer, both JSON values, in `<output>.partial` until `remove`.

        answers = Answers(output, job)           # what an interrupted run of the same job left
        with answers:
            for key in missing:
                answers.add([(key, ask(key))])   # on disk when it returns
        write_jsonl(output, [answers[key] for key in keys])
        answers.remove()

    Args:
        output: the file that appears when the job is complete; None keeps nothing on disk.
        job: all that decides the answers besides the keys; answers of another job are not taken.
    """

    def __init__(self, output: str | Path | None, job: str):
        self.file, self.job = output and Path(output).with_name(f"{Path(output).name}.partial"), job
        self._stream: TextIO | None = None
        super().__init__(_read(self.file, job) if self.file else {})

    def __enter__(self) -> "Answers":
        if self.file:
            write_jsonl(self.file, [{"job": self.job}, *self.items()])  # without damaged lines and other jobs
            self._stream = self.file.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_) -> None:
        if self._stream:
            with suppress(OSError):  # what could not be written has been told
                self._stream.close()

    def add(self, answers: Iterable[tuple[Hashable, object]]) -> None:
        """Keep more answers, inside the `with` block."""
        for key, answer in answers:
            self[key] = answer
            if self._stream:
                with named_errors(self.file):
                    self._stream.write(to_json([key, answer]) + "\n")
        if self._stream:
            with named_errors(self.file):
                self._stream.flush()

    def remove(self) -> None:
        """Delete the file: the output is complete."""
        if self.file:
            self.file.unlink(missing_ok=True)


def _read(file: Path, job: str) -> dict:
    """Answers of the lines [key, answer] after {"job": job}; {} of another job, without damaged lines."""
    rows = []
    try:
        lines = file.read_bytes().split(b"\n")[:-1]
    except OSError:
        lines = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    if not rows or rows[0] != {"job": job}:
        return {}
    return {row[0]: row[1] for row in rows[1:] if isinstance(row, list) and len(row) == 2
            and isinstance(row[0], str | int)}
