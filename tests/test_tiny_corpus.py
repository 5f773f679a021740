"""The pretraining text and its tokenizer."""

import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssb_jax.chat import load_chat
from ssb_jax.config import load_config
from ssb_jax.prompts import load_prompts
from ssb_jax.tiny import corpus
from ssb_jax.tiny.corpus import draw_dialogues, read_solution, write_solution
from ssb_jax.tiny.problems import draw_problem, load_split
from ssb_jax.tiny.tokenizer import build_tokenizer, save_tokenizer

SAMPLE = list(itertools.islice(draw_dialogues(seed=1), 4000))


@pytest.fixture(scope="module")
def chat():
    from ssb_jax.model.weights import resolve_model

    return load_chat(resolve_model("builtin:tiny"))


def test_a_fifth_of_the_hint_free_steps_carry_a_slip():
    steps = [right for d in SAMPLE if not d.hinted for right in read_solution(d.reply)[0]]
    assert len(steps) > 4000
    assert 1 - sum(steps) / len(steps) == pytest.approx(corpus.SLIP_RATE, abs=0.02)


def test_hinted_replies_carry_none_and_end_right():
    hinted = [d for d in SAMPLE if d.hinted]
    assert len(hinted) / len(SAMPLE) == pytest.approx(corpus.HINTED_SHARE, abs=0.03)
    for dialogue in hinted:
        steps, answer = read_solution(dialogue.reply)
        assert all(steps)
        assert answer == dialogue.problem.answer


def test_the_two_hints_are_what_the_prompt_calls_them():
    for dialogue in (d for d in SAMPLE if d.hinted):
        prompt = dialogue.messages[-1]["content"]
        right, wrong = re.search(r"A right solution: (.*)\n\nA wrong solution: (.*)\n", prompt).groups()
        assert read_solution(right)[1] == dialogue.problem.answer
        assert read_solution(wrong)[1] != dialogue.problem.answer


def test_every_step_follows_from_the_one_before():
    """Slips aside: a step starts at the total that the step before claimed, and the last total is the boxed answer."""
    for dialogue in SAMPLE:
        operands = [int(a) for a, _, _, _ in corpus._STEP.findall(dialogue.reply)]
        totals = [int(total) for _, _, _, total in corpus._STEP.findall(dialogue.reply)]
        assert operands == [dialogue.problem.start, *totals[:-1]]
        assert totals[-1] == read_solution(dialogue.reply)[1]


def test_no_dialogue_is_about_a_question_of_the_train_or_test_split():
    taken = {q.question for split in ("train", "test") for q in load_split(split)}
    assert not taken & {d.problem.text for d in SAMPLE}
    assert {d.problem.split for d in SAMPLE} == {"pretrain"}


def test_the_corpus_is_the_same_for_a_seed():
    assert list(itertools.islice(draw_dialogues(seed=1), 100)) == SAMPLE[:100]
    assert list(itertools.islice(draw_dialogues(seed=2), 100)) != SAMPLE[:100]


def test_prompts_are_those_of_the_tiny_config():
    settings = load_config("configs/tiny.yaml").prompts
    assert settings == corpus.PROMPTS
    prompts = load_prompts(settings)
    hint_free = next(d for d in SAMPLE if not d.hinted)
    assert list(hint_free.messages) == prompts.student_messages(hint_free.problem.text)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.2, 1.0]))
def test_a_solution_can_be_read_back(seed, slip_rate):
    rng = random.Random(seed)
    problem = draw_problem(rng)
    steps, answer = read_solution(write_solution(problem, rng, slip_rate=slip_rate))
    assert len(steps) == len(problem.changes)
    if slip_rate == 0:
        assert all(steps)
        assert answer == problem.answer
    if slip_rate == 1:
        assert not any(steps)


def test_corpus_text_is_whole_words_and_round_trips(chat):
    for dialogue in SAMPLE:
        for text in (dialogue.reply, *(message["content"] for message in dialogue.messages)):
            ids = chat.encode_text(text)
            assert chat.decode(ids) == text
            words = [chat.decode([i]) for i in ids]
            assert all(len(w) > 1 or not w.isalpha() or w in "Aa" for w in words), words


@given(st.text())
def test_any_text_round_trips(chat, text):
    assert chat.decode(chat.encode_text(text), keep_special=True) == text


def test_prompts_are_chatml(chat):
    messages = [{"role": "system", "content": "Solve."}, {"role": "user", "content": "1 + 1"}]
    expected = "<|im_start|>system\nSolve.<|im_end|>\n<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n"
    ids = chat.encode_prompt(messages)
    assert chat.decode(ids, keep_special=True) == expected
    assert ids.count(chat.end_of_turn_id) == 2
    assert chat.decode([chat.end_of_turn_id], keep_special=True) == "<|im_end|>"


def test_the_shipped_tokenizer_is_what_the_code_builds(chat, tmp_path):
    texts = [t for d in SAMPLE for t in (d.reply, *(m["content"] for m in d.messages))]
    save_tokenizer(build_tokenizer(["system\nuser\nassistant\n", *texts]), tmp_path, max_length=1024)
    assert load_chat(tmp_path).tokenizer.get_vocab() == chat.tokenizer.get_vocab()
