"""Group-relative policy optimisation (GRPO, arXiv 2402.03300): advantages and the clipped loss of a token.

Also the variants people compare: Dr. GRPO (arXiv 2503.20783) divides by no standard deviation and by a constant length,
DAPO (arXiv 2503.14476) takes the mean over tokens and clips further up than down, and arXiv 2506.01347 learns from
right answers or from wrong ones alone. Knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LEAST_DEVIATION = 1e-4  # added to a group's standard deviation, as TRL does


def advantages(
    rewards: Float[np.ndarray, "questions group"], *, scale: str = "group", reinforce: str = "all"
) -> Float[np.ndarray, "questions group"]:
    """How much better each answer is than its group's mean; NaN marks an answer without a reward, which gets 0.

    Args:
      scale: `group`: divided by the group's standard deviation (of a sample: n - 1); `batch`: by that of all rewards;
        `none`: not divided.
      reinforce: keep `all`, or only the `positive` or the `negative` ones; the others become 0.
    """
    known = np.isfinite(rewards)
    counts = np.maximum(known.sum(1, keepdims=True), 1)
    centred = np.where(known, rewards - np.where(known, rewards, 0.0).sum(1, keepdims=True) / counts, 0.0)
    if scale == "group":
        centred = centred / (np.sqrt((centred**2).sum(1, keepdims=True) / np.maximum(counts - 1, 1)) + _LEAST_DEVIATION)
    elif scale == "batch":
        every = rewards[known]
        centred = centred / ((every.std(ddof=1) if every.size > 1 else 0.0) + _LEAST_DEVIATION)
    kept = {"all": centred, "positive": np.maximum(centred, 0.0), "negative": np.minimum(centred, 0.0)}[reinforce]
    return kept.astype(np.float32)


def token_weights(lengths: Sequence[int], *, normalisation: str, max_new_tokens: int) -> list[Float[np.ndarray, "R"]]:
    """Weight of each token of each answer, so that the loss of a batch is one weighted sum.

    Args:
      lengths: tokens of each answer of the whole batch.
      normalisation: `sequence`, `token` or `constant`; see the setting `grpo.normalisation`.
    """
    answers, tokens = len(lengths), sum(lengths)
    return [
        np.full(
            length,
            {
                "sequence": 1 / (answers * max(length, 1)),
                "token": 1 / max(tokens, 1),
                "constant": 1 / (answers * max_new_tokens),
            }[normalisation],
            np.float32,
        )
        for length in lengths
    ]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyTokens:
    """What the loss of a token is made of."""

    loss: Float[Array, "*T"]
    ratio: Float[Array, "*T"]  # probability now / when it was sampled
    clipped: Float[Array, "*T"]  # 1 where the ratio is beyond its limit and gives no gradient
    kl: Float[Array, "*T"]  # estimate of KL(policy, reference), never negative


def policy_loss(
    logp: Float[Array, "*T"],
    *,
    sampled_logp: Float[Array, "*T"],
    reference_logp: Float[Array, "*T"],
    advantage: Float[Array, "*T"],
    clip: float,
    clip_high: float,
    beta: float,
) -> PolicyTokens:
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A) + beta KL, with r = exp(logp - sampled_logp).

    KL is the estimator k3 = q - log q - 1, q = reference / policy (Schulman, "Approximating KL divergence").

    Args:
      logp: of the tokens under the policy now; the others are constants.
    """
    ratio = jnp.exp(logp - jax.lax.stop_gradient(sampled_logp))
    free, limited = ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip_high) * advantage
    distance = reference_logp - logp
    kl = jnp.expm1(distance) - distance
    return PolicyTokens(-jnp.minimum(free, limited) + beta * kl, ratio, (limited < free).astype(jnp.float32), kl)
