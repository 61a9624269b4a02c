"""Where a product's kurtosis sits: in the spread of its rows' or columns' scales, or within them.

The rows of Y = A X^T (dimensions of a prompt) have variances of their own, and so have its columns
(tokens). Pooling them is a scale mixture, which is heavy-tailed even where no row is. By the law of
total cumulance (Brillinger 1969, doi 10.1007/BF02532246) the fourth cumulant of all entries is

    k4 = 3 Var(s) + E[c] + (4 Cov(t, m) + 6 cum(s, m, m) + cum4(m)),

m, s, t and c being mean, variance, third central moment and fourth cumulant of a group (a row, or a
column) and E, Var, ... taken over the groups by their numbers of entries. Divided by the square of
the pooled variance the three terms add up to the pooled excess kurtosis: the part of the scales,
the part within groups, the part of the means.

GroupMoments   moments of each row: a few numbers a row, whatever the number of tokens
GroupSums      sums over columns that the terms are made of: a few numbers, however many columns
Margins        both, of one product
Decomposition  the parts
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from burst.errors import ShapeError

Floats = NDArray[np.float64]
N = TypeVar("N", Floats, Tensor)
ROUNDING = 2.0**-24  # of a float32 number: what varies less about its mean does not vary


class _Arrays:
    """Arrays of one shape, that stack and add up."""

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Parts of one shape along a new first axis.

        Raises:
            ShapeError: their shapes differ.
        """
        shapes = list(dict.fromkeys(part.arrays()[0].shape for part in parts))
        if len(shapes) > 1:
            raise ShapeError(f"moments of {shapes[0]} and of {shapes[1]} groups do not add")
        return cls(*(np.stack([getattr(part, name) for part in parts]) for name in cls.names()))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the arrays, in order."""
        return tuple(field.name for field in fields(cls))  # type: ignore[arg-type]

    def arrays(self) -> tuple[Any, ...]:
        """The arrays, in the order of `names`."""
        return tuple(getattr(self, name) for name in self.names())

    def total(self) -> Self:
        """Of all parts along the first axis."""
        raise NotImplementedError

    def left_out(self) -> Self:
        """For each part along the first axis, of all the others.

        Nothing is subtracted: a part that outweighs all others would leave their rounding alone.
        """
        parts = len(self.arrays()[0])
        if parts == 1:
            return type(self)(*(np.zeros_like(one) for one in self.arrays()))
        even = [np.concatenate([one, np.zeros_like(one[: parts % 2])]) for one in self.arrays()]
        first, second = (type(self)(*(one[i::2] for one in even)) for i in (0, 1))
        beyond = self.stack([first, second]).total().left_out()  # of each two
        found = self.stack([self.stack([beyond, one]).total() for one in (second, first)])
        mixed = (one.swapaxes(0, 1).reshape(-1, *one.shape[2:])[:parts] for one in found.arrays())
        return type(self)(*mixed)


@dataclass(frozen=True, eq=False)
class GroupMoments(_Arrays):
    """Count, mean and sums of powers of the deviation from it, of each of G groups.

    All are float64 of shape (..., G). A group without entries has mean 0. Addition merges group by
    group: Pébay 2008, SAND2008-6212, doi 10.2172/1028931.

    Raises:
        ShapeError: on adding moments of different shapes.
    """

    count: Floats
    mean: Floats
    m2: Floats
    m3: Floats
    m4: Floats

    @classmethod
    def of(cls, values: ArrayLike) -> "GroupMoments":
        """Moments of the rows of an array (..., G, n); entries that are not finite are left out."""
        y = np.asarray(values, dtype=np.float64)
        finite = np.isfinite(y)
        y = np.where(finite, y, 0.0)
        count = finite.sum(axis=-1).astype(np.float64)
        mean = y.sum(axis=-1) / np.maximum(count, 1)
        d = np.where(finite, y - mean[..., None], 0.0)
        rest = d.sum(axis=-1) / np.maximum(count, 1)  # what rounding left in the mean
        d = np.where(finite, d - rest[..., None], 0.0)
        square = d * d  # numpy takes d**3 and d**4 by pow, five times slower
        m2, m3, m4 = (one.sum(axis=-1) for one in (square, square * d, square * square))
        return cls(count, mean + rest, m2, m3, m4)

    @classmethod
    def from_powers(
        cls, count: Floats, origin: Floats | float, s1: Floats, s2: Floats, s3: Floats, s4: Floats
    ) -> "GroupMoments":
        """From sums of powers of the deviation from `origin`, which should lie near the means."""
        d, m2, m3, m4 = central(count, s1, s2, s3, s4)
        return cls(count, np.where(count > 0, origin + d, 0.0), m2, m3, m4)

    @property
    def energy(self) -> Floats:
        """(..., G): the sum of squares of each group."""
        return self.m2 + self.count * self.mean**2

    def powers(self, origin: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Sums of powers 1 to 4 of the deviation from `origin`."""
        n, d = self.count, np.where(self.count > 0, self.mean - origin, 0.0)
        return (
            n * d,
            self.m2 + n * d**2,
            self.m3 + d * (3 * self.m2 + n * d**2),
            self.m4 + d * (4 * self.m3 + d * (6 * self.m2 + n * d**2)),
        )

    def total(self) -> "GroupMoments":
        """Those of all parts along the first axis, merged group by group."""
        count = self.count.sum(axis=0)
        origin = (self.count * self.mean).sum(axis=0) / np.maximum(count, 1)
        sums = (power.sum(axis=0) for power in self.powers(origin))
        return GroupMoments.from_powers(count, origin, *sums)

    def __add__(self, other: "GroupMoments") -> "GroupMoments":
        return GroupMoments.stack([self, other]).total()

    @property
    def variance(self) -> Floats:
        """(..., G) population variances; 0 of a group without entries."""
        return self.m2 / np.maximum(self.count, 1)

    @property
    def kurtosis(self) -> Floats:
        """(..., G) excess kurtosis of each group; NaN where it does not vary."""
        varies = _varies(self.count, self.mean, self.m2) > 0
        square = np.where(varies, self.m2, 1.0) ** 2
        return np.where(varies, self.count * self.m4 / square - 3, np.nan)

    def sums(self) -> "GroupSums":
        """Sums over the groups, the last axis."""
        number = np.maximum(self.count.sum(axis=-1), 1)
        middle = (self.count * self.mean).sum(axis=-1) / number
        return GroupSums.about_origin(middle, *group_sums(middle, *self.arrays()))


@dataclass(frozen=True, eq=False)
class GroupSums(_Arrays):
    """What a decomposition needs of any number of groups. All are float64, of one shape (...).

    With n, m, s, t, f the count, mean, variance, third and fourth central moment of a group and
    d = m - mean, sums over the groups of n times each:

    Attributes:
        count: 1.
        mean: not a sum: that of all entries.
        d2, d3, d4: powers of d.
        s, ss, sd, sdd: s, s^2, s d, s d^2.
        t, td: t, t d.
        f: f.
        varying, standardised: 1 and f / s^2, of the groups that vary.
    """

    count: Floats
    mean: Floats
    d2: Floats
    d3: Floats
    d4: Floats
    s: Floats
    ss: Floats
    sd: Floats
    sdd: Floats
    t: Floats
    td: Floats
    f: Floats
    varying: Floats
    standardised: Floats

    @classmethod
    def none(cls) -> "GroupSums":
        """Of no groups."""
        return cls(*np.zeros(len(cls.names())))

    @classmethod
    def about_origin(cls, origin: Floats | float, *sums: Floats) -> "GroupSums":
        """From what `group_sums` gives about `origin`, which should lie near the mean."""
        about = cls(*sums)
        means = GroupMoments.from_powers(
            about.count, origin, about.mean, about.d2, about.d3, about.d4
        )
        step = np.where(about.count > 0, means.mean - origin, 0.0)
        return about._moved(means, -step)

    def about(self, mean: Floats) -> "GroupSums":
        """The same with d taken from another mean."""
        _, d2, d3, d4 = GroupMoments(self.count, self.mean, self.d2, self.d3, self.d4).powers(mean)
        step = np.where(self.count > 0, self.mean - mean, 0.0)
        return self._moved(GroupMoments(self.count, mean, d2, d3, d4), step)

    def _moved(self, means: GroupMoments, step: Floats) -> "GroupSums":
        """With `step` added to d; `means` has the sums of its powers."""
        return replace(
            self,
            mean=means.mean,
            d2=means.m2,
            d3=means.m3,
            d4=means.m4,
            sd=self.sd + step * self.s,
            sdd=self.sdd + step * (2 * self.sd + step * self.s),
            td=self.td + step * self.t,
        )

    def total(self) -> "GroupSums":
        """Of the groups of all parts along the first axis."""
        mean = (self.count * self.mean).sum(axis=0) / np.maximum(self.count.sum(axis=0), 1)
        sums = {name: part.sum(axis=0) for name, part in vars(self.about(mean)).items()}
        return GroupSums(**sums | {"mean": mean})

    def __add__(self, other: "GroupSums") -> "GroupSums":
        return GroupSums.stack([self, other]).total()


def central(count: N, s1: N, s2: N, s3: N, s4: N) -> tuple[N, N, N, N]:
    """How far means lie from an origin, and sums of powers 2 to 4 about them, from those about it.

    Of NumPy's arrays or float64 tensors.
    """
    d = s1 / (count + (count == 0))
    m2 = (s2 - d * s1).clip(0)
    m3 = s3 - d * (3 * s2 - 2 * d * s1)
    m4 = (s4 - d * (4 * s3 - d * (6 * s2 - 3 * d * s1))).clip(0)
    return d, m2, m3, m4


def group_sums(origin: N, count: N, mean: N, m2: N, m3: N, m4: N) -> tuple[N, ...]:
    """The numbers of `GroupSums` over the last axis, for `GroupSums.about_origin`.

    d is taken from `origin` (...), and n d stands in place of the mean, so they simply add up. Of
    NumPy's arrays or float64 tensors.
    """
    n = count + (count == 0)
    d = (mean - origin[..., None]) * (count > 0)
    s = m2 / n
    varies = _varies(count, mean, m2)
    square = m2 * m2 * varies + (1 - varies)
    return (
        count.sum(-1),
        (count * d).sum(-1),
        (count * d**2).sum(-1),
        (count * d**3).sum(-1),
        (count * d**4).sum(-1),
        m2.sum(-1),
        (m2 * s).sum(-1),
        (m2 * d).sum(-1),
        (m2 * d**2).sum(-1),
        m3.sum(-1),
        (m3 * d).sum(-1),
        m4.sum(-1),
        (count * varies).sum(-1),
        (count * varies * (n * m4 / square)).sum(-1),
    )


@dataclass(frozen=True, eq=False)
class Margins:
    """Moments of a product's rows, and of its columns what a decomposition needs.

    Both add: rows one by one, as each has more entries; columns as further ones.

    Attributes:
        rows: of each row.
        columns: sums over the columns.
    """

    rows: GroupMoments
    columns: GroupSums

    @classmethod
    def total(cls, parts: Sequence["Margins"]) -> "Margins":
        """Of all of them."""
        return cls(
            GroupMoments.stack([part.rows for part in parts]).total(),
            GroupSums.stack([part.columns for part in parts]).total(),
        )

    def __add__(self, other: "Margins") -> "Margins":
        return Margins.total([self, other])

    def __radd__(self, other: int) -> "Margins":
        if other == 0:  # lets sum() start
            return self
        return NotImplemented


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The pooled excess kurtosis of a product's entries and where it comes from.

    `scale + within + means` is `kurtosis`. Each is a float64 array of the shape of the sums, NaN
    where the entries do not vary.

    Attributes:
        kurtosis: of all entries.
        scale: the part of the spread of the groups' variances, 3 Var(s) / v^2; v pools them all.
        within: the part of the kurtosis within groups, E[c] / v^2; negative where groups, those of
            large variance above all, are lighter-tailed than a Gaussian.
        means: the part of the groups' means.
        null: the kurtosis of groups that are Gaussian, centred and as different in variance:
            3 (E[s^2] / E[s]^2 - 1). That of Y for Gaussian X of the same covariance.
        standardised: the kurtosis that remains when each group is centred and divided by its
            deviation; groups that do not vary are left out.
    """

    kurtosis: Floats
    scale: Floats
    within: Floats
    means: Floats
    null: Floats
    standardised: Floats

    @classmethod
    def of(cls, groups: GroupMoments | GroupSums) -> "Decomposition":
        """The parts by these groups.

        >>> rows = GroupMoments.of([[-1.0, 1.0], [-3.0, 3.0]])
        >>> float(Decomposition.of(rows).kurtosis)  # of -3, -1, 1, 3
        -1.36
        """
        sums = groups.sums() if isinstance(groups, GroupMoments) else groups
        n = np.maximum(sums.count, 1)
        s, d2 = sums.s / n, sums.d2 / n
        with np.errstate(divide="ignore", invalid="ignore"):
            unit = np.where(s + d2 > 0, (s + d2) ** 2, np.nan)
            spread = 3 * (sums.ss / n - s**2)
            means = 4 * sums.td + 6 * (sums.sdd - s * sums.d2) + sums.d4 - 3 * d2 * sums.d2
            fourth = sums.f + 4 * sums.td + 6 * sums.sdd + sums.d4
            return cls(
                kurtosis=fourth / n / unit - 3,
                scale=spread / unit,
                within=(sums.f - 3 * sums.ss) / n / unit,
                means=means / n / unit,
                null=spread / np.where(sums.varying > 0, s, np.nan) ** 2,
                standardised=sums.standardised / np.where(sums.varying > 0, sums.varying, np.nan)
                - 3,
            )

    @property
    def scale_share(self) -> Floats:
        """`scale` over `kurtosis`; NaN where that is not above 0, as there is nothing to share.

        Above 1 where the groups themselves are lighter-tailed than a Gaussian.
        """
        share: Floats = self.scale / np.where(self.kurtosis > 0, self.kurtosis, np.nan)
        return share


def _varies(count: N, mean: N, m2: N) -> N:
    """1 where a group's entries differ by more than the rounding of float32, else 0."""
    return (m2 > count * (ROUNDING * mean) ** 2) + 0 * m2
