"""What it costs each method to have an accuracy, who has it first, and by what factor."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from ssb_jax.compare.files import AXES
from ssb_jax.stats import Interval, percentile_interval


@dataclass(frozen=True)
class Measured:
    """A method at one number of questions: its accuracy, also in bootstrap replicates that all methods share."""

    method: str
    cost: Mapping[str, float | None]
    value: float
    draws: Float[np.ndarray, " M"]


@dataclass(frozen=True)
class Reach:
    """What a method pays on one axis until it has an accuracy.

    Attributes:
      reached: whether any of its points has it.
      cost: interpolated between the method's points, linear in accuracy and in the logarithm of the cost; None where
        it never gets there, and where nobody says what its points cost.
      at_most: the method's cheapest point is there already.
      is_first: it is known to be the cheapest.
      factor: times the cheapest known cost. Its upper bound is infinite where it may never get there, the lower one 0
        where the cheapest may not. None for the cheapest, and where both costs are only known to be at most so much.
      factor_is: `about`, with an interval, or a bound, without one: `at least` where the cheapest cost is at most so
        much, `at most` where this one is.
    """

    set: str
    accuracy: float
    axis: str
    method: str
    reached: bool
    cost: float | None
    at_most: bool
    is_first: bool = False
    factor: Interval | None = None
    factor_is: Literal["about", "at least", "at most"] | None = None


def reaches(name: str, points: Sequence[Measured], *, accuracy: float, confidence: float) -> list[Reach]:
    """A row for each method and axis; none on an axis of which no method says anything, and none at all where no method
    has the accuracy."""
    curves: dict[str, list[Measured]] = {}
    for point in points:
        curves.setdefault(point.method, []).append(point)
    if not any(point.value >= accuracy for point in points):
        return []
    return [row for axis in AXES for row in _on_axis(name, curves, axis, accuracy, confidence)]


def _on_axis(
    name: str, curves: Mapping[str, list[Measured]], axis: str, accuracy: float, confidence: float
) -> list[Reach]:
    rows: dict[str, Reach] = {}
    drawn = {}
    for method, curve in curves.items():
        rows[method] = Reach(name, accuracy, axis, method, any(p.value >= accuracy for p in curve), None, False)
        if all(p.cost[axis] for p in curve):  # neither unknown nor 0, which has no logarithm
            ordered = sorted(curve, key=lambda p: p.cost[axis])
            costs = np.array([p.cost[axis] for p in ordered])
            paid = float(crossing(costs, np.array([[p.value] for p in ordered]), accuracy)[0])
            drawn[method] = crossing(costs, np.stack([p.draws for p in ordered]), accuracy)
            at_most = ordered[0].value >= accuracy
            rows[method] = replace(rows[method], cost=None if math.isinf(paid) else paid, at_most=at_most)
    if not drawn:
        return []
    known = [row for row in rows.values() if row.cost is not None]
    if not known:
        return list(rows.values())
    cheapest = min(known, key=lambda row: row.cost)
    others = [row for row in rows.values() if row is not cheapest]
    is_first = not any(row.at_most or (row.reached and row.cost is None) for row in others)
    rows[cheapest.method] = replace(cheapest, is_first=is_first)
    for row in others:
        if row.method in drawn:
            rows[row.method] = _with_factor(row, cheapest, drawn, confidence)
    return list(rows.values())


def _with_factor(row: Reach, cheapest: Reach, drawn: Mapping[str, np.ndarray], confidence: float) -> Reach:
    if row.at_most and cheapest.at_most:
        return row
    value = math.inf if row.cost is None else row.cost / cheapest.cost
    if row.at_most or cheapest.at_most:
        told = "at most" if row.at_most else "at least"
        return replace(row, factor=Interval(value, None, None), factor_is=told)
    factor = _factor(value, drawn[row.method], drawn[cheapest.method], confidence)
    return replace(row, factor=factor, factor_is="about")


def _factor(value: float, costs: np.ndarray, cheapest: np.ndarray, confidence: float) -> Interval:
    """The interval of a ratio of costs; where neither method gets there, a replicate says nothing of it, and counts at
    both ends."""
    never = np.isinf(costs) & np.isinf(cheapest)
    ratio = costs / np.where(never, 1.0, cheapest)
    low = percentile_interval(value, np.where(never, 0.0, ratio), confidence=confidence).low
    return Interval(value, low, percentile_interval(value, np.where(never, np.inf, ratio), confidence=confidence).high)


def crossing(
    costs: Float[np.ndarray, " P"], values: Float[np.ndarray, "P M"], accuracy: float
) -> Float[np.ndarray, " M"]:
    """The cost at which each of M curves first has an accuracy; infinite where it never does.

    Linear between the points, in accuracy and in the logarithm of the cost; a curve that starts above pays its first
    point.
    """
    there = values >= accuracy
    last = there.argmax(axis=0)
    before = np.maximum(last - 1, 0)
    columns = np.arange(values.shape[1])
    low, high = values[before, columns], values[last, columns]
    share = np.where(last > 0, (accuracy - low) / np.where(high > low, high - low, 1.0), 1.0)
    logs = np.log(costs)
    cost = np.exp(logs[before] + share * (logs[last] - logs[before]))
    return np.where(there.any(axis=0), cost, np.inf)
