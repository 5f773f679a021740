"""Finds the final answer in a response. Linear time, pure string work: safe on any text in any process."""

import re

MAX_RESPONSE = 1_000_000  # characters; 8192 tokens are about 40,000

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is no brace
_TAG = re.compile(r"</?think>")


def extract_answer(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}` (or `\fbox{...}`) outside a thinking block, stripped.

    A box inside a box belongs to the outer one. A thinking block is `<think>...</think>`; one that is never closed
    reaches to the end, and a `</think>` without its opening (it was in the prompt) closes a block that began with the
    text. None when there is no such box.
    """
    for piece in reversed(outside_thinking(text)):
        if (answer := _last_box(piece)) is not None:
            return answer
    return None


def _last_box(text: str) -> str | None:
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    closing = _closing_braces(text)
    answer, end = None, 0
    for box in _BOX.finditer(text):
        opening = box.end() - 1
        if box.start() >= end and opening in closing:
            end = closing[opening]
            answer = text[opening + 1 : end].strip()
    return answer


def outside_thinking(text: str) -> list[str]:
    """The pieces of the text that are outside its thinking blocks."""
    kept, start, inside, seen = [], 0, False, False
    for tag in _TAG.finditer(text):
        if tag.group() == "<think>":
            if not inside:
                kept.append(text[start : tag.start()])
            inside = seen = True
        elif inside or not seen:
            if not inside:
                kept.clear()
            inside, seen, start = False, True, tag.end()
    if not inside:
        kept.append(text[start:])
    return kept


def _closing_braces(text: str) -> dict[int, int]:
    """Index of each balanced opening brace -> index of its closing brace."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing
