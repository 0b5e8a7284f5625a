"""Runs an entry point as a user types it, inside the test process: a new interpreter would take seconds to start."""

import contextlib
import io
import multiprocessing
import os
import random
import runpy
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from overlays import errors

ROOT = Path(__file__).resolve().parents[1]


def run_module(name: str, *words, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """What `python -m name words` does: exit status and output as text; an error that is not handled is raised."""
    def module():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # the module is imported already
            runpy.run_module(name, run_name="__main__", alter_sys=True)

    return _run(module, [name, *map(str, words)], cwd)


def run_script(name: str, *words, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """What `python scripts/name words` does; see `run_module`."""
    path = str(ROOT / "scripts" / name)
    return _run(lambda: runpy.run_path(path, run_name="__main__"), [path, *map(str, words)], cwd)


def run_call(function) -> subprocess.CompletedProcess:
    """What a command that calls `function` ends with; see `run_module`."""
    return _run(lambda: errors.run(function), ["call"], ROOT)


def run_processes(count: int, name: str, *words) -> list[subprocess.CompletedProcess]:
    """What `torchrun --nproc_per_node count -m name words` does, in forks of this process, which import nothing again.

    Raises:
        TimeoutError: a process has not ended after three minutes, or another ended without a result.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count),
                     "LOCAL_WORLD_SIZE": str(count), "TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(count):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_run_rank, args=(
            sending, variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, name, words))
        process.start()
        sending.close()
        pipes.append(receiving)
        processes.append(process)
    try:
        until = time.monotonic() + 180
        results = []
        for pipe in pipes:
            try:
                results.append(pipe.recv() if pipe.poll(max(0, until - time.monotonic())) else None)
            except EOFError:
                results.append(None)
        if None in results:
            raise TimeoutError(f"{name} in {count} processes: {results}")
        return results
    finally:
        for process in processes:
            process.kill()
            process.join()


def _run_rank(pipe, variables: dict[str, str], name: str, words) -> None:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)  # this process has trained alone before
    GradientState._reset_state()
    os.environ.update(variables)
    try:
        pipe.send(run_module(name, *words))
    except BaseException:
        pipe.send(subprocess.CompletedProcess([name], 1, "", traceback.format_exc()))


def _run(entry, argv: list[str], cwd: Path) -> subprocess.CompletedProcess:
    status, out, err = 0, io.StringIO(), io.StringIO()
    with _restored(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = argv
        os.chdir(cwd)
        try:
            entry()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Undo what an entry point changes for its whole process."""
    environment, folder, argv, path = dict(os.environ), os.getcwd(), sys.argv, list(sys.path)
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    no_bytecode = sys.dont_write_bytecode
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv, sys.path[:], sys.dont_write_bytecode = argv, path, no_bytecode
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity(verbosity)
