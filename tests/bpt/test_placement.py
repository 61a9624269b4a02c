"""Which blocks a placement names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpt.placement import parse_placement
from burst.errors import BurstError

TABLE_10 = {  # ViT-B: the rows of the paper's table
    "4+0": (0, 1, 2, 3),
    "3+1": (0, 1, 2, 11),
    "2+2": (0, 1, 10, 11),
    "1+3": (0, 9, 10, 11),
    "0+4": (8, 9, 10, 11),
    "last:4": (8, 9, 10, 11),
    "first:4": (0, 1, 2, 3),
    "interval:4": (0, 3, 6, 9),
    "shallow": (0,),
    "deep": tuple(range(12)),
}


@pytest.mark.parametrize("text", TABLE_10)
def test_the_papers_placements(text):
    assert parse_placement(text, 12) == TABLE_10[text]


@given(st.integers(1, 48), st.data())
def test_blocks_ascend_without_repetition_within_the_depth(depth, data):
    first = data.draw(st.integers(0, depth))
    last = data.draw(st.integers(0 if first else 1, depth - first))
    if first + last == 0:
        return
    blocks = parse_placement(f"{first}+{last}", depth)
    assert len(blocks) == first + last
    assert list(blocks) == sorted(set(blocks))
    assert 0 <= blocks[0] <= blocks[-1] < depth
    assert set(parse_placement(f"last:{last}", depth) if last else ()) <= set(blocks)


@given(st.integers(1, 12), st.integers(1, 12))
def test_an_interval_takes_the_first_of_equal_groups(groups, length):
    blocks = parse_placement(f"interval:{groups}", groups * length)
    assert blocks == tuple(length * i for i in range(groups))


@pytest.mark.parametrize(
    "text", ["", "middle", "last:0", "0+0", "last:13", "7+6", "interval:5", "interval:0", "last:-1"]
)
def test_what_is_no_placement_is_refused(text):
    with pytest.raises(BurstError, match="placement"):
        parse_placement(text, 12)
