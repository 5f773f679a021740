"""The generator: disjoint splits, the same questions for ever, right answers."""

import hashlib
import random
import re
import subprocess
import sys
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssb_jax.config import SsbError
from ssb_jax.tiny.problems import BUCKETS, LEVEL_WEIGHTS, draw_problem, draw_problems, load_split

LOSSES = ("loses", "sells", "gives", "takes", "removes", "get off", "from the shop")
GAINS = ("more", "adds", "get on")


def read_and_solve(question: str) -> tuple[str, int]:
    """An independent reading of a question's words: its chain of numbers and the answer."""
    opening, *sentences = question.split(". ")
    chain = re.search(r"\d+", opening).group()
    total = int(chain)
    for sentence in sentences[:-1]:
        number = re.search(r"\d+", sentence).group()
        worded = sentence.replace(number, "{n}")
        loses = any(word in worded for word in LOSSES) and "A friend" not in worded
        assert loses or any(word in worded for word in GAINS), sentence
        total += -int(number) if loses else int(number)
        chain += f"-{number}" if loses else f"+{number}"
    return chain, total


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_right(split):
    for question in load_split(split):
        assert str(read_and_solve(question.question)[1]) == question.answer


def test_splits_share_no_chain_of_numbers():
    chains = {split: {read_and_solve(q.question)[0] for q in load_split(split)} for split in ("train", "test")}
    chains["pretrain"] = {read_and_solve(p.text)[0] for p in islice(draw_problems("pretrain", seed=0), 20_000)}
    assert len(chains["train"]) == len(chains["test"]) == 1000
    for one, other in (("train", "test"), ("train", "pretrain"), ("test", "pretrain")):
        assert not chains[one] & chains[other]


@given(st.integers(0, 2**32))
def test_a_problem_is_in_one_split_and_never_below_zero(seed):
    problem = draw_problem(random.Random(seed))
    assert problem.split in BUCKETS
    assert min(problem.totals) >= 0
    assert (problem.chain, problem.answer) == read_and_solve(problem.text)
    assert len(problem.changes) in LEVEL_WEIGHTS


def test_ids_are_unique_and_a_limit_takes_the_first():
    train, test = load_split("train"), load_split("test")
    assert len({q.id for q in train + test}) == len(train) + len(test)
    assert load_split("test", 7) == test[:7]


def test_the_published_sets_stay_as_they_are():
    """Results on these sets can be compared across versions only while the sets do not change."""
    texts = "\n".join(f"{q.id} {q.question} {q.answer}" for split in ("train", "test") for q in load_split(split))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "e441eb2f9b17679f"


def test_an_unknown_split_is_an_error():
    with pytest.raises(SsbError, match=r"train.*got 'validation'"):
        load_split("validation")


def test_problems_and_corpus_do_not_import_jax():
    code = "import sys, ssb_jax.tiny.problems, ssb_jax.tiny.corpus; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
