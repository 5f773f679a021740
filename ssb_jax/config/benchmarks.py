"""Evaluation sets by name: where the hub has them, and the settings of the published evaluation (greedy, pass@1).

`evaluation.sets: [MATH500, AIME2024]` takes them as they are; `{name: MATH500, data: {path: my.jsonl}}` takes the
questions from elsewhere, and any other key replaces its setting. Never train on these.
"""

from typing import Any

_GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 8192}
_SHORT = _GREEDY | {"max_new_tokens": 4096}
_PROBLEM = {"question_column": "problem", "answer_column": "answer"}

BENCHMARKS: dict[str, dict[str, Any]] = {
    "MATH500": {"data": {"path": "HuggingFaceH4/MATH-500", "split": "test", **_PROBLEM}, "sampling": _GREEDY},
    "AIME2024": {"data": {"path": "HuggingFaceH4/aime_2024", "split": "train", **_PROBLEM}, "sampling": _GREEDY},
    "AMC23": {"data": {"path": "math-ai/amc23", "split": "test"}, "sampling": _GREEDY},
    "GSM8K": {
        "data": {"path": "openai/gsm8k", "name": "main", "split": "test", "answer_pattern": "#### *(.+)"},
        "sampling": _SHORT,
    },
    "SVAMP": {
        "data": {
            "path": "ChilleD/SVAMP",
            "split": "test",
            "question_column": "question_concat",
            "answer_column": "Answer",
        },
        "sampling": _SHORT,
    },
    "MAWPS": {"data": {"path": "MU-NLPC/Calc-mawps", "split": "test", "answer_column": "result"}, "sampling": _SHORT},
}


def with_benchmark(values: Any) -> Any:
    """An entry of `evaluation.sets`: a benchmark's name, or settings of which the benchmark gives what is missing."""
    if isinstance(values, str):
        values = {"name": values}
    if not isinstance(values, dict) or values.get("name") not in tuple(BENCHMARKS):  # (a list has no hash)
        return values
    return BENCHMARKS[values["name"]] | values
