"""Logits to tokens: repetition penalty, temperature, top-k, top-p, min-p with transformers' meaning and order.

Settings are arrays (B,), so that one batch mixes them. A token is the argmax of filtered scores plus Gumbel noise,
and the noise is a function of (key, vocabulary id). So the token does not depend on how its scores were reached: from
a few candidates, from the whole vocabulary, or from a vocabulary split over devices, each score meets the same noise
and no sum over the vocabulary decides (an inverse CDF would need one, and its rounding depends on the order).

Two ways lead to the mask of kept tokens, and a row takes the same one whatever batch it is in:
  candidates  the greatest logits of a row, sorted: enough when 0 < top_k < CANDIDATES, or when V is small;
  search      for all else: thresholds by bisection over the bits of the scores. Each step is one sum over V, so it
              needs no sort (70 times slower on CPU) and, split over devices, exchanges (B,) numbers instead of logits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ssb_jax.model.sharding import spec
from ssb_jax.sampling.keys import gumbel
from ssb_jax.sampling.params import SamplingParams

CANDIDATES = 64
GROUP = 32  # tokens side by side of which first only the greatest is looked at
SMALL_VOCABULARY = 256  # up to here every token is a candidate
MAX_INT = np.int32(2**31 - 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Filters:
    """The settings of each row."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    tail: Float[Array, " B"]  # 1 - top_p, subtracted in double precision as transformers does
    min_p: Float[Array, " B"]
    penalty: Float[Array, " B"]


def stack_filters(params: Sequence[SamplingParams]) -> Filters:
    """Settings of many sequences as numpy arrays (B,)."""
    return Filters(
        temperature=np.array([p.temperature for p in params], np.float32),
        top_k=np.array([min(p.top_k, MAX_INT) for p in params], np.int32),
        tail=np.array([1.0 - p.top_p for p in params], np.float32),
        min_p=np.array([p.min_p for p in params], np.float32),
        penalty=np.array([p.repetition_penalty for p in params], np.float32),
    )


def penalise(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, " B"]) -> Float[Array, "B V"]:
    """Repetition penalty (CTRL, arXiv 1909.05858): logits of seen tokens are divided, negative ones multiplied."""
    penalty = penalty[:, None]
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def sample(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    filters: Filters,
    *,
    active: Bool[Array, " B"],
    seen: Bool[Array, "B V"] | None = None,
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
    """The next token of each row, and which rows have no usable distribution (NaN or infinite logits).

    Args:
      keys: one a row, for this token.
      active: rows whose token is wanted; only they decide which work is done.
      seen: tokens in prompt or answer, for the repetition penalty; None = no row has one.
    """
    if seen is not None:
        logits = penalise(logits, seen, filters.penalty)
    highest = jnp.max(logits, axis=-1)
    greedy = _first_id(logits == highest[:, None], _all_ids(logits))
    random = filters.temperature > 0

    def draw() -> Int[Array, " B"]:
        token, exact = _from_candidates(logits, keys, filters)
        lost = active & random & ~exact
        return jax.lax.cond(
            jnp.any(lost), lambda: jnp.where(exact, token, _from_all(logits, keys, filters, lost)), lambda: token
        )

    token = jax.lax.cond(jnp.any(active & random), lambda: jnp.where(random, draw(), greedy), lambda: greedy)
    # XLA's maximum on a CPU passes over NaN.
    return token, ~jnp.isfinite(highest) | jnp.any(jnp.isnan(logits), axis=-1)


def keep_sorted(scores: Float[Array, "B M"], filters: Filters) -> Bool[Array, "B M"]:
    """Which scores the filters keep: transformers' algorithm, on rows in ascending (score, id) order.

    Scores are logits after penalty and temperature. Ties at the k-th place are kept, top-p drops the lowest ids of a
    tie first (a stable ascending sort), and the last of a row is always kept.
    """
    B, M = scores.shape
    k = jnp.where(filters.top_k > 0, jnp.minimum(filters.top_k, M), M)
    keep = scores >= jnp.take_along_axis(scores, (M - k)[:, None], axis=1)
    probabilities = _softmax(scores, keep)
    last = jnp.broadcast_to(jnp.arange(M) == M - 1, (B, M))
    tail = filters.tail[:, None]
    keep &= (jnp.cumsum(probabilities, axis=-1) > tail) | last | (tail <= 0)
    return keep & _above_min_p(scores, keep, filters)


def keep_by_search(
    scores: Float[Array, "B V"], filters: Filters, wanted: Bool[Array, " B"] | None = None
) -> Bool[Array, "B V"]:
    """As `keep_sorted`, for scores in vocabulary order and without a sort.

    `wanted` are the rows whose result is used; a filter that none of them has costs nothing.
    """
    wanted = jnp.ones(scores.shape[0], bool) if wanted is None else wanted
    order, ids = _ordered_bits(scores), _all_ids(scores)
    has_k, has_p = filters.top_k > 0, filters.tail > 0

    def fewer_above_than_k(t):
        return jnp.sum(order > t[:, None], axis=-1) < filters.top_k

    kth = _least(fewer_above_than_k, -MAX_INT - 1, MAX_INT, wanted & has_k)
    keep = (order >= kth[:, None]) | ~has_k[:, None]
    probabilities = _softmax(scores, keep)

    def exceeds_tail(t):
        return jnp.sum(jnp.where(order <= t[:, None], probabilities, 0), axis=-1) > filters.tail

    # The nucleus begins inside the ties of one score; of those, as many as fit in the tail go, lowest ids first.
    # The search ends at the greatest score where rounding lets no mass exceed the tail.
    top = jnp.max(order, axis=-1)
    edge = jnp.minimum(_least(exceeds_tail, -MAX_INT - 1, MAX_INT, wanted & has_p), top)[:, None]
    below = jnp.sum(jnp.where(order < edge, probabilities, 0), axis=-1)
    ties = order == edge
    each = jnp.max(jnp.where(ties, probabilities, 0), axis=-1)
    count = jnp.sum(ties, axis=-1)
    dropped = jnp.clip(jnp.floor((filters.tail - below) / jnp.maximum(each, 1e-30)), 0, count - 1)

    def enough_ties_up_to(t):
        return jnp.sum(ties & (ids <= t[:, None]), axis=-1) > dropped

    first = _least(enough_ties_up_to, 0, scores.shape[1], wanted & has_p)[:, None]
    keep &= (order > edge) | (ties & (ids >= first)) | ~has_p[:, None]
    return keep & _above_min_p(scores, keep, filters)


def _from_candidates(logits, keys, filters):
    """Tokens drawn from the greatest logits of each row, and which rows lose nothing by it."""
    V = logits.shape[1]
    count = V if V <= SMALL_VOCABULARY else CANDIDATES
    values, ids = greatest(logits, count)
    scores, ids = jax.lax.sort((_scaled(values, filters), ids), num_keys=2)
    token = _pick(scores, ids, keep_sorted(scores, filters), keys)
    if count == V:
        return token, jnp.ones(logits.shape[0], bool)
    k = jnp.clip(filters.top_k, 1, count)
    kth = jnp.take_along_axis(scores, (count - k)[:, None], axis=1)[:, 0]
    # If the k-th place ties with the last candidate, tokens beyond may tie too.
    return token, (filters.top_k > 0) & (filters.top_k < count) & (scores[:, 0] < kth)


def _from_all(logits, keys, filters, wanted):
    """Tokens drawn from the whole vocabulary, for the rows that want it."""
    scores = _scaled(logits, filters)
    return _pick(scores, _all_ids(logits), keep_by_search(scores, filters, wanted), keys)


def greatest(x: Float[Array, "B V"], count: int) -> tuple[Float[Array, "B M"], Int[Array, "B M"]]:
    """The `count` greatest of each row and their ids, in descending order, lower ids first among equals.

    Where the vocabulary is split over devices, each finds its own, and only those candidates are exchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        by_groups = functools.partial(_top_k_by_groups, count=count)
        return jax.lax.platform_dependent(x, cpu=by_groups, default=lambda x: tuple(jax.lax.top_k(x, count)))
    layout = spec("batch", "vocab")

    # By hand: left to itself, XLA gathers the operand of top_k even along the batch.
    @functools.partial(jax.shard_map, in_specs=layout, out_specs=layout)
    def of_each_part(part):
        values, ids = jax.lax.top_k(part, min(count, part.shape[1]))
        return values, ids + jax.lax.axis_index("tensor") * part.shape[1]

    @functools.partial(jax.shard_map, in_specs=spec("batch", None), out_specs=spec("batch", None))
    def of_all(values, ids):
        values, places = jax.lax.top_k(values, count)
        return values, jnp.take_along_axis(ids, places, axis=1)

    return of_all(*of_each_part(x))


def _top_k_by_groups(x: Float[Array, "B V"], *, count: int) -> tuple[Float[Array, "B M"], Int[Array, "B M"]]:
    """`jax.lax.top_k` of rows without NaN, in half its time on a CPU, where it runs on one core.

    Only the `count` groups of the greatest maxima, the earlier among equals, can hold one of the greatest: any element
    of another group has `count` before it, one in each of these.
    """
    B, V = x.shape
    size = math.gcd(V, GROUP)
    if size < GROUP // 4 or 2 * count * size >= V:
        return tuple(jax.lax.top_k(x, count))
    groups = x.reshape(B, V // size, size)
    chosen = jnp.sort(jax.lax.top_k(jnp.max(groups, axis=-1), count)[1], axis=-1)
    candidates = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(B, count * size)
    values, places = jax.lax.top_k(candidates, count)
    return values, jnp.take_along_axis(chosen, places // size, axis=1) * size + places % size


def _pick(scores, ids, keep, keys):
    """The kept token of the highest noisy score: a draw from softmax(kept scores) (the Gumbel-max trick)."""
    noisy = jnp.where(keep, scores + gumbel(keys, ids), -jnp.inf)
    return _first_id(keep & (noisy == jnp.max(noisy, axis=-1, keepdims=True)), ids)


def _first_id(chosen, ids):
    """The lowest chosen id of each row; 0 where none is. Two plain reductions: XLA's argmax is 30 times slower on CPU,
    and split over devices these exchange (B,) numbers."""
    first = jnp.min(jnp.where(chosen, ids, MAX_INT), axis=-1)
    return jnp.where(first == MAX_INT, 0, first)


def _above_min_p(scores, keep, filters):
    probabilities = _softmax(scores, keep)
    limit = filters.min_p[:, None] * jnp.max(probabilities, axis=-1, keepdims=True)
    return probabilities >= limit


def _scaled(logits, filters):
    return logits / jnp.where(filters.temperature > 0, filters.temperature, 1)[:, None]


def _softmax(scores, keep):
    return jax.nn.softmax(jnp.where(keep, scores, -jnp.inf), axis=-1)


def _all_ids(x: Float[Array, "B V"]) -> Int[Array, "B V"]:
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)


def _ordered_bits(x: Float[Array, "B V"]) -> Int[Array, "B V"]:
    """Integers in the order of the floats; 0 and -0 are equal."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)
    return jnp.where(bits < 0, bits ^ MAX_INT, bits)


def _least(holds: Callable, low: int, high: int, wanted: Bool[Array, " B"]) -> Int[Array, " B"]:
    """The least integer of [low, high] from which on `holds`, by bisection (high if nowhere); no steps if unwanted."""
    steps = max(1, (int(high) - int(low)).bit_length())
    shape = wanted.shape

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean rounded down, without overflow
        good = holds(middle)
        return jnp.where(good, low, middle + 1), jnp.where(good, middle, high)

    bounds = (jnp.full(shape, low, jnp.int32), jnp.full(shape, high, jnp.int32))
    return jax.lax.fori_loop(0, jnp.where(jnp.any(wanted), steps, 0), halve, bounds)[1]
