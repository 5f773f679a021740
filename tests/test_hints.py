"""Hints: one correct and the most common incorrect rollout, or the reason why not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssb_jax.artifacts import read_jsonl
from ssb_jax.records import DropReason, Hint, Outcome, Rollout, StopReason, Verdict
from ssb_jax.stages import hints


def rows(*answers, question="q", gold="7"):
    """Rollouts answering `answers`; None is unanswered, "..." truncated."""
    out = []
    for sample, given_answer in enumerate(answers):
        outcome = (
            Outcome.UNANSWERED
            if given_answer is None
            else Outcome.TRUNCATED
            if given_answer == "..."
            else Outcome.CORRECT
            if given_answer == gold
            else Outcome.INCORRECT
        )
        text = f"solution {sample} of {question}: {given_answer}"
        rollout = Rollout(question, sample, text, (1, 2), StopReason.END_OF_TURN, 3)
        out.append((rollout, Verdict(question, sample, outcome, given_answer, "", outcome is Outcome.CORRECT, 2)))
    return out


def test_the_first_correct_and_the_most_common_wrong():
    hint = hints.choose(rows("5", "7", "6", "6", "7"), seed=0)
    assert (hint.correct_sample, hint.incorrect_sample, hint.wrong_answer, hint.wrong_count) == (1, 2, "6", 2)
    assert hint.correct_text == "solution 1 of q: 7"


def test_wrong_answers_that_differ_by_white_space_are_the_same():
    assert hints.choose(rows("7", "5", "1 2", "12"), seed=0).wrong_count == 2


def test_without_a_repeated_wrong_answer_one_is_drawn_by_seed_and_question():
    mixed = rows("7", "1", "2", "3")
    drawn = {hints.choose(mixed, seed=seed).wrong_answer for seed in range(40)}
    assert drawn == {"1", "2", "3"}
    assert hints.choose(mixed, seed=3) == hints.choose(mixed, seed=3)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (("7", "7"), DropReason.NO_INCORRECT),
        (("7", None, "..."), DropReason.NO_INCORRECT),
        (("1", "2"), DropReason.NO_CORRECT),
        (("1", None), DropReason.NO_CORRECT),
        ((None, "..."), DropReason.NEITHER),
    ],
)
def test_unmixed_questions_are_dropped_with_their_reason(answers, reason):
    assert hints.choose(rows(*answers), seed=0).dropped is reason


def test_min_wrong_count_asks_for_a_repeated_mistake():
    assert hints.choose(rows("7", "1", "2"), seed=0, min_wrong_count=2).dropped is DropReason.NO_INCORRECT
    assert hints.choose(rows("7", "1", "1"), seed=0, min_wrong_count=2).dropped is None


@given(
    st.lists(st.lists(st.sampled_from(["7", "1", "2", None, "..."]), min_size=2, max_size=6), min_size=1, max_size=8)
)
def test_every_question_is_kept_or_has_a_reason(questions):
    import tempfile
    from pathlib import Path

    everything = [pair for i, answers in enumerate(questions) for pair in rows(*answers, question=f"q{i}")]
    rollouts, verdicts = zip(*everything, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        counts = hints.run(rollouts, verdicts, Path(folder), seed=0)
        written = read_jsonl(Path(folder) / "hints.jsonl", Hint)
    assert [h.question_id for h in written] == [f"q{i}" for i in range(len(questions))]
    assert counts["questions"] == len(questions)
    assert counts["mixed"] + sum(counts.get(r.value, 0) for r in DropReason) == len(questions)
    for hint, answers in zip(written, questions, strict=True):
        mixed = "7" in answers and any(a in ("1", "2") for a in answers)
        assert (hint.dropped is None) == mixed
        if mixed:
            assert answers[hint.correct_sample] == "7"
            assert answers[hint.incorrect_sample] == hint.wrong_answer
            assert answers.count(hint.wrong_answer) == max(answers.count("1"), answers.count("2"))
