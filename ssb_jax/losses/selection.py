"""Which reply tokens count and how much, decided by what student and teacher make of them in this very step.

TIP, arXiv 2604.14084: the tokens worth learning from are those where the student hesitates (high entropy), and those
where it is sure and far from the teacher (low entropy, high divergence).

IW-OPD, arXiv 2606.22600: the later a token, and the more teacher and student disagreed before it, the less it counts.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ssb_jax.losses.chunked import TokenStats
from ssb_jax.losses.menu import TokenInfo


def select_tokens(
    weight: Float[Array, "groups P"], stats: TokenStats, *, rule: str, share: float
) -> Float[Array, "groups P"]:
    """Weights of the selected tokens, scaled so that their sum stays the same; the others get 0.

    Args:
      rule: `all`; `uncertain`: the `share` of tokens with the highest student entropy; `uncertain_or_wrong`: half as
        many of those, and as many of the others with the highest KL(p_T, p_S).
      share: of the tokens whose weight is not 0.
    """
    if rule == "all":
        return weight
    counted = weight > 0
    wanted = share * jnp.sum(counted)
    if rule == "uncertain":
        kept = _largest(stats.student_entropy, counted, wanted)
    else:
        uncertain = _largest(stats.student_entropy, counted, wanted / 2)
        kept = uncertain | _largest(stats.kl, counted & ~uncertain, wanted / 2)
    selected = jnp.where(kept, weight, 0.0)
    return _same_sum(selected, weight)


def fall_with_disagreement(
    weight: Float[Array, "groups P"], stats: TokenStats, info: TokenInfo, *, gamma: float
) -> Float[Array, "groups P"]:
    """Weights times 1 + gamma * (1 - share of the reply's disagreement that lies before the token), with the same sum.

    The disagreement is |log p_T(y) - log p_S(y)|; a reply's tokens lie after each other. The paper takes gamma = 0.5.
    """
    gap = jnp.where(info.length > 0, jnp.abs(stats.further["gap"]), 0.0)
    before = jnp.cumsum(gap, axis=-1) - gap
    first = jnp.maximum(jnp.broadcast_to(jnp.arange(gap.shape[-1]), gap.shape) - info.position, 0)
    last = jnp.clip(first + info.length - 1, 0, gap.shape[-1] - 1)

    def at(x, index):
        return jnp.take_along_axis(x, index, axis=-1)

    start = at(before, first)
    total = jnp.maximum(at(before + gap, last) - start, 1e-30)
    falling = weight * (1 + gamma * (1 - (before - start) / total))
    return _same_sum(falling, weight)


def _same_sum(changed: Float[Array, "groups P"], weight: Float[Array, "groups P"]) -> Float[Array, "groups P"]:
    """Changed weights, scaled to the sum of the old ones; a micro-batch in which nothing counts stays all zeros."""
    return changed * (jnp.sum(weight) / jnp.maximum(jnp.sum(changed), 1e-30))


def _largest(
    score: Float[Array, "groups P"], among: Bool[Array, "groups P"], count: Float[Array, ""]
) -> Bool[Array, "groups P"]:
    """The `count` largest scores (rounded up, at least one) among some tokens; ties count too."""
    ordered = jnp.sort(jnp.where(among, score, -jnp.inf).ravel(), descending=True)
    last = jnp.clip(jnp.ceil(count).astype(jnp.int32), 1, ordered.size) - 1
    return among & (score >= ordered[last])
