"""A file of results -> one `Result` for each of its models and sets.

    JSON  {"method": "grpo", "seed": 0,
           "cost": {"questions": 64, "generated_tokens": 81000, "flops": 4.1e11, "device_seconds": 95},
           "sets": {"test": {"rows": [{"id": "q1", "correct": 1}, {"id": "q2", "correct": 0.25}]}}}
    CSV   method,seed,set,question,correct,questions,generated_tokens,flops,device_seconds

`correct` is the share of a question's samples that are right. `seed`, `cost` and each of its numbers may be left out;
so may `settings`, what the model was trained with, and `limit`, how many questions it might have used at most: methods
that differ in the first are kept apart, those that agree in the second are seeds of each other, whatever they used. A
CSV has one row a question of the set, with its method's cost on every row.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from ssb_jax.config import SsbError
from ssb_jax.records import Outcome, parse_json
from ssb_jax.scores import format_failures, format_of

_PerAxis = Mapping[str, float | None]
AXES = ("questions", "generated_tokens", "flops", "device_seconds")
BASE = "base"


@dataclass(frozen=True)
class Result:
    """One model's answers on one set.

    Attributes:
      method: with what sets it apart from results of the same method, where their settings differ.
      cost: axis -> what the model's adapter cost, None where nobody says; all 0 for the base.
      budget: how many questions it might have used: results of one method that agree in it are seeds of each other,
        even if one used fewer. What it used where the source does not say; infinite without a limit.
      scores: question id -> share of its samples that are right.
      gold: question id -> the answer it was graded against, where known.
      texts: question id -> the question, where known.
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
    budget: float | None
    scores: Mapping[str, float]
    gold: Mapping[str, str]
    texts: Mapping[str, str]
    graded: Mapping[str, Any]
    settings: Mapping[str, Any]
    remarks: tuple[str, ...] = ()
    is_base: bool = False


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
    question: str | None = None


class _Format(_Loose):
    boxed: float | None = None
    never_boxed: int | None = None
    truncated: int | None = None


class _Set(_Loose):
    rows: Annotated[list[_Row], Field(min_length=1)]
    graded: dict[str, Any] = {}
    num_samples: int | None = None
    format: dict[str, _Format] = {}
    shared_with_training: list[str] = []


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
    limit: _Amount | None = None
    settings: dict[str, Any] = {}
    sets: Annotated[dict[_Name, _Set], Field(min_length=1)]


def results_of_json(path: Path, *, folder: Path | None) -> Iterator[Result]:
    """The results in a JSON file, which may be that of a run folder.

    Raises:
      SsbError: it cannot be read, a number is none or out of range, or a question is there twice.
    """
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
    graded = found.graded | ({} if found.num_samples is None else {"num_samples": found.num_samples})
    common = {
        "source": str(folder or path),
        "seed": values.seed,
        "set": name,
        "gold": {row.id: row.answer for row in found.rows if row.answer is not None},
        "texts": {row.id: row.question for row in found.rows if row.question is not None},
        "graded": graded,
    }
    cost = _cost(values.cost, folder)
    if any(row.answers for row in found.rows):
        yield from _of_answers(values, found, path, cost, common)
    else:
        yield _of_shares(values, found, path, cost, common)


def _of_shares(values: _File, found: _Set, path: Path, cost: _PerAxis, common: Mapping[str, Any]) -> Result:
    """A result made by hand: one method, and a share of right answers for each question."""
    method = values.method
    if method is None or any(row.correct is None for row in found.rows):
        lacking = "method" if method is None else "a row's correct"
        raise SsbError(f"{path}: {_EXPECTED}; there is no {lacking} ({common['set']})")
    is_base = method == BASE
    cost = dict.fromkeys(AXES, 0) if is_base else cost
    return Result(
        method=method,
        cost=cost,
        budget=_budget(values, cost, own=not is_base),
        scores=_unique([row.id for row in found.rows], [row.correct for row in found.rows], path, common["set"]),
        settings=values.settings,
        remarks=() if is_base else _shared(found, method),
        is_base=is_base,
        **common,
    )


def _of_answers(values: _File, found: _Set, path: Path, cost: _PerAxis, common: Mapping[str, Any]) -> Iterator[Result]:
    """What `ssb eval` writes: graded answers of one or more models, of which the run's own has its method's name."""
    models = list(dict.fromkeys(model for row in found.rows for model in row.answers))
    label = values.method or ""  # names the loss too
    others = [model for model in models if model != BASE]
    if label == BASE and others:
        raise SsbError(f"{path}: method is `base`, the model before training; name {others[0]}'s")
    # Others were trained elsewhere, at a cost unknown. Older files do not say which model is their own.
    said = "own" in values.model_fields_set
    owned = [m for m in others if (m == values.own if said else others == [m] or label == m)]
    nobodys = len(others) > 0 and not owned and not said and values.cost is not None
    for model in models:
        short = next((row.id for row in found.rows if model not in row.answers), None)
        if short is not None:
            raise SsbError(f"{path}: {common['set']}: question {short!r} has no answer of {model}")
        outcomes = [[answer.outcome for answer in row.answers[model]] for row in found.rows]
        own, is_base = model in owned, model == BASE
        method = label if own and label else model
        paid = dict.fromkeys(AXES, 0) if is_base else cost if own else dict.fromkeys(AXES)
        of_base = {k: v for k, v in values.settings.items() if k == "model"}
        remarks = _remarks(found, model, method, outcomes)
        if nobodys:
            remarks += (f"its cost is of none of {', '.join(others)}: say in `own` which model it trained",)
        yield Result(
            method=method,
            cost=paid,
            budget=_budget(values, paid, own=own),
            scores=_unique(
                [row.id for row in found.rows],
                [x.count(Outcome.CORRECT) / len(x) for x in outcomes],
                path,
                common["set"],
            ),
            settings=of_base if is_base else values.settings if own else {},
            remarks=remarks,
            is_base=is_base,
            **common,
        )


def _budget(values: _File, cost: Mapping[str, float | None], *, own: bool) -> float | None:
    if not own or "limit" not in values.model_fields_set:
        return cost["questions"]
    return math.inf if values.limit is None else values.limit


def _remarks(found: _Set, model: str, method: str, outcomes: Sequence[Sequence[Outcome]]) -> tuple[str, ...]:
    facts = found.format.get(model, _Format()).model_dump()
    if None in facts.values():
        facts = format_of([outcome for group in outcomes for outcome in group])
    return (*format_failures({"format": {method: facts}}), *(() if model == BASE else _shared(found, method)))


def _shared(found: _Set, method: str) -> tuple[str, ...]:
    shared = len(found.shared_with_training)
    if not shared:
        return ()
    return (f"{shared} of its {len(found.rows)} questions are training questions of {method} too, not unseen ones",)


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


def results_of_csv(path: Path) -> Iterator[Result]:
    """The results in a CSV file.

    Raises:
      SsbError: as of JSON; or rows of one method, seed and set say different costs of the same number of questions.
    """
    expected = f"expected the columns method, seed, set, question, correct and {', '.join(AXES)}, with commas between"
    groups: dict[tuple, list[_CsvRow]] = {}
    lines: dict[tuple, int] = {}
    number = 1
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            unread = [column for column in reader.fieldnames or () if column not in _CsvRow.model_fields]
            for number, row in enumerate(reader, 2):
                if None in row:
                    raise SsbError(f"{path}: {expected}; line {number} has more cells than the first line")
                values = _CsvRow.model_validate({key: cell for key, cell in row.items() if cell not in ("", None)})
                costs = tuple(getattr(values, axis) for axis in AXES)
                key = (values.method, values.seed, values.set, costs)
                groups.setdefault(key, []).append(values)
                lines.setdefault(key, number)
    except OSError as error:
        raise SsbError(f"{path} cannot be read: {error.strerror}") from None
    except pydantic.ValidationError as error:
        raise SsbError(f"{path}: {expected}; line {number}: {_first(error)}") from None
    except (ValueError, csv.Error) as error:
        raise SsbError(f"{path}: {expected}; {error}") from None
    if not groups:
        raise SsbError(f"{path}: {expected}; there is no row below them")
    _refuse_other_costs(lines, path)
    told = f"the columns {', '.join(unread)} are not read; known are {', '.join(_CsvRow.model_fields)}"
    for (method, seed, name, costs), rows in groups.items():
        cost = dict.fromkeys(AXES, 0) if method == BASE else dict(zip(AXES, costs, strict=True))
        yield Result(
            source=str(path),
            method=method,
            seed=seed,
            set=name,
            cost=cost,
            budget=cost["questions"],
            scores=_unique([row.question for row in rows], [row.correct for row in rows], path, name),
            gold={},
            texts={},
            graded={},
            settings={},
            remarks=(told,) if unread else (),
            is_base=method == BASE,
        )


def _refuse_other_costs(lines: Mapping[tuple, int], path: Path) -> None:
    """Points of a method, seed and set are told apart by their numbers of questions.

    Args:
      lines: (method, seed, set, costs) -> the first line that says so.
    """
    for which in dict.fromkeys(key[:3] for key in lines):
        points = {key[3]: line for key, line in lines.items() if key[:3] == which}
        sizes = [costs[0] for costs in points]
        if len(points) > 1 and (None in sizes or len(set(sizes)) < len(sizes)):
            method, seed, name = which
            raise SsbError(
                f"{path}: lines {' and '.join(map(str, points.values()))} are of {method}, seed {seed}, on {name}, and "
                "differ in what it cost; a point has one cost on all rows, and other points other numbers of questions"
            )


def _unique(ids: Sequence[str], shares: Sequence[float], path: Path, name: str) -> dict[str, float]:
    doubled = [key for key, count in Counter(ids).items() if count > 1]
    if doubled:
        raise SsbError(
            f"{path}: {len(doubled)} questions of {name} are there more than once, the first {doubled[0]!r}; "
            "keep one row a question"
        )
    return dict(zip(ids, shares, strict=True))
