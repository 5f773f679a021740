"""The last balanced box outside a thinking block, in linear time."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssb_jax.answers import Outcome, extract_answer, grade, strict_equal


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So \boxed{5}.", "5"),
        (r"\boxed{ \frac{3}{2} }", r"\frac{3}{2}"),
        (r"\boxed{3} then \boxed{5}", "5"),
        (r"\boxed{3} then \boxed{5", "3"),
        (r"\boxed{3 then \boxed{5}", "5"),
        (r"\boxed{x = \boxed{5}}", r"x = \boxed{5}"),
        (r"\fbox{5}", "5"),
        ("\\boxed \n {5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\\boxed{5}", "5"),
        (r"} { \boxed{5} } {", "5"),
        (r"\boxed{}", ""),
        ("5", None),
        (r"\boxed 5", None),
        (r"\boxedx{5}", None),
        (r"\boxed{5", None),
        (r"\boxed{5\}", None),
        (r"<think>\boxed{4}</think>\boxed{5}", "5"),
        (r"<think>\boxed{4}</think>5", None),
        (r"<think>\boxed{4}", None),
        (r"\boxed{4}</think>\boxed{5}", "5"),
        (r"\boxed{4}</think>5", None),
        (r"<think>a</think>\boxed{5}<think>\boxed{6}</think>", "5"),
        (r"<think>a<think>b</think>\boxed{5}", "5"),
        (r"<think>a</think>\boxed{5} stray </think>", "5"),
        (r"\boxed{1<think>}</think>2}", None),
    ],
)
def test_extracts_the_last_balanced_box_outside_thinking(text, answer):
    assert extract_answer(text) == answer


@given(before=st.text(), inside=st.text(alphabet=r"abc019+\{}$ ", max_size=30), after=st.text(alphabet="xyz {\n"))
def test_whatever_is_balanced_comes_back(before, inside, after):
    depth = 0
    for i, character in enumerate(inside):
        escaped = i > 0 and inside[i - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return
    if depth or "\\" in inside or "think>" in before:
        return
    assert extract_answer(f"{before} \\boxed{{{inside}}}{after}") == inside.strip()


@pytest.mark.parametrize("piece", ["{", "}", "\\", "\\boxed{", "\\boxed{1}", "<think>", "</think>", "{}", "\\{", " "])
def test_extraction_is_linear(piece):
    text = piece * (400_000 // len(piece))
    started = time.process_time()
    extract_answer(text)
    assert time.process_time() - started < 1.0


def test_outcomes_without_an_answer():
    assert grade("no box", "5").outcome is Outcome.UNANSWERED
    assert grade("no box", "5", truncated=True).outcome is Outcome.TRUNCATED
    assert grade(r"\boxed{5} and on", "5", truncated=True).outcome is Outcome.CORRECT
    assert grade(r"\boxed{5", "5", truncated=True).outcome is Outcome.TRUNCATED
    assert grade(r"\boxed{}", "5").outcome is Outcome.UNANSWERED
    assert grade(r"\boxed{\text{ }}", "5").outcome is Outcome.UNANSWERED
    assert grade(r"\boxed{5}", " ").outcome is Outcome.FAILED
    assert grade("x" * 1_000_001 + r"\boxed{5}", "5").outcome is Outcome.FAILED


def test_the_scripts_rule_is_string_equality():
    assert strict_equal(" 1000\n", "1000")
    assert not strict_equal("1,000", "1000")
