"""How a user's mistake ends: one sentence on stderr and exit status 2."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can fix. The message is one sentence: what is wrong, where, what to do."""


def run(main: Callable[[], object]) -> None:
    """Call `main` and turn its mistakes into one line on stderr and an exit status.

    2 for a UserError and for what the file system refuses (a file where a folder is wanted, no permission, a full
    disk), 130 for an interrupt, 141 where the reader of our output has gone.
    """
    for stream in (sys.stdout, sys.stderr):  # a name may hold what the terminal's encoding, or any, does not
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
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
