"""Keys and values of past tokens. The index of a token in the cache is its position, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssb_jax.model.config import ModelConfig
from ssb_jax.model.sharding import constrain, shardings

CACHE_AXES = ("layers", "batch", "tokens", "kv_heads", "head_dim")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Rotated keys, and values, of every layer."""

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]

    @property
    def length(self) -> int:
        """S: positions from here on are not written."""
        return self.k.shape[2]


def init_cache(config: ModelConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> KVCache:
    """An empty cache (zeros) for `batch` rows of up to `length` tokens."""
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)

    def zeros():
        return constrain(jnp.zeros(shape, dtype), *CACHE_AXES)

    return KVCache(k=zeros(), v=zeros())


def cache_shardings(cache: KVCache, mesh: jax.sharding.Mesh) -> KVCache:
    """NamedSharding of each field of a cache (or of its abstract shapes)."""
    return shardings(cache, lambda _: CACHE_AXES, mesh)


def write(
    stacked: Float[Array, "L B S K H"],
    new: Float[Array, "B T K H"],
    layer: Int[Array, ""],
    positions: Int[Array, "B T"],
) -> Float[Array, "L B S K H"]:
    """Puts new[b, t] at [layer, b, positions[b, t]]; positions >= S are dropped.

    One scatter with the batch as a batching dimension: XLA updates the array where it lies, and a sharded batch is
    updated by each device alone. Positions of one row below S must be distinct.
    """
    indices = jnp.stack([jnp.broadcast_to(layer, positions.shape).astype(positions.dtype), positions], axis=-1)
    dimensions = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(2, 3),
        inserted_window_dims=(0, 2),
        scatter_dims_to_operand_dims=(0, 2),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(
        stacked, indices, new.astype(stacked.dtype), dimensions, mode=jax.lax.GatherScatterMode.FILL_OR_DROP
    )


def read(stacked: Float[Array, "L B S K H"], layer: Int[Array, ""]) -> Float[Array, "B S K H"]:
    """One layer's keys or values."""
    return jax.lax.dynamic_index_in_dim(stacked, layer, axis=0, keepdims=False)
