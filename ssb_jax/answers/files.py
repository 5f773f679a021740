"""Grading for people: a JSONL file of responses, and one pair with the reasoning shown."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssb_jax.answers.extraction import MAX_RESPONSE, extract_answer
from ssb_jax.answers.grading import grade_cheaply, strict_equal
from ssb_jax.answers.latex import tidy
from ssb_jax.answers.limits import too_large
from ssb_jax.answers.pool import TIME_LIMIT, Grade, GraderPool
from ssb_jax.answers.structure import parse
from ssb_jax.artifacts import write_atomically
from ssb_jax.config import SsbError
from ssb_jax.records import Outcome


class WrittenNumber(float):
    """A JSON number that keeps its text: the digits of a gold answer count, also those that a float cannot hold."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text


def verify_file(
    in_path: str | Path, out_path: str | Path, *, workers: int | None = None, time_limit: float = TIME_LIMIT
) -> dict[str, Any]:
    """Grades each row of a JSONL file and writes the rows with their verdicts.

    Args:
      in_path: rows with `gold` and `response` (and optionally `truncated`); other keys are kept.
      out_path: gets the same rows in the same order with `correct` (bool), `outcome`, `extracted`, `reason` and
        `strict` (the boxed string equals the gold string), written atomically.
      workers, time_limit: see `GraderPool`.

    Returns:
      Counts: rows, strict, and rows by outcome.

    Raises:
      SsbError: the file is missing, empty or has a malformed row; nothing is graded or written then.
    """
    in_path, out_path = Path(in_path), Path(out_path)
    rows = list(_rows(in_path))
    if not rows:
        raise SsbError(f"{in_path} has no rows; expected JSON objects with 'gold' and 'response', one a line")
    items = ((i, row["response"], str(row["gold"]), row.get("truncated", False)) for i, row in enumerate(rows))
    counts: Counter[str] = Counter({outcome.value: 0 for outcome in Outcome})
    strict, lines = 0, []
    with GraderPool(workers=workers, time_limit=time_limit) as pool:
        for i, grade in pool.grade_many(items):
            verdict = _verdict(grade, str(rows[i]["gold"]))
            counts[grade.outcome] += 1
            strict += verdict["strict"]
            lines.append(_line({**rows[i], **verdict}))
    try:
        # a lone surrogate, which UTF-8 cannot hold, becomes its JSON escape
        write_atomically(out_path, "".join(lines).encode(errors="backslashreplace"))
    except OSError as error:
        raise SsbError(f"{out_path} cannot be written: {error.strerror}; choose another --out") from None
    return {"rows": len(rows), "strict": strict, **counts}


def _line(row: dict[str, Any]) -> str:
    """A row as JSON, its own numbers as they were written."""
    pairs = (
        f"{json.dumps(key, ensure_ascii=False)}: "
        + (value.text if isinstance(value, WrittenNumber) else json.dumps(value, ensure_ascii=False))
        for key, value in row.items()
    )
    return "{" + ", ".join(pairs) + "}\n"


def _verdict(grade: Grade, gold: str) -> dict[str, Any]:
    return {
        "correct": grade.outcome is Outcome.CORRECT,
        "outcome": grade.outcome.value,
        "extracted": grade.extracted,
        "reason": grade.reason,
        "strict": grade.extracted is not None and strict_equal(grade.extracted, gold),
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SsbError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _row(line, f"{path}, line {number}")


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_float=WrittenNumber)
    except (ValueError, RecursionError) as error:
        raise SsbError(f"{where}: expected a JSON object, but {error}") from None
    if not isinstance(row, dict):
        raise SsbError(f"{where}: expected a JSON object with 'gold' and 'response', got a {type(row).__name__}")
    for key, types, expected in (
        ("gold", (str, int, float), "a string or a number"),
        ("response", (str,), "a string"),
        ("truncated", (bool,), "true or false"),
    ):
        if key not in row:
            if key == "truncated":
                continue
            raise SsbError(f"{where}: the key '{key}' is missing; expected 'gold' and 'response'")
        if not isinstance(row[key], types) or (isinstance(row[key], bool) and bool not in types):
            raise SsbError(f"{where}: '{key}' is {expected}, got {json.dumps(row[key])[:60]}")
    if isinstance(row["gold"], float) and not math.isfinite(row["gold"]):
        raise SsbError(f"{where}: 'gold' is {row['gold']}; expected a number or text")
    if not str(row["gold"]).strip():
        raise SsbError(f"{where}: 'gold' is empty; expected the right answer")
    return row


def explain(response: str, gold: str, *, truncated: bool = False, time_limit: float = TIME_LIMIT) -> str:
    """How one response is graded, in lines of text: what was extracted, how both sides are read, and the verdict.

    A response without a box is taken as the answer itself, so that two answers can be compared directly.
    """
    bare = "\\boxed" not in response and "\\fbox" not in response
    boxed = f"\\boxed{{{response}}}" if bare else response
    cheap = grade_cheaply(boxed, gold, truncated=truncated)
    if isinstance(cheap, Grade):
        grade, path = cheap, "strings and exact numbers"
    else:
        path = "algebra system, in a worker"
        with GraderPool(workers=1, time_limit=time_limit) as pool:
            grade = pool.grade(boxed, gold, truncated=truncated)
    extracted = extract_answer(boxed) if len(boxed) <= MAX_RESPONSE else None
    lines = [f"gold      {gold}", *_reading(gold)]
    if extracted is None:
        lines += ["answer    none"]
    else:
        note = "  (no box: the whole response is compared; in a file it would be `unanswered`)" if bare else ""
        lines += [f"answer    {extracted}{note}", *_reading(extracted)]
        lines += [f"strict    {'equal' if strict_equal(extracted, gold) else 'different'} strings"]
    lines += [f"path      {path}"]
    lines += [f"verdict   {grade.outcome.value}: {grade.reason}"]
    return "\n".join(lines)


def _reading(text: str) -> list[str]:
    if too_large(text) is not None:
        return [f"  refused {too_large(text)}"]
    return [f"  tidy    {tidy(text)}", f"  kind    {type(parse(tidy(text))).__name__.lower()}"]
