"""Keys and values of past tokens. The index of a token in the cache is its position, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssb_jax.model.config import ModelConfig
from ssb_jax.model.sharding import constrain, shardings

# Heads before tokens: what the attention products of one head read is contiguous, so XLA copies nothing to another
# order (with tokens first it did: twice the traffic of a decode step on TPU and a sixth of its time on CPU).
CACHE_AXES = ("layers", "batch", "kv_heads", "tokens", "head_dim")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Rotated keys, and values, of every layer."""

    k: Float[Array, "L B K S H"]
    v: Float[Array, "L B K S H"]

    @property
    def length(self) -> int:
        """S: positions from here on are not written."""
        return self.k.shape[3]


# A cache in equal parts: each holds some of the layers, in order.
Cache = tuple[KVCache, ...]


def init_cache(
    config: ModelConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32, *, layers: int | None = None
) -> KVCache:
    """An empty cache (zeros) for `batch` rows of up to `length` tokens, of all layers or of so many."""
    shape = (layers or config.num_layers, batch, config.num_kv_heads, length, config.head_dim)

    def zeros():
        return constrain(jnp.zeros(shape, dtype), *CACHE_AXES)

    return KVCache(k=zeros(), v=zeros())


def cache_shardings(cache: KVCache, mesh: jax.sharding.Mesh) -> KVCache:
    """NamedSharding of each field of a cache (or of its abstract shapes)."""
    return shardings(cache, lambda _: CACHE_AXES, mesh)


def write(
    stacked: Float[Array, "L B K S H"],
    new: Float[Array, "B T K H"],
    layer: Int[Array, ""],
    positions: Int[Array, "B T"],
) -> Float[Array, "L B K S H"]:
    """Puts new[b, t, h] at [layer, b, h, positions[b, t]]; positions >= S are dropped.

    One scatter, in place. Compiled for TPU, this spelling (an index for every axis but the last) keeps the array's own
    tiling and each device writes its own rows, while windows over heads, dynamic_update_slice and a scatter with
    batching dimensions make XLA copy the whole cache to another tiling and back. The constraint keeps few key/value
    heads whole on a wide tensor axis: otherwise their splitting among the query heads' devices is undone by gathering
    the cache in every layer.
    """
    rows = jnp.arange(positions.shape[0], dtype=positions.dtype)[:, None, None]
    heads = jnp.arange(stacked.shape[2], dtype=positions.dtype)[None, None, :]
    written = stacked.at[layer, rows, heads, positions[:, :, None]].set(new.astype(stacked.dtype), mode="drop")
    return constrain(written, *CACHE_AXES)


def read(stacked: Float[Array, "L B K S H"], layer: Int[Array, ""]) -> Float[Array, "B S K H"]:
    """One layer's keys or values, as attention takes them; the change of order is one of indices, not of memory."""
    own = constrain(jax.lax.dynamic_index_in_dim(stacked, layer, axis=0, keepdims=False), *CACHE_AXES[1:])
    return jnp.swapaxes(own, 1, 2)
