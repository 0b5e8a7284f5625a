"""A file of rows -> the same rows as messages or as training records, in any form that annotation files have."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from overlays.data import messages, records
from overlays.errors import UserError


def convert(source: Path, target: Path, to: str | None = None) -> tuple[int, str]:
    """Convert every row of `source` and write it to `target`.

    Args:
        to: "messages" or "training"; None takes the other of what the first row is.

    Returns:
        (rows, what they are now).

    Raises:
        UserError: a row that cannot be converted (its number is named; nothing is written), or no row.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise UserError(f"{source} would be overwritten by itself: give another --output")
    rows = records.read(source, convert=False)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source} holds no row")
    to = to or ("training" if "messages" in first and "conversations" not in first else "messages")
    count = 0

    def changed() -> Iterator[dict]:
        nonlocal count
        for row in chain([first], rows):
            count += 1
            try:
                new = (messages.to_messages if to == "messages" else messages.to_record)(row)
                json.dumps(new, ensure_ascii=False).encode()
                yield new
            except UnicodeEncodeError as error:
                raise UserError(f"{source}, row {count}: text that is not Unicode (half of a surrogate pair) near "
                                f"{error.object[max(0, error.start - 20):error.start]!r}") from None
            except TypeError:
                raise UserError(f"{source}, row {count}: it holds files as bytes, which messages and records name by "
                                "their paths: train on this table as it is") from None
            except UserError as error:
                raise UserError(f"{source}, row {count}: {error}") from None

    records.write(target, changed())
    return count, to
