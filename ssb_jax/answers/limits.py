"""Size caps that an answer must pass before any parser sees it."""

import re

from ssb_jax.answers.latex import SIGNS

MAX_LENGTH = 1200  # characters; the longest gold answer of MATH has 149
MAX_DIGITS = 800  # in one number
MAX_EXPONENT_DIGITS = 4
MAX_FACTORIAL_DIGITS = 4
MAX_NESTING = 24
MAX_OPERATORS = 200  # + - * / ^ and commands

_DIGITS = re.compile(r"[0-9]+")
_EXPONENT = re.compile(r"(?:\^|\*\*)\s*[{(]?\s*[-+]?\s*([0-9][0-9,]*)")
_SCIENTIFIC = re.compile(r"[0-9]\s*[eE][-+]?([0-9]+)")
_FACTORIAL = re.compile(r"([0-9]+)\s*[)}]*\s*!")
_OPERATOR = re.compile(rf"[-+*/^_=<>{SIGNS}]|\\[a-zA-Z]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def too_large(answer: str) -> str | None:
    """Why an answer is not given to a parser, or None when it may be."""
    if len(answer) > MAX_LENGTH:
        return f"answer too long ({len(answer)} characters, at most {MAX_LENGTH})"
    if _CONTROL.search(answer):
        return "control or invisible characters in the answer"
    if _longest(_DIGITS, answer) > MAX_DIGITS:
        return f"number too long (more than {MAX_DIGITS} digits)"
    if max(_longest(_EXPONENT, answer), _longest(_SCIENTIFIC, answer)) > MAX_EXPONENT_DIGITS:
        return f"exponent too large (more than {MAX_EXPONENT_DIGITS} digits)"
    if _longest(_FACTORIAL, answer) > MAX_FACTORIAL_DIGITS:
        return f"factorial too large (more than {MAX_FACTORIAL_DIGITS} digits)"
    if _nesting(answer) > MAX_NESTING:
        return f"nested too deeply (more than {MAX_NESTING} levels)"
    if len(_OPERATOR.findall(answer)) > MAX_OPERATORS:
        return f"too many operators (more than {MAX_OPERATORS})"
    return None


def _longest(pattern: re.Pattern[str], text: str) -> int:
    """Length of the longest match's last group (or of the match itself)."""
    return max((len(match.group(match.lastindex or 0)) for match in pattern.finditer(text)), default=0)


def _nesting(text: str) -> int:
    deepest = depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest
