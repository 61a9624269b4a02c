"""Where in a file the encoder lies, and which of its copies is taken.

Names without a prefix go first, then a running average, as in timm's loader, then the weights that
are trained, and last a target or momentum network; but I-JEPA's `target_encoder` before all.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from burst.errors import CheckpointError, some

Score = Callable[[str, Tensor], int]


def flat_names(stored: Mapping[object, object], depth: int = 3) -> Iterator[tuple[str, object]]:
    """`teacher|backbone.norm.weight` and its value, of mappings in mappings."""
    for name, value in stored.items():
        if isinstance(value, Mapping) and depth:
            yield from ((f"{name}|{rest}", inner) for rest, inner in flat_names(value, depth - 1))
        else:
            yield str(name), value


def find_places(path: Path, flat: Mapping[str, object], ours: Score) -> list[str]:
    """What stands before the encoder's names, and before those of its copies.

    Args:
        path: is named by errors.
        flat: names, see `flat_names`, and values.
        ours: what a tensor counts under the rest of its name, behind a `.` or `|`.

    Raises:
        CheckpointError: there is no tensor, or nothing tells several encoders apart.
    """
    tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds {some({x.split('|')[0]: 0 for x in flat}) or 'nothing'}, but no state "
            f"dict (names and tensors), alone or under `model`, `state_dict` or another name"
        )
    scores: Counter[str] = Counter()
    for name, value in tensors.items():
        for start in (0, *(mark.end() for mark in re.finditer(r"[.|]", name))):
            scores[name[:start]] += ours(name[start:], value)
    if not any(scores.values()):  # no known name: where most tensors are
        scores = Counter(x[: x.rfind("|") + 1] for x in tensors)
    most = max(scores.values())
    places = sorted((place for place in scores if scores[place] == most), key=_rank)
    if len(places) > 1 and _rank(places[0]) == _rank(places[1]):
        names = some(f"`{place[:-1]}`" for place in places)
        raise CheckpointError(f"{path} holds several encoders, {names}; save one of them alone")
    averages = [x for x in places if _is_jepas(x, places, tensors)]
    return sorted(places, key=lambda place: place not in averages)


def _rank(place: str) -> tuple[int, int]:
    """The running average before the weights that are trained, what only trains them last."""
    words = {*re.split(r"[._|]", place)}
    last = 2 * bool(words & {"momentum", "student", "target"})
    usual = ("", "model|", "state_dict|", place).index(place)
    return last or int(bool(place) and not words & {"ema", "teacher"}), usual


def _is_jepas(place: str, places: Iterable[str], names: Iterable[str]) -> bool:
    """Whether it is I-JEPA's target encoder, the average that is evaluated."""
    before, _, after = place.rpartition("target_encoder")
    predicts = any(name.startswith(f"{before}predictor") for name in names)
    return bool(after) and f"{before}encoder{after}" in places and predicts


def apart(name: str, place: str) -> str:
    """How the name goes on behind what it shares with a place."""
    while not name.startswith(place):
        place = re.sub(r"[^.|]*[.|]$", "", place)
    return name[len(place) :]
