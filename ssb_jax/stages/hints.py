"""Verdicts -> Hints: the first correct rollout and one that gave the most common wrong answer, or a drop reason."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ssb_jax.artifacts import write_jsonl
from ssb_jax.records import DropReason, Hint, Outcome, Rollout, Verdict


def run(
    rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], folder: Path, *, seed: int, min_wrong_count: int = 1
) -> dict:
    """Writes `hints.jsonl`, one row a question; returns counts by drop reason.

    Args:
      rollouts, verdicts: in the same order, the rows of a question together.
    """
    hints = [
        choose(list(rows), seed=seed, min_wrong_count=min_wrong_count)
        for _, rows in groupby(zip(rollouts, verdicts, strict=True), key=lambda row: row[0].question_id)
    ]
    write_jsonl(folder / "hints.jsonl", hints)
    dropped = Counter(hint.dropped for hint in hints if hint.dropped is not None)
    return {
        "questions": len(hints),
        "mixed": sum(hint.dropped is None for hint in hints),
        **{reason.value: count for reason, count in sorted(dropped.items())},
    }


def choose(rows: Sequence[tuple[Rollout, Verdict]], *, seed: int, min_wrong_count: int = 1) -> Hint:
    """The hint of one question (method.md, "select").

    The wrong answer is the most common one; when none repeats, one of them at random, by a seed and the question's
    id alone. Wrong answers are the same when they are the same text without white space. Unanswered, truncated,
    timed-out and failed rollouts are neither correct nor incorrect.
    """
    question_id = rows[0][0].question_id
    correct = [rollout for rollout, verdict in rows if verdict.outcome is Outcome.CORRECT]
    wrong = [(r, "".join(v.extracted.split())) for r, v in rows if v.outcome is Outcome.INCORRECT]
    counts = Counter(answer for _, answer in wrong)
    wrong = [(rollout, answer) for rollout, answer in wrong if counts[answer] >= min_wrong_count]
    if not correct or not wrong:
        reason = DropReason.NO_INCORRECT if correct else DropReason.NO_CORRECT if wrong else DropReason.NEITHER
        return Hint(question_id=question_id, dropped=reason)
    most_common, count = counts.most_common(1)[0]
    if count == 1:
        key = int.from_bytes(hashlib.sha256(f"{seed} {question_id}".encode()).digest()[:8])
        most_common = random.Random(key).choice(sorted(counts))
    incorrect = next(rollout for rollout, answer in wrong if answer == most_common)
    return Hint(
        question_id=question_id,
        correct_sample=correct[0].sample,
        incorrect_sample=incorrect.sample,
        correct_text=correct[0].text,
        incorrect_text=incorrect.text,
        wrong_answer=most_common,
        wrong_count=count,
    )
