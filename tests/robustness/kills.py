"""Kills an entry point before the N-th change of a file, starts it again, and compares with an uninterrupted run.

    python -m tests.robustness.kills --place FOLDER --kills 100 --seed 0 [--only sft]

Entry points run in forked children of this process, which has torch and transformers imported, each in a process group
of its own. An audit hook counts what changes a file below the working folder: open for writing, rename, remove, mkdir,
rmdir, link, truncate. Native libraries write without it; the renames around them are counted.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What differs between two runs: times, and the commit of the code.
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos", "step_time",
         "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "seconds", "created", "commit", "engine"}
IGNORED = {"training_args.bin"}


@dataclass
class Case:
    """One entry point.

    Args:
        run: the command, in a folder of its own.
        start: makes what is there before the command, in that folder.
        inputs: makes what the command reads, once for all runs.
        repeated: what a second start says, with status 2, where the first has done everything.
        share: of the kills.
    """

    name: str
    run: Callable[[Path], None]
    start: Callable[[Path], None] = field(default=lambda folder: None)
    inputs: Callable[[], object] = field(default=lambda: None)
    repeated: str | None = None
    share: int = 1


# ---------------------------------------------------------------- one run in a child


def _changed_paths(event: str, args: tuple) -> list:
    """Paths that an audit event changes, with the descriptor of the folder that each is relative to."""
    if event == "open":
        path, mode, flags = args
        writes = isinstance(flags, int) and flags & WRITES or isinstance(mode, str) and set(mode) & set("wax+")
        return [(path, -1)] if writes else []
    if event in ("os.remove", "os.rmdir"):
        return [(args[0], args[1])]
    if event == "os.mkdir":
        return [(args[0], args[2])]
    if event in ("os.rename", "os.link"):
        return [(args[0], args[2]), (args[1], args[3])]
    return [(args[0], -1)] if event == "os.truncate" else []


def _is_below(path, descriptor, folder: str) -> bool:
    if isinstance(path, int) or path is None:
        return False
    path = os.fsdecode(path)
    if not os.path.isabs(path) and isinstance(descriptor, int) and descriptor >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
    path = os.path.abspath(path)
    return path == folder or path.startswith(folder + os.sep)


def run_in_child(case: Case, folder: Path, kill_at: int | None, log: Path) -> tuple[int, int]:
    """(exit status, -9 for a kill; changes of files, 0 after a kill) of the case in a process group of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            os.close(read)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            count, own = 0, str(folder)

            def hook(event, args):
                nonlocal count
                if (event == "open" or event.startswith("os.")) and any(
                        _is_below(*place, own) for place in _changed_paths(event, args)):
                    count += 1
                    if count == kill_at:
                        os.killpg(0, signal.SIGKILL)

            sys.addaudithook(hook)
            os.chdir(folder)
            try:
                case.run(folder)
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            os.write(write, struct.pack("q", count))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), struct.unpack("q", content)[0] if len(content) == 8 else 0


# ---------------------------------------------------------------- comparison


def _plain(value):
    """A JSON value without times, and without the log's rows that hold nothing else."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key not in TIMES}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _content(file: Path):
    """What is compared of a file."""
    if file.suffix == ".json":
        value = _plain(json.loads(file.read_text()))
        if file.name == "manifest.json":
            return sorted(value["files"])
        if file.name == "trainer_state.json":  # a resumed log has one row of totals for each start
            value["log_history"] = [row for row in value["log_history"] if "loss" in row or "eval_loss" in row]
            value["stateful_callbacks"] = None
        return value
    if file.suffix in (".pt", ".pth"):
        import torch

        return _numbers(torch.load(file, weights_only=False, map_location="cpu"))
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return {name: _numbers(arrays[name]) for name in arrays}
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _numbers(value):
    if isinstance(value, dict):
        return {str(key): _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(inner) for inner in value]
    if hasattr(value, "numpy"):
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    return hashlib.sha256(value.tobytes()).hexdigest() if isinstance(value, np.ndarray) else repr(value)


def snapshot(folder: Path) -> dict[str, object]:
    """Every file below a folder and what is compared of it; folders by their name with a slash."""
    return {f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}":
            None if path.is_dir() or path.name in IGNORED else _content(path) for path in sorted(folder.rglob("*"))}


def _where(new, old) -> str:
    """Path to the first difference of two values, and both there."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        key = next(key for key in old if old[key] != new[key])
        return f", {key}{_where(new[key], old[key])}"
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        index = next(index for index, value in enumerate(old) if value != new[index])
        return f", {index}{_where(new[index], old[index])}"
    return f": {str(new)[:200]} instead of {str(old)[:200]}"


def difference(found: dict, expected: dict) -> str:
    """The first difference of two snapshots; "" where there is none."""
    for name in sorted({*found, *expected}):
        if name not in expected:
            return f"{name} is left over"
        if name not in found:
            return f"{name} is missing"
        if found[name] != expected[name]:
            return f"{name} differs{_where(found[name], expected[name])}"
    return ""


# ---------------------------------------------------------------- kills


@dataclass
class Outcome:
    case: str
    at: list[int]
    of: int
    problem: str


class Harness:
    """Kills of one case: an uninterrupted run is the reference; every run has the same path."""

    def __init__(self, case: Case, place: Path):
        self.case, self.folder, self.log = case, place / case.name, place / f"{case.name}.log"
        self.initial = place / f"{case.name}-start"
        self.initial.mkdir(parents=True)
        case.inputs()
        status, _ = run_in_child(Case(case.name, case.start), self.initial, None, self.log)
        assert status == 0, f"{case.name}, start:\n{self.log.read_text()[-3000:]}"
        self._reset()
        status, self.changes = run_in_child(case, self.folder, None, self.log)
        assert status == 0 and self.changes, f"{case.name}:\n{self.log.read_text()[-3000:]}"
        self.expected = snapshot(self.folder)

    def _reset(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.initial, self.folder)

    def kill(self, *at: int) -> Outcome:
        """Kill before these changes, one start each; then a start that ends by itself."""
        self._reset()
        for number in at:
            run_in_child(self.case, self.folder, number, self.log)
        status, _ = run_in_child(self.case, self.folder, None, self.log)
        said = self.log.read_text()
        if status and not (status == 2 and self.case.repeated and self.case.repeated in said):
            problem = f"status {status}: {said[-800:]}"
        else:
            problem = difference(snapshot(self.folder), self.expected)
        return Outcome(self.case.name, list(at), self.changes, problem)


def campaign(cases: list[Case], place: Path, kills: int, seed: int, tell=print) -> list[Outcome]:
    """`kills` seeded kills over the cases, by their shares; every fifth is killed a second time."""
    generator, found = random.Random(seed), []
    total = sum(case.share for case in cases)
    for case in cases:
        begun = time.time()
        harness = Harness(case, place)
        number = max(1, round(kills * case.share / total))
        points = generator.sample(range(1, harness.changes + 1), min(number, harness.changes))
        rows = []
        for index, point in enumerate(points):
            again = [generator.randint(1, harness.changes)] if index % 5 == 4 else []
            rows.append(harness.kill(point, *again))
            if rows[-1].problem:
                tell(f"{case.name} killed before change {rows[-1].at} of {harness.changes}: {rows[-1].problem}")
        tell(f"{case.name:<20} {harness.changes:>5} changes {sum(len(row.at) for row in rows):>4} kills "
             f"{sum(bool(row.problem) for row in rows):>3} wrong {time.time() - begun:>6.0f} s")
        shutil.rmtree(harness.folder)
        found += rows
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--place", type=Path, required=True, help="empty working folder")
    parser.add_argument("--at", type=int, nargs="+", help="one kill before these changes")
    flags = parser.parse_args()
    import torch

    from tests.robustness.cases import all_cases

    torch.set_num_threads(1)
    flags.place.mkdir(parents=True, exist_ok=True)
    cases = [case for case in all_cases(flags.place) if not flags.only or case.name in flags.only]
    if flags.at:
        print(Harness(cases[0], flags.place).kill(*flags.at))
        return
    rows = campaign(cases, flags.place, flags.kills, flags.seed, lambda text: print(text, flush=True))
    print(f"{sum(len(row.at) for row in rows)} kills, {sum(bool(row.problem) for row in rows)} wrong states")


if __name__ == "__main__":
    main()
