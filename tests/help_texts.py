"""Asks entry points for their help: {name: [exit status, output]} as JSON, for scripts (x.py) and modules as arguments.

Each runs in a process of its own, forked from this one, which loads the slow libraries once for all.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def answer(name: str) -> None:
    """Run an entry point with --help as `python scripts/name` or `python -m name` would; does not return."""
    status = 0
    try:
        if name.endswith(".py"):
            sys.argv = [str(SCRIPTS / name), "--help"]
            sys.path[0] = str(SCRIPTS)
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            sys.argv = [name, "--help"]
            sys.path[0] = str(SCRIPTS.parent)
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def ask(name: str) -> tuple[int, str]:
    """(exit status, output) of an entry point."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            answer(name)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return status, output.read().decode()


if __name__ == "__main__":
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers.trainer  # noqa: F401

    print(json.dumps({name: ask(name) for name in sys.argv[1:]}))
