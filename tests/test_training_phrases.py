"""Phrases that are watched during training."""

from ssb_jax.training.phrases import count_phrases


def test_hedges_and_leaks_are_counted():
    replies = [
        "Wait, let me check: 3 + 4 = 7. Hmm, yes.",
        "The waiter brings 7 plates. \\boxed{7}",
        "Unlike the rejected response, we carry the one.",
    ]
    assert count_phrases(replies) == {"hedges": 3 / 3, "leaks": 1 / 3}
