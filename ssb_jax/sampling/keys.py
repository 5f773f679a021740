"""The random key of every token: a function of (seed, request id, sample, token index) and of nothing else.

So a sequence does not depend on its batch, its slot, the order of arrival, a restart, or the process that makes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

BATCH = 64  # keys made at once


def hash32(text: str) -> int:
    """32 bits of a text, the same in every process (Python's own hash is salted per process)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def sequence_keys(seed: int, names: Sequence[tuple[str, int]]) -> UInt32[np.ndarray, "M 2"]:
    """Key data of each (request id, sample): fold_in(fold_in(key(seed), hash32(id)), sample)."""
    words = np.array([(hash32(name), sample) for name, sample in names], np.uint32).reshape(-1, 2)
    # Padded to whole batches, so that few sizes are compiled.
    padded = np.zeros((-(-len(words) // BATCH) * BATCH, 2), np.uint32)
    padded[: len(words)] = words
    # The generator is named: another default would change every rollout.
    key = jax.random.key(seed, impl="threefry2x32")
    return np.asarray(_sequence_keys(key, padded))[: len(words)]


@jax.jit
def _sequence_keys(key: Key[Array, ""], words: UInt32[Array, "M 2"]) -> UInt32[Array, "M 2"]:
    def one(word):
        return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, word[0]), word[1]))

    return jax.vmap(one)(words)


def token_keys(sequence: UInt32[Array, "B 2"], index: Int[Array, " B"]) -> Key[Array, " B"]:
    """The key of each sequence's token `index`."""
    keys = jax.random.wrap_key_data(sequence, impl="threefry2x32")
    return jax.vmap(jax.random.fold_in)(keys, index)


def gumbel(keys: Key[Array, " B"], ids: Int[Array, "B M"]) -> Float[Array, "B M"]:
    """Standard Gumbel noise for vocabulary ids: a function of (key, id) alone, whichever ids are asked for.

    -log(-log(1 - u)) with u from 32 bits: near 0, where the winners of an argmax come from, float32 resolves u to
    2^-32, so that rare tokens keep their probability.
    """
    bits = jax.vmap(lambda key, row: jax.vmap(jax.random.fold_in, (None, 0))(key, row))(keys, ids)
    u = (jax.random.key_data(bits)[..., 0].astype(jnp.float32) + 0.5) * jnp.float32(2**-32)
    return -jnp.log(-jnp.log1p(-jnp.minimum(u, jnp.float32(1 - 2**-24))))
