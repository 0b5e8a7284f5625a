"""Records of some users."""

from collections.abc import Sequence
from pathlib import Path

from overlays.domains.gui.prepare import parse_users
from overlays.errors import UserError


def of_users(records: Sequence[dict], users: Sequence[str] | None, file: Path) -> list[dict]:
    """The records of the named users ("1-10 15"); all of them for None. A named user without records is told.

    Raises:
        UserError: none of the users has records, or the records name no users.
    """
    if any(record.get("user") is None or record.get("grid") is None for record in records):
        raise UserError(f"{file} holds records without user and grid point: prepare it with scripts/prepare_gui.py")
    if users is None:
        return list(records)
    wanted, there = parse_users(users), {int(record["user"]) for record in records}
    missing = [user for user in wanted if user not in there]
    if len(missing) == len(wanted):
        raise UserError(f"{file} holds no tap of user {', '.join(map(str, missing))}; its users are "
                        f"{', '.join(map(str, sorted(there)))}")
    if missing:
        print(f"note: no taps of user {', '.join(map(str, missing))} in {file}")
    return [record for record in records if int(record["user"]) in set(wanted)]
