"""Answers that another engine wrote (vLLM, transformers, an API), as JSON lines -> rollouts of an evaluation set.

    {"question": "...", "response": "... \\boxed{4}"}
    {"id": "q17", "response": "...", "set": "MATH500", "finish_reason": "length"}

A row names its question by `id`, or by its text; several rows of one question are its samples, in order. Other keys are
passed over.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass

from ssb_jax.artifacts import read_jsonl
from ssb_jax.config import SsbError
from ssb_jax.records import Question, Rollout, StopReason, normalise


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


@dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class GivenAnswer:
    """One row; `set` may be left out, `finish_reason` is `length` where the answer was cut off."""

    response: str
    id: Annotated[str, BeforeValidator(_as_text)] | None = None
    question: str | None = None
    set: str | None = None
    finish_reason: str | None = None


def read_given(path: Path) -> list[GivenAnswer]:
    """The rows of a file of answers.

    Raises:
      SsbError: it cannot be read, is empty, or a row names no question.
    """
    rows = read_jsonl(path, GivenAnswer)
    if not rows:
        raise SsbError(f"{path}: expected at least one row with response and id or question, found none")
    nameless = [row for row in rows if row.id is None and row.question is None]
    if nameless:
        raise SsbError(f"{path}: {len(nameless)} of {len(rows)} rows have neither id nor question")
    return rows


def given_rollouts(
    rows: Sequence[GivenAnswer], questions: Sequence[Question], *, set_name: str, num_samples: int, source: Path
) -> list[Rollout]:
    """The answers to one set, `num_samples` a question, in question order; none where no row belongs to the set.

    Raises:
      SsbError: a question has more or fewer answers than that, or a row's id and text are of two questions.
    """
    given: dict[str, list[GivenAnswer]] = {question.id: [] for question in questions}
    for row, key in _assigned(rows, questions, set_name, source):
        given[key].append(row)
    if not any(given.values()):
        return []
    wrong = {key: len(found) for key, found in given.items() if len(found) != num_samples}
    if wrong:
        missing, first = sum(count < num_samples for count in wrong.values()), next(iter(wrong))
        raise SsbError(
            f"{source}: {set_name} asks for {num_samples} answer(s) to each of {len(given)} questions; {missing} "
            f"questions have too few, {len(wrong) - missing} too many, the first is {first} with {wrong[first]}"
        )
    return [_rollout(key, sample, row) for key, found in given.items() for sample, row in enumerate(found)]


def belonging(rows: Sequence[GivenAnswer], questions: Sequence[Question], *, set_name: str) -> list[GivenAnswer]:
    """The rows that answer one of a set's questions."""
    return [row for row, _ in _assigned(rows, questions, set_name, None)]


def _assigned(
    rows: Sequence[GivenAnswer], questions: Sequence[Question], set_name: str, source: Path | None
) -> Iterator[tuple[GivenAnswer, str]]:
    """Each row that answers one of the questions, with that question's id."""
    ids = {question.id for question in questions}
    by_text = {normalise(question.question): question.id for question in questions}
    for row in rows:
        if row.set in (None, set_name):
            named, asked = row.id if row.id in ids else None, by_text.get(normalise(row.question or ""))
            if named and row.question and named != asked:
                whose = f"the text of question {asked}" if asked else f"another text than that question of {set_name}"
                raise SsbError(f"{source}: a row has the id {named} and {whose}; mend or leave out one of them")
            if named or asked:
                yield row, named or asked


def _rollout(question_id: str, sample: int, row: GivenAnswer) -> Rollout:
    stop = StopReason.LENGTH if row.finish_reason == "length" else StopReason.END_OF_TURN
    return Rollout(question_id, sample, row.response, token_ids=(), stop=stop, prompt_tokens=0)
