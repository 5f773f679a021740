"""What flows through the pipeline: one frozen record a step, read and written as JSON lines.

Everything imports this module; it imports nothing of ours. Reasons are enums, so a count by reason is a group-by.
"""

import json
import unicodedata
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")


class StopReason(StrEnum):
    """Why a sequence stopped growing."""

    END_OF_TURN = "end_of_turn"
    LENGTH = "length"
    FAILED = "failed"


class Outcome(StrEnum):
    """What grading a response against the gold answer gave."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNANSWERED = "unanswered"  # stopped by itself without a boxed answer
    TRUNCATED = "truncated"  # reached the token limit without a boxed answer
    TIMEOUT = "timeout"  # the grader's time limit; never counted as incorrect
    FAILED = "failed"  # generation or grading broke; the reason is in the record


class DropReason(StrEnum):
    """Why a question did not become a training pair."""

    NO_CORRECT = "no_correct"
    NO_INCORRECT = "no_incorrect"
    NEITHER = "neither"  # no rollout with a graded answer at all
    PROMPT_TOO_LONG = "prompt_too_long"  # the hinted prompt does not fit the model's context
    TEACHER_NOT_CORRECT = "teacher_not_correct"  # see the verdict's outcome
    TEACHER_TRUNCATED = "teacher_truncated"  # correct, but cut off, and teaching.truncated is `drop`


@dataclass(frozen=True, config=STRICT)
class Question:
    """A question with its gold final answer. `id` is unique in its set and stable across runs."""

    id: str
    question: str
    answer: str
    subject: str | None = None
    level: str | None = None


def normalise(question: str) -> str:
    """A question's text without differences of case, white space and Unicode form: equal texts are one question."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())


def parse_json(data: bytes | str) -> Any:
    """`json.loads`, for which text that is nested too deeply is no JSON either.

    Raises:
      ValueError: it is not JSON.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


@dataclass(frozen=True, config=STRICT)
class Rollout:
    """One sampled answer. `token_ids` are the sampled ids without the end-of-turn token."""

    question_id: str
    sample: int
    text: str
    token_ids: tuple[int, ...]
    stop: StopReason
    prompt_tokens: int
    detail: str = ""  # why it failed, when it failed


@dataclass(frozen=True, config=STRICT)
class Verdict:
    """The grade of one rollout. `strict` is the published scripts' rule: the boxed string equals the gold string."""

    question_id: str
    sample: int
    outcome: Outcome
    extracted: str | None
    reason: str
    strict: bool
    tokens: int


@dataclass(frozen=True, config=STRICT)
class Hint:
    """One correct and the most common incorrect rollout of a question, or the reason why there is none."""

    question_id: str
    dropped: DropReason | None = None
    correct_sample: int | None = None
    incorrect_sample: int | None = None
    correct_text: str | None = None
    incorrect_text: str | None = None
    wrong_answer: str | None = None
    wrong_count: int = 0  # how many rollouts gave that wrong answer


@dataclass(frozen=True, config=STRICT)
class Pair:
    """A verified hinted solution with the two prompts it follows, as the exact token ids.

    The teacher reads `teacher_prompt_ids` (with hints), the student `student_prompt_ids` (the bare question); both are
    scored on `reply_ids`, which ends with the end-of-turn token when `prompts.teach_stop` is true.
    """

    question_id: str
    question: str
    answer: str
    solution: str
    teacher_prompt_ids: tuple[int, ...]
    student_prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    teacher_stop: bool  # whether reply_ids ends with the end-of-turn token


@dataclass(frozen=True, config=STRICT)
class Lesson:
    """What became of one hint: the teacher's solution, its grade, and a pair or the reason why there is none."""

    question_id: str
    text: str
    outcome: Outcome | None
    extracted: str | None
    reason: str
    dropped: DropReason | None
    pair: Pair | None


@dataclass(frozen=True, config=STRICT)
class Trial:
    """One answer of the policy in training: its grade, its reward, and how much better it is than its group's mean."""

    question_id: str
    sample: int
    text: str
    token_ids: tuple[int, ...]
    stop: StopReason
    prompt_tokens: int
    outcome: Outcome
    extracted: str | None
    reward: float | None  # None where generation or grading failed
    advantage: float
