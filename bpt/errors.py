"""What a training or a download ends with, beside the errors of `burst.errors`.

RunExists      a folder that holds a run: of another recipe, or one to go on with
RunBusy        a folder that another process trains in
NonFiniteLoss  a training whose loss is infinite or NaN
Interrupted    a training that a signal ended; it can be gone on with
DownloadError  a dataset's file that a server does not give, or gives wrong
"""

from burst.errors import BurstError


class RunExists(BurstError):
    """A folder that holds a run already: of another recipe, or one to go on with."""


class RunBusy(BurstError):
    """A folder that another process trains in now."""


class NonFiniteLoss(BurstError):
    """A training whose loss is infinite or NaN; the last good state is kept."""


class Interrupted(BurstError):
    """A training that a signal ended after a step, whose state was saved.

    Attributes:
        signum: the signal.
        command: what to type to go on; or, where Python called, what to call.
    """

    def __init__(self, signum: int, command: str) -> None:
        self.signum, self.command = signum, command
        super().__init__(f"interrupted and saved; to go on: {command}")


class DownloadError(BurstError):
    """A file that a server does not give, or gives wrong."""
