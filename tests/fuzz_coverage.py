"""Coverage-guided fuzzing (atheris) of what reads model text inside the process that holds the model.

    pip install atheris
    python tests/fuzz_coverage.py -max_total_time=120        # any option of libFuzzer

Extraction, the caps, the tidying of LaTeX and the exact numbers must never raise and never take longer than a second,
whatever stands in the box; what they extract stands in the response, and equal strings are correct.
"""

import sys
import time

import atheris

with atheris.instrument_imports(include=["ssb_jax.answers"]):
    from ssb_jax.answers.exact import exact_number
    from ssb_jax.answers.extraction import extract_answer
    from ssb_jax.answers.grading import Grade, grade_cheaply
    from ssb_jax.answers.latex import tidy
    from ssb_jax.answers.limits import too_large
    from ssb_jax.records import Outcome

# A byte of the input is a piece of text: mutations then stay close to LaTeX.
PIECES = [*"0123456789abcixyABC .,:;+-*/^_=<>|!()[]{}$%'\"&~\\`√½²°π×–\n\t", "\\frac", "\\dfrac{", "\\sqrt", "\\text{"]
PIECES += ["\\left(", "\\right)", "\\boxed{", "\\fbox{", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "\\{", "\\}"]
PIECES += [
    "\\cdot",
    "\\times",
    "\\pi",
    "\\infty",
    "\\cup",
    "\\le",
    "\\pm",
    "^\\circ",
    "\\%",
    "\\$",
    "\\,",
    "\\!",
    "{,}",
]
PIECES += [
    " and ",
    " or ",
    " to ",
    " cm",
    " million",
    "e10",
    "10^{",
    "\\overline{",
    "<think>",
    "</think>",
    "**",
    "\ud800",
]


def one_input(data: bytes) -> None:
    """The first bytes are the gold answer, the others the response."""
    text = "".join(PIECES[byte % len(PIECES)] for byte in data)
    gold, response = text[:8] or "1", f"So \\boxed{{{text[8:]}}}"
    started = time.monotonic()
    extracted = extract_answer(response)
    assert extracted is None or extracted in response
    if extracted and too_large(extracted) is None:
        exact_number(tidy(extracted))
    result = grade_cheaply(response, gold)
    assert isinstance(result, Grade | str)
    if extracted and "think>" not in extracted:
        same = grade_cheaply(f"\\boxed{{{extracted}}}", extracted)
        assert same.outcome is Outcome.CORRECT, extracted
    assert time.monotonic() - started < 1.0, "slow"


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
