"""Head and loss applied to reply tokens chunk by chunk, so that no (B, T, V) array ever exists.

The gradient with respect to the student's hidden states is taken within each chunk's forward pass (a token's loss
depends on its own hidden state alone), so the backward pass is one multiplication and nothing is computed twice. The
head is frozen: it and the teacher get no gradient. Peak memory is a few (C, V) arrays, whatever the number of tokens.

On a mesh the vocabulary is split over `fsdp` and `tensor`, and tokens over `data`: arrays have a leading axis of
`groups`, one slice of the batch for each index of the data axis (1 without a mesh).
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ssb_jax.config import SsbError
from ssb_jax.losses.closed import compare, gap, softened_kl
from ssb_jax.losses.health import outside_top, top_overlap
from ssb_jax.losses.menu import ABSENT, Loss, TokenInfo, cross_entropy, kl, ssb
from ssb_jax.model.sharding import LOGICAL_RULES, constrain

Objective = Callable[[Float[Array, "C V"], Float[Array, "C V"], TokenInfo], Float[Array, "C"]]

FURTHER = ("gap", "overlap", "soft_kl", "outside")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teacher:
    """The teacher's distribution at each reply token, as it is stored.

    Attributes:
      values: states after the last norm (groups, P, D); or logits (groups, P, V); or for `topk` a dict of arrays:
        `targets`, the k largest logits less the largest, their `ids`, and `tail`, the logsumexp of all others at each
        of `temperatures`, likewise less the largest.
      encoding: which of them: `hidden`, `logits` or `topk`.
      views: the base model under other prompts, encoded alike.
    """

    values: Any
    encoding: str = field(metadata={"static": True}, default="hidden")
    temperatures: tuple[float, ...] = field(metadata={"static": True}, default=())
    views: Mapping[str, Any] = field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenStats:
    """Per reply token, at temperature 1 and without gradient.

    Attributes:
      further: only where `measure` is given: `gap` = log p_T(y) - log p_S(y); and, 0 where `measure` is false, what
        looks at the most likely words: `overlap` of the two top tens, `soft_kl` = KL(p_T, p_S) at the loss's
        temperature and `outside`, the part of it from outside the teacher's 100 most likely words.
    """

    kl: Float[Array, "groups P"]  # KL(p_T, p_S)
    agreement: Float[Array, "groups P"]  # 1 where teacher and student have the same most likely token
    student_entropy: Float[Array, "groups P"]
    teacher_entropy: Float[Array, "groups P"]
    further: Mapping[str, Float[Array, "groups P"]] = field(default_factory=dict)


def make_objective(loss: Loss, *, temperature: float = 1.0, kl_weight: float = 1.0) -> Objective:
    """T^2 * kl_weight * loss at temperature T, plus (1 - kl_weight) * cross-entropy on the reply.

    Takes logits of one chunk. Cross-entropy is at temperature 1, also when it is the loss itself.
    """
    if loss is cross_entropy:
        temperature, kl_weight = 1.0, 0.0

    def soften(logits):
        return jax.nn.log_softmax(logits / temperature)

    def objective(teacher_logits, student_logits, info):
        total = 0.0
        if kl_weight > 0 and loss is ssb:
            total += kl_weight * temperature**2 * softened_kl(teacher_logits, student_logits, temperature)
        elif kl_weight > 0:
            teacher_logp, views = jax.lax.stop_gradient(jax.tree.map(soften, (teacher_logits, info.views)))
            values = loss(teacher_logp, soften(student_logits), replace(info, views=views))
            _check_values(values, student_logits.shape)
            total += kl_weight * temperature**2 * values
        if kl_weight < 1:
            total += (1 - kl_weight) * cross_entropy(teacher_logits, jax.nn.log_softmax(student_logits), info)
        return total

    return objective


def _check_values(values: Any, shape: tuple[int, int]) -> None:
    """Raises SsbError when a loss does not give a real number for each of C tokens, of V words each."""
    if not isinstance(values, jax.Array):
        found = f"a {type(values).__name__}"
    elif values.shape != shape[:1]:
        found = f"shape {values.shape}"
    elif not jnp.issubdtype(values.dtype, jnp.floating):
        found = f"{values.dtype}, which has no gradient"
    else:
        return
    raise SsbError(
        f"distillation.loss returned {found}; expected an array with one real number a token, (C,) = {shape[:1]} from "
        f"log-probabilities (C, V) = {shape}: sum over the vocabulary, the last axis, and over nothing else"
    )


def token_losses(
    hidden: Float[Array, "groups P D"],
    teacher: Teacher,
    head: Float[Array, "V D"],
    info: TokenInfo,
    *,
    objective: Objective,
    chunk: int,
    chunks: Int[Array, ""] | int | None = None,
    temperature: float = 1.0,
    measure: Bool[Array, ""] | None = None,
) -> tuple[Float[Array, "groups P"], TokenStats]:
    """The objective at each reply token, differentiable in `hidden`, and statistics without gradient.

    Args:
      hidden: the student's states after the last norm at the positions that predict the reply tokens.
      info: arrays (groups, P).
      chunk: tokens of a group that pass through the head at a time; P must be a multiple of it.
      chunks: how many chunks hold tokens (may be traced); later ones give zeros. None: all.
      temperature: the objective's; `topk` targets and some statistics must know it.
      measure: whether to look at the most likely words for `TokenStats.further`. None: without `further`.
    """
    P = hidden.shape[1]
    if P % chunk:
        raise ValueError(f"expected a multiple of chunk = {chunk} reply tokens, got {P}; pad them")
    chunks = jnp.asarray(P // chunk if chunks is None else chunks, jnp.int32)
    return _token_losses((objective, chunk, float(temperature)), hidden, teacher, head, info, chunks, measure)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_losses(settings, *arrays):
    return _loop(*settings, *arrays, with_gradient=False)[:2]


def _forward(settings, *arrays):
    losses, stats, gradient = _loop(*settings, *arrays, with_gradient=True)
    return (losses, stats), gradient


def _backward(settings, gradient, cotangents):
    per_token, _ = cotangents
    scaled = gradient.astype(jnp.float32) * per_token[..., None]
    return scaled.astype(gradient.dtype), None, None, None, None, None


_token_losses.defvjp(_forward, _backward)


def _loop(objective, chunk, temperature, hidden, teacher, head, info, chunks, measure, *, with_gradient):
    """(losses, stats, gradient of each token's loss in its hidden state, in hidden's dtype)."""
    groups, P, _ = hidden.shape
    V, head = head.shape[0], _split_head(head)
    to_logits = functools.partial(decode, head=head, V=V)

    def logits(values, temperature):
        return to_logits(values, teacher.encoding, teacher.temperatures, temperature)

    def body(i, carry):
        losses, stats, gradient = carry
        part = functools.partial(jax.tree.map, functools.partial(_slice_chunk, start=i * chunk, size=chunk))
        stored = part(teacher.values)
        target = logits(stored, temperature)
        views = {name: logits(part(values), temperature) for name, values in teacher.views.items()}
        token_info = replace(part(info), views=views)
        student = to_logits(part(hidden))

        def loss_of(student):
            return jax.vmap(objective)(target, student, token_info)

        if with_gradient:
            values, pull = jax.vjp(loss_of, student)
            (d_logits,) = pull(jnp.ones_like(values))
            d_hidden = jnp.einsum("gcv,vd->gcd", d_logits.astype(head.dtype), head, preferred_element_type=jnp.float32)
            gradient = _store_chunk(gradient, constrain(d_hidden, "groups", None, None), i * chunk)
        else:
            values = loss_of(student)
        plain = logits(stored, 1.0) if teacher.encoding == "topk" else target
        new = _stats(plain, student)
        if measure is not None:
            look = _look(target, student, temperature, measure)
            new = replace(new, further={"gap": gap(plain, student, token_info.reply_ids), **look})
        stats = jax.tree.map(lambda all_, new: _store_chunk(all_, new, i * chunk), stats, new)
        return _store_chunk(losses, values, i * chunk), stats, gradient

    zeros = jnp.zeros((groups, P), jnp.float32)
    further = {} if measure is None else dict.fromkeys(FURTHER, zeros)
    stats = TokenStats(zeros, zeros, zeros, zeros, further)
    start = (zeros, stats, jnp.zeros_like(hidden) if with_gradient else None)
    return jax.lax.fori_loop(0, chunks, body, start)


def decode(values, encoding="hidden", temperatures=(), temperature=1.0, *, head, V):
    """Logits (groups, C, V') of stored values, filled up to the rows of the split head.

    Those of `topk` are right at this temperature only.
    """
    match encoding:
        case "hidden":
            out = jnp.einsum("gcd,vd->gcv", values, head, preferred_element_type=jnp.float32)
        case "logits":
            out = jnp.pad(values.astype(jnp.float32), ((0, 0), (0, 0), (0, head.shape[0] - V)))
        case "topk":
            out = _spread(values, temperatures.index(temperature), temperature, V, head.shape[0])
    return constrain(_mask_absent(out, V), "groups", None, "head_vocab")


def _spread(values, which, temperature, V, width):
    """The logits of `topk` targets; all other words share the tail's mass evenly, so that a bucket holds it again."""
    top = values["targets"].astype(jnp.float32)
    even = temperature * (values["tail"][..., which] - math.log(V - top.shape[-1]))
    # No word of the tail exceeds the k-th, but their mean may tie with it, and `topk_kl` counts ties among the k.
    even = jnp.minimum(even, jnp.min(top, axis=-1) - 1e-3)[..., None]
    place = functools.partial(jnp.put_along_axis, axis=-1, inplace=False)
    return place(jnp.broadcast_to(even, (*top.shape[:-1], width)), values["ids"], top)


def _stats(teacher_logits, student_logits) -> TokenStats:
    found = compare(teacher_logits, student_logits)
    return TokenStats(found.kl, found.agreement, found.student_entropy, found.teacher_entropy)


def _look(teacher_logits, student_logits, temperature, measure):
    """What the most likely words say, 0 where they are not to be looked at."""

    def look():
        teacher, student = (jax.nn.log_softmax(x / temperature) for x in (teacher_logits, student_logits))
        return top_overlap(teacher, student), kl(teacher, student), outside_top(teacher, student)

    zeros = jnp.zeros(teacher_logits.shape[:-1], jnp.float32)
    overlap, soft_kl, outside = jax.lax.cond(measure, look, lambda: (zeros, zeros, zeros))
    return {"overlap": overlap, "soft_kl": soft_kl, "outside": outside}


def _split_head(head):
    """The head with its rows split over the mesh, filled with zero rows where the mesh does not divide them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return head
    parts = math.prod(mesh.shape[axis] for axis in LOGICAL_RULES["head_vocab"])
    return constrain(jnp.pad(head, ((0, -head.shape[0] % parts), (0, 0))), "head_vocab", None)


def _mask_absent(logits, V):
    if logits.shape[-1] == V:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) < V, logits, ABSENT)


def _slice_chunk(x, *, start, size):
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _store_chunk(x, new, start):
    return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), start, axis=1)
