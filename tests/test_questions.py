"""Rows -> Questions: ids are stable and unique, answers are there, bad rows are named."""

import json

import pytest

from ssb_jax.config import Data, SsbError
from ssb_jax.stages.questions import load_questions


@pytest.fixture
def write(tmp_path):
    def write_rows(*rows, **settings):
        path = tmp_path / "questions.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return Data(path=str(path), **settings)

    return write_rows


def row(i, **more):
    return {"question": f"What is {i} + 1?", "answer": str(i + 1), **more}


def test_rows_keep_their_order_and_their_ids_do_not_depend_on_it(write):
    forward, _ = load_questions(write(*[row(i) for i in range(9)]))
    backward, _ = load_questions(write(*[row(i) for i in reversed(range(9))]))
    assert [q.answer for q in forward] == [str(i + 1) for i in range(9)]
    assert forward == backward[::-1]
    assert len({q.id for q in forward}) == 9


def test_limit_takes_the_first_and_shuffle_is_a_seeded_permutation(write):
    data = write(*[row(i) for i in range(20)])
    everything, _ = load_questions(data)
    assert load_questions(data.model_copy(update={"limit": 5}))[0] == everything[:5]
    shuffled = [load_questions(data.model_copy(update={"shuffle_seed": s}))[0] for s in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert sorted(q.id for q in shuffled[0]) == sorted(q.id for q in everything)


def test_gsm8k_pattern_takes_what_follows_the_marks(write):
    data = write({"question": "q", "answer": "4+4=<<4+4=8>>8\n#### 1,008 "}, answer_pattern="#### *(.+)")
    assert load_questions(data)[0][0].answer == "1,008"


def test_numbers_are_answers_and_subjects_are_kept(write):
    questions, _ = load_questions(write({"question": "q", "answer": 8, "subject": "Algebra", "level": 3}))
    assert (questions[0].answer, questions[0].subject, questions[0].level) == ("8", "Algebra", "3")


def test_a_doubled_question_counts_once_and_a_contradiction_is_refused(write):
    questions, doubled = load_questions(write(row(1), row(2), row(1)))
    assert (len(questions), doubled) == (2, 1)
    with pytest.raises(SsbError, match="one question with two answers"):
        load_questions(write(row(1), {**row(1), "answer": "9"}))
    with pytest.raises(SsbError, match="two questions with one id"):
        load_questions(write(row(1, key="a"), row(2, key="a"), id_column="key"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": "q"}, "line 2: expected text in the column 'answer'; the row has question"),
        ({"question": "q", "answer": ""}, "line 2.*'answer'"),
        ({"question": None, "answer": "1"}, "line 2.*'question'"),
        ({"question": "q", "answer": ["1"]}, "line 2.*'answer'"),
        ({"question": "q", "answer": True}, "line 2.*'answer'"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"question": "q', "line 2: expected a JSON object"),
    ],
)
def test_a_bad_row_is_named_by_line(write, bad, message):
    with pytest.raises(SsbError, match=message):
        load_questions(write(row(1), bad))


def test_files_that_are_missing_or_empty(write, tmp_path):
    with pytest.raises(SsbError, match="no question file"):
        load_questions(Data(path=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(SsbError, match="at least one question"):
        load_questions(write())


def test_a_pattern_that_is_not_in_the_answer_is_an_error(write):
    with pytest.raises(SsbError, match=r"line 1: answer_pattern 'X\(\.\)' finds nothing"):
        load_questions(write(row(1), answer_pattern="X(.)"))


def test_a_hub_data_set_that_cannot_be_loaded_is_one_error():
    with pytest.raises(SsbError, match="nobody/nothing is no local file, and as a hub data set"):
        load_questions(Data(path="nobody/nothing"))


def test_the_builtin_questions_are_shuffled_from_the_whole_split():
    first, _ = load_questions(Data(path="builtin:arithmetic", limit=10))
    shuffled, _ = load_questions(Data(path="builtin:arithmetic", limit=10, shuffle_seed=1))
    assert len(first) == len(shuffled) == 10
    assert {q.id for q in first} != {q.id for q in shuffled}
