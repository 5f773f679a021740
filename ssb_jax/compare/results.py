"""Run folders and files of results -> one `Result` for each model, seed and set.

Read are run folders (their `evaluation/results.json`), the cells of a study, the rounds of a run, such a results.json
of any trainer, and files made by hand (files.py).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from ssb_jax.artifacts import digest
from ssb_jax.compare.files import AXES, Result, results_of_csv, results_of_json
from ssb_jax.config import SsbError

_MOST_NAMED = 2  # settings that a method's name says


def read_results(sources: Sequence[Path]) -> list[Result]:
    """The results of run folders and files, in order.

    Raises:
      SsbError: a source is not readable, a question is there twice, or a model, seed and cost come twice.
    """
    results = _told_apart([result for source in sources for result in _read(source)])
    if not results:
        raise SsbError(f"expected results to compare, found none in {', '.join(map(str, sources))}")
    seen: dict[tuple, Result] = {}
    for result in results:
        key = (result.set, result.method, result.seed, result.budget)
        first = seen.setdefault(key, result)
        if first is not result and not result.is_base:
            raise SsbError(
                f"{result.source} and {first.source} both have {result.method}, seed {result.seed}, on {result.set} "
                f"with {_told_budget(result)}; leave one out, or give them different seeds or methods"
            )
    return results


def _told_budget(result: Result) -> str:
    if result.budget is None:
        return "unknown cost"
    return "all questions" if math.isinf(result.budget) else f"{result.budget:g} questions"


def begun_cells(folder: Path) -> list[Path] | None:
    """The run folders of a study, or of a run of several rounds, that have begun; None of any other folder."""
    parts = [name for name in ("cells", "rounds") if (folder / name).is_dir()]
    if not parts:
        return None
    return sorted(path.parent for part in parts for path in folder.glob(f"{part}/*/config.yaml"))


def _told_apart(results: Sequence[Result]) -> list[Result]:
    """Results of one method that were trained differently, or on one set drawn or graded differently, get names of
    their own: they are no seeds of each other. What one of them does not say sets it apart from nothing."""
    graded = [_flat(result.graded) for result in results]
    named = []
    for result, own in zip(results, graded, strict=True):
        trained = [other.settings for other in results if other.method == result.method]
        drawn = [
            theirs
            for other, theirs in zip(results, graded, strict=True)
            if (other.method, other.set) == (result.method, result.set)
        ]
        differing = _differing(result.settings, trained) | _differing(own, drawn)
        if differing:
            told = [f"{key} {value}" for key, value in differing.items()]
            if len(told) > _MOST_NAMED:
                told = [*told[:_MOST_NAMED], f"... ({digest(differing)[:6]})"]
            result = replace(result, method=f"{result.method} [{', '.join(told)}]")
        named.append(result)
    return named


def _differing(own: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What some of those that say it say otherwise."""
    return {k: v for k, v in own.items() if len({_plain(other[k]) for other in alike if k in other}) > 1}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    parts = [{f"{k}.{n}": x for n, x in _flat(v).items()} if isinstance(v, dict) else {k: v} for k, v in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def _plain(value: Any) -> str:
    """A JSON value as text that is equal where values are: 1 and 1.0 are."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if is_number else json.dumps(value, sort_keys=True, default=str)


def _read(source: Path) -> Iterator[Result]:
    cells = begun_cells(source)
    if cells is not None and (source / "rounds").is_dir():
        yield from _rounds(cells)
    elif cells is not None:
        yield from _study(source, cells)
    elif source.is_dir():
        if not _evaluated(source):
            is_run = (source / "config.yaml").is_file()
            then = "run `ssb eval` there first" if is_run else "give a run folder, a study or a file of results"
            raise SsbError(f"{source} has no evaluation/results.json; {then}")
        yield from results_of_json(source / "evaluation" / "results.json", folder=source)
    elif source.suffix.lower() == ".csv":
        yield from results_of_csv(source)
    else:
        yield from results_of_json(source, folder=None)


def _study(source: Path, cells: Sequence[Path]) -> Iterator[Result]:
    """A study that goes on is compared as far as it is, and that is said."""
    evaluated = [cell for cell in cells if _evaluated(cell)]
    missing = [cell.name for cell in cells if cell not in evaluated]
    told = []
    if missing:
        share = f"{len(missing)} of {len(cells)} begun cells of {source}"
        told.append(f"{share} are not evaluated yet, such as {missing[0]}")
    for result in (result for cell in evaluated for result in _read(cell)):
        yield replace(result, remarks=(*result.remarks, *told))


def _evaluated(folder: Path) -> bool:
    return (folder / "evaluation" / "results.json").is_file()


def _rounds(folders: Sequence[Path]) -> Iterator[Result]:
    """Each round's student as a method of its own that cost all rounds so far; the base is the first one's."""
    spent: dict[str, float | None] = dict.fromkeys(AXES, 0.0)
    settings: Mapping[str, Any] = {}
    evaluated = list(takewhile(_evaluated, folders))
    told = () if len(evaluated) == len(folders) else (f"round {len(evaluated) + 1} is not evaluated yet",)
    for number, folder in enumerate(evaluated, 1):
        found = [replace(result, remarks=(*result.remarks, *told)) for result in _read(folder)]
        own = next((result.cost for result in found if not result.is_base), dict.fromkeys(AXES))
        spent = {axis: _added(spent[axis], own[axis], alike=axis == "questions") for axis in AXES}
        for result in found:
            if result.is_base and number == 1:
                yield result
            elif not result.is_base:
                settings = result.settings if number == 1 else settings  # all rounds have them, but for the model
                method = result.method if number == 1 else f"{result.method}, round {number}"
                yield replace(result, method=method, cost=spent, settings=settings)


def _added(before: float | None, more: float | None, *, alike: bool) -> float | None:
    """What two rounds cost together; they look at the same questions."""
    if before is None or more is None:
        return None
    return max(before, more) if alike else before + more
