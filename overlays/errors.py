"""What a command tells: messages of the package, and a user's mistake as one sentence on stderr with status 2."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake the user can fix. The message is one sentence: what is wrong, where, what to do."""


class _Terminal(logging.Handler):
    """Messages as lines: warnings on stderr, all others on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"warning: {record.getMessage()}", file=sys.stderr, flush=True)
        else:
            print(record.getMessage(), flush=True)


@contextmanager
def messages() -> Iterator[None]:
    """Show what the package logs, for the time of a command."""
    log, handler = logging.getLogger("overlays"), _Terminal()
    if any(isinstance(other, _Terminal) for other in log.handlers):
        yield  # a command within a command
        return
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def run(main: Callable[[], object]) -> None:
    """Call `main`, show what the package logs, and turn mistakes into one line on stderr and an exit status.

    2 for a UserError and for what the file system refuses (a file where a folder is wanted, no permission, a full
    disk), 130 for an interrupt, 141 where the reader of our output has gone.
    """
    for stream in (sys.stdout, sys.stderr):  # a name may hold what the terminal's encoding, or any, does not
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        with messages():
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush into the pipe
        sys.exit(141)
    except OSError as error:
        if error.strerror is None:  # not the system's word, so not the user's mistake
            raise
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # Path.resolve, before Python 3.13
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def need_package(package: str, flag: str) -> None:
    """Raise UserError where a package that `flag` needs is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{flag} needs a package that is not installed: {sys.executable} -m pip install {package}")
