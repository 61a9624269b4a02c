"""Errors of one of two processes, in one run of both that no launcher watches."""

import copy
import json
import pickle

import pytest
import support
import torch.distributed as dist

from burst import distributed, errors
from burst.distributed import agreed, first_alone, gather, process_group, together
from burst.errors import BurstError, ImageError, UnknownName

PROGRAM = """
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from support import backbone_of, vit

from burst import (
    BurstError, ImageError, SurveyOptions, UnknownName, WhiteningOptions, collect_moments, survey,
    whiten, whitened_histograms,
)
from burst.distributed import (
    ROWS, add_rows, agreed, first_alone, gather, process_group, together,
)
from burst.images import ImageStream
from burst.preprocess import Preprocess

found = {}
backbone = backbone_of(vit())


def images(bad, *, skip_bad=True, count=8):
    @contextmanager
    def opener():
        def load(name):
            if name in bad:
                raise ImageError("it is torn")
            return torch.full((3, 16, 16), 20 * int(name), dtype=torch.uint8)
        yield load

    half = [0.5] * 3
    return ImageStream(
        source="photos", batches=[[str(i)] for i in range(count)], fingerprint="f", opener=opener,
        preprocess=Preprocess(image_size=16, mean=half, std=half), skip_bad=skip_bad,
    )


def note(name, work):
    try:
        found[name] = work()
    except BurstError as error:
        found[name] = [type(error).__name__, str(error)]


def only_on(rank, error):
    def work():
        if distributed_rank == rank:
            raise error
        return distributed_rank
    return work


def added():
    # Each process has every other row, of more than are sent at once.
    rows = torch.zeros(2 * ROWS + 3, 2)
    mine = torch.arange(distributed_rank, len(rows), 2)
    rows[mine] = mine[:, None] + torch.tensor([0.0, 0.5])
    add_rows(rows)
    wanted = torch.arange(len(rows))[:, None] + torch.tensor([0.0, 0.5])
    return torch.equal(rows, wanted)


def moments(bad, **options):
    one = collect_moments(backbone, images(bad, **options), blocks=(0,))
    return [one.images, one.blocks[0].count, one.bad_images]


def measured(bad, **options):
    one = survey(backbone, images(bad, **options), SurveyOptions(blocks=(0,)))
    return [one.record["images"]["count"], one.bad_images]


def whitened(bad):
    options = WhiteningOptions(blocks=(0,), held_out=0)
    whitening = whiten(backbone, images(()), options)
    pairs = whitened_histograms(backbone, images(bad), whitening, options)
    return pairs[0][1].count


SECOND = ("1", "3", "5", "7")  # the images of the second process
ALL = tuple(map(str, range(8)))
try:
    with process_group() as (distributed_rank, _):
        note("none", lambda: gather(None if distributed_rank else 1))
        note("found", lambda: agreed(lambda: distributed_rank))
        note("nothing", lambda: agreed(lambda: None))
        note("alone", lambda: first_alone(lambda: distributed_rank))
        note("unknown", lambda: together(only_on(1, UnknownName("fruit", "aple", ["apple"]))))
        own = only_on(distributed_rank, BurstError(f"of {distributed_rank}"))
        note("both", lambda: together(own))
        note("added", added)
        note("moments", lambda: moments(SECOND))
        note("moments of one", lambda: moments(("3",), skip_bad=False))
        note("moments of none", lambda: moments(ALL))
        note("survey", lambda: measured(SECOND))
        note("survey of one", lambda: measured(("3",), skip_bad=False))
        note("survey of none", lambda: measured(ALL))
        note("whitened", lambda: whitened(SECOND))
        note("whitened of none", lambda: whitened(ALL))
        if distributed_rank == 1:
            raise ImageError("left alone")
        gather("waiting")
except BurstError as error:
    found["left"] = [type(error).__name__, str(error)]
Path(f"{place}/found{rank}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, in_two_processes):
    """What each of the two processes found, by name."""
    place = tmp_path_factory.mktemp("two")
    for one in in_two_processes(PROGRAM, place):
        assert one.returncode == 0, one.stderr[-2000:]
    return [json.loads((place / f"found{rank}.json").read_text()) for rank in range(2)]


AGAIN = """
import torch.distributed as dist

from burst.distributed import gather, process_group

for number in range(4):
    with process_group():
        print(gather(number))
print(dist.is_initialized())
try:
    with process_group():
        raise RuntimeError
except RuntimeError:
    print(dist.is_initialized())
"""


def test_groups_follow_each_other_where_their_store_stays_and_an_error_of_one_leaves_none(
    forked, tmp_path
):
    """As `torchrun` has it, whose agent keeps the store."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    both = [forked(AGAIN, tmp_path, rank, RANK=str(rank), **group) for rank in range(2)]
    told = "[0, 0]\n[1, 1]\n[2, 2]\n[3, 3]\nFalse\nTrue\n"
    for one in both:
        ended = one.end()
        assert (ended.returncode, ended.stdout) == (0, told), ended.stderr[-2000:]


BAD = [[name, "it is torn"] for name in "1357"]
TORN = "cannot read image '3' of photos: it is torn; skip_bad (--skip-bad) leaves it out"
NONE = "none of the 8 images of photos can be read; the first, '0': it is torn"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("none", [1, None]),
        ("found", 0),
        ("nothing", None),
        ("unknown", ["UnknownName", "unknown fruit 'aple'; did you mean apple?"]),
        ("both", ["BurstError", "of 0"]),
        ("added", True),
        ("moments", [4, 4 * 17, BAD]),
        ("moments of one", ["ImageError", TORN]),
        ("moments of none", ["ImageError", NONE]),
        ("survey", [4, BAD]),
        ("survey of one", ["ImageError", TORN]),
        ("survey of none", ["ImageError", NONE]),
        ("whitened", 4 * 17 * support.DIM),
        ("whitened of none", ["ImageError", NONE]),
        ("left", ["ImageError", "left alone"]),
    ],
)
def test_both_processes_find_the_same(outcomes, name, expected):
    assert [one[name] for one in outcomes] == [expected, expected]


def test_the_others_work_after_the_first(outcomes):
    assert [one["alone"] for one in outcomes] == [0, 1]


PLAIN = [
    kind("text")
    for kind in [BurstError, *BurstError.__subclasses__()]
    if kind.__module__ == errors.__name__ and kind is not UnknownName
]
UNKNOWN = UnknownName("fruit", "aple", ["apple"])


@pytest.mark.parametrize("error", [*PLAIN, UNKNOWN], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy], ids="pc")
def test_errors_travel_between_processes(error, copied):
    other = copied(error)
    assert type(other) is type(error) and str(other) == str(error)
    assert vars(other) == vars(error)


def test_alone_an_error_stays_as_it_is():
    error = ImageError("torn")

    def work():
        raise error

    for call in (together, agreed, first_alone):
        with pytest.raises(ImageError) as raised:
            call(work)
        assert raised.value is error
    with pytest.raises(ImageError), process_group() as (rank, size):
        assert (rank, size) == (0, 1)
        raise error
    assert gather(3) == together(lambda: 3) == [3]


def test_a_process_waits_for_another_as_long_as_unpacking_imagenet_may_take(monkeypatch):
    given = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    store = dist.HashStore()
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **rest: iter([(store, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **rest: given.update(rest))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with process_group():
        pass
    assert given["timeout"] == distributed.TIMEOUT
    assert given["timeout"].total_seconds() / 3600 >= 12
