"""Works for `bpt.side_by_side` that a spawned process can import."""

import os
import signal
import time
from pathlib import Path

from bpt.errors import Interrupted
from bpt.signals import Signals
from burst.lock import if_alone


def save_when_told(place, device):
    """Until a signal: then save, as a training does, which takes a moment."""
    with Signals() as signals:
        Path(place, f"{device}.began").touch()
        while signals.received is None:
            time.sleep(0.02)
        time.sleep(0.5)
        Path(place, f"{device}.saved").write_text(str(int(signals.received)))
    raise Interrupted(signals.received, "the command")


def be_killed(device):
    """As by a machine that has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


def break_down(device):
    """As CUDA does, after which nothing works in a process."""
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")


def fail_but_on_the_cpu(device):
    if device != "cpu":
        break_down(device)
    time.sleep(0.1)
    return {"process": os.getpid()}


def name_the_device(device):
    """At once."""
    return {"device": device}


def hold_a_lock(place, device):
    """Until it is ended: as a process that opens its dataset, before a training can save."""
    with if_alone(Path(place, "run")):
        Path(place, f"{device}.began").touch()
        time.sleep(100)
