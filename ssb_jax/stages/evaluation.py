"""A model's answers to an evaluation set: sampled here, or read from a file that another engine wrote."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssb_jax import hosts
from ssb_jax.answering import answer, grade_rollouts, load_rollouts
from ssb_jax.artifacts import read_jsonl, write_atomically, write_jsonl
from ssb_jax.config import EvaluationSet, Grading
from ssb_jax.model.lora import Lora
from ssb_jax.records import Outcome, Question, Rollout, Verdict
from ssb_jax.scores import Answers
from ssb_jax.workspace import Workspace

_EVALUATION_SEED = 104_729  # evaluation draws other random numbers than the rollouts of the same question


def run(
    questions: Sequence[Question],
    folder: Path,
    *,
    evaluation_set: EvaluationSet,
    workspace: Workspace,
    lora: Lora | None,
    description: str,
) -> dict:
    """One model on one set: appends its answers, then writes `verdicts.jsonl`; returns counts by outcome.

    Each process answers its share of the questions; process 0 grades.
    """
    config = workspace.config
    prompts = {q.id: workspace.chat.encode_prompt(workspace.prompts.student_messages(q.question)) for q in questions}
    counts = answer(
        prompts,
        num_samples=evaluation_set.num_samples,
        params=workspace.sampling_params(evaluation_set.sampling),
        folder=folder,
        workspace=workspace,
        seed=config.seed + _EVALUATION_SEED,
        description=description,
        lora=lora,
    )

    def verify() -> dict:
        rollouts = load_rollouts(folder, list(prompts))
        gold = {q.id: q.answer for q in questions}
        verdicts = grade_rollouts(rollouts, gold, settings=config.grading, description=f"{description}: verification")
        write_jsonl(folder / "verdicts.jsonl", verdicts)
        outcomes = Counter(v.outcome for v in verdicts)
        return {**counts, **{outcome.value: outcomes[outcome] for outcome in Outcome}}

    return hosts.on_first(verify)


def import_answers(
    questions: Sequence[Question], rollouts: Sequence[Rollout], folder: Path, *, settings: Grading, description: str
) -> dict:
    """Answers from elsewhere on one set: writes them and their `verdicts.jsonl` as `run` does; returns counts."""
    gold = {q.id: q.answer for q in questions}
    verdicts = grade_rollouts(rollouts, gold, settings=settings, description=f"{description}: verification")
    write_jsonl(folder / "part-00000.jsonl", rollouts)
    write_jsonl(folder / "verdicts.jsonl", verdicts)
    outcomes = Counter(v.outcome for v in verdicts)
    return {"rows": len(rollouts), **{outcome.value: outcomes[outcome] for outcome in Outcome}}


def load_answers(folder: Path, questions: Sequence[Question]) -> Answers:
    """Reads what `run` or `import_answers` wrote."""
    return Answers(load_rollouts(folder, [q.id for q in questions]), read_jsonl(folder / "verdicts.jsonl", Verdict))


def write_results(path: Path, results: Mapping[str, dict], **about: object) -> None:
    """Writes the summaries of all sets as one JSON file, after what is said about the run (method, seed, cost, ...)."""
    values = {**about, "sets": results}
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False))
