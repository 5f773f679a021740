"""Which reply tokens count, decided by what student and teacher make of them in this very step.

TIP, arXiv 2604.14084: the tokens worth learning from are those where the student hesitates (high entropy), and those
where it is sure and far from the teacher (low entropy, high divergence).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ssb_jax.losses.chunked import TokenStats


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
    return selected * (jnp.sum(weight) / jnp.sum(selected))


def _largest(
    score: Float[Array, "groups P"], among: Bool[Array, "groups P"], count: Float[Array, ""]
) -> Bool[Array, "groups P"]:
    """The `count` largest scores (rounded up, at least one) among some tokens; ties count too."""
    ordered = jnp.sort(jnp.where(among, score, -jnp.inf).ravel(), descending=True)
    last = jnp.clip(jnp.ceil(count).astype(jnp.int32), 1, ordered.size) - 1
    return among & (score >= ordered[last])
