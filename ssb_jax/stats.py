"""Accuracy and how sure we are of it: pass@k, maj@k, bootstrap intervals over questions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import scipy.stats
from jaxtyping import Float

_MOST_SUBSETS = 1000


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval; None where one question gives no interval."""

    value: float
    low: float | None
    high: float | None


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k samples is correct, unbiased from n >= k of them.

    1 - C(n - c, k) / C(n, k), the estimator of Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    if not 0 < k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(f"expected 0 < k <= n and 0 <= c <= n, got k={k}, n={num_samples}, c={num_correct}")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Share of k-subsets of the samples whose most common answer is correct (self-consistency, arXiv 2203.11171).

    A sample without an answer (None) has no vote; a tie goes to the answer given first. All subsets are counted when
    there are at most 1,000 of them, otherwise the first 1,000 of a fixed shuffle.

    Args:
      answers: one a sample; equal strings are the same vote.
      correct: whether that sample was graded correct.
    """
    n = len(answers)
    if not 0 < k <= n or len(correct) != n:
        raise ValueError(f"expected 0 < k <= {n} answers with as many grades, got k={k} and {len(correct)} grades")
    if comb(n, k) <= _MOST_SUBSETS:
        subsets = list(combinations(range(n), k))
    else:
        generator = np.random.default_rng(0)
        subsets = [sorted(generator.permutation(n)[:k]) for _ in range(_MOST_SUBSETS)]
    return float(np.mean([_majority_is_correct(answers, correct, subset) for subset in subsets]))


def _majority_is_correct(answers: Sequence[str | None], correct: Sequence[bool], subset: Sequence[int]) -> bool:
    votes = Counter(answers[i] for i in subset if answers[i] is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]  # Counter keeps the order of first appearance among equals
    return correct[next(i for i in subset if answers[i] == winner)]


def bootstrap_mean(values: Sequence[float], *, confidence: float, resamples: int, seed: int = 0) -> Interval:
    """Mean of one value a question, with the percentile bootstrap's interval over questions.

    Pass per-question differences for a paired comparison of two models.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("expected at least one value")
    if data.size == 1:
        return Interval(float(data[0]), None, None)
    result = scipy.stats.bootstrap(
        (data,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, 2_000_000 // data.size),
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(data.mean()), float(low), float(high))


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions. `p_value` is two-sided, of the hypothesis that neither is better."""

    better: int  # questions where the second model scores higher
    worse: int
    equal: int
    p_value: float


def sign_test(first: Sequence[float], second: Sequence[float]) -> Paired:
    """The exact sign test on questions where two models differ; with one answer a question, McNemar's exact test.

    Args:
      first, second: each model's score on every question, in the same order.
    """
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    p_value = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return Paired(better, worse, difference.size - better - worse, float(p_value))


def bootstrap_seeds_and_questions(
    scores: Sequence[Float[np.ndarray, "S Q"]], *, resamples: int, seed: int = 0
) -> Float[np.ndarray, "N M"]:
    """Means of several methods' scores (seeds S x questions Q) in bootstrap replicates of seeds and questions.

    Seeds and questions are drawn independently of each other (the pigeonhole bootstrap of crossed factors, Owen 2007,
    arXiv 0712.1111: its intervals are, if anything, too wide). All methods share the questions of a replicate, so the
    difference of two columns is paired; their seeds are drawn apart.

    Returns:
      A row a method, a column a replicate.
    """
    random = np.random.default_rng(seed)
    questions = scores[0].shape[1]
    of_questions = random.multinomial(questions, np.full(questions, 1 / questions), size=resamples) / questions
    means = []
    for values in scores:
        seeds = values.shape[0]
        of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
        means.append(np.einsum("ms,sq,mq->m", of_seeds, values, of_questions, optimize=True))
    return np.stack(means)
