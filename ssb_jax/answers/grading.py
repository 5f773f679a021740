"""Grades one response in this process. For text that is not trusted, `pool.GraderPool` does the same under limits."""

from dataclasses import dataclass

from ssb_jax.answers.exact import exact_number
from ssb_jax.answers.extraction import MAX_RESPONSE, extract_answer
from ssb_jax.answers.latex import key, tidy
from ssb_jax.answers.limits import too_large
from ssb_jax.answers.quantities import Quantity, split_pair, units_ratio
from ssb_jax.records import Outcome

# What sympy raises on odd expressions; anything else is a bug and is not hidden (a grader process then dies).
_ALGEBRA_ERRORS = (
    ArithmeticError, AttributeError, AssertionError, LookupError, NotImplementedError, RecursionError, TypeError,
    ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Grade:
    """The verdict on a response. `extracted` is the content of its box, None when it has none."""

    outcome: Outcome
    extracted: str | None
    reason: str


def grade(response: str, gold: str, *, truncated: bool = False) -> Grade:
    r"""Grades a response against the gold answer, by the rules of the package docstring.

    Pure and in this process: a hostile answer can take any time and memory. Use a `GraderPool` for model output.

    Args:
      response: what the model wrote, with its answer in `\boxed{}`.
      gold: the right answer, plain text or LaTeX.
      truncated: whether the response was cut off at its token limit.
    """
    first = grade_cheaply(response, gold, truncated=truncated)
    if isinstance(first, Grade):
        return first
    outcome, reason = grade_fully(first, gold)
    return Grade(outcome, first, reason)


def grade_cheaply(response: str, gold: str, *, truncated: bool = False) -> Grade | str:
    """The verdict where strings and exact numbers decide, else the extracted answer, which needs a parser.

    Linear in the response and free of any parser: it cannot hang and runs in the process that holds the model.
    """
    if len(response) > MAX_RESPONSE:
        return Grade(Outcome.FAILED, None, f"response too long (more than {MAX_RESPONSE} characters)")
    extracted = extract_answer(response)
    if not extracted:
        reason = "no \\boxed{}" if extracted is None else "empty \\boxed{}"
        return Grade(Outcome.TRUNCATED if truncated else Outcome.UNANSWERED, extracted, reason)
    if not gold.strip():
        return Grade(Outcome.FAILED, extracted, "the gold answer is empty")
    if strict_equal(extracted, gold):
        return Grade(Outcome.CORRECT, extracted, "exact string")
    if (why := too_large(extracted)) is not None:
        return Grade(Outcome.FAILED, extracted, why)
    if (why := too_large(gold)) is not None:
        return Grade(Outcome.FAILED, extracted, "gold " + why)
    if not tidy(extracted):
        return Grade(Outcome.UNANSWERED, extracted, "nothing visible in \\boxed{}")
    if key(extracted) == key(gold):
        return Grade(Outcome.CORRECT, extracted, "same text")
    if (equal := _equal_numbers(*split_pair(tidy(gold), tidy(extracted)))) is not None:
        outcome = Outcome.CORRECT if equal else Outcome.INCORRECT
        return Grade(outcome, extracted, "equal numbers" if equal else "different numbers")
    return extracted


def grade_fully(extracted: str, gold: str) -> tuple[Outcome, str]:
    """The verdict of the full comparison, with the algebra system, on an answer that passed the caps."""
    from ssb_jax.answers.equivalence import compare  # sympy: half a second that cheap answers do not need

    try:
        match = compare(gold, extracted)
    except _ALGEBRA_ERRORS as error:
        return Outcome.FAILED, f"the algebra system broke: {type(error).__name__}: {str(error)[:200]}"
    return Outcome.CORRECT if match.equal else Outcome.INCORRECT, match.reason


def strict_equal(extracted: str, gold: str) -> bool:
    """The published scripts' rule: equal strings, up to white space around them."""
    return extracted.strip() == gold.strip()


def _equal_numbers(gold: Quantity, answer: Quantity) -> bool | None:
    """Whether two quantities whose values are plain numbers are equal; None when one is something else."""
    plain = gold.base is answer.base is None and gold.percent == answer.percent
    if not plain or (ratio := units_ratio(gold, answer)) is None:
        return None
    left, right = exact_number(gold.value), exact_number(answer.value)
    if left is None or right is None:
        return None
    return left * gold.scale == right * answer.scale * ratio
