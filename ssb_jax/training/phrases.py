"""Phrases in replies that are worth watching: hedging, which distillation from hints tends to drive out, and words that
leak the hint into a solution that must stand alone (arXiv 2603.24472)."""

import re
from collections.abc import Sequence

HEDGES = (
    *("wait", "hmm", "let me check", "let me verify", "let me recheck", "let me redo", "let me reconsider"),
    *("double-check", "alternatively", "on second thought"),
)
LEAKS = (
    *("accepted response", "rejected response", "right solution", "wrong solution", "correct response"),
    *("incorrect response", "correct attempt", "incorrect attempt", "the hint", "hints above", "as shown above"),
)
_HEDGES, _LEAKS = (
    re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE) for words in (HEDGES, LEAKS)
)


def count_phrases(replies: Sequence[str]) -> dict[str, float]:
    """`hedges`: hedging phrases a reply; `leaks`: share of the replies with a phrase that speaks of the hint."""
    return {
        "hedges": sum(len(_HEDGES.findall(text)) for text in replies) / len(replies),
        "leaks": sum(_LEAKS.search(text) is not None for text in replies) / len(replies),
    }
