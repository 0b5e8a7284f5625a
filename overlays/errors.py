"""How a user's mistake ends: one sentence on stderr and exit status 2."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence: what is wrong, where, what to do."""


def run(main: Callable[[], object]) -> None:
    """Call `main` and turn its UserError into one line on stderr and exit status 2, an interrupt into 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
