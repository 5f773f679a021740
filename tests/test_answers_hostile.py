"""Hostile responses: none executes, hangs, crashes or counts as correct."""

import time
from collections import Counter

import pytest
from answers_hostile import hostile

from ssb_jax.answers import GraderPool, Outcome
from ssb_jax.answers.grading import grade_cheaply
from ssb_jax.answers.limits import MAX_LENGTH


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(kind, response, grade) of every case, the canary's path and what the pool went through."""
    canary = tmp_path_factory.mktemp("hostile") / "canary"
    cases = hostile(str(canary))
    with GraderPool(workers=2) as pool:
        items = ((i, response, gold, False) for i, (_, response, gold) in enumerate(cases))
        grades = [grade for _, grade in pool.grade_many(items)]
    return (
        [(kind, response, grade) for (kind, response, _), grade in zip(cases, grades, strict=True)],
        canary,
        pool.facts,
    )


def test_there_are_many_kinds(graded):
    counts = Counter(kind for kind, _, _ in graded[0])
    assert sum(counts.values()) >= 300
    assert len(counts) >= 12
    assert min(counts.values()) >= 20


def test_nothing_is_executed(graded):
    assert not graded[1].exists()


def test_nothing_hangs(graded):
    assert graded[2].slowest < 2.0


def test_nothing_crashes(graded):
    """A grader may only die of its limits; the nursery never dies."""
    assert graded[2].nursery_starts == 1
    died = [grade for _, _, grade in graded[0] if "broke down" in grade.reason or "was killed" in grade.reason]
    assert died == []


def test_nothing_is_correct(graded):
    assert [(kind, response[:80]) for kind, response, grade in graded[0] if grade.outcome is Outcome.CORRECT] == []


PIECES = [*" ~$%&,;:.=<>|^_{}()[]'\"`!?*+-/\\0a9°", "\\ ", "\\,", "\\text{", "\\text{a}", "\\frac", "\\frac{", "\\sqrt"]
PIECES += [
    "\\left",
    "and ",
    " or ",
    "1 ",
    "1,",
    "1,111,",
    "0.",
    "x_1",
    "cm ",
    "per ",
    "(A)",
    "\\pm",
    "\\begin{pmatrix}",
]
PIECES += [
    "5 min ",
    "\\text{min}",
    "1 h ",
    "1 h, ",
    "^{th}",
    "1 (1)",
    " (",
    "\\text{since",
    "\\text{=",
    "k",
    "^{",
    "^{x",
]
PIECES += ["\\\\", "^(", "USD ", "\\in", "\\cup", "=1", "e1", "√", "½", "²"]


@pytest.mark.parametrize("piece", PIECES)
def test_no_pattern_of_the_cheap_path_is_slow(piece):
    """The cheap path runs in the process that holds the model: every pattern there is tried with long repeats."""
    for text in (piece * (MAX_LENGTH // len(piece)), "12" + piece * ((MAX_LENGTH - 4) // len(piece)) + "z"):
        started = time.process_time()
        grade_cheaply(f"\\boxed{{{text}}}", "42")
        assert time.process_time() - started < 0.5, text[:40]
