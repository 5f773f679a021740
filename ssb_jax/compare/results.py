"""Run folders and files of results -> one `Result` for each model, seed and set.

Read are run folders (their `evaluation/results.json`), the cells of a study, such a results.json of any trainer, and
files made by hand:

    JSON  {"method": "grpo", "seed": 0,
           "cost": {"questions": 64, "generated_tokens": 81000, "flops": 4.1e11, "device_seconds": 95},
           "sets": {"test": {"rows": [{"id": "q1", "correct": 1}, {"id": "q2", "correct": 0.25}]}}}
    CSV   method,seed,set,question,correct,questions,generated_tokens,flops,device_seconds

`correct` is the share of a question's samples that are right. `seed`, `cost` and each of its numbers may be left out.
A CSV has one row a question of the set, with its method's cost on every row.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssb_jax.config import SsbError
from ssb_jax.records import Outcome, parse_json

AXES = ("questions", "generated_tokens", "flops", "device_seconds")
BASE = "base"


@dataclass(frozen=True)
class Result:
    """One model's answers on one set.

    Attributes:
      cost: axis -> what the model's adapter cost, None where nobody says; all 0 for the base.
      scores: question id -> share of its samples that are right.
      gold: question id -> the answer it was graded against, where known.
      graded: how answers were drawn and graded, as far as the source says.
    """

    source: str
    method: str
    seed: int
    set: str
    cost: Mapping[str, float | None]
    scores: Mapping[str, float]
    gold: Mapping[str, str]
    graded: Mapping[str, Any]


def read_results(sources: Sequence[Path]) -> list[Result]:
    """The results of run folders and files, in order.

    Raises:
      SsbError: a source is not readable, a question is there twice, or a model, seed and cost come twice.
    """
    results = [result for source in sources for result in _read(source)]
    if not results:
        raise SsbError(f"expected results to compare, found none in {', '.join(map(str, sources))}")
    seen: dict[tuple, Result] = {}
    for result in results:
        key = (result.set, result.method, result.seed, result.cost["questions"])
        first = seen.setdefault(key, result)
        if first is not result and result.method != BASE:
            raise SsbError(
                f"{result.source} and {first.source} both have {result.method}, seed {result.seed}, on {result.set} "
                f"after {result.cost['questions']} questions; leave one out, or give them different seeds or methods"
            )
    return results


def begun_cells(folder: Path) -> list[Path] | None:
    """The run folders of a study that have begun, None of a folder that is no study."""
    if not (folder / "cells").is_dir():
        return None
    return sorted(path.parent for path in folder.glob("cells/*/config.yaml"))


def _read(source: Path) -> Iterator[Result]:
    cells = begun_cells(source)
    if cells is not None:
        for cell in cells:
            if (cell / "evaluation" / "results.json").is_file():  # a study that goes on is compared as far as it is
                yield from _read(cell)
    elif source.is_dir():
        path = source / "evaluation" / "results.json"
        if not path.is_file():
            is_run = (source / "config.yaml").is_file()
            then = "run `ssb eval` there first" if is_run else "give a run folder, a study or a file of results"
            raise SsbError(f"{source} has no evaluation/results.json; {then}")
        yield from _from_json(path, folder=source)
    elif source.suffix == ".csv":
        yield from _from_csv(source)
    else:
        yield from _from_json(source, folder=None)


def _from_json(path: Path, *, folder: Path | None) -> Iterator[Result]:
    try:
        values = parse_json(path.read_bytes())
        sets = values["sets"]
        for name, found in sets.items():
            yield from _of_set(values, name, found, path, folder)
    except OSError as error:
        raise SsbError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SsbError(
            f"{path}: expected results as JSON with sets, each with rows of id and correct, or of id and answers; "
            f"{_what(error)}"
        ) from None


def _of_set(
    values: Mapping[str, Any], name: str, found: Mapping[str, Any], path: Path, folder: Path | None
) -> Iterator[Result]:
    rows = found["rows"]
    models = list(dict.fromkeys(model for row in rows for model in row.get("answers", {})))
    cost = _cost(values.get("cost"), folder, path)
    common = {
        "source": str(folder or path),
        "seed": int(values.get("seed", 0)),
        "set": name,
        "gold": {row["id"]: row["answer"] for row in rows if "answer" in row},
        "graded": found.get("graded", {}) | {k: found[k] for k in ("num_samples",) if k in found},
    }
    ids = [row["id"] for row in rows]
    if not models:
        scores = _unique(ids, [_share(row["correct"]) for row in rows], path, name)
        yield Result(method=values["method"], cost=cost, scores=scores, **common)
    label = str(values.get("method", ""))  # may name the loss too
    others = [model for model in models if model != BASE]
    for model in models:
        answers = [row["answers"][model] for row in rows]
        shares = [sum(a["outcome"] == Outcome.CORRECT for a in given) / len(given) for given in answers]
        own = others == [model] or label.split(" ")[0] == model  # others were trained elsewhere, at a cost unknown
        yield Result(
            method=label if own and label else model,
            cost=dict.fromkeys(AXES, 0) if model == BASE else cost if own else dict.fromkeys(AXES),
            scores=_unique(ids, shares, path, name),
            **common,
        )


def _cost(recorded: Mapping[str, float] | None, folder: Path | None, path: Path) -> dict[str, float | None]:
    """What the results say it cost, or else what the stages of the run folder say."""
    if recorded is None and folder is not None:
        from ssb_jax.costs import run_cost  # a file of results needs no JAX

        found = run_cost(folder)
        recorded = {} if found is None else vars(found)
    recorded = recorded or {}
    unknown = sorted(set(recorded) - set(AXES))
    if unknown:
        raise SsbError(f"{path}: cost has {', '.join(unknown)}; expected some of {', '.join(AXES)}")
    return {axis: None if recorded.get(axis) is None else float(recorded[axis]) for axis in AXES}


def _from_csv(path: Path) -> Iterator[Result]:
    groups: dict[tuple, list[dict[str, str]]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                key = (row["method"], int(row.get("seed") or 0), row["set"], *(row.get(axis) or None for axis in AXES))
                groups.setdefault(key, []).append(row)
        for (method, seed, name, *costs), rows in groups.items():
            shares = [_share(float(row["correct"])) for row in rows]
            yield Result(
                source=str(path),
                method=method,
                seed=seed,
                set=name,
                cost={a: None if c is None else float(c) for a, c in zip(AXES, costs, strict=True)},
                scores=_unique([row["question"] for row in rows], shares, path, name),
                gold={},
                graded={},
            )
    except OSError as error:
        raise SsbError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise SsbError(
            f"{path}: expected the columns method, seed, set, question, correct and {', '.join(AXES)}; {_what(error)}"
        ) from None


def _what(error: Exception) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"correct is the share of a question's samples that are right, 0 to 1, got {value!r}")
    return float(value)


def _unique(ids: Sequence[str], shares: Sequence[float], path: Path, name: str) -> dict[str, float]:
    doubled = [key for key, count in Counter(ids).items() if count > 1]
    if doubled:
        raise SsbError(
            f"{path}: {len(doubled)} questions of {name} are there more than once, the first {doubled[0]!r}; "
            "keep one row a question"
        )
    return dict(zip(ids, shares, strict=True))
