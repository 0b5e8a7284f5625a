"""Runs a function in a forked process with limits on memory and time, so that neither a hang nor a leak stays."""

import os
import pickle
import resource
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MEMORY_BYTES = 2 << 30  # beyond what the process has when it forks
CPU_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What a function ended in: its value, or how it failed ("traceback", "hang", "memory") and the detail."""

    value: object = None
    failure: str = ""
    detail: str = ""


def _used_bytes(field: int) -> int:
    return int(Path("/proc/self/statm").read_text().split()[field]) * os.sysconf("SC_PAGE_SIZE")


def call(function: Callable[[], object]) -> Outcome:
    """The outcome of a function, which changes nothing in this process."""
    before = _used_bytes(1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.setpgid(0, 0)
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_used_bytes(0) + MEMORY_BYTES + (1 << 30),) * 2)  # hard stop
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
            signal.signal(signal.SIGXCPU, signal.SIG_DFL)
            outcome = Outcome(function())
        except MemoryError:
            outcome = Outcome(failure="memory", detail=traceback.format_exc())
        except BaseException:
            outcome = Outcome(failure="traceback", detail=traceback.format_exc())
        with open(write, "wb") as stream:
            pickle.dump(outcome, stream)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as stream:
        content = stream.read()
    _, status, usage = os.wait4(child, 0)
    try:
        os.killpg(child, signal.SIGKILL)  # what it may have started
    except ProcessLookupError:
        pass
    if os.WIFSIGNALED(status) or not content:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Outcome(failure="hang" if number == signal.SIGXCPU else "crash", detail=f"signal {number}")
    outcome = pickle.loads(content)
    if usage.ru_maxrss * 1024 - before > MEMORY_BYTES:
        return Outcome(failure="memory", detail=f"{usage.ru_maxrss >> 10} MB\n{outcome.detail}")
    return outcome
