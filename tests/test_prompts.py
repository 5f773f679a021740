"""Prompts: templates are ours or a path; values are inserted and never expanded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssb_jax.config import Prompts, SsbError
from ssb_jax.prompts import load_prompts, prompt_texts

DEFAULT = load_prompts(Prompts())


@given(question=st.text(), correct=st.text(), incorrect=st.text())
def test_values_reach_the_prompt_as_they_are(question, correct, incorrect):
    assert DEFAULT.student_messages(question)[-1] == {"role": "user", "content": question}
    hinted = DEFAULT.teacher_messages(question, correct, incorrect)[-1]["content"]
    for value in (question, correct, incorrect):
        assert value in hinted


def test_the_students_prompt_shows_no_hint_and_both_share_the_system_message():
    student = DEFAULT.student_messages("Q?")
    teacher = DEFAULT.teacher_messages("Q?", "RIGHT", "WRONG")
    assert student[0] == teacher[0]
    assert "boxed" in student[0]["content"]
    assert "RIGHT" not in str(student)
    assert teacher[-1]["content"].index("RIGHT") < teacher[-1]["content"].index("WRONG")


def test_a_template_in_a_value_is_text():
    hostile = "{{ question }} {% for x in y %} {{ 1/0 }}"
    assert hostile in DEFAULT.teacher_messages("Q", hostile, hostile)[-1]["content"]


def test_worked_turns_come_before_the_question_and_hinted_where_they_can_be(tmp_path):
    path = tmp_path / "turns.yaml"
    path.write_text("- {question: q1, solution: s1}\n- {question: q2, solution: s2, correct: c2, incorrect: i2}\n")
    prompts = load_prompts(Prompts(examples=str(path), system="none"))
    student = [m["content"] for m in prompts.student_messages("Q")]
    teacher = [m["content"] for m in prompts.teacher_messages("Q", "C", "I")]
    assert student == ["q1", "s1", "q2", "s2", "Q"]
    assert (teacher[0], teacher[1], teacher[3]) == ("q1", "s1", "s2")
    assert "c2" in teacher[2]
    assert "i2" in teacher[2]


def test_packaged_worked_turns_load():
    assert len(load_prompts(Prompts(examples="worked_turns")).examples) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no variable", "expected {{ correct }}, {{ incorrect }}, {{ question }}, found none"),
        ("{{ question }} {{ correct }} {{ incorrect }} {{ more }}", "more"),
        ("line\n{{ question", "line 2"),
    ],
)
def test_a_wrong_template_is_named(tmp_path, text, message):
    path = tmp_path / "p.txt"
    path.write_text(text)
    with pytest.raises(SsbError) as error:
        load_prompts(Prompts(hinted=str(path)))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_missing_files_list_what_there_is():
    with pytest.raises(SsbError, match="expected one of .*tutor"):
        load_prompts(Prompts(system="nowhere"))
    with pytest.raises(SsbError, match="examples"):
        load_prompts(Prompts(examples="nowhere.yaml"))


@pytest.mark.parametrize(
    "text", ["- {question: a}", "- {question: a, solution: b, correct: c}", "3", "a: [", "- {q: 1}"]
)
def test_wrong_worked_turns_are_an_error(tmp_path, text):
    path = tmp_path / "turns.yaml"
    path.write_text(text)
    with pytest.raises(SsbError, match="examples"):
        load_prompts(Prompts(examples=str(path)))


def test_identity_follows_the_text_not_the_name(tmp_path):
    path = tmp_path / "copy.txt"
    path.write_text(prompt_texts(Prompts())["system"])
    assert prompt_texts(Prompts(system=str(path))) == prompt_texts(Prompts())
    path.write_text("other")
    assert prompt_texts(Prompts(system=str(path))) != prompt_texts(Prompts())
