"""Head and loss applied to reply tokens chunk by chunk, so that no (B, T, V) array ever exists.

The gradient with respect to the student's hidden states is taken within each chunk's forward pass (a token's loss
depends on its own hidden state alone), so the backward pass is one multiplication and nothing is computed twice. The
head is frozen: it and the teacher get no gradient. Peak memory is a few (C, V) arrays, whatever the number of tokens.

On a mesh the vocabulary is split over `fsdp` and `tensor`, and tokens over `data`: arrays have a leading axis of
`groups`, one slice of the batch for each index of the data axis (1 without a mesh).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssb_jax.config import SsbError
from ssb_jax.losses.menu import ABSENT, Loss, TokenInfo, cross_entropy, entropy, kl
from ssb_jax.model.sharding import LOGICAL_RULES, constrain

Objective = Callable[[Float[Array, "C V"], Float[Array, "C V"], TokenInfo], Float[Array, "C"]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Teacher:
    """The teacher's distribution at each reply token, as it is stored.

    Attributes:
      values: states after the last norm (groups, P, D), or logits (groups, P, V).
      encoding: which of the two, `hidden` or `logits`.
    """

    values: Float[Array, "groups P X"]
    encoding: str = field(metadata={"static": True}, default="hidden")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenStats:
    """Per reply token, at temperature 1 and without gradient."""

    kl: Float[Array, "groups P"]  # KL(p_T, p_S)
    agreement: Float[Array, "groups P"]  # 1 where teacher and student have the same most likely token
    student_entropy: Float[Array, "groups P"]
    teacher_entropy: Float[Array, "groups P"]


def make_objective(loss: Loss, *, temperature: float = 1.0, kl_weight: float = 1.0) -> Objective:
    """T^2 * kl_weight * loss at temperature T, plus (1 - kl_weight) * cross-entropy on the reply.

    Takes logits of one chunk. Cross-entropy is at temperature 1, also when it is the loss itself.
    """
    if loss is cross_entropy:
        temperature, kl_weight = 1.0, 0.0

    def objective(teacher_logits, student_logits, info):
        total = 0.0
        if kl_weight > 0:
            teacher_logp = jax.lax.stop_gradient(jax.nn.log_softmax(teacher_logits / temperature))
            student_logp = jax.nn.log_softmax(student_logits / temperature)
            values = loss(teacher_logp, student_logp, info)
            if values.shape != student_logp.shape[:1]:
                raise SsbError(
                    f"distillation.loss returned shape {values.shape}; expected one number a token, "
                    f"{student_logp.shape[:1]}"
                )
            total += kl_weight * temperature**2 * values
        if kl_weight < 1:
            total += (1 - kl_weight) * cross_entropy(teacher_logits, jax.nn.log_softmax(student_logits), info)
        return total

    return objective


def token_losses(
    hidden: Float[Array, "groups P D"],
    teacher: Teacher,
    head: Float[Array, "V D"],
    info: TokenInfo,
    *,
    objective: Objective,
    chunk: int,
    chunks: Int[Array, ""] | int | None = None,
) -> tuple[Float[Array, "groups P"], TokenStats]:
    """The objective at each reply token, differentiable in `hidden`, and statistics without gradient.

    Args:
      hidden: the student's states after the last norm at the positions that predict the reply tokens.
      info: arrays (groups, P).
      chunk: tokens of a group that pass through the head at a time; P must be a multiple of it.
      chunks: how many chunks hold tokens (may be traced); later ones give zeros. None: all.
    """
    P = hidden.shape[1]
    if P % chunk:
        raise ValueError(f"expected a multiple of chunk = {chunk} reply tokens, got {P}; pad them")
    chunks = jnp.asarray(P // chunk if chunks is None else chunks, jnp.int32)
    return _token_losses(objective, chunk, hidden, teacher, head, info, chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_losses(objective, chunk, hidden, teacher, head, info, chunks):
    losses, stats, _ = _loop(objective, chunk, hidden, teacher, head, info, chunks, with_gradient=False)
    return losses, stats


def _forward(objective, chunk, hidden, teacher, head, info, chunks):
    losses, stats, gradient = _loop(objective, chunk, hidden, teacher, head, info, chunks, with_gradient=True)
    return (losses, stats), gradient


def _backward(objective, chunk, gradient, cotangents):
    per_token, _ = cotangents
    scaled = gradient.astype(jnp.float32) * per_token[..., None]
    return scaled.astype(gradient.dtype), None, None, None, None


_token_losses.defvjp(_forward, _backward)


def _loop(objective, chunk, hidden, teacher, head, info, chunks, *, with_gradient):
    """(losses, stats, gradient of each token's loss in its hidden state, in hidden's dtype)."""
    groups, P, _ = hidden.shape
    V = head.shape[0]
    head = _split_head(head)

    def logits(states):
        out = jnp.einsum("gcd,vd->gcv", states, head, preferred_element_type=jnp.float32)
        return constrain(_mask_absent(out, V), "groups", None, "head_vocab")

    def teacher_logits(values):
        if teacher.encoding == "hidden":
            return logits(values)
        padded = jnp.pad(values.astype(jnp.float32), ((0, 0), (0, 0), (0, head.shape[0] - V)))
        return constrain(_mask_absent(padded, V), "groups", None, "head_vocab")

    def body(i, carry):
        losses, stats, gradient = carry
        part = functools.partial(_slice_chunk, start=i * chunk, size=chunk)
        target, token_info = teacher_logits(part(teacher.values)), jax.tree.map(part, info)
        student = logits(part(hidden))

        def loss_of(student):
            return jax.vmap(objective)(target, student, token_info)

        if with_gradient:
            values, pull = jax.vjp(loss_of, student)
            (d_logits,) = pull(jnp.ones_like(values))
            d_hidden = jnp.einsum("gcv,vd->gcd", d_logits.astype(head.dtype), head, preferred_element_type=jnp.float32)
            gradient = _store_chunk(gradient, constrain(d_hidden, "groups", None, None), i * chunk)
        else:
            values = loss_of(student)
        stats = jax.tree.map(lambda all_, new: _store_chunk(all_, new, i * chunk), stats, _stats(target, student))
        return _store_chunk(losses, values, i * chunk), stats, gradient

    zeros = jnp.zeros((groups, P), jnp.float32)
    start = (zeros, TokenStats(zeros, zeros, zeros, zeros), jnp.zeros_like(hidden) if with_gradient else None)
    return jax.lax.fori_loop(0, chunks, body, start)


def _stats(teacher_logits, student_logits) -> TokenStats:
    teacher, student = jax.nn.log_softmax(teacher_logits), jax.nn.log_softmax(student_logits)
    same = jnp.argmax(teacher, axis=-1) == jnp.argmax(student, axis=-1)
    return TokenStats(kl(teacher, student), same.astype(jnp.float32), entropy(student), entropy(teacher))


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
