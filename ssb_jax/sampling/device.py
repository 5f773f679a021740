"""What the engine runs on the device: prefill, copies between caches, and chunks of decode steps.

The cache is the only state kept there. What else a slot needs is a few numbers, which the host knows (it reads every
token anyway) and hands over with each chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from ssb_jax.model.cache import CACHE_AXES, Cache, KVCache, init_cache
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import constrain
from ssb_jax.model.transformer import Transformer
from ssb_jax.sampling.filters import Filters, sample, stack_filters
from ssb_jax.sampling.keys import token_keys
from ssb_jax.sampling.params import BROKEN, NOTHING, SamplingParams


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The slots of a chunk, one a row: numpy arrays that the host writes into."""

    token: Int[Array, " B"]  # the last token so far: the next input
    position: Int[Array, " B"]  # of that token
    count: Int[Array, " B"]  # tokens sampled so far
    limit: Int[Array, " B"]  # tokens that may be sampled
    active: Bool[Array, " B"]
    key: UInt32[Array, "B 2"]  # of the sequence
    stops: Int[Array, "B M"]  # stop ids, filled up with NOTHING
    filters: Filters


def empty_rows(count: int, stops: int) -> Rows:
    """Idle slots, with room for `stops` stop ids each."""

    def zeros():
        return np.zeros(count, np.int32)

    return Rows(
        token=zeros(),
        position=zeros(),
        count=zeros(),
        limit=zeros(),
        active=np.zeros(count, bool),
        key=np.zeros((count, 2), np.uint32),
        stops=np.full((count, stops), NOTHING, np.int32),
        filters=stack_filters([SamplingParams()] * count),
    )


@jax.jit(static_argnames=("config", "batch", "length", "dtype", "parts"))
def empty_cache(config, *, batch: int, length: int, dtype, parts: int) -> Cache:
    """`init_cache` in equal parts, laid out on the mesh from the start."""
    layers = config.num_layers // parts
    return tuple(init_cache(config, batch, length, dtype, layers=layers) for _ in range(parts))


@jax.jit
def prefill(
    model: Transformer,
    lora: Lora | None,
    tokens: Int[Array, "P T"],
    lengths: Int[Array, " P"],
    prefix: KVCache | None,
) -> KVCache:
    """Keys and values (L, P, K, S, H) of prompts, padded on the right, without their last tokens.

    The last token of a prompt is the first input of decoding, so that the head is applied in one place alone.
    With `prefix` (its first row) every prompt goes on from there, and S is its length plus T; else S = T.
    """
    P, T = tokens.shape
    start = 0 if prefix is None else prefix.length
    cache = init_cache(model.config, P, start + T, model.dtype)
    if prefix is not None:
        cache = jax.tree.map(lambda whole, part: whole.at[:, :, :, :start].set(part[:, :1]), cache, prefix)
    steps = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (P, T))
    positions = jnp.where(steps < lengths[:, None] - 1, start + steps, start + T)
    return _laid_out(model(tokens, positions=positions, cache=cache, lora=lora, start=start)[1])


def place(cache: Cache, staged: KVCache, slots: Int[Array, " M"], sources: Int[Array, " M"]) -> Cache:
    """Copies rows `sources` of a prefill into `slots`; a slot beyond the last is dropped. The cache is donated."""
    count = cache[0].k.shape[0]
    return tuple(_place(part, staged, np.int32(i * count), slots, sources) for i, part in enumerate(cache))


@jax.jit(donate_argnames="part")
def _place(part, staged, first, slots, sources):
    """Into one part of the cache, whose layers begin with the `first`."""
    width = min(part.length, staged.length)  # beyond the cache is padding alone

    def put(whole, staged):
        layers = jax.lax.dynamic_slice_in_dim(staged, first, whole.shape[0])
        return whole.at[:, slots, :, :width].set(layers[:, sources, :, :width], mode="drop")

    return _laid_out(jax.tree.map(put, part, staged))


@jax.jit(static_argnames="length")
def resize(x: Float[Array, "L B K S H"], rows: Int[Array, " M"] | None, *, length: int) -> Float[Array, "L M K T H"]:
    """Keys or values with another length, of all slots or of those in `rows`."""
    x = x if rows is None else jnp.take(x, rows, axis=1)
    x = x[:, :, :, :length]
    x = jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, length - x.shape[3]), (0, 0)])
    return constrain(x, *CACHE_AXES)


@jax.jit(donate_argnames="cache")
def wipe(cache: Cache, rows: Bool[Array, " B"]) -> Cache:
    """Zeros in some slots: what a broken sequence left could be NaN, and a masked NaN still is one (0 * NaN)."""
    mask = rows[None, :, None, None, None]
    return _laid_out(jax.tree.map(lambda x: jnp.where(mask, jnp.zeros_like(x), x), cache))


@jax.jit(static_argnames="steps", donate_argnames="cache")
def decode(
    model: Transformer,
    lora: Lora | None,
    layers: list | None,
    cache: Cache,
    rows: Rows,
    history: Int[Array, "B S"] | None,
    leave_after: Int[Array, ""],
    *,
    steps: int,
) -> tuple[Cache, Int[Array, "B steps"], Bool[Array, " B"], Int[Array, ""]]:
    """Samples up to `steps` tokens in every active row; the cache is donated and updated in place.

    Args:
      layers: of a cache in several parts, what `Transformer.layers_in_parts` gave.
      history: all tokens so far, filled up with V, where a row has a repetition penalty; else None.
      leave_after: ends the chunk early once this many rows have ended in it.

    Returns:
      The cache; the tokens, with NOTHING after a row's end and BROKEN where logits were not finite; the rows that go
      on; the number of steps made.
    """
    B = rows.token.shape[0]
    seen = None if history is None else _seen(history, model.config.vocab_size)

    def step(carry):
        n, token, active, seen, cache, out = carry
        # An idle row is written nowhere: its slot may hold a prompt that waits, or nothing.
        position = jnp.where(active, rows.position + n, cache[0].length)
        hidden, cache = model(token[:, None], positions=position[:, None], cache=cache, lora=lora, layers=layers)
        keys = token_keys(rows.key, rows.count + n)
        token, bad = sample(model.logits(hidden[:, 0]), keys, rows.filters, active=active, seen=seen)
        out = out.at[:, n].set(jnp.where(active, jnp.where(bad, BROKEN, token), NOTHING))
        stopped = jnp.any(token[:, None] == rows.stops, axis=1)
        active &= ~bad & ~stopped & (rows.count + n + 1 < rows.limit)
        if seen is not None:
            seen = constrain(seen | (jnp.arange(seen.shape[1])[None] == token[:, None]), "batch", "vocab")
        return n + 1, token, active, seen, cache, out

    def going(carry):
        n, active = carry[0], carry[2]
        return (n < steps) & jnp.any(active) & (jnp.sum(rows.active & ~active) < leave_after)

    out = jnp.full((B, steps), NOTHING, jnp.int32)
    start = (jnp.int32(0), jnp.asarray(rows.token), jnp.asarray(rows.active), seen, cache, out)
    n, _, active, _, cache, out = jax.lax.while_loop(going, step, start)
    # Replicated, so that every process of a pod reads them and schedules alike.
    return _laid_out(cache), constrain(out, None, None), constrain(active, None), n


def _seen(history: Int[Array, "B S"], vocabulary: int) -> Bool[Array, "B V"]:
    rows = jnp.arange(history.shape[0])[:, None]
    seen = jnp.zeros((history.shape[0], vocabulary), bool).at[rows, history].set(True, mode="drop")
    return constrain(seen, "batch", "vocab")


def _laid_out(cache: KVCache | Cache) -> KVCache | Cache:
    return jax.tree.map(lambda x: constrain(x, *CACHE_AXES), cache)
