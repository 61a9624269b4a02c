"""The histogram of a stream: exact counts, what fell outside, exact moments; it adds and merges."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import boost_histogram as bh
import numpy as np
from numpy.typing import ArrayLike, NDArray

from burst.axis import Axis, FloatAxis, RegularAxis, axis_from_dict
from burst.errors import ShapeError
from burst.moments import Moments

Counts = NDArray[np.int64]
SUBNORMAL_EXPONENT = -126  # float32 numbers below 2^-126 are evenly spaced


@dataclass(frozen=True)
class NonFinite:
    """How many values were NaN, -inf and +inf; they are in no bin and in no moment."""

    nan: int = 0
    neg_inf: int = 0
    pos_inf: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.nan + self.neg_inf + self.pos_inf

    def __add__(self, other: "NonFinite") -> "NonFinite":
        return NonFinite(
            self.nan + other.nan, self.neg_inf + other.neg_inf, self.pos_inf + other.pos_inf
        )


class Histogram:
    """Counts on one axis, with flow, together with moments and non-finite values apart.

    It speaks boost-histogram's language (`values`, `counts`, `axes`, `sum`, `+`, `==`,
    `allclose`, `to_numpy`) and follows the UHI protocol, so plotters take it as it is;
    `to_boost()` is the boost-histogram object itself.

    Args:
        axis: where the bins lie.
        counts: (bins + 2,) int64: underflow, bins, overflow.
        moments: of all finite values, binned or not.
        nonfinite: what is in no bin.
        backend: which implementation counted.
        precision: how a product was multiplied (see `burst.kernels.matmul_histogram`); empty where
            the values were given.
        kernel: how the triton backend was cut and counted (see `burst.kernel_trials`).

    Raises:
        ShapeError: counts do not fit the axis, or do not add up to the moments' count, or lie
            outside a float axis.
    """

    kind = "COUNT"

    def __init__(
        self,
        axis: Axis,
        counts: ArrayLike,
        *,
        moments: Moments,
        nonfinite: NonFinite | None = None,
        backend: str = "",
        precision: str = "",
        kernel: str = "",
    ) -> None:
        flow = np.array(counts, dtype=np.int64)
        if flow.shape != (axis.bins + 2,):
            raise ShapeError(
                f"counts {flow.shape} must be ({axis.bins + 2},): underflow, bins, overflow"
            )
        if flow.sum() != moments.count:
            raise ShapeError(f"{flow.sum()} values were binned but moments saw {moments.count}")
        self.axis: Axis = axis
        if isinstance(axis, FloatAxis):
            self.axis, flow = _trim(axis, flow)
        self._flow = flow
        self._flow.setflags(write=False)
        self.moments = moments
        self.nonfinite = nonfinite or NonFinite()
        self.backend = backend
        self.precision = precision
        self.kernel = kernel

    @property
    def count(self) -> int:
        """How many finite values there are, inside the axis or not."""
        return self.moments.count

    @property
    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,) float64 edges of the bins."""
        return self.axis.edges

    @property
    def axes(self) -> Sequence[bh.axis.Axis]:
        """The one axis, as UHI wants it."""
        return self.to_boost().axes

    def values(self, flow: bool = False) -> Counts:
        """(bins,) int64 counts; with `flow`, underflow first and overflow last."""
        return self._flow if flow else self._flow[1:-1]

    def counts(self, flow: bool = False) -> Counts:
        """The same as `values`: nothing is weighted."""
        return self.values(flow)

    def variances(self, flow: bool = False) -> Counts:
        """Poisson variances of the counts: the counts."""
        return self.values(flow)

    def sum(self, flow: bool = False) -> int:
        """How many values the bins hold; with `flow`, also those outside."""
        return int(self.values(flow).sum())

    def to_boost(self) -> "bh.Histogram[bh.storage.Int64]":  # generic from 1.7.1 on
        """A boost-histogram object with the same axis, counts and flow (int64 storage)."""
        boost = bh.Histogram(self.axis.to_boost(), storage=bh.storage.Int64())
        boost.view(flow=True)[:] = self._flow
        return boost

    def to_numpy(self) -> tuple[Counts, NDArray[np.float64]]:
        """What `numpy.histogram` returns: (bins,) int64 counts and (bins + 1,) float64 edges."""
        return self.values(), self.edges

    def rebin(self, bins: int = 256) -> "Histogram":
        """The same values in `bins` regular bins, exactly.

        A float axis gives bins whose width is a power of two, symmetric about 0, as narrow as
        holds every value; the counts are those that `numpy.histogram` would give on these
        edges. A regular axis merges neighbours.

        Raises:
            ShapeError: the bins cannot be had exactly from this axis.
        """
        if isinstance(self.axis, FloatAxis):
            return self._with(*_regular_from_float(self.axis, self.values(), bins))
        if bins < 1 or self.axis.bins % bins:
            raise ShapeError(f"{self.axis.bins} bins do not merge evenly into {bins}")
        merged = self.values().reshape(bins, -1).sum(axis=1)
        flow = np.concatenate([self._flow[:1], merged, self._flow[-1:]])
        return self._with(RegularAxis(bins, self.axis.lo, self.axis.hi), flow)

    def __add__(self, other: "Histogram") -> "Histogram":
        if not isinstance(other, Histogram):
            return NotImplemented
        return Histogram.total([self, other])

    @classmethod
    def total(cls, parts: Sequence["Histogram"]) -> "Histogram":
        """The sum of one or more histograms, added at once.

        Raises:
            ShapeError: their axes differ, or float axes of them in mantissa bits.
        """
        axis, flow = _add(parts)
        return cls(
            axis,
            flow,
            moments=sum((part.moments for part in parts), Moments()),
            nonfinite=sum((part.nonfinite for part in parts), NonFinite()),
            backend=_all_names(part.backend for part in parts),
            precision=_all_names(part.precision for part in parts),
            kernel=_all_names(part.kernel for part in parts),
        )

    def __radd__(self, other: int) -> "Histogram":
        if other == 0:  # lets sum() start
            return self
        return NotImplemented

    def __eq__(self, other: object) -> bool:
        """Same axis, counts and non-finite values; moments are floats: see `allclose`.

        So there is no hash: a histogram is no key of a dictionary.
        """
        if not isinstance(other, Histogram):
            return NotImplemented
        return (
            self.axis == other.axis
            and self.nonfinite == other.nonfinite
            and np.array_equal(self._flow, other._flow)
        )

    __hash__ = None  # type: ignore[assignment]  # as of NumPy's arrays and boost's histograms

    def allclose(self, other: "Histogram", *, rtol: float = 1e-9) -> bool:
        """Equal counts, and moments within `rtol` of each other's scale."""
        mine, theirs = self.moments, other.moments
        n, std = mine.count, max(mine.std, theirs.std) if mine.count else 0.0
        return self == other and all(
            abs(one - two) <= rtol * scale
            for one, two, scale in (
                (mine.mean, theirs.mean, max(abs(mine.mean), std)),
                (mine.m2, theirs.m2, n * std**2),
                (mine.m3, theirs.m3, (mine.m2 * mine.m4) ** 0.5),  # no |m3| exceeds this
                (mine.m4, theirs.m4, mine.m4),
            )
        )

    def __repr__(self) -> str:
        lo, hi = self.moments.minimum, self.moments.maximum
        return f"Histogram({self.count} values from {lo:.4g} to {hi:.4g}, {self.axis.bins} bins)"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; `from_dict` reads it back."""
        return {
            "axis": self.axis.to_dict(),
            "counts": self._flow.tolist(),
            "moments": self.moments.to_list(),
            "nonfinite": [self.nonfinite.nan, self.nonfinite.neg_inf, self.nonfinite.pos_inf],
            "backend": self.backend,
            "precision": self.precision,
            "kernel": self.kernel,
        }

    @classmethod
    def from_dict(cls, form: dict[str, Any]) -> "Histogram":
        """Undo `to_dict`.

        Raises:
            ShapeError: a part of it is missing; its axis is none, or its counts do not fit the
                axis or the moments.
        """
        if missing := {"axis", "counts", "moments", "nonfinite", "backend"} - form.keys():
            raise ShapeError(f"a histogram without {', '.join(sorted(missing))}; give a `to_dict`")
        return cls(
            axis_from_dict(form["axis"]),
            form["counts"],
            moments=Moments.from_list(form["moments"]),
            nonfinite=NonFinite(*form["nonfinite"]),
            backend=form["backend"],
            precision=form.get("precision", ""),
            kernel=form.get("kernel", ""),
        )

    def _with(self, axis: Axis, flow: Counts) -> "Histogram":
        return Histogram(
            axis,
            flow,
            moments=self.moments,
            nonfinite=self.nonfinite,
            backend=self.backend,
            precision=self.precision,
            kernel=self.kernel,
        )


def _all_names(names: Iterable[str]) -> str:
    """Each once: thousands of batches may be added, counted by two kernels in turn."""
    return "+".join(dict.fromkeys(one for name in names for one in name.split("+") if one))


def _trim(axis: FloatAxis, flow: Counts) -> tuple[FloatAxis, Counts]:
    """Store only the keys from the first to the last occupied bin (key 0 where none is)."""
    if flow[0] or flow[-1]:
        raise ShapeError("a float axis holds every value, so nothing can lie outside its bins")
    if flow.size > 2 and flow[1] and flow[-2]:
        return axis.window(axis.first, axis.last), flow
    occupied = np.flatnonzero(flow[1:-1])
    if not occupied.size:
        return axis.window(0, 1), np.zeros(3, np.int64)
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    kept = np.zeros(last - first + 2, np.int64)
    kept[1:-1] = flow[1 + first : 1 + last]
    return axis.window(axis.first + first, axis.first + last), kept


def _add(parts: Sequence[Histogram]) -> tuple[Axis, Counts]:
    first = parts[0].axis
    if all(part.axis == first for part in parts):
        return first, np.sum([part.values(flow=True) for part in parts], axis=0)
    axes = [part.axis for part in parts if isinstance(part.axis, FloatAxis)]
    if len(axes) < len(parts):
        other = next(part.axis for part in parts if part.axis != first)
        raise ShapeError(f"histograms on different axes do not add: {first} and {other}")
    bits = list(dict.fromkeys(axis.mantissa_bits for axis in axes))
    if len(bits) > 1:
        raise ShapeError(f"float axes of {bits[0]} and {bits[1]} mantissa bits do not add")
    axis = axes[0].window(min(axis.first for axis in axes), max(axis.last for axis in axes))
    flow = np.zeros(axis.bins + 2, np.int64)
    for part, window in zip(parts, axes, strict=True):
        begin = 1 + window.first - axis.first
        flow[begin : begin + window.bins] += part.values()
    return axis, flow


def _regular_from_float(axis: FloatAxis, counts: Counts, bins: int) -> tuple[RegularAxis, Counts]:
    """Merge float bins into regular ones of width 2^e, e the least that holds every value."""
    most = 4 << axis.mantissa_bits
    if bins < 2 or bins % 2 or bins > most:
        raise ShapeError(
            f"{axis.mantissa_bits} mantissa bits rebin exactly to an even number of bins up to "
            f"{most}, not {bins}"
        )
    edges = axis.edges
    half = bins // 2
    reach = max(-edges[0], edges[-1])
    fraction, exponent = math.frexp(reach / half)
    exponent -= fraction == 0.5  # reach / half is a power of two itself
    exponent = max(exponent, SUBNORMAL_EXPONENT - axis.mantissa_bits)  # no bin is narrower there
    width = math.ldexp(1.0, exponent)
    index = np.floor(edges[:-1] / width).astype(np.int64) + half
    flow = np.zeros(bins + 2, np.int64)
    np.add.at(flow, 1 + index, counts)
    return RegularAxis(bins, -half * width, half * width), flow
