"""The chunked head: equal to the full computation on any mesh, in memory independent of tokens x vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssb_jax.config import SsbError
from ssb_jax.losses.chunked import Teacher, make_objective, token_losses
from ssb_jax.losses.health import top_mask
from ssb_jax.losses.menu import MENU, TokenInfo, resolve_loss
from ssb_jax.model.sharding import make_mesh, use_mesh
from ssb_jax.stages.targets import largest

P, D, V, CHUNK = 24, 16, 50, 8
NEEDS = {"contrast": ("swapped",), "purified": ("hint_only", "bare")}  # views


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
    info = dataclasses.replace(info, views={view: x @ head.T for view, x in views(name, teacher).items()})
    rows = [
        objective(teacher[g] @ head.T, student[g] @ head.T, jax.tree.map(lambda x, g=g: x[g], info))
        for g in range(student.shape[0])
    ]
    return jnp.stack(rows)


def views(name, teacher):
    """States of the base model under the further prompts that a loss looks at."""
    return {view: jnp.roll(teacher, i, axis=1) for i, view in enumerate(NEEDS.get(name, ()), 1)}


def chunked(name, student, teacher, head, info, temperature, kl_weight, chunk=CHUNK, **kwargs):
    objective = make_objective(resolve_loss(name), temperature=temperature, kl_weight=kl_weight)
    stored = Teacher(teacher, views=views(name, teacher))
    return token_losses(student, stored, head, info, objective=objective, chunk=chunk, **kwargs)[0]


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


@pytest.mark.parametrize(("k", "mesh"), [(7, None), (4, (2, 2, 2))])
def test_topk_targets_give_the_topk_loss(k, mesh):
    """From the k words and the bucket: value and gradient of the loss on whole distributions, also with a smaller k."""
    student, teacher, head, info = case(groups=2)
    kept, T = 7, 2.0
    stored = jax.vmap(jax.vmap(lambda x: largest(head @ x, kept, (1.0, T))))(teacher)
    few = Teacher(stored, "topk", (1.0, T))
    objective = make_objective(resolve_loss("topk_kl", {"k": k}), temperature=T, kl_weight=0.7)

    def total(student, targets, head, info, objective=objective):
        losses, _ = token_losses(
            student, targets, head, info, objective=objective, chunk=CHUNK, temperature=T, measure=None
        )
        return jnp.sum(losses), losses

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, expected), expected_gradient = step(student, Teacher(teacher), head, info)
    with use_mesh(mesh and make_mesh(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])):
        (_, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(student, few, head, info)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_statistics_are_those_of_temperature_one():
    student, teacher, head, info = case()
    objective = make_objective(resolve_loss("ssb"), temperature=2.0)
    _, stats = token_losses(student, Teacher(teacher), head, info, objective=objective, chunk=CHUNK)
    t, s = (jax.nn.log_softmax(x[0] @ head.T) for x in (teacher, student))
    np.testing.assert_allclose(stats.kl[0], jnp.sum(jnp.exp(t) * (t - s), -1), rtol=1e-5)
    np.testing.assert_allclose(stats.teacher_entropy[0], -jnp.sum(jnp.exp(t) * t, -1), rtol=1e-5)
    np.testing.assert_allclose(stats.student_entropy[0], -jnp.sum(jnp.exp(s) * s, -1), rtol=1e-5)
    np.testing.assert_array_equal(stats.agreement[0], t.argmax(-1) == s.argmax(-1))


def test_further_statistics_look_at_the_most_likely_words():
    student, teacher, head, info = case(vocabulary=300)
    objective = make_objective(resolve_loss("ssb"), temperature=2.0)

    def stats(measure):
        return token_losses(
            student, Teacher(teacher), head, info, objective=objective, chunk=CHUNK, temperature=2.0, measure=measure
        )[1]

    found = jax.jit(stats)(jnp.asarray(True)).further
    t, s = (np.asarray(x[0] @ head.T) for x in (teacher, student))
    np.testing.assert_allclose(
        found["gap"][0], [log_softmax(t)[i, y] - log_softmax(s)[i, y] for i, y in replies(info)], atol=1e-5
    )
    top = [
        set(np.argsort(-x, axis=-1)[i, :10]) & set(np.argsort(-y, axis=-1)[i, :10])
        for x, y in [(t, s)]
        for i in range(P)
    ]
    np.testing.assert_allclose(found["overlap"][0], [len(both) / 10 for both in top])
    soft_t, soft_s = log_softmax(t / 2), log_softmax(s / 2)
    terms = np.exp(soft_t) * (soft_t - soft_s)
    np.testing.assert_allclose(found["soft_kl"][0], terms.sum(-1), rtol=1e-4)
    rest = np.argsort(-t, axis=-1)[:, 100:]
    np.testing.assert_allclose(found["outside"][0], np.take_along_axis(terms, rest, -1).sum(-1), rtol=1e-3, atol=1e-6)
    not_looked = jax.jit(stats)(jnp.asarray(False)).further
    assert not any(not_looked[name].any() for name in ("overlap", "soft_kl", "outside"))
    np.testing.assert_array_equal(not_looked["gap"], found["gap"])
    assert stats(None).further == {}


def log_softmax(x):
    return np.asarray(jax.nn.log_softmax(x))


def replies(info):
    return enumerate(np.asarray(info.reply_ids[0]))


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=30), st.integers(1, 40))
@settings(max_examples=50)
def test_the_top_mask_is_that_of_sorting(row, k):
    x = np.asarray(row, np.float32) / 7 + 0.01
    kth = np.sort(x)[::-1][min(k, len(x)) - 1]
    np.testing.assert_array_equal(
        top_mask(jnp.asarray(np.pad(x, (0, 30 - len(x)), constant_values=-np.inf)), min(k, len(x)))[: len(x)], x >= kth
    )


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
    with pytest.raises(SsbError, match=r"returned shape \(\); expected .* a token, \(C,\) = \(8,\) from"):
        token_losses(student, Teacher(teacher), head, info, objective=objective, chunk=CHUNK)
