"""Two ways to cut the real line into bins: evenly, or as floating-point numbers are spaced."""

from dataclasses import dataclass
from typing import Any, ClassVar

import boost_histogram as bh
import numpy as np
from numpy.typing import NDArray

from burst.errors import ShapeError

FLOAT32_MANTISSA_BITS = 23
INFINITY_BITS = 0x7F800000
FLOAT32_EXPONENTS = 255  # biased exponents of finite float32 numbers, zero and subnormals included


@dataclass(frozen=True)
class RegularAxis:
    """`bins` bins of equal width from `lo` to `hi`, the edges of `numpy.linspace`.

    A bin holds its lower edge but not its upper one; the last bin holds both, as in
    `numpy.histogram`. What lies outside is counted as under- or overflow.

    Raises:
        ShapeError: `bins` < 1, or `lo` and `hi` are not finite and in order.
    """

    bins: int
    lo: float
    hi: float

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ShapeError(f"an axis needs at least 1 bin, got {self.bins}")
        if not (np.isfinite(self.lo) and np.isfinite(self.hi) and self.lo < self.hi):
            raise ShapeError(f"an axis needs finite lo < hi, got lo={self.lo}, hi={self.hi}")

    @property
    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,) float64 edges."""
        return np.linspace(self.lo, self.hi, self.bins + 1)

    def to_boost(self) -> bh.axis.Axis:
        """The same axis as boost-histogram has it."""
        return bh.axis.Regular(self.bins, self.lo, self.hi)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; `axis_from_dict` reads it back."""
        return {"kind": "regular", "bins": self.bins, "lo": self.lo, "hi": self.hi}


@dataclass(frozen=True)
class FloatAxis:
    """Bins between neighbouring floats of `mantissa_bits` bits: log-linear, and without a range.

    A float32 number is sign, 8 exponent bits and 23 mantissa bits. Its bin is what remains
    when the mantissa is rounded down to `mantissa_bits` bits: every power of two (every octave)
    is cut into 2^mantissa_bits equal bins, on either side of zero. With the default 7 the edges
    are exactly the bfloat16 numbers, and a bin is at most 2^-7 = 0.8 % wide.

    - No range has to be known before the data is seen, and two histograms always add.
    - Power-of-two grids nest: a regular histogram of up to `2^(mantissa_bits + 2)` bins of a
      power-of-two width follows exactly, count for count (`Histogram.rebin`).
    - Bursty data keeps its resolution at zero, where nearly all of it is, and in the tails.

    Bins are numbered by `key`: 0 starts at 0.0, negative keys lie below. `start` and `stop` bound
    the keys that a histogram stores. Log-linear bins: Gil Tene's HdrHistogram; Hartmann and
    Schlossnagle 2020, arXiv 2001.06561.

    Raises:
        ShapeError: `mantissa_bits` outside 1..10, or an empty or impossible window.
    """

    mantissa_bits: int = 7
    start: int | None = None
    stop: int | None = None

    MAX_MANTISSA_BITS: ClassVar[int] = 10

    def __post_init__(self) -> None:
        if not 1 <= self.mantissa_bits <= self.MAX_MANTISSA_BITS:
            raise ShapeError(
                f"mantissa_bits must be 1 to {self.MAX_MANTISSA_BITS}, got {self.mantissa_bits}"
            )
        if not -self.limit <= self.first < self.last <= self.limit:
            raise ShapeError(f"no bins between keys {self.start} and {self.stop}")

    @classmethod
    def for_bins(cls, bins: int) -> "FloatAxis":
        """The coarsest axis, of at least 7 bits, that rebins exactly to `bins` regular bins.

        Raises:
            ShapeError: `bins` is odd, below 2 or above 4,096.
        """
        most = 4 << cls.MAX_MANTISSA_BITS
        if bins < 2 or bins > most or bins % 2:
            raise ShapeError(f"bins must be an even number from 2 to {most}, got {bins}")
        return cls(max(7, (bins - 1).bit_length() - 2))

    @property
    def limit(self) -> int:
        """One more than the greatest key of a finite float32 number."""
        return FLOAT32_EXPONENTS << self.mantissa_bits

    @property
    def first(self) -> int:
        """The lowest key stored."""
        return -self.limit if self.start is None else self.start

    @property
    def last(self) -> int:
        """One more than the highest key stored."""
        return self.limit if self.stop is None else self.stop

    @property
    def bins(self) -> int:
        """How many bins are stored."""
        return self.last - self.first

    @property
    def shift(self) -> int:
        """How many low mantissa bits of a float32 number are dropped."""
        return FLOAT32_MANTISSA_BITS - self.mantissa_bits

    @property
    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,) float64 edges, each an exact float32 number (or +-2^128 at the ends)."""
        return self.value(np.arange(self.first, self.last + 1))

    def value(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """The lower edges of the bins numbered `keys`, int64: of their shape, float64, exact."""
        bits = (np.abs(keys) << self.shift).astype(np.uint32)
        size = bits.view(np.float32).astype(np.float64)
        size[bits == INFINITY_BITS] = 2.0**128  # where the next float would be
        return np.sign(keys) * size

    def window(self, start: int, stop: int) -> "FloatAxis":
        """The same grid with the keys from `start` up to, but not including, `stop` stored.

        Raises:
            ShapeError: an empty or impossible window.
        """
        return FloatAxis(self.mantissa_bits, start, stop)

    def to_boost(self) -> bh.axis.Axis:
        """The same bins as a boost-histogram axis of variable width."""
        return bh.axis.Variable(self.edges)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; `axis_from_dict` reads it back."""
        bits, first, last = self.mantissa_bits, self.first, self.last
        return {"kind": "float", "mantissa_bits": bits, "start": first, "stop": last}


Axis = RegularAxis | FloatAxis


def axis_from_dict(form: dict[str, Any]) -> Axis:
    """Undo `to_dict`.

    Raises:
        ShapeError: `form` is not what `to_dict` writes.
    """
    kinds: dict[str, type[RegularAxis] | type[FloatAxis]] = {
        "regular": RegularAxis,
        "float": FloatAxis,
    }
    fields = {name: value for name, value in form.items() if name != "kind"}
    try:
        return kinds[form["kind"]](**fields)
    except (KeyError, TypeError) as error:
        raise ShapeError(f"not an axis: {form!r}") from error
