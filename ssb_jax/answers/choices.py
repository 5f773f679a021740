"""Multiple choice: the letter of an answer, and the value behind it. Pure string work."""

import re

_CHOICE = re.compile(
    r"^(?:\\text\{)?\s*(?:option|choice|answer)?:?\s*(\()?\s*([A-Za-z])\s*(?(1)\)|[).:]?)\s*\}?[.:]?$", re.I
)
_CHOICE_THEN = re.compile(
    r"^(?:\\text\{)?\s*(?:option|choice|answer)?:?\s*(?:\(\s*([A-J])\s*\)|([A-J])[).])\s*:?\s*\}?[.:]?\s*(\S.*)$"
)
_ANOTHER = re.compile(r"^(?:[,;&/]|(?:\\text\{\s*)?(?:or|and)\b)|[,;&/]\s*\([A-J]\)")  # (B) or (C)
_MARKED = re.compile(r"\(\s*([A-J])\s*\)|(?<![A-Za-z])([A-J])(?=[).:]|\s*\}?$)")  # (B), B), B. or a final B


def same_letter(gold: str, answer: str, *, is_symbol: bool) -> bool:
    """The case of a choice, A to J, does not count; that of a symbol does, and `i` is a number."""
    is_choice = gold.upper() in "ABCDEFGHJ" and not is_symbol
    return gold.upper() == answer.upper() if is_choice else gold == answer


def choice(text: str) -> tuple[str, str]:
    """The letter of a choice and the value behind it; empty when there is no letter, or more than one."""
    if match := _CHOICE.match(text):
        return match.group(2), ""
    match = _CHOICE_THEN.match(text)
    if match is None or _ANOTHER.search(match.group(3)):
        return "", ""
    letter, rest = match.group(1) or match.group(2), match.group(3)
    if any((marked[1] or marked[2]) != letter for marked in _MARKED.finditer(rest)):
        return "", ""
    return letter, rest.removesuffix("}") if "\\text{" in text[:8] else rest
