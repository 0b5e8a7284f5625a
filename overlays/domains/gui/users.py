"""Users: numbers and ranges in words, and the records of some of them."""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from overlays.errors import UserError

log = logging.getLogger(__name__)

_PLAIN = re.compile(r"[\w.@ -]{1,64}")  # users name folders


def parse_users(text: str | Iterable[str]) -> list[int]:
    """User numbers of ranges and lists: "1-10 15", "1,3,5-7"; of "none", none. Raises UserError for other words."""
    words = (text if isinstance(text, str) else " ".join(text)).replace(",", " ").split()
    if words == ["none"]:
        return []
    users: set[int] = set()
    for word in words:
        first, dash, last = word.partition("-")
        numbers = [first, last] if dash else [first]
        if not all(number.isdecimal() and len(number) < 10 for number in numbers) or int(numbers[-1]) < int(first):
            raise UserError(f"users are numbers and ranges such as 1-10 15, not {word!r}")
        users.update(range(int(first), int(last or first) + 1))
    return sorted(users)


def of_users(records: Sequence[dict], users: Sequence[str] | None, file: Path) -> list[dict]:
    """The records of the named users ("1-10 15", or names as the records have them); all of them for None.

    A named user without records is told.

    Raises:
        UserError: none of the users has records, or a record lacks what scoring by user needs.
    """
    for record in records:
        missing = [key for key in ("id", "user", "episode", "grid", "image") if record.get(key) in (None, "", [])]
        if missing or not _PLAIN.fullmatch(str(record["user"])):
            what = f"has no {' and no '.join(missing)}" if missing else f"has the user {record['user']!r}"
            raise UserError(f"{file}: a record (id {record.get('id')}) {what}: prepare it with python -m "
                            "overlays.prepare gui")
    if users is None:
        return list(records)
    there = {str(record["user"]) for record in records}
    words = " ".join(users).replace(",", " ").split()
    wanted = [*dict.fromkeys(word for word in words if word in there),
              *map(str, parse_users(word for word in words if word not in there))]
    missing = [user for user in wanted if user not in there]
    if len(missing) == len(wanted):
        raise UserError(f"{file} holds no tap of user {', '.join(missing)}; its users are "
                        f"{', '.join(sorted(there, key=lambda user: (len(user), user)))}")
    if missing:
        log.warning("no taps of user %s in %s", ", ".join(missing), file)
    return [record for record in records if str(record["user"]) in set(wanted)]
