"""Gradients written by hand equal those that JAX takes of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssb_jax.losses.closed import compare, softened_kl
from ssb_jax.losses.menu import ABSENT, entropy, kl
from ssb_jax.model.attention import Mask, attention
from ssb_jax.model.lora import lora_delta


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def assert_close(found, expected, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * float(jnp.abs(y).max()))


def naive_attention(q, k, v, visible):
    """Heads repeated, softmax over the visible keys; rows that see nothing are left out by the caller."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.where(visible[:, None], scores, -jnp.inf), axis=-1), v)


@pytest.mark.parametrize("packed", [False, True])
def test_attention(packed):
    B, T, N, K, H = 2, 7, 6, 2, 4
    q, k, v, weight = (normal(B, T, n, H, seed=i) for i, n in enumerate((N, K, K, N)))
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 0, 0]]) if packed else None
    steps = jnp.arange(T, dtype=jnp.int32)
    mask = Mask(jnp.broadcast_to(steps, (B, T)), steps, segments)

    def ours(q, k, v):
        return jnp.sum(attention(q, k, v, mask) * weight)

    def naive(q, k, v):
        return jnp.sum(naive_attention(q, k, v, mask.dense()) * weight)

    assert_close(jax.value_and_grad(ours, (0, 1, 2))(q, k, v), jax.value_and_grad(naive, (0, 1, 2))(q, k, v))


def test_a_row_that_sees_nothing_has_no_nan():
    q, k, v = (normal(1, 2, 2, 4, seed=i) for i in range(3))
    mask = Mask(jnp.asarray([[0, -1]]), jnp.arange(2, dtype=jnp.int32))
    gradients = jax.grad(lambda *x: jnp.sum(attention(*x, mask)[:, 0]), (0, 1, 2))(q, k, v)
    assert all(bool(jnp.isfinite(x).all()) for x in gradients)


def test_low_rank_products():
    x, a, b, weight = normal(2, 5, 6), normal(6, 3, seed=1), normal(3, 4, seed=2), normal(2, 5, 4, seed=3)

    def ours(x, a, b):
        return jnp.sum(lora_delta(x, a, b, scale=1.5) * weight)

    def naive(x, a, b):
        return jnp.sum((x @ a) @ b * 1.5 * weight)

    assert_close(jax.value_and_grad(ours, (0, 1, 2))(x, a, b), jax.value_and_grad(naive, (0, 1, 2))(x, a, b))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_softened_kl(temperature):
    teacher, student, weight = normal(5, 11) * 4, normal(5, 11, seed=1) * 4, normal(5, seed=2)
    teacher, student = (x.at[:, -2:].set(ABSENT) for x in (teacher, student))

    def ours(student):
        return jnp.sum(softened_kl(teacher, student, temperature) * weight)

    def naive(student):
        return jnp.sum(kl(*(jax.nn.log_softmax(x / temperature) for x in (teacher, student))) * weight)

    assert_close(jax.value_and_grad(ours)(student), jax.value_and_grad(naive)(student))
    assert jnp.all(softened_kl(teacher, teacher, temperature) == 0)


def test_comparison():
    teacher, student = normal(9, 11) * 3, normal(9, 11, seed=1) * 3
    student = student.at[:4].set(teacher[:4] + 0.1)
    found, (p, q) = compare(teacher, student), (jax.nn.log_softmax(x) for x in (teacher, student))
    same = (jnp.argmax(p, -1) == jnp.argmax(q, -1)).astype(jnp.float32)
    assert 4 <= same.sum() < 9
    expected = (kl(p, q), same, entropy(q), entropy(p))
    assert_close((found.kl, found.agreement, found.student_entropy, found.teacher_entropy), expected)
