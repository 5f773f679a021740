"""Accuracy and how sure we are of it: pass@k, maj@k, bootstrap intervals over questions."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from zlib import crc32

import numpy as np
import scipy.stats
from jaxtyping import Float

_MOST_SUBSETS = 1000
_BATCH = 2000  # replicates at a time


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
    scores: Mapping[Hashable, Float[np.ndarray, "S Q"]],
    seeds: Mapping[Hashable, Sequence[int]],
    *,
    resamples: int,
    seed: int = 0,
) -> dict[Hashable, Float[np.ndarray, " M"]]:
    """Means of several methods' scores (seeds S x questions Q) in bootstrap replicates of seeds and questions.

    Seeds and questions are drawn independently of each other (the pigeonhole bootstrap of crossed factors, Owen 2007,
    arXiv 0712.1111). S - 1 of S seeds are drawn, with replacement: S of S would make the variance between seeds a share
    1 / S too small (Rao and Wu 1988). Of two or three seeds that differ much, intervals are too narrow even so. All
    methods share the questions of a replicate, and those of the same seeds share these, so the difference of two is
    paired; other seeds are drawn apart.

    Args:
      scores: method -> its scores. What a method gets does not depend on which others are there.
      seeds: method -> the seed of each row.

    Returns:
      method -> its mean in each replicate.
    """
    questions = next(iter(scores.values())).shape[1]
    random = np.random.default_rng(seed)
    own = {key: np.random.default_rng([seed, crc32(repr(tuple(found)).encode())]) for key, found in seeds.items()}
    parts: dict[Hashable, list[np.ndarray]] = {key: [] for key in scores}
    for start in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - start)
        of_questions = _shares(random, size, drawn=questions, of=questions)
        for key, values in scores.items():
            of_seeds = _shares(own[key], size, drawn=max(1, len(values) - 1), of=len(values))
            parts[key].append(((of_questions @ values.T) * of_seeds).sum(axis=1))
    return {key: np.concatenate(found) for key, found in parts.items()}


def _shares(random: np.random.Generator, resamples: int, *, drawn: int, of: int) -> Float[np.ndarray, "M N"]:
    """How often each of N = `of` things comes in `drawn` draws with replacement, as shares that sum to 1."""
    places = random.integers(of, size=(resamples, drawn)) + of * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * of).reshape(resamples, of) / drawn


def percentile_interval(value: float, draws: Float[np.ndarray, " M"], *, confidence: float) -> Interval:
    """The percentile bootstrap's interval of `value` from its replicates, which may be infinite."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, (tail, 100 - tail), method="nearest")
    return Interval(value, float(low), float(high))
