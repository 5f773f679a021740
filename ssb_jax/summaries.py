"""`evaluation/results.json` of a run folder, checked as it is read: it is a file that people edit and copy.

What it holds is written by scores.py (a set's summary) and stages/evaluation.py (what is said of the run).
"""

from pathlib import Path
from typing import Annotated, Any, NotRequired

import pydantic
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from ssb_jax.config import SsbError
from ssb_jax.records import Outcome, parse_json

_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Interval(TypedDict):
    value: _Number
    low: _Number | None
    high: _Number | None


class _Paired(TypedDict):
    better: int
    worse: int
    equal: int
    p_value: _Number


class _Format(TypedDict):
    boxed: _Number
    never_boxed: int
    truncated: int


class _Strict(TypedDict):
    changed: int


class _Answer(TypedDict):
    text: str
    outcome: Outcome
    extracted: str | None
    tokens: int | None
    reason: str


class _Row(TypedDict):
    id: str
    question: str
    answer: str
    answers: dict[str, Annotated[list[_Answer], Field(min_length=1)]]


_Metrics = dict[str, dict[str, _Interval]]


class _Set(TypedDict):
    questions: int
    num_samples: NotRequired[int]
    confidence: NotRequired[_Number]
    metrics: _Metrics
    differences: _Metrics
    paired: NotRequired[dict[str, _Paired]]
    format: NotRequired[dict[str, _Format]]
    strict: NotRequired[dict[str, _Strict]]
    shared_with_training: NotRequired[list[str]]
    rows: NotRequired[list[_Row]]


def _of_the_same_models(found: _Set) -> _Set:
    """Whether all that is said is said of a model with an accuracy, and of each one's format both numbers."""
    models = found["metrics"].keys()
    if not models or not all("pass@1" in metrics for metrics in found["metrics"].values()):
        raise ValueError("expected pass@1 of one model at least in metrics")
    parts = ("differences", "paired", "format", "strict")
    strangers = [name for part in parts for name in found.get(part, {}) if name not in models]
    if strangers:
        raise ValueError(f"metrics has nothing of {strangers[0]}")
    if found.get("format", {}).keys() - found.get("strict", {}).keys():
        raise ValueError("expected strict of the models that format speaks of")
    return found


class _File(TypedDict):
    sets: dict[str, Annotated[_Set, AfterValidator(_of_the_same_models)]]


_CHECK = pydantic.TypeAdapter(_File)


def read_summaries(run_folder: Path) -> dict[str, dict[str, Any]]:
    """Set -> its summary; none of a run that is not evaluated.

    Raises:
      SsbError: the file is damaged.
    """
    path = run_folder / "evaluation" / "results.json"
    if not path.exists():
        return {}
    try:
        values = parse_json(path.read_bytes())
        _CHECK.validate_python(values)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, found['loc']))}: {found['msg'].lower()}"
    except (OSError, ValueError) as error:
        what = str(error)
    else:
        return values["sets"]
    raise SsbError(f"{path} cannot be read ({what}); delete it and run `ssb eval` again")
