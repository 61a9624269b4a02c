"""Count, mean and central moments to order 4, which merge without loss."""

import math
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Moments:
    """Moments of the finite values of a sample, in float64.

    `m2`, `m3`, `m4` are sums of powers of the deviation from `mean`, not divided by the count. An
    empty sample has count 0, mean 0, `minimum` inf and `maximum` -inf, and NaN for every ratio.
    Addition merges two samples: Pébay 2008, SAND2008-6212, doi 10.2172/1028931, Eqs. 2.1 and
    2.5-2.7.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    @classmethod
    def of(cls, values: ArrayLike) -> "Moments":
        """Moments of an array that exists, of any shape; non-finite values are left out."""
        flat = np.asarray(values, dtype=np.float64).ravel()
        flat = flat[np.isfinite(flat)]
        if not flat.size:
            return cls()
        low, high = float(flat.min()), float(flat.max())
        if low == high:  # the mean of equal numbers may round away from them
            return cls(flat.size, low, 0.0, 0.0, 0.0, low, high)
        mean = float(flat.mean())
        deviation = flat - mean
        squared = deviation * deviation
        return cls(
            flat.size,
            mean,
            float(squared.sum()),
            float((squared * deviation).sum()),
            float((squared * squared).sum()),
            low,
            high,
        )

    @property
    def variance(self) -> float:
        """Population variance (divided by the count); NaN if empty."""
        return self.m2 / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation; NaN if empty."""
        return math.sqrt(self.variance) if self.count else math.nan

    @property
    def skewness(self) -> float:
        """Population skewness mu_3 / mu_2^(3/2), mu_p = m_p / count; NaN if empty or constant."""
        if not self._varies:
            return math.nan
        return (self.m3 / self.count) / (self.variance * self.std)

    @property
    def excess_kurtosis(self) -> float:
        """mu_4 / mu_2^2 - 3, mu_p = m_p / count: 0 for a Gaussian, 3 for a Laplacian.

        NaN for an empty or a constant sample.
        """
        if not self._varies:
            return math.nan
        return (self.m4 / self.count) / self.variance**2 - 3.0

    @property
    def energy(self) -> float:
        """Sum of the squares."""
        return self.m2 + self.count * self.mean**2

    @property
    def _varies(self) -> bool:
        return self.count > 0 and self.minimum < self.maximum and self.variance > 0.0

    def __add__(self, other: "Moments") -> "Moments":
        if not self.count:
            return other
        if not other.count:
            return self
        n_a, n_b = float(self.count), float(other.count)
        n = n_a + n_b
        delta = other.mean - self.mean
        step = delta / n
        return Moments(
            self.count + other.count,
            self.mean + n_b * step,
            self.m2 + other.m2 + n_a * n_b * delta * step,
            self.m3
            + other.m3
            + n_a * n_b * (n_a - n_b) * delta * step**2
            + 3.0 * step * (n_a * other.m2 - n_b * self.m2),
            self.m4
            + other.m4
            + n_a * n_b * (n_a * n_a - n_a * n_b + n_b * n_b) * delta * step**3
            + 6.0 * step**2 * (n_a * n_a * other.m2 + n_b * n_b * self.m2)
            + 4.0 * step * (n_a * other.m3 - n_b * self.m3),
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    def __radd__(self, other: int) -> "Moments":
        if other == 0:  # lets sum() start
            return self
        return NotImplemented

    def to_list(self) -> list[float | None]:
        """Plain JSON-able form: the fields in order, None where not finite."""
        return [value if math.isfinite(value) else None for value in astuple(self)]

    @classmethod
    def from_list(cls, form: list[float | None]) -> "Moments":
        """Undo `to_list`.

        Raises:
            ValueError: it has another number of entries than there are fields.
        """
        empty = astuple(cls())
        fields = [default if v is None else v for v, default in zip(form, empty, strict=True)]
        return cls(int(fields[0]), *fields[1:])
