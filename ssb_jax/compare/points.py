"""Results -> points with intervals over seeds and questions, and what it costs each method to reach an accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssb_jax.compare.caveats import caveats, common_questions
from ssb_jax.compare.files import AXES, Result
from ssb_jax.compare.reach import Measured, Reach, reaches
from ssb_jax.config import SsbError
from ssb_jax.stats import Interval, bootstrap_seeds_and_questions, percentile_interval


@dataclass(frozen=True)
class Point:
    """A method on a set at one number of questions.

    Attributes:
      cost: axis -> mean over seeds, None where a source does not say.
      difference: to the reference method at the same number of questions, on the same questions of the set, and paired
        by seed where both have the same seeds.
    """

    set: str
    method: str
    seeds: tuple[int, ...]
    cost: Mapping[str, float | None]
    accuracy: Interval
    difference: Interval | None
    is_base: bool


@dataclass(frozen=True)
class Comparison:
    """All points and reaches, and what a reader must know before believing them."""

    points: tuple[Point, ...]
    reaches: tuple[Reach, ...]
    warnings: tuple[str, ...]
    reference: str | None
    confidence: float


class UnknownMethod(SsbError):
    """Differences are asked to a method of which there are no results."""

    exit_status = 2


def compare(
    results: Sequence[Result],
    *,
    accuracy: float | None = None,
    against: str | None = None,
    confidence: float = 0.95,
    resamples: int = 50_000,
) -> Comparison:
    """Compares methods set by set.

    Args:
      accuracy: to be reached. None: what the weakest of several methods has at its best, and the base's at least.
      against: the method that differences are taken to. None: the first `ssb`, or the first of the results.

    Raises:
      UnknownMethod: no method of that name.
      SsbError: results of one set have no question in common.
    """
    methods = list(dict.fromkeys(result.method for result in results if not result.is_base))
    if against is not None and against not in methods:
        raise UnknownMethod(f"no results of {against}; there are {', '.join(methods) or 'only those of the base'}")
    reference = against or next((m for m in methods if m.partition(" [")[0] == "ssb"), next(iter(methods), None))
    points, found, warnings = [], [], []
    for name in dict.fromkeys(result.set for result in results):
        members = [result for result in results if result.set == name]
        questions = common_questions(members)
        warnings += caveats(members, questions)
        groups = _groups(members, questions)
        scores = {key: np.array([[r.scores[q] for q in questions] for r in group]) for key, group in groups.items()}
        seeds = {key: tuple(r.seed for r in group) for key, group in groups.items()}
        draws = bootstrap_seeds_and_questions(scores, seeds, resamples=resamples)
        measured = {
            key: Measured(key[0], _mean_cost(group), float(scores[key].mean()), draws[key])
            for key, group in groups.items()
        }
        bases = [measured[key] for key, group in groups.items() if group[0].is_base]
        trained = [measured[key] for key, group in groups.items() if not group[0].is_base]
        points += [_point(name, measured[key], group, trained, reference, confidence) for key, group in groups.items()]
        goal = _goal(bases, trained) if accuracy is None else accuracy
        if goal is not None:
            found += reaches(name, trained, accuracy=goal, confidence=confidence)
        if accuracy is not None and not any(reach.set == name for reach in found):
            why = "no source says what a method cost" if any(m.value >= accuracy for m in trained) else "no method does"
            warnings.append(f"{name}: nothing is said of who reaches {100 * accuracy:g} % first: {why}")
    return Comparison(tuple(points), tuple(found), tuple(warnings), reference, confidence)


def _goal(bases: Sequence[Measured], trained: Sequence[Measured]) -> float | None:
    """What the weakest method has at its best, and the base's accuracy at least; None of fewer than two methods."""
    best: dict[str, float] = {}
    for point in trained:
        best[point.method] = max(point.value, best.get(point.method, 0.0))
    return max(min(best.values()), *(m.value for m in bases), 0.0) if len(best) > 1 else None


def _groups(members: Sequence[Result], questions: Sequence[str]) -> dict[tuple[str, float | None], list[Result]]:
    """The seeds of each method at each budget, base first, then by method and budget."""
    order = list(dict.fromkeys(r.method for r in sorted(members, key=lambda r: not r.is_base)))
    groups: dict[tuple[str, float | None], list[Result]] = {}
    for result in sorted(members, key=lambda r: (order.index(r.method), r.budget or 0, r.seed)):
        group = groups.setdefault((result.method, result.budget), [])
        scores = [result.scores[q] for q in questions]
        if not result.is_base or scores not in [[r.scores[q] for q in questions] for r in group]:
            group.append(result)  # a greedy base is the same in every run, and counts once
    return groups


def _mean_cost(group: Sequence[Result]) -> dict[str, float | None]:
    values = {axis: [result.cost[axis] for result in group] for axis in AXES}
    return {axis: None if None in found else float(np.mean(found)) for axis, found in values.items()}


def _point(
    name: str,
    measured: Measured,
    group: Sequence[Result],
    trained: Sequence[Measured],
    reference: str | None,
    confidence: float,
) -> Point:
    equal = [m for m in trained if m.method == reference and m.cost["questions"] == measured.cost["questions"]]
    difference = None
    if equal and measured.method != reference and not group[0].is_base:
        value, draws = measured.value - equal[0].value, measured.draws - equal[0].draws
        difference = percentile_interval(value, draws, confidence=confidence)
    return Point(
        name,
        measured.method,
        tuple(r.seed for r in group),
        measured.cost,
        percentile_interval(measured.value, measured.draws, confidence=confidence),
        difference,
        group[0].is_base,
    )
