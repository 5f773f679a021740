"""Data set rows -> Questions: from a JSONL file, the hub, or the built-in arithmetic generator."""

import hashlib
import math
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ssb_jax.artifacts import write_jsonl
from ssb_jax.config import Data, SsbError
from ssb_jax.records import Question, normalise, parse_json
from ssb_jax.tiny.problems import load_split

BUILTIN = "builtin:arithmetic"
_SURROGATE = re.compile("[\ud800-\udfff]")


def run(data: Data, folder: Path) -> dict:
    """Writes `questions.jsonl`; returns the counts."""
    questions, doubled = load_questions(data)
    write_jsonl(folder / "questions.jsonl", questions)
    return {"questions": len(questions), "dropped_doubled": doubled}


def load_questions(data: Data) -> tuple[list[Question], int]:
    """The questions that the settings name, in order, and how many doubled ones were left out.

    A question asked again with the same answer is left out: its rollouts would be counted twice.

    Raises:
      SsbError: no such file or data set, no row, a row without question or answer, or one question with two answers.
    """
    if data.path == BUILTIN:
        questions = load_split(data.split, None if data.shuffle_seed is not None else data.limit)
    else:
        questions = [_question(row, where, data) for where, row in _rows(data)]
    if not questions:
        raise SsbError(f"{data.path}: expected at least one question, found none")
    questions, doubled = _without_doubles(questions, data.path)
    if data.shuffle_seed is not None:
        random.Random(data.shuffle_seed).shuffle(questions)
    return questions[: data.limit], doubled


def source_identity(data: Data) -> str | None:
    """Digest of a question file, so that a changed file is noticed; None for other sources."""
    path = _local(data)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if os.path.isfile(path) else None


def _local(data: Data) -> Path:
    """The questions' path on this machine, whether anything is there or not."""
    if "://" not in data.path:
        return Path(data.path).expanduser()
    from ssb_jax.remote import fetched

    return fetched(data.path)


def _rows(data: Data) -> Iterator[tuple[str, dict[str, Any]]]:
    path = _local(data)
    if os.path.isfile(path):  # False also for a name that no file can have
        yield from _jsonl_rows(path)
    elif data.path.endswith((".jsonl", ".json")) or data.path.startswith((".", "/", "~")):
        raise SsbError(f"no question file {path}; expected JSON lines with `{data.question_column}` and an answer")
    else:
        yield from _hub_rows(data)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                row = parse_json(line) if line.strip() else None
            except ValueError as error:
                raise SsbError(f"{where}: expected a JSON object: {error}") from None
            if not line.strip():
                continue
            if not isinstance(row, dict):
                raise SsbError(f"{where}: expected a JSON object, got {type(row).__name__}")
            yield where, row


def _hub_rows(data: Data) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets  # takes a second to import, and a run on a file does without

    try:
        rows: Iterable = datasets.load_dataset(data.path, data.name, split=data.split, revision=data.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SsbError(
            f"{data.path} is no local file, and as a hub data set (name {data.name}, split {data.split}) it cannot be "
            f"loaded: {str(error).splitlines()[0]}"
        ) from None
    for number, row in enumerate(rows):
        yield f"{data.path} {data.split}[{number}]", row


def _question(row: dict[str, Any], where: str, data: Data) -> Question:
    def column(name: str) -> str:
        value = row.get(name)
        if not _is_text(value):
            found = f"it is {value!r}" if name in row else f"the row has {', '.join(sorted(row)) or 'nothing'}"
            raise SsbError(f"{where}: expected text in the column {name!r}; {found}")
        return str(value).strip()

    text = column(data.question_column)
    answer = column(data.answer_column)
    if data.answer_pattern is not None:
        answer = _match(data.answer_pattern, answer, where)
    identifier = hashlib.sha256(normalise(text).encode()).hexdigest()[:12]
    if data.id_column is not None:
        identifier = column(data.id_column)
    return Question(
        id=identifier,
        question=text,
        answer=answer,
        subject=_first(row, "subject", "type", "Type"),
        level=_first(row, "level"),
    )


def _first(row: dict[str, Any], *columns: str) -> str | None:
    """The first of these columns that the row has, as text."""
    return next((_SURROGATE.sub("?", str(row[c])) for c in columns if row.get(c) is not None), None)


def _is_text(value: Any) -> bool:
    """Whether a value is text, or a number that has one."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return False
    return bool(str(value).strip()) and not _SURROGATE.search(str(value))  # UTF-8 holds no lone surrogate


def _match(pattern: str, answer: str, where: str) -> str:
    found = re.search(pattern, answer)
    if found is None or not found.group(1).strip():
        raise SsbError(f"{where}: answer_pattern {pattern!r} finds nothing in {answer[-80:]!r}")
    return found.group(1).strip()


def _without_doubles(questions: list[Question], source: str) -> tuple[list[Question], int]:
    seen: dict[str, Question] = {}
    for question in questions:
        first = seen.setdefault(question.id, question)
        if first is not question and (first.question, first.answer) != (question.question, question.answer):
            same = normalise(first.question) == normalise(question.question)
            what = "one question with two answers" if same else "two questions with one id"
            raise SsbError(
                f"{source}: {what} ({question.id}: {first.question[:60]!r} -> {first.answer!r}, "
                f"{question.question[:60]!r} -> {question.answer!r}); remove one of them"
            )
    return list(seen.values()), len(questions) - len(seen)
