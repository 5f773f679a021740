"""pass@k, maj@k and the bootstrap against brute force and theory."""

from itertools import combinations, product

import numpy as np
import pytest

from ssb_jax.stats import bootstrap_mean, majority_at_k, pass_at_k


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_equals_counting_subsets(n):
    for c, k in product(range(n + 1), range(1, n + 1)):
        subsets = list(combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 0), (4, 2, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="expected 0 < k <= n"):
        pass_at_k(n, c, k)


def test_majority_counts_votes():
    answers, correct = ["7", "8", "7", None], [True, False, True, False]
    assert majority_at_k(answers, correct, 4) == 1.0
    assert majority_at_k(answers, correct, 1) == 0.5
    assert majority_at_k(["8", "7"], [False, True], 2) == 0.0  # a tie goes to the first
    assert majority_at_k([None, None], [False, False], 2) == 0.0
    assert majority_at_k([None, "7"], [False, True], 2) == 1.0  # no answer, no vote


def test_majority_of_many_samples_is_repeatable_and_close_to_exact():
    rng = np.random.default_rng(1)
    answers = [str(a) for a in rng.integers(0, 3, 20)]
    correct = [a == "0" for a in answers]
    first = majority_at_k(answers, correct, 1)
    assert majority_at_k(answers, correct, 1) == first == pytest.approx(np.mean(correct))
    assert majority_at_k(answers, correct, 10) == majority_at_k(answers, correct, 10)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap_mean(rng.random(120) < 0.3, confidence=0.95, resamples=400, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.90 <= hits / 200 <= 0.985


def test_bootstrap_of_one_question_has_no_interval():
    assert bootstrap_mean([1.0], confidence=0.95, resamples=100).low is None


def test_bootstrap_of_equal_values_has_no_width():
    interval = bootstrap_mean([1.0] * 9, confidence=0.95, resamples=100)
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_bootstrap_repeats_exactly():
    values = np.random.default_rng(3).random(50)
    assert bootstrap_mean(values, confidence=0.9, resamples=200) == bootstrap_mean(
        values, confidence=0.9, resamples=200
    )
