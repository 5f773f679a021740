"""The chunked head: equal to the full computation on any mesh, in memory independent of tokens x vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ssb_jax.config import SsbError
from ssb_jax.losses.chunked import Teacher, make_objective, token_losses
from ssb_jax.losses.menu import MENU, TokenInfo, resolve_loss
from ssb_jax.model.sharding import make_mesh, use_mesh

P, D, V, CHUNK = 24, 16, 50, 8


def case(groups=1, tokens=P, vocabulary=V, seed=0):
    """Student and teacher states, head, and token info of a random batch."""
    rng = np.random.default_rng(seed)
    student, teacher = (jnp.asarray(rng.normal(size=(groups, tokens, D)), jnp.float32) for _ in range(2))
    head = jnp.asarray(rng.normal(size=(vocabulary, D)), jnp.float32)
    shape = (groups, tokens)
    ids = jnp.asarray(rng.integers(0, vocabulary, shape), jnp.int32)
    position = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), shape)
    return student, teacher, head, TokenInfo(ids, position, jnp.full(shape, tokens, jnp.int32))


def naive(name, student, teacher, head, info, temperature, kl_weight):
    """The loss from full logits, group by group, differentiated by JAX through head and loss."""
    objective = make_objective(resolve_loss(name), temperature=temperature, kl_weight=kl_weight)
    rows = [
        objective(teacher[g] @ head.T, student[g] @ head.T, jax.tree.map(lambda x, g=g: x[g], info))
        for g in range(student.shape[0])
    ]
    return jnp.stack(rows)


def chunked(name, student, teacher, head, info, temperature, kl_weight, chunk=CHUNK, **kwargs):
    objective = make_objective(resolve_loss(name), temperature=temperature, kl_weight=kl_weight)
    return token_losses(student, Teacher(teacher), head, info, objective=objective, chunk=chunk, **kwargs)[0]


@pytest.mark.parametrize("name", list(MENU))
def test_chunked_equals_full_in_value_and_gradient(name):
    student, teacher, head, info = case()
    weights = jnp.asarray(np.random.default_rng(1).random((1, P)), jnp.float32)

    def total(function):
        def loss(student):
            per_token = function(name, student, teacher, head, info, 2.0, 0.7)
            return jnp.sum(per_token * weights), per_token

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(student)

    (_, values), gradient = total(chunked)
    (_, expected), expected_gradient = total(naive)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "vocabulary"), [("ssb", V)] + [(name, 48) for name in MENU])  # 4 divides 48, not V
def test_vocabulary_on_a_mesh_equals_one_device(name, vocabulary):
    student, teacher, head, info = case(groups=2, vocabulary=vocabulary)

    def loss(student, teacher, head, info):
        return jnp.sum(chunked(name, student, teacher, head, info, 2.0, 0.5)) / P

    expected, expected_gradient = jax.jit(jax.value_and_grad(loss))(student, teacher, head, info)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with use_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss)).lower(student, teacher, head, info).compile()
        value, gradient = step(student, teacher, head, info)
    text = step.as_text()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)
    padded = -(-vocabulary // 4) * 4
    if name in ("topk_kl", "entropy_gate"):  # finding the k-th largest of a row takes the row
        return
    assert f"f32[1,{CHUNK},{padded}]" not in text  # no device holds a whole row of logits
    assert f"f32[1,{CHUNK},{padded // 4}]" in text


def test_ssb_loss_equals_torch_kl_div():
    student, teacher, head, info = case()
    T = 2.0
    ours = jnp.mean(chunked("ssb", student, teacher, head, info, T, 1.0))
    s, t = (torch.from_numpy(np.array(x[0] @ head.T)) for x in (student, teacher))
    log_softmax, softmax = torch.nn.functional.log_softmax, torch.nn.functional.softmax
    theirs = torch.nn.functional.kl_div(log_softmax(s / T, -1), softmax(t / T, -1), reduction="batchmean") * T * T
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-6)


def test_chunks_without_tokens_are_not_computed():
    student, teacher, head, info = case()
    full = chunked("ssb", student, teacher, head, info, 2.0, 1.0)
    part = jax.jit(lambda n: chunked("ssb", student, teacher, head, info, 2.0, 1.0, chunks=n))(jnp.int32(2))
    np.testing.assert_array_equal(part[:, : 2 * CHUNK], full[:, : 2 * CHUNK])
    assert not part[:, 2 * CHUNK :].any()


def test_logits_of_the_teacher_give_the_same_as_its_states():
    student, teacher, head, info = case()
    objective = make_objective(resolve_loss("ssb"), temperature=2.0)
    stored = Teacher(jnp.einsum("gpd,vd->gpv", teacher, head), encoding="logits")
    from_logits, stats = token_losses(student, stored, head, info, objective=objective, chunk=CHUNK)
    np.testing.assert_allclose(from_logits, chunked("ssb", student, teacher, head, info, 2.0, 1.0), rtol=1e-5)
    assert stats.kl.shape == (1, P)


def test_statistics_are_those_of_temperature_one():
    student, teacher, head, info = case()
    objective = make_objective(resolve_loss("ssb"), temperature=2.0)
    _, stats = token_losses(student, Teacher(teacher), head, info, objective=objective, chunk=CHUNK)
    t, s = (jax.nn.log_softmax(x[0] @ head.T) for x in (teacher, student))
    np.testing.assert_allclose(stats.kl[0], jnp.sum(jnp.exp(t) * (t - s), -1), rtol=1e-5)
    np.testing.assert_allclose(stats.teacher_entropy[0], -jnp.sum(jnp.exp(t) * t, -1), rtol=1e-5)
    np.testing.assert_allclose(stats.student_entropy[0], -jnp.sum(jnp.exp(s) * s, -1), rtol=1e-5)
    np.testing.assert_array_equal(stats.agreement[0], t.argmax(-1) == s.argmax(-1))


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    vocabulary, chunk = 4096, 32

    def temporaries(tokens):
        student, teacher, head, info = case(tokens=tokens, vocabulary=vocabulary)
        loss = jax.grad(lambda h: jnp.sum(chunked("ssb", h, teacher, head, info, 2.0, 1.0, chunk=chunk)))
        return jax.jit(loss).lower(student).compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(64), temporaries(1024)
    logits = chunk * vocabulary * 4
    assert few < 12 * logits
    assert many - few <= 8 * (1024 - 64) * D * 4  # hidden states and per-token numbers only
    assert many < 1024 * vocabulary * 4


def test_tokens_that_are_not_a_multiple_of_the_chunk_are_refused():
    student, teacher, head, info = case()
    with pytest.raises(ValueError, match="multiple of chunk = 7"):
        chunked("ssb", student, teacher, head, info, 2.0, 1.0, chunk=7)


def test_a_loss_of_the_wrong_shape_is_refused():
    student, teacher, head, info = case()
    objective = make_objective(lambda teacher_logp, student_logp, info: jnp.mean(teacher_logp - student_logp))
    with pytest.raises(SsbError, match=r"returned shape \(\); expected one number a token, \(8,\)"):
        token_losses(student, Teacher(teacher), head, info, objective=objective, chunk=CHUNK)
