"""Base and adapter -> accuracy on the same questions, with intervals, the paired difference and every answer."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ssb_jax.answering import answer, grade_rollouts, load_rollouts
from ssb_jax.artifacts import read_jsonl, write_atomically, write_jsonl
from ssb_jax.config import Evaluation, EvaluationSet
from ssb_jax.model.lora import Lora
from ssb_jax.records import Outcome, Question, Rollout, Verdict
from ssb_jax.stats import Interval, bootstrap_mean, majority_at_k, pass_at_k
from ssb_jax.workspace import Workspace

_EVALUATION_SEED = 104_729  # evaluation draws other random numbers than the rollouts of the same question


@dataclass(frozen=True)
class Answers:
    """What one model answered on one set: rollouts and verdicts in the same order."""

    rollouts: list[Rollout]
    verdicts: list[Verdict]


def run(
    questions: Sequence[Question],
    folder: Path,
    *,
    evaluation_set: EvaluationSet,
    workspace: Workspace,
    lora: Lora | None,
    description: str,
) -> dict:
    """One model on one set: appends its answers, then writes `verdicts.jsonl`; returns counts by outcome."""
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
    rollouts = load_rollouts(folder, list(prompts))
    gold = {q.id: q.answer for q in questions}
    verdicts = grade_rollouts(rollouts, gold, settings=config.grading, description=f"{description}: verification")
    write_jsonl(folder / "verdicts.jsonl", verdicts)
    outcomes = Counter(v.outcome for v in verdicts)
    return {**counts, **{outcome.value: outcomes[outcome] for outcome in Outcome}}


def load_answers(folder: Path, questions: Sequence[Question]) -> Answers:
    """Reads what `run` wrote."""
    return Answers(load_rollouts(folder, [q.id for q in questions]), read_jsonl(folder / "verdicts.jsonl", Verdict))


def summarise(
    questions: Sequence[Question], answers: Mapping[str, Answers], *, num_samples: int, settings: Evaluation
) -> dict:
    """Metrics of each model, differences to the first one, and every row.

    Args:
      answers: model name -> its answers; the first is what the others are compared with.

    Returns:
      A JSON-able dict: `metrics[model][metric]` and `differences[model][metric]` as value, low, high;
      `outcomes[model]`; `rows`, one a question.
    """
    scores = {name: _scores(a, num_samples, settings.pass_at) for name, a in answers.items()}

    def interval(values: Sequence[float]) -> dict:
        result: Interval = bootstrap_mean(values, confidence=settings.confidence, resamples=settings.bootstrap)
        return asdict(result)

    reference, *others = answers
    return {
        "questions": len(questions),
        "num_samples": num_samples,
        "confidence": settings.confidence,
        "metrics": {
            name: {metric: interval(values) for metric, values in metrics.items()} for name, metrics in scores.items()
        },
        "differences": {
            name: {
                metric: interval([b - a for a, b in zip(scores[reference][metric], values, strict=True)])
                for metric, values in scores[name].items()
            }
            for name in others
        },
        "outcomes": {name: dict(Counter(v.outcome.value for v in a.verdicts)) for name, a in answers.items()},
        "mean_tokens": {name: sum(v.tokens for v in a.verdicts) / len(a.verdicts) for name, a in answers.items()},
        "rows": _rows(questions, answers, num_samples),
    }


def write_results(
    path: Path, results: Mapping[str, dict], *, method: str, seed: int, made_from: Mapping[str, object]
) -> None:
    """Writes the summaries of all sets as one JSON file, and whose they are."""
    values = {"method": method, "seed": seed, "made_from": made_from, "sets": results}
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False))


def _scores(answers: Answers, num_samples: int, ks: Sequence[int]) -> dict[str, list[float]]:
    """Metric -> one value a question. Verdicts come grouped by question, `num_samples` each."""
    groups = [answers.verdicts[i : i + num_samples] for i in range(0, len(answers.verdicts), num_samples)]
    right = [[v.outcome is Outcome.CORRECT for v in group] for group in groups]
    votes = [[None if v.extracted is None else "".join(v.extracted.split()) for v in group] for group in groups]
    scores = {
        f"pass@{k}": [pass_at_k(num_samples, sum(r), k) for r in right]
        for k in dict.fromkeys((1, *ks))
        if k <= num_samples
    }
    if num_samples > 1:
        scores[f"maj@{num_samples}"] = [
            majority_at_k(vote, r, num_samples) for vote, r in zip(votes, right, strict=True)
        ]
    scores["strict pass@1"] = [sum(v.strict for v in group) / num_samples for group in groups]
    return scores


def _rows(questions: Sequence[Question], answers: Mapping[str, Answers], num_samples: int) -> list[dict]:
    rows = []
    for i, question in enumerate(questions):
        own = slice(i * num_samples, (i + 1) * num_samples)
        given = {
            name: [
                {"text": r.text, "stop": r.stop.value, **asdict(v)}
                for r, v in zip(a.rollouts[own], a.verdicts[own], strict=True)
            ]
            for name, a in answers.items()
        }
        rows.append({**asdict(question), "answers": given})
    return rows
