"""Why one clip is skipped: it is counted and listed."""

import errno

import numpy as np

from overlays.errors import UserError

STEPS_US = (200, 2_000_000)  # between two rows of a clock: from 5 kHz to one in two seconds


class ClipSkip(UserError):
    """A clip that cannot be used. `reason` is the kind it is counted under, `detail` what exactly and where."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self):  # travels between processes
        return ClipSkip, (self.reason, self.detail)


def no_room(error: BaseException) -> bool:
    """Whether memory or disk ran out, which is not a reason to skip a clip."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def check_unit(timestamps: np.ndarray, name: str) -> None:
    """Raises ClipSkip where ascending timestamps, at least two, lie so far apart that they are not microseconds."""
    step = float(np.median(np.diff(timestamps)))
    if not STEPS_US[0] <= step <= STEPS_US[1]:
        unit = "nanoseconds" if step > STEPS_US[1] else "milliseconds" if step >= STEPS_US[0] / 1000 else "seconds"
        raise ClipSkip("timestamps not in microseconds", f"{name}: timestamp must be microseconds, but its rows lie "
                                                          f"{step:.0f} apart, as if it were {unit}")
