"""Token selection: the right tokens, the same total weight."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssb_jax.losses.chunked import TokenStats
from ssb_jax.losses.menu import TokenInfo
from ssb_jax.losses.selection import fall_with_disagreement, select_tokens

N = 20
ENTROPY = jnp.asarray(np.random.default_rng(0).permutation(N) / N, jnp.float32)[None]
KL = jnp.asarray(np.random.default_rng(1).permutation(N) / N, jnp.float32)[None]
STATS = TokenStats(kl=KL, agreement=KL, student_entropy=ENTROPY, teacher_entropy=ENTROPY)
WEIGHT = jnp.where(jnp.arange(N) < 16, 1 / 16, 0.0)[None].astype(jnp.float32)  # the last four are padding


@pytest.mark.parametrize("rule", ["all", "uncertain", "uncertain_or_wrong"])
def test_a_micro_batch_in_which_nothing_counts_stays_nothing(rule):
    """What a leftover batch is filled up with: 0 / 0 made its loss NaN."""
    np.testing.assert_array_equal(select_tokens(0 * WEIGHT, STATS, rule=rule, share=0.5), 0 * WEIGHT)


def test_all_is_all():
    np.testing.assert_array_equal(select_tokens(WEIGHT, STATS, rule="all", share=0.1), WEIGHT)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_uncertain_keeps_the_highest_entropies(share):
    selected = select_tokens(WEIGHT, STATS, rule="uncertain", share=share)[0]
    expected = np.argsort(-np.asarray(ENTROPY[0, :16]))[: int(16 * share)]
    assert set(np.flatnonzero(selected)) == set(expected)
    np.testing.assert_allclose(selected.sum(), 1, rtol=1e-6)


def test_uncertain_or_wrong_adds_sure_tokens_far_from_the_teacher():
    selected = select_tokens(WEIGHT, STATS, rule="uncertain_or_wrong", share=0.5)[0]
    uncertain = set(np.argsort(-np.asarray(ENTROPY[0, :16]))[:4])
    sure = [i for i in np.argsort(-np.asarray(KL[0, :16])) if i not in uncertain]
    assert set(np.flatnonzero(selected)) == uncertain | set(sure[:4])
    np.testing.assert_allclose(selected.sum(), 1, rtol=1e-6)


def test_weights_fall_with_the_disagreement_before_the_token():
    """Two replies of 5 and 8 tokens after each other, then padding; IW-OPD's formula reply by reply."""
    lengths, gamma = (5, 8), 0.5
    gap = np.random.default_rng(2).normal(size=N).astype(np.float32)
    position = np.concatenate([*map(np.arange, lengths), np.zeros(N - 13)]).astype(np.int32)
    length = np.concatenate([np.repeat(lengths, lengths), np.zeros(N - 13)]).astype(np.int32)
    weight = np.where(length > 0, np.random.default_rng(3).random(N), 0).astype(np.float32)
    expected = weight.copy()
    for start, stop in ((0, 5), (5, 13)):
        a = np.abs(gap[start:stop])
        expected[start:stop] *= 1 + gamma * (1 - (np.cumsum(a) - a) / a.sum())
    expected *= weight.sum() / expected.sum()
    stats = TokenStats(KL, KL, ENTROPY, ENTROPY, {"gap": jnp.asarray(gap)[None]})
    info = TokenInfo(*(jnp.asarray(x)[None] for x in (position, position, length)))
    found = fall_with_disagreement(jnp.asarray(weight)[None], stats, info, gamma=gamma)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    unchanged = fall_with_disagreement(jnp.asarray(weight)[None], stats, info, gamma=0.0)[0]
    np.testing.assert_allclose(unchanged, weight, rtol=1e-6)


def test_at_least_one_token_is_kept():
    assert np.count_nonzero(select_tokens(WEIGHT, STATS, rule="uncertain", share=1e-6)) == 1
