"""Signed relative errors, and what is said of many of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Interval = tuple[int, int]


def relative_error(predicted: Interval, measured: Interval) -> float:
    """Return how far the predicted interval lies from the measured one; 0 when they meet.

    Both are usually one point. A measured interval has the two readings of an unknown unit; a
    predicted one goes from allocated to reserved where the source does not say which it prints.

    >>> relative_error((150, 150), (100, 100)), relative_error((70, 75), (100, 107))
    (0.5, -0.25)
    """
    if predicted[0] > measured[1]:
        return predicted[0] / measured[1] - 1 if measured[1] else math.inf
    if predicted[1] < measured[0]:
        return predicted[1] / measured[0] - 1
    return 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile by linear interpolation between the sorted values.

    >>> percentile([4.0, 1.0, 2.0, 3.0], 0.5), percentile([1.0, 2.0], 0.95)
    (2.5, 1.95)
    """
    ranked = sorted(values)
    place = share * (len(ranked) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Errors of one group of rows, as shares of what was measured."""

    count: int
    mean: float
    """Of absolute errors, as are ``median`` and ``p95``."""
    median: float
    p95: float
    worst_over: float
    """Largest prediction above the measurement; 0 when there is none above."""
    worst_under: float
    """Largest prediction below the measurement, negative; 0 when there is none below."""


def summarise(errors: Iterable[float]) -> Summary | None:
    """Return the summary of signed errors, or None without any.

    >>> summarise([0.1, -0.3]).mean
    0.2
    """
    signed = list(errors)
    if not signed:
        return None
    sizes = [abs(error) for error in signed]
    return Summary(
        count=len(signed),
        mean=sum(sizes) / len(sizes),
        median=percentile(sizes, 0.5),
        p95=percentile(sizes, 0.95),
        worst_over=max(0.0, *signed),
        worst_under=min(0.0, *signed),
    )


def average(groups: Iterable[Summary | None]) -> Summary | None:
    """Return the average of summaries, each weighing the same; worst ones are of all."""
    found = [group for group in groups if group is not None]
    if not found:
        return None
    return Summary(
        count=sum(group.count for group in found),
        mean=sum(group.mean for group in found) / len(found),
        median=sum(group.median for group in found) / len(found),
        p95=sum(group.p95 for group in found) / len(found),
        worst_over=max(group.worst_over for group in found),
        worst_under=min(group.worst_under for group in found),
    )
