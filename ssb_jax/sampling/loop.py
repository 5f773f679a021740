"""The simplest loop that is right: one padded batch, all prompts at once, one token a step until every row is done.

The reference for the engine, which must give the same tokens, faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ssb_jax.model.cache import init_cache
from ssb_jax.model.lora import Lora
from ssb_jax.model.transformer import Transformer
from ssb_jax.sampling.filters import sample, stack_filters
from ssb_jax.sampling.keys import sequence_keys, token_keys
from ssb_jax.sampling.params import BROKEN, NOTHING, Completion, Request, check_request, completion, token_limit


def generate_simple(
    model: Transformer, requests: Sequence[Request], *, seed: int, lora: Lora | None = None
) -> list[Completion]:
    """All completions of the requests, in order, computed as one batch.

    Raises:
      SsbError: a request that cannot be generated (see `check_request`).
    """
    context = model.config.max_position_embeddings
    for request in requests:
        check_request(request, vocab_size=model.config.vocab_size, context=context)
    rows = [(request, sample) for request in requests for sample in request.samples]
    if not rows:
        return []
    lengths = np.array([len(request.prompt_ids) for request, _ in rows], np.int32)
    limits = np.array([token_limit(request, context) for request, _ in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    stops = np.full((len(rows), max(1, *(len(r.params.stop_ids) for r, _ in rows))), NOTHING, np.int32)
    for i, (request, _) in enumerate(rows):
        tokens[i, : lengths[i]] = request.prompt_ids
        stops[i, : len(request.params.stop_ids)] = request.params.stop_ids
    out = _decode(
        model,
        lora,
        tokens,
        lengths,
        limits,
        stops,
        jnp.asarray(sequence_keys(seed, [(request.id, sample) for request, sample in rows])),
        stack_filters([request.params for request, _ in rows]),
        longest=int(limits.max()),
    )
    return [
        completion(request, sample, [int(t) for t in row if t != NOTHING])
        for (request, sample), row in zip(rows, np.asarray(out), strict=True)
    ]


@jax.jit(static_argnames="longest")
def _decode(model, lora, tokens, lengths, limits, stops, keys, filters, *, longest):
    """Sampled tokens (B, longest): NOTHING after a row's end, BROKEN where its logits were not finite."""
    B, T = tokens.shape
    rows = jnp.arange(B)
    cache = init_cache(model.config, B, T + longest, model.dtype)
    # The last token of a prompt is the decode loop's first input. A position beyond the cache is written nowhere.
    steps = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    positions = jnp.where(steps < lengths[:, None] - 1, steps, cache.length)
    _, cache = model(tokens, positions=positions, cache=cache, lora=lora)
    in_prompt = steps < lengths[:, None]
    seen = jnp.zeros((B, model.config.vocab_size), bool).at[rows[:, None], tokens].max(in_prompt)

    def step(carry):
        n, token, active, seen, cache, out = carry
        hidden, cache = model(token[:, None], positions=(lengths - 1 + n)[:, None], cache=cache, lora=lora)
        key = token_keys(keys, jnp.full(B, n))
        token, bad = sample(model.logits(hidden[:, 0]), key, filters, active=active, seen=seen)
        out = out.at[:, n].set(jnp.where(active, jnp.where(bad, BROKEN, token), NOTHING))
        stopped = jnp.any(token[:, None] == stops, axis=1)
        active &= ~bad & ~stopped & (n + 1 < limits)
        return n + 1, token, active, seen.at[rows, token].set(True), cache, out

    first = tokens[rows, lengths - 1]
    out = jnp.full((B, longest), NOTHING, jnp.int32)
    start = (jnp.int32(0), first, jnp.ones(B, bool), seen, cache, out)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[2]) & (carry[0] < longest), step, start)[-1]
