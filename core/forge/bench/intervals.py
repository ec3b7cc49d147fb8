"""Statistics of few numbers: percentiles, intervals of a mean, of a share, and of a ratio of means. 95 % throughout."""

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence

from msgspec import Struct

_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t, 97.5 %, for 1 to 30 degrees of freedom."""
_FAR = ((30, 2.042), (40, 2.021), (60, 2.000), (120, 1.980), (1000, 1.962))
"""The same further out: from so many degrees on."""
_Z = 1.959964


class Interval(Struct, frozen=True):
    """A value with its 95 % interval; ``low`` and ``high`` are None where one number cannot say how far it can be trusted."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def clear(self) -> bool:
        """Of a ratio: whether the interval leaves out 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    def within(self, reach: float) -> bool:
        """Of a ratio: whether the interval lies between ``1 / reach`` and ``reach``."""
        return self.low is not None and self.high is not None and 1 / reach <= self.low and self.high <= reach


def student(freedom: float) -> float:
    """Student's t at 97.5 %; between the table's degrees the lower one, which gives the wider interval."""
    whole = max(1, int(freedom))
    if whole <= len(_T):
        return _T[whole - 1]
    return _FAR[bisect_right(_FAR, whole, key=lambda row: row[0]) - 1][1]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` percent lie, by linear interpolation between the nearest ranks of ``ordered``."""
    place = (len(ordered) - 1) * share / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def mean(values: Sequence[float]) -> Interval:
    """The mean and its t interval."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Interval(middle)
    reach = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(middle, middle - reach, middle + reach)


def proportion(hits: int, of: int) -> Interval:
    """The share ``hits / of`` with Wilson's interval, which stays within 0 and 1."""
    share, square = hits / of, _Z * _Z
    centre = (share + square / (2 * of)) / (1 + square / of)
    reach = _Z * math.sqrt(share * (1 - share) / of + square / (4 * of * of)) / (1 + square / of)
    return Interval(share, min(share, max(0.0, centre - reach)), max(share, min(1.0, centre + reach)))


def ratio(over: Sequence[float], under: Sequence[float]) -> Interval:
    """mean(over) / mean(under), both positive; the interval is Welch's, of the difference of their logarithms' means' errors.

    The delta method: the relative error of each mean is its standard error over itself.
    """
    top, bottom = statistics.fmean(over), statistics.fmean(under)
    value = top / bottom
    if len(over) < 2 or len(under) < 2:
        return Interval(value)
    parts = [
        (statistics.variance(each) / len(each) / middle**2, len(each) - 1) for each, middle in ((over, top), (under, bottom))
    ]
    error = sum(part for part, _ in parts)
    if error == 0:
        return Interval(value, value, value)
    freedom = error**2 / sum(part**2 / degrees for part, degrees in parts)
    reach = math.exp(student(freedom) * math.sqrt(error))
    return Interval(value, value / reach, value * reach)
