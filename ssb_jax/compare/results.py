"""Run folders and files of results -> one `Result` for each model, seed and set.

Read are run folders (their `evaluation/results.json`), the cells of a study, the rounds of a run, such a results.json
of any trainer, and files made by hand:

    JSON  {"method": "grpo", "seed": 0,
           "cost": {"questions": 64, "generated_tokens": 81000, "flops": 4.1e11, "device_seconds": 95},
           "sets": {"test": {"rows": [{"id": "q1", "correct": 1}, {"id": "q2", "correct": 0.25}]}}}
    CSV   method,seed,set,question,correct,questions,generated_tokens,flops,device_seconds

`correct` is the share of a question's samples that are right. `seed`, `cost` and each of its numbers may be left out;
so may `settings`, what the model was trained with: methods that differ in them are kept apart. A CSV has one row a
question of the set, with its method's cost on every row.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from ssb_jax.artifacts import digest
from ssb_jax.config import SsbError
from ssb_jax.records import Outcome, parse_json
from ssb_jax.scores import format_failures

AXES = ("questions", "generated_tokens", "flops", "device_seconds")
BASE = "base"
_MOST_NAMED = 2  # settings that a method's name says


@dataclass(frozen=True)
class Result:
    """One model's answers on one set.

    Attributes:
      method: with what sets it apart from results of the same method, where their settings differ.
      cost: axis -> what the model's adapter cost, None where nobody says; all 0 for the base.
      scores: question id -> share of its samples that are right.
      gold: question id -> the answer it was graded against, where known.
      graded: how answers were drawn and graded, as far as the source says.
      settings: what the model was trained with, as far as the source says.
      remarks: sentences that a reader of its accuracy must know.
      is_base: the model before training, that all methods share.
    """

    source: str
    method: str
    seed: int
    set: str
    cost: Mapping[str, float | None]
    scores: Mapping[str, float]
    gold: Mapping[str, str]
    graded: Mapping[str, Any]
    settings: Mapping[str, Any]
    remarks: tuple[str, ...] = ()
    is_base: bool = False


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
        key = (result.set, result.method, result.seed, result.cost["questions"])
        first = seen.setdefault(key, result)
        if first is not result and not result.is_base:
            raise SsbError(
                f"{result.source} and {first.source} both have {result.method}, seed {result.seed}, on {result.set} "
                f"after {result.cost['questions']} questions; leave one out, or give them different seeds or methods"
            )
    return results


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
        for cell in cells:
            if _evaluated(cell):  # a study that goes on is compared as far as it is
                yield from _read(cell)
    elif source.is_dir():
        if not _evaluated(source):
            is_run = (source / "config.yaml").is_file()
            then = "run `ssb eval` there first" if is_run else "give a run folder, a study or a file of results"
            raise SsbError(f"{source} has no evaluation/results.json; {then}")
        yield from _from_json(source / "evaluation" / "results.json", folder=source)
    elif source.suffix == ".csv":
        yield from _from_csv(source)
    else:
        yield from _from_json(source, folder=None)


def _evaluated(folder: Path) -> bool:
    return (folder / "evaluation" / "results.json").is_file()


def _rounds(folders: Sequence[Path]) -> Iterator[Result]:
    """Each round's student as a method of its own that cost all rounds so far; the base is the first one's."""
    spent: dict[str, float | None] = dict.fromkeys(AXES, 0.0)
    settings: Mapping[str, Any] = {}
    for number, folder in enumerate(folders, 1):
        if not _evaluated(folder):
            return
        found = list(_read(folder))
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


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


_Name = Annotated[str, Field(min_length=1)]
_Amount = Annotated[float, Field(ge=0)]


class _Answer(_Loose):
    outcome: Outcome


class _Row(_Loose):
    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str
    correct: Annotated[float, Field(ge=0, le=1)] | None = None
    answers: dict[_Name, Annotated[list[_Answer], Field(min_length=1)]] = {}
    answer: str | None = None


class _Format(_Loose):
    boxed: float | None = None
    never_boxed: int | None = None
    truncated: int | None = None


class _Set(_Loose):
    rows: Annotated[list[_Row], Field(min_length=1)]
    graded: dict[str, Any] = {}
    num_samples: int | None = None
    format: dict[str, _Format] = {}


class _Cost(_Loose):
    model_config = ConfigDict(extra="forbid")

    questions: _Amount | None = None
    generated_tokens: _Amount | None = None
    flops: _Amount | None = None
    device_seconds: _Amount | None = None


class _File(_Loose):
    """What is read of a results.json; `ssb eval` writes more."""

    method: _Name | None = None
    own: str | None = None
    seed: int = 0
    cost: _Cost | None = None
    settings: dict[str, Any] = {}
    sets: Annotated[dict[_Name, _Set], Field(min_length=1)]


def _from_json(path: Path, *, folder: Path | None) -> Iterator[Result]:
    try:
        values = _File.model_validate(parse_json(path.read_bytes()))
    except OSError as error:
        raise SsbError(f"{path} cannot be read: {error.strerror}") from None
    except pydantic.ValidationError as error:
        raise SsbError(f"{path}: {_EXPECTED}; {_first(error)}") from None
    except ValueError as error:
        raise SsbError(f"{path}: {_EXPECTED}; {error}") from None
    for name, found in values.sets.items():
        yield from _of_set(values, name, found, path, folder)


_EXPECTED = "expected results as JSON with sets, each with rows of id and correct, or of id and answers"


def _first(error: pydantic.ValidationError) -> str:
    found = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in found["loc"]) or "the file"
    got = "" if isinstance(found["input"], dict | list) else f", got {found['input']!r}"
    return f"{where}: {found['msg'].lower()}{got}"


def _of_set(values: _File, name: str, found: _Set, path: Path, folder: Path | None) -> Iterator[Result]:
    models = list(dict.fromkeys(model for row in found.rows for model in row.answers))
    cost = _cost(values.cost, folder)
    graded = found.graded | ({} if found.num_samples is None else {"num_samples": found.num_samples})
    common = {
        "source": str(folder or path),
        "seed": values.seed,
        "set": name,
        "gold": {row.id: row.answer for row in found.rows if row.answer is not None},
        "graded": graded,
    }
    ids = [row.id for row in found.rows]
    if not models:
        method = values.method
        if method is None or any(row.correct is None for row in found.rows):
            lacking = "method" if method is None else "a row's correct"
            raise SsbError(f"{path}: {_EXPECTED}; there is no {lacking} ({name})")
        scores = _unique(ids, [row.correct for row in found.rows], path, name)
        is_base = method == BASE
        cost = dict.fromkeys(AXES, 0) if is_base else cost
        yield Result(method=method, cost=cost, scores=scores, settings=values.settings, is_base=is_base, **common)
    label = values.method or ""  # names the loss too
    others = [model for model in models if model != BASE]
    for model in models:
        short = next((row.id for row in found.rows if model not in row.answers), None)
        if short is not None:
            raise SsbError(f"{path}: {name}: question {short!r} has no answer of {model}")
        given = [row.answers[model] for row in found.rows]
        shares = [sum(a.outcome is Outcome.CORRECT for a in answers) / len(answers) for answers in given]
        # Others were trained elsewhere, at a cost unknown. Older files do not say which model is their own.
        own = model == values.own if "own" in values.model_fields_set else others == [model] or label == model
        is_base = model == BASE
        of_base = {k: v for k, v in values.settings.items() if k == "model"}
        yield Result(
            method=label if own and label else model,
            cost=dict.fromkeys(AXES, 0) if is_base else cost if own else dict.fromkeys(AXES),
            scores=_unique(ids, shares, path, name),
            settings=of_base if is_base else values.settings if own else {},
            remarks=_remarks(found, model),
            is_base=is_base,
            **common,
        )


def _remarks(found: _Set, model: str) -> tuple[str, ...]:
    facts = found.format.get(model, _Format()).model_dump()
    return () if None in facts.values() else tuple(format_failures({"format": {model: facts}}))


def _cost(recorded: _Cost | None, folder: Path | None) -> dict[str, float | None]:
    """What the results say it cost, or else what the stages of the run folder say."""
    if recorded is not None:
        return recorded.model_dump()
    spent = None
    if folder is not None:
        from ssb_jax.costs import run_cost  # a file of results needs no JAX

        spent = run_cost(folder)
    return dict.fromkeys(AXES) | ({} if spent is None else vars(spent))


class _CsvRow(_Loose):
    method: _Name
    seed: int = 0
    set: _Name
    question: str
    correct: Annotated[float, Field(ge=0, le=1)]
    questions: _Amount | None = None
    generated_tokens: _Amount | None = None
    flops: _Amount | None = None
    device_seconds: _Amount | None = None


def _from_csv(path: Path) -> Iterator[Result]:
    expected = f"expected the columns method, seed, set, question, correct and {', '.join(AXES)}, with commas between"
    groups: dict[tuple, list[_CsvRow]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                if None in row:
                    raise SsbError(f"{path}: {expected}; line {number} has more cells than the first line")
                values = _CsvRow.model_validate({key: cell for key, cell in row.items() if cell not in ("", None)})
                costs = tuple(getattr(values, axis) for axis in AXES)
                groups.setdefault((values.method, values.seed, values.set, costs), []).append(values)
    except OSError as error:
        raise SsbError(f"{path} cannot be read: {error.strerror}") from None
    except pydantic.ValidationError as error:
        raise SsbError(f"{path}: {expected}; line {number}: {_first(error)}") from None
    except (ValueError, csv.Error) as error:
        raise SsbError(f"{path}: {expected}; {error}") from None
    if not groups:
        raise SsbError(f"{path}: {expected}; there is no row below them")
    for (method, seed, name, costs), rows in groups.items():
        yield Result(
            source=str(path),
            method=method,
            seed=seed,
            set=name,
            cost=dict.fromkeys(AXES, 0) if method == BASE else dict(zip(AXES, costs, strict=True)),
            scores=_unique([row.question for row in rows], [row.correct for row in rows], path, name),
            gold={},
            graded={},
            settings={},
            is_base=method == BASE,
        )


def _unique(ids: Sequence[str], shares: Sequence[float], path: Path, name: str) -> dict[str, float]:
    doubled = [key for key, count in Counter(ids).items() if count > 1]
    if doubled:
        raise SsbError(
            f"{path}: {len(doubled)} questions of {name} are there more than once, the first {doubled[0]!r}; "
            "keep one row a question"
        )
    return dict(zip(ids, shares, strict=True))
