"""What is known in closed form of two softmaxes over the vocabulary, so that few passes are made over (C, V) arrays.

A pass over a chunk's logits is cheap beside the head only while nothing of that size is written: the functions below
read both logits and write one number a token; the gradient writes one array.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def softened_kl(teacher: Float[Array, "C V"], student: Float[Array, "C V"], temperature: float) -> Float[Array, "C"]:
    """KL(p_T, p_S) of logits at a temperature; its gradient in the student's logits is (p_S - p_T) / temperature.

    The teacher gets no gradient.
    """
    return _softened_kl(teacher, student, temperature)[0]


def _softened_kl(teacher, student, temperature):
    teacher_logp, student_logp = (_log_softmax(x / temperature) for x in (teacher, student))
    value = jnp.sum(jnp.exp(teacher_logp) * (teacher_logp - student_logp), axis=-1)
    return value, (teacher, student)


def _softened_kl_gradient(temperature, logits, cotangent):
    teacher, student = (jnp.exp(_log_softmax(x / temperature)) for x in logits)
    return None, cotangent[..., None] / temperature * (student - teacher)


softened_kl.defvjp(_softened_kl, _softened_kl_gradient)


@dataclass(frozen=True)
class Comparison:
    """Of two distributions at temperature 1, per token."""

    kl: Float[Array, "*C"]  # KL(p_T, p_S)
    agreement: Float[Array, "*C"]  # 1 where some word is the most likely one of both
    student_entropy: Float[Array, "*C"]
    teacher_entropy: Float[Array, "*C"]


def compare(teacher: Float[Array, "*C V"], student: Float[Array, "*C V"]) -> Comparison:
    """Of two arrays of logits. Most likely words are compared by value: XLA's argmax takes several times as long."""
    teacher_logp, student_logp = _log_softmax(teacher), _log_softmax(student)
    teacher_p, student_p = jnp.exp(teacher_logp), jnp.exp(student_logp)
    teacher_best, student_best = (x >= jnp.max(x, axis=-1, keepdims=True) for x in (teacher, student))
    return Comparison(
        kl=jnp.sum(teacher_p * (teacher_logp - student_logp), axis=-1),
        agreement=jnp.any(teacher_best & student_best, axis=-1).astype(jnp.float32),
        student_entropy=-jnp.sum(student_p * student_logp, axis=-1),
        teacher_entropy=-jnp.sum(teacher_p * teacher_logp, axis=-1),
    )


def gap(teacher: Float[Array, "*C V"], student: Float[Array, "*C V"], ids: Int[Array, "*C"]) -> Float[Array, "*C"]:
    """log p_T(y) - log p_S(y) of logits, at the words `ids`."""

    def at(logits):
        largest, total = _normaliser(logits)
        return (jnp.take_along_axis(logits, ids[..., None], axis=-1) - largest - total)[..., 0]

    return at(teacher) - at(student)


def _log_softmax(logits: Float[Array, "*C V"]) -> Float[Array, "*C V"]:
    """Two subtractions, the largest logit first: as exact as jax.nn.log_softmax, and cheap enough for every pass."""
    largest, total = _normaliser(logits)
    return logits - largest - total


def _normaliser(logits: Float[Array, "*C V"]) -> tuple[Float[Array, "*C 1"], Float[Array, "*C 1"]]:
    """The largest logit, and the logsumexp less the largest."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return largest, jnp.log(jnp.sum(jnp.exp(logits - largest), axis=-1, keepdims=True))
