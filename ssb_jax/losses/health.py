"""What the most likely words of teacher and student say of a training run, without sorting and without gathering rows.

The k-th largest of a row is found by bisection on the bits of its numbers: each of 32 rounds counts the numbers above a
threshold, so a vocabulary that is split over devices stays split.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

OVERLAP, TOP = 10, 100


def top_mask(x: Float[Array, "*C V"], k: int) -> Bool[Array, "*C V"]:
    """Which numbers are among the k largest of their row; those equal to the k-th count too."""
    keys = _ordered(x)
    k = min(k, x.shape[-1])

    def raise_bit(i: Int[Array, ""], bound: Int[Array, "*C"]) -> Int[Array, "*C"]:
        higher = bound + (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        enough = jnp.sum(keys >= higher[..., None], axis=-1) >= k
        return jnp.where(enough, higher, bound)

    kth = jax.lax.fori_loop(0, 32, raise_bit, jnp.zeros(x.shape[:-1], jnp.uint32))
    return keys >= kth[..., None]


def _ordered(x: Float[Array, "*C V"]) -> Int[Array, "*C V"]:
    """Unsigned integers in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def top_overlap(teacher_logp: Float[Array, "*C V"], student_logp: Float[Array, "*C V"]) -> Float[Array, "*C"]:
    """Share of the teacher's `OVERLAP` most likely words that are among the student's as well."""
    both = top_mask(teacher_logp, OVERLAP) & top_mask(student_logp, OVERLAP)
    return jnp.sum(both, axis=-1) / min(OVERLAP, teacher_logp.shape[-1])


def outside_top(teacher_logp: Float[Array, "*C V"], student_logp: Float[Array, "*C V"]) -> Float[Array, "*C"]:
    """The part of KL(p_T, p_S) that comes from outside the teacher's `TOP` most likely words; can be negative."""
    terms = jnp.exp(teacher_logp) * (teacher_logp - student_logp)
    return jnp.sum(jnp.where(top_mask(teacher_logp, TOP), 0.0, terms), axis=-1)
