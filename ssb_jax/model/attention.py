"""Attention over grouped heads, in one function, with the kernels of others behind it (kernels.py).

The mask is kept as its rule (indices and segments), not as a (B, T, S) array: XLA fuses the comparison into the
softmax, and a kernel can skip the blocks that the rule excludes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from ssb_jax.model import kernels

# Without a kernel: queries of a block, at least, and blocks at most. Four leave 10 of 16 parts of the scores.
QUERY_BLOCK, MOST_BLOCKS = 64, 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: keys of an index up to its own, and of its own segment when segments are given."""

    query_index: Int[Array, "B T"]
    key_index: Int[Array, " S"]
    segment_ids: Int[Array, "B T"] | None = None  # of queries; of keys too where these have none, and S = T
    key_segment_ids: Int[Array, "B S"] | None = None
    # Where it is known when compiling: query t, unless it is padding, has index start + t, and S = start + T.
    start: int | None = field(default=None, metadata={"static": True})

    def dense(self) -> Bool[Array, "B T S"]:
        visible = self.key_index[None, None, :] <= self.query_index[:, :, None]
        if self.segment_ids is None:
            return visible
        keys = self.segment_ids if self.key_segment_ids is None else self.key_segment_ids
        return visible & (self.segment_ids[:, :, None] == keys[:, None, :])

    def block(self, first: int, last: int, keys: int) -> Mask:
        """The rule for the queries from `first` to before `last`, and the first `keys` keys."""
        segments = self.segment_ids
        return Mask(
            self.query_index[:, first:last],
            self.key_index[:keys],
            segment_ids=None if segments is None else segments[:, first:last],
            key_segment_ids=None if segments is None else segments[:, :keys],
        )


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    *,
    kernel: str = "auto",
) -> Float[Array, "B T N H"]:
    """Softmax attention, each key/value head shared by G = N / K query heads; scores and softmax in float32.

    Args:
      kernel: "xla", the reference; "splash" (TPU) or "cudnn" (GPU), where its conditions hold; "auto": the device's.

    Raises:
      SsbError: a kernel of another kind of device.
    """
    chosen = kernels.choose(kernel, q, k, start=mask.start)
    if chosen == "splash":
        return kernels.splash(q, k, v, mask.segment_ids, start=mask.start)
    if chosen == "cudnn":
        causal = mask.start == 0 and mask.segment_ids is None
        return kernels.fused(q, k, v, None if causal else mask.dense(), implementation="cudnn")
    if q.shape[1] == 1:
        return jax.lax.platform_dependent(q, k, v, mask, cpu=_matrix_vector, default=_batched)
    return _batched(q, k, v, mask)


def _batched(q, k, v, mask):
    """Queries block by block where their indices are known when compiling: what comes after a block's last query is not
    computed only to be masked."""
    T = q.shape[1]
    if mask.start is None or T < 2 * QUERY_BLOCK:
        return _grouped(q, k, v, mask)
    count = min(T // QUERY_BLOCK, MOST_BLOCKS)
    edges = [T * i // count for i in range(count + 1)]
    blocks = []
    for first, last in pairwise(edges):
        seen = mask.start + last
        blocks.append(_grouped(q[:, first:last], k[:, :seen], v[:, :seen], mask.block(first, last, seen)))
    return jnp.concatenate(blocks, axis=1)


def _grouped(q, k, v, mask):
    B, T, N, H = q.shape
    K = k.shape[2]
    grouped = jnp.transpose(q.reshape(B, T, K, N // K, H), (0, 2, 3, 1, 4))
    mixed = _dense(grouped, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), mask)
    return jnp.transpose(mixed, (0, 3, 1, 2, 4)).reshape(B, T, N, H)


@jax.custom_vjp
def _dense(q, k, v, mask):
    """q (B, K, G, T, H), k and v (B, K, S, H) -> (B, K, G, T, H).

    The scores are computed again in the backward pass, from which nothing of (T, S) is kept, and every product takes
    such an array as it lies: XLA's own gradient transposes them on a CPU, which takes longer than the products.
    """
    return _dense_forward(q, k, v, mask)[0]


def _dense_forward(q, k, v, mask):
    scores = _scores(q, k, mask)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    mixed, softmax = checkpoint_name(((mixed / total).astype(v.dtype), (largest, total)), "attention")
    return mixed, (q, k, v, mask, mixed, softmax)


def _dense_backward(kept, d_mixed):
    q, k, v, mask, mixed, (largest, total) = kept
    probabilities = jnp.exp(_scores(q, k, mask) - largest) / total
    wide = {"preferred_element_type": jnp.float32}
    d_probabilities = jnp.einsum("bkgth,bksh->bkgts", d_mixed, v, **wide)
    mean = jnp.sum(d_mixed.astype(jnp.float32) * mixed, axis=-1, keepdims=True)
    d_scores = (probabilities * (d_probabilities - mean) * _scale(q)).astype(q.dtype)
    d_q = jnp.einsum("bkgts,bksh->bkgth", d_scores, k, **wide).astype(q.dtype)
    d_k = jnp.einsum("bkgth,bkgts->bkhs", q, d_scores, **wide).astype(k.dtype)
    d_v = jnp.einsum("bkgth,bkgts->bkhs", d_mixed, probabilities.astype(d_mixed.dtype), **wide).astype(v.dtype)
    return d_q, jnp.swapaxes(d_k, 2, 3), jnp.swapaxes(d_v, 2, 3), None


_dense.defvjp(_dense_forward, _dense_backward)


def _scores(q, k, mask):
    scores = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32) * _scale(q)
    return _masked(scores, mask)


def _scale(q):
    return jnp.float32(1 / np.sqrt(q.shape[-1]))


def _matrix_vector(q, k, v, mask):
    """One query a row, its scores as sums instead of a product of matrices: on a CPU XLA then reads the keys once, and
    near the memory's speed, where its matrix product of G rows takes three times as long."""
    B, _, N, H = q.shape
    K = k.shape[2]
    G = N // K
    grouped = q.reshape(B, K, G, 1, H).astype(jnp.float32)
    scores = jnp.sum(jnp.swapaxes(k, 1, 2)[:, :, None] * grouped, axis=-1)
    probabilities = _softmax(scores[:, :, :, None], mask, H).astype(v.dtype)[:, :, :, 0]
    mixed = jnp.einsum("bkgs,bskh->bkgh", probabilities, v, preferred_element_type=jnp.float32)
    return mixed.astype(v.dtype).reshape(B, 1, N, H)


def _softmax(scores: Float[Array, "B K G T S"], mask: Mask, head_dim: int) -> Float[Array, "B K G T S"]:
    return jax.nn.softmax(_masked(scores * jnp.float32(1 / np.sqrt(head_dim)), mask), axis=-1)


def _masked(scores: Float[Array, "B K G T S"], mask: Mask) -> Float[Array, "B K G T S"]:
    # The lowest finite number, not -inf: a row that sees nothing (padding) must not become NaN.
    return jnp.where(mask.dense()[:, None, None], scores, jnp.finfo(jnp.float32).min)


def rotary_angles(
    positions: Int[Array, "B T"], *, head_dim: int, theta: float
) -> tuple[Float[Array, "B T h"], Float[Array, "B T h"]]:
    """Cosines and sines (float32) of the H / 2 rotation angles at each position (RoFormer, arXiv 2104.09864)."""
    exponents = np.arange(0, head_dim, 2) / head_dim
    frequencies = jnp.asarray(np.float32(1) / np.float32(theta**exponents))  # powers rounded once, from float64
    angles = positions[:, :, None].astype(jnp.float32) * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T N H"], cos: Float[Array, "B T h"], sin: Float[Array, "B T h"]
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (x[i], x[i + H/2]), as Qwen2 checkpoints expect; computed in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
