"""What a training ends with: errors like those of `burst`, which travel between processes."""

import copy
import pickle

import pytest

import bpt
import burst
from bpt import errors
from burst.errors import BurstError

ENDS = [
    errors.RunExists("there is a run"),
    errors.RunBusy("another process trains"),
    errors.NonFiniteLoss("the loss is nan"),
    errors.Interrupted(2, "bpt train --resume"),
]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy], ids="pc")
def test_they_travel_between_processes(error, copied):
    error.everywhere = True
    other = copied(error)
    assert type(other) is type(error) and str(other) == str(error)
    assert vars(other) == vars(error)


def test_they_are_errors_of_burst_that_bpt_exports():
    for error in ENDS:
        name = type(error).__name__
        assert isinstance(error, BurstError)
        assert getattr(bpt, name) is type(error) and not hasattr(burst, name)


def test_an_interruption_says_how_to_go_on():
    assert str(ENDS[-1]) == "interrupted and saved; to go on: bpt train --resume"
    assert ENDS[-1].signum == 2
