"""What can be wrong with one clip: it is left out, counted and listed."""

from overlays.errors import UserError


class ClipFault(UserError):
    """A clip that cannot be used. `reason` is the kind it is counted under, `detail` what exactly and where."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self):  # travels between processes
        return ClipFault, (self.reason, self.detail)
