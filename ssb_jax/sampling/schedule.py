"""Sizes: which lengths are compiled, how many slots fit. Pure arithmetic; the same in every process of a pod."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ssb_jax.config import SsbError
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.transformer import Transformer

SHORTEST_CACHE, SHORTEST_PROMPT = 128, 32
MOST_SLOTS = 256  # on an accelerator; beyond, the cache read dominates a step and more slots gain little
MOST_SLOTS_CPU = 128
FEW_SLOTS = 8  # fewer save nothing
COMPILATION_FLOPS = 3e11  # what two CPU cores compute while a decode program compiles
PREFILL_TOKENS, PREFILL_TOKENS_CPU = 8192, 1024  # in one prefill: enough rows for the matrix units, little to wait for
# Of what the weights leave. A cache that grows by a bucket takes up to 1.375 times its new size for a moment (the old
# keys and values, and the new ones of one of them); logits, staged prompts and temporaries need room too.
MEMORY_SHARE = 0.65


@dataclass(frozen=True)
class Budget:
    """What the mesh can hold, over all its devices."""

    tokens: int  # tokens of cache
    bytes: int
    bytes_per_token: int


def bucket(n: int, shortest: int) -> int:
    """The smallest length >= n of those that are compiled: 2^i and 1.5 * 2^i, so at most a third is padding."""
    n = max(n, shortest)
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 and power >= 4 else power


def shorter(length: int) -> int:
    """The next shorter length of cache that is compiled; the shortest itself for the shortest."""
    power_of_two = length & (length - 1) == 0
    return max(length * 3 // 4 if power_of_two else length * 2 // 3, SHORTEST_CACHE)


def compacted(slots: int, running: int, *, parts: int) -> int:
    """Slots enough for the sequences that run, by buckets; as many as there are where fewer cannot be split."""
    enough = bucket(max(running, parts), FEW_SLOTS)
    return enough if enough < slots and enough % parts == 0 else slots


def flops_per_token(model: Transformer) -> int:
    """Two operations a parameter; attention is left out."""
    return 2 * sum(x.size for x in jax.tree.leaves(model))


def row_parts(mesh: jax.sharding.Mesh | None) -> int:
    """Over how many devices rows are split: batches are multiples of it."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def prefill_rows(length: int, *, parts: int, tokens: int) -> int:
    """The most prompts of `length` tokens in one prefill of about `tokens`: a power of two times `parts`."""
    return parts << max(0, (tokens // (length * parts)).bit_length() - 1)


def on_cpu(mesh: jax.sharding.Mesh | None) -> bool:
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    return device.platform == "cpu"


def cache_parts(config: ModelConfig, mesh: jax.sharding.Mesh | None) -> int:
    """In how many parts the slots' cache is. On one CPU a part for each layer, as it copies what a scan takes out of an
    array; elsewhere one, compiled sooner."""
    return config.num_layers if on_cpu(mesh) and (mesh is None or mesh.size == 1) else 1


def cache_budget(model: Transformer, *, mesh: jax.sharding.Mesh | None) -> Budget:
    """Tokens of cache that fit beside the weights.

    From the devices' whole memory, not from what is free now: free memory differs from run to run, and the number of
    slots should not.
    """
    devices = [jax.devices()[0]] if mesh is None else list(mesh.devices.flat)
    own = next(d for d in devices if d.process_index == jax.process_index())
    weights = sum(x.nbytes for x in jax.tree.leaves(model))
    if own.platform == "cpu":
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # the other half is for other programs
        weights *= 2 if cache_parts(model.config, mesh) > 1 else 1  # see `Transformer.layers_in_parts`
    else:
        total = own.memory_stats()["bytes_limit"] * len(devices)
        weights *= 1 if mesh is None else mesh.shape["data"]
    return budget_of(model.config, free=total - weights, itemsize=jnp.dtype(model.dtype).itemsize, mesh=mesh)


def budget_of(config: ModelConfig, *, free: int, itemsize: int, mesh: jax.sharding.Mesh | None) -> Budget:
    """The cache that `free` bytes over all devices hold, for numbers of `itemsize` bytes."""
    free = max(0, int(free * MEMORY_SHARE))
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize
    if mesh is not None and config.num_kv_heads % mesh.shape["tensor"]:
        per_token *= mesh.shape["tensor"]  # such heads lie on every device of the tensor axis
    return Budget(tokens=free // per_token, bytes=free, bytes_per_token=per_token)


def choose_slots(
    *, wanted: int | None, sequences: int | None, longest: int, budget: Budget, mesh: jax.sharding.Mesh | None
) -> tuple[int, str]:
    """How many sequences to decode at once, and why.

    Args:
      wanted: the setting; None = choose.
      sequences: how many there are to decode; None = more than are known.
      longest: tokens that the longest of them may reach.

    Raises:
      SsbError: the wanted number, or a single row of slots, does not fit the memory.
    """
    parts = row_parts(mesh)
    length = bucket(longest, SHORTEST_CACHE)
    fits = budget.tokens // length // parts * parts
    most = wanted or (MOST_SLOTS_CPU if on_cpu(mesh) else MOST_SLOTS)
    rounded = math.ceil(most / parts) * parts
    memory = (
        f"{budget.bytes / 2**30:.1f} GiB for the cache hold {fits} sequences of {length:,} tokens "
        f"({budget.bytes_per_token / 1024:.1f} KiB a token)"
    )
    if fits < parts or (wanted and fits < rounded):
        raise SsbError(
            f"engine.slots: {rounded if wanted else parts} slots do not fit: {memory}; "
            f"lower engine.slots or max_new_tokens, or use more devices"
        )
    needed = rounded if sequences is None else math.ceil((1 << (sequences - 1).bit_length()) / parts) * parts
    slots = min(rounded, fits, needed)
    limits = {
        needed: f"{sequences} sequences to decode",
        fits: "no more fit",
        rounded: "as set" if wanted else "default",
    }
    return slots, f"{limits[slots]}; {memory}"
