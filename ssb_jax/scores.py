"""Verdicts -> what is reported of a set: accuracies with intervals, paired tests, and what lies behind a wrong answer.

Knows no model: answers of any origin are scored alike.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ssb_jax.config import Evaluation
from ssb_jax.records import Outcome, Question, Rollout, Verdict
from ssb_jax.stats import bootstrap_mean, majority_at_k, pass_at_k, sign_test

_EXAMPLES = 5  # of verdicts that the strict rule changes
_UNBOXED = {Outcome.UNANSWERED: "never_boxed", Outcome.TRUNCATED: "truncated"}

IntervalOf = Callable[[Sequence[float]], dict[str, float | None]]


@dataclass(frozen=True)
class Answers:
    """What one model answered on one set: rollouts and verdicts in the same order."""

    rollouts: list[Rollout]
    verdicts: list[Verdict]


def summarise(
    questions: Sequence[Question], answers: Mapping[str, Answers], *, num_samples: int, settings: Evaluation
) -> dict[str, Any]:
    """Metrics of each model, differences to the first one, and every row.

    Args:
      answers: model name -> its answers; the first is what the others are compared with.

    Returns:
      A JSON-able dict: `metrics[model][metric]` and `differences[model][metric]` as value, low, high; `paired[model]`,
      the exact sign test on pass@1; `format[model]`, wrong answers by what is wrong with them; `strict[model]`, what
      the string rule changes; `groups`, pass@1 by subject and level; `outcomes[model]`; `rows`, one a question.
    """
    scores = {name: _scores(a, num_samples, settings.pass_at) for name, a in answers.items()}

    def interval(values: Sequence[float]) -> dict[str, float | None]:
        return asdict(bootstrap_mean(values, confidence=settings.confidence, resamples=settings.bootstrap))

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
        "paired": {name: asdict(sign_test(scores[reference]["pass@1"], scores[name]["pass@1"])) for name in others},
        "format": {name: _format(a.verdicts) for name, a in answers.items()},
        "strict": {name: _strict(questions, a.verdicts) for name, a in answers.items()},
        "groups": _groups(questions, {name: found["pass@1"] for name, found in scores.items()}, interval),
        "outcomes": {name: dict(Counter(v.outcome.value for v in a.verdicts)) for name, a in answers.items()},
        "mean_tokens": {name: _mean_tokens(a.verdicts) for name, a in answers.items()},
        "rows": _rows(questions, answers, num_samples),
    }


def _mean_tokens(verdicts: Sequence[Verdict]) -> float | None:
    """None for answers from elsewhere, whose tokens nobody counted."""
    return sum(v.tokens for v in verdicts) / len(verdicts) or None


def format_failures(summary: Mapping[str, Any]) -> list[str]:
    """A sentence for each model that boxed fewer than half of its answers: that says little of its reasoning."""
    return [
        f"{name} put {100 * found['boxed']:.1f} % of its answers in \\boxed{{}} ({found['never_boxed']} have no box, "
        f"{found['truncated']} were cut off by max_new_tokens): a failure of format, not of reasoning; look at the "
        "prompts and the limit"
        for name, found in summary["format"].items()
        if found["boxed"] < 0.5
    ]


def format_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What `format_failures` reads of a model, from the outcomes of its answers alone."""
    unboxed = {name: outcomes.count(outcome) for outcome, name in _UNBOXED.items()}
    return {"boxed": 1 - sum(unboxed.values()) / len(outcomes), **unboxed}


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


def _format(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Answers without a box, told apart from boxed ones that are wrong; accuracy of those that have one."""
    outcomes = Counter(v.outcome for v in verdicts)
    unboxed = {name: outcomes[outcome] for outcome, name in _UNBOXED.items()}
    boxed = sum(v.extracted is not None for v in verdicts)
    return {
        "boxed": boxed / len(verdicts),
        **unboxed,
        "wrong": outcomes[Outcome.INCORRECT],
        "correct_of_boxed": outcomes[Outcome.CORRECT] / boxed if boxed else None,
    }


def _strict(questions: Sequence[Question], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Verdicts that equality of strings would change, with examples."""
    by_id = {q.id: q for q in questions}
    changed = [v for v in verdicts if v.strict != (v.outcome is Outcome.CORRECT)]
    examples = {(by_id[v.question_id].answer, v.extracted, v.outcome.value, v.reason): v.question_id for v in changed}
    return {
        "changed": len(changed),
        "answers": len(verdicts),
        "examples": [
            {"question": key, "gold": gold, "extracted": extracted, "outcome": outcome, "reason": reason}
            for (gold, extracted, outcome, reason), key in list(examples.items())[:_EXAMPLES]
        ],
    }


def _groups(questions: Sequence[Question], scores: Mapping[str, Sequence[float]], interval: IntervalOf) -> dict:
    """`subject` and `level`, where the questions have one: value -> number of questions and pass@1 of each model."""
    result: dict[str, dict] = {}
    for kind in ("subject", "level"):
        values = [getattr(question, kind) for question in questions]
        for value in sorted({v for v in values if v is not None}):
            at = [i for i, v in enumerate(values) if v == value]
            accuracy = {name: interval([found[i] for i in at]) for name, found in scores.items()}
            result.setdefault(kind, {})[value] = {"questions": len(at), "pass@1": accuracy}
    return result


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
