"""Rollouts -> Verdicts: each final answer compared with the gold answer. Same rollouts, same bytes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ssb_jax.answering import grade_rollouts
from ssb_jax.artifacts import write_jsonl
from ssb_jax.config import Grading
from ssb_jax.records import Outcome, Question, Rollout


def run(
    questions: Sequence[Question],
    rollouts: Sequence[Rollout],
    folder: Path,
    *,
    settings: Grading,
    description: str = "verification",
) -> dict:
    """Writes `verdicts.jsonl` in the rollouts' order; returns counts by outcome."""
    gold = {q.id: q.answer for q in questions}
    verdicts = grade_rollouts(rollouts, gold, settings=settings, description=description)
    write_jsonl(folder / "verdicts.jsonl", verdicts)
    outcomes = Counter(v.outcome for v in verdicts)
    return {
        "verdicts": len(verdicts),
        **{outcome.value: outcomes[outcome] for outcome in Outcome},
        "strict_differs": sum(v.strict != (v.outcome is Outcome.CORRECT) for v in verdicts),
    }
