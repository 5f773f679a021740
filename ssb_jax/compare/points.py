"""Results -> points with intervals over seeds and questions, and what it costs each method to reach an accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ssb_jax.compare.results import AXES, Result
from ssb_jax.config import SsbError
from ssb_jax.stats import Interval, bootstrap_seeds_and_questions

_SHOWN = 3  # names in a warning


@dataclass(frozen=True)
class Point:
    """A method on a set at one number of questions.

    Attributes:
      cost: axis -> mean over seeds, None where a source does not say.
      difference: to the reference method at the same number of questions, on the same questions of the set.
    """

    set: str
    method: str
    seeds: tuple[int, ...]
    cost: Mapping[str, float | None]
    accuracy: Interval
    difference: Interval | None
    is_base: bool


@dataclass(frozen=True)
class Reach:
    """What a method pays on one axis until it has an accuracy.

    Attributes:
      cost: interpolated between the method's points, linear in accuracy and in the logarithm of the cost; None where
        it never gets there.
      at_most: the method's cheapest point is there already.
      factor: times the cheapest method's cost; the upper bound is infinite where it may never get there, the lower one
        0 where the cheapest may not.
    """

    set: str
    accuracy: float
    axis: str
    method: str
    cost: float | None
    at_most: bool
    factor: Interval | None


@dataclass(frozen=True)
class Comparison:
    """All points and reaches, and what a reader must know before believing them."""

    points: tuple[Point, ...]
    reaches: tuple[Reach, ...]
    warnings: tuple[str, ...]
    reference: str | None
    confidence: float


def compare(
    results: Sequence[Result],
    *,
    accuracy: float | None = None,
    against: str | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Comparison:
    """Compares methods set by set.

    Args:
      accuracy: to be reached. None: what the weakest method has at its best, and the base's at least.
      against: the method that differences are taken to. None: the first `ssb`, or the first of the results.

    Raises:
      SsbError: no method of that name, or results of one set have no question in common.
    """
    methods = list(dict.fromkeys(result.method for result in results if not result.is_base))
    if against is not None and against not in methods:
        raise SsbError(f"no results of {against}; there are {', '.join(methods) or 'only those of the base'}")
    reference = against or next((m for m in methods if m.partition(" [")[0] == "ssb"), next(iter(methods), None))
    points, reaches, warnings = [], [], []
    for name in dict.fromkeys(result.set for result in results):
        members = [result for result in results if result.set == name]
        questions = _common_questions(members, warnings)
        _warn_of_other_grading(members, warnings)
        remarks = {remark: r.source for r in reversed(members) for remark in r.remarks}
        warnings += [f"{name}: {remark} ({source})" for remark, source in reversed(remarks.items())]
        groups = _groups(members, questions)
        scores = [np.array([[r.scores[q] for q in questions] for r in group]) for group in groups.values()]
        replicates = bootstrap_seeds_and_questions(scores, resamples=resamples)
        estimates = [
            _Estimate(
                method,
                _mean_cost(group),
                tuple(r.seed for r in group),
                float(values.mean()),
                draws,
                group[0].is_base,
            )
            for ((method, _), group), values, draws in zip(groups.items(), scores, replicates, strict=True)
        ]
        points += [_point(name, e, estimates, reference, confidence) for e in estimates]
        reaches += _reaches(name, estimates, accuracy, confidence)
        if accuracy is not None and not any(e.value >= accuracy for e in estimates if not e.is_base):
            warnings.append(f"{name}: no method reaches {100 * accuracy:g} %, so nothing is said of who does first")
    return Comparison(tuple(points), tuple(reaches), tuple(warnings), reference, confidence)


@dataclass(frozen=True)
class _Estimate:
    method: str
    cost: Mapping[str, float | None]
    seeds: tuple[int, ...]
    value: float
    draws: Float[np.ndarray, " M"]  # in bootstrap replicates
    is_base: bool


def _groups(members: Sequence[Result], questions: Sequence[str]) -> dict[tuple[str, float | None], list[Result]]:
    """The seeds of each method at each number of questions, base first, then by method and questions."""
    order = list(dict.fromkeys(r.method for r in sorted(members, key=lambda r: not r.is_base)))
    groups: dict[tuple[str, float | None], list[Result]] = {}
    for result in sorted(members, key=lambda r: (order.index(r.method), r.cost["questions"] or 0, r.seed)):
        group = groups.setdefault((result.method, result.cost["questions"]), [])
        scores = [result.scores[q] for q in questions]
        if not result.is_base or scores not in [[r.scores[q] for q in questions] for r in group]:
            group.append(result)  # a greedy base is the same in every run, and counts once
    return groups


def _mean_cost(group: Sequence[Result]) -> dict[str, float | None]:
    values = {axis: [result.cost[axis] for result in group] for axis in AXES}
    return {axis: None if None in found else float(np.mean(found)) for axis, found in values.items()}


def _interval(value: float, draws: np.ndarray, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, (tail, 100 - tail), method="nearest")  # draws may be infinite
    return Interval(value, float(low), float(high))


def _point(
    name: str, estimate: _Estimate, all_: Sequence[_Estimate], reference: str | None, confidence: float
) -> Point:
    other = next((e for e in all_ if e.method == reference and e.cost["questions"] == estimate.cost["questions"]), None)
    difference = None
    if other is not None and estimate.method != reference and not estimate.is_base:
        difference = _interval(estimate.value - other.value, estimate.draws - other.draws, confidence)
    accuracy = _interval(estimate.value, estimate.draws, confidence)
    return Point(name, estimate.method, estimate.seeds, estimate.cost, accuracy, difference, estimate.is_base)


def _reaches(name: str, estimates: Sequence[_Estimate], accuracy: float | None, confidence: float) -> list[Reach]:
    curves: dict[str, list[_Estimate]] = {}
    for estimate in estimates:
        if not estimate.is_base:
            curves.setdefault(estimate.method, []).append(estimate)
    if len(curves) < 2:
        return []
    if accuracy is None:
        accuracy = min(max(e.value for e in curve) for curve in curves.values())
        accuracy = max([accuracy, *(e.value for e in estimates if e.is_base)])
    return [reach for axis in AXES for reach in _reaches_on(name, curves, axis, accuracy, confidence)]


def _reaches_on(
    name: str, curves: Mapping[str, list[_Estimate]], axis: str, accuracy: float, confidence: float
) -> list[Reach]:
    known = {m: sorted(c, key=lambda e: e.cost[axis]) for m, c in curves.items() if _positive(c, axis)}
    paid, drawn, at_most = {}, {}, {}
    for method, curve in known.items():
        costs, values = np.array([e.cost[axis] for e in curve]), np.array([[e.value] for e in curve])
        paid[method] = float(crossing(costs, values, accuracy)[0])
        drawn[method] = crossing(costs, np.stack([e.draws for e in curve]), accuracy)
        at_most[method] = curve[0].value >= accuracy
    if not paid or not np.isfinite(min(paid.values())):
        return []
    first = min(paid, key=paid.__getitem__)
    reaches = []
    for method, cost in paid.items():
        factor = None
        if method != first:
            factor = _factor(cost / paid[first], drawn[method], drawn[first], confidence)
        there = np.isfinite(cost)
        reaches.append(Reach(name, accuracy, axis, method, cost if there else None, at_most[method], factor))
    return reaches


def _factor(value: float, costs: np.ndarray, cheapest: np.ndarray, confidence: float) -> Interval:
    """The interval of a ratio of costs; where neither method gets there, a replicate says nothing of it, and counts at
    both ends."""
    never = np.isinf(costs) & np.isinf(cheapest)
    ratio = costs / np.where(never, 1.0, cheapest)
    low = _interval(value, np.where(never, 0.0, ratio), confidence).low
    return Interval(value, low, _interval(value, np.where(never, np.inf, ratio), confidence).high)


def _positive(curve: Sequence[_Estimate], axis: str) -> bool:
    return all(e.cost[axis] is not None and e.cost[axis] > 0 for e in curve)


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


def _common_questions(members: Sequence[Result], warnings: list[str]) -> list[str]:
    everything = set().union(*(r.scores for r in members))
    common = [key for key in members[0].scores if all(key in r.scores for r in members)]
    name = members[0].set
    if not common:
        raise SsbError(f"{name}: {members[0].source} and the others have no question in common; compare equal sets")
    if len(common) < len(everything):
        short = [r.source for r in members if len(r.scores) < len(everything)]
        warnings.append(
            f"{name}: only the {len(common)} of {len(everything)} questions that all results have are compared; some "
            f"are missing in {_some(short)}"
        )
    return common


def _warn_of_other_grading(members: Sequence[Result], warnings: list[str]) -> None:
    """Says where two results were not drawn and graded alike, as far as they say how."""
    name = members[0].set
    for key in dict.fromkeys(key for r in members for key in r.graded):
        values = {str(r.graded[key]): r.source for r in members if key in r.graded}
        if len(values) > 1:
            told = "; ".join(f"{value} in {source}" for value, source in list(values.items())[:_SHOWN])
            warnings.append(f"{name}: graded differently: {key} is {told}")
    gold: dict[str, str] = {}
    changed = {q for r in members for q, answer in r.gold.items() if gold.setdefault(q, answer) != answer}
    if changed:
        warnings.append(
            f"{name}: graded differently: the gold answers of {len(changed)} questions differ, such as that of "
            f"{_some(sorted(changed))}"
        )


def _some(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
