"""The step: the published loss of each example alone, whatever the packing, the mesh and the micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from distillation_case import MODEL, full_logits, make_config, make_model, make_pairs, random_lora

from ssb_jax.losses.chunked import make_objective
from ssb_jax.losses.menu import MENU, TokenInfo, resolve_loss
from ssb_jax.model.sharding import make_mesh, use_mesh
from ssb_jax.model.transformer import model_shardings
from ssb_jax.stages.targets import teacher_targets
from ssb_jax.training.batches import Weighting
from ssb_jax.training.lowering import lower_step
from ssb_jax.training.plan import make_plan, prepared_batches
from ssb_jax.training.step import (
    TrainState,
    make_optimizer,
    make_schedule,
    make_step,
    put_batch,
    reply_states,
    state_shardings,
)

PAIRS = make_pairs(5)
T = 2.0


@functools.cache
def stored_targets(encoding):
    if encoding == "none":
        return None
    found = teacher_targets(make_model(), PAIRS, encoding=encoding, top_k=9, temperatures=(1.0, T))
    return {pair.question_id: x for pair, x in found}


def one_step(
    settings, *, mesh=None, encoding="hidden", loss="ssb", kl_weight=1.0, dropout=0.0, key=None, options=None, **more
):
    """(numbers, adapter after the step) of one step of plain SGD with learning rate 1 on all pairs."""
    model, lora, optimizer = make_model(), random_lora(dropout=dropout), optax.sgd(1.0)
    plan = make_plan(MODEL, PAIRS, settings=settings, seed=0, mesh=mesh, recompute=encoding == "none")
    stored = stored_targets(encoding)
    batches = prepared_batches(
        plan,
        lambda pair: stored[pair.question_id],
        weighting=Weighting(),
        encoding=encoding,
        pad_id=0,
        temperatures=(1.0, T),
    )
    step = make_step(
        objective=make_objective(resolve_loss(loss), temperature=T, kl_weight=kl_weight),
        optimizer=optimizer,
        schedule=optax.constant_schedule(1.0),
        chunk=plan.grid.chunk,
        examples=5,
        remat=settings.remat,
        dropout_key=None if key is None else jax.random.key(key),
        temperature=T,
        **more,
    )
    state = TrainState(lora, optimizer.init(lora), jnp.zeros((), jnp.int32))
    if mesh is not None:
        model = jax.device_put(model, model_shardings(model, mesh))
        state = jax.device_put(state, state_shardings(state, optimizer, mesh))
    with use_mesh(mesh):
        new, numbers = step(model, state, put_batch(next(batches).batch, mesh))
    return jax.device_get(numbers), jax.device_get(new.lora)


def naive_logits(lora):
    model, replies = make_model(), [p.reply_ids for p in PAIRS]
    teacher = full_logits(model, [p.teacher_prompt_ids for p in PAIRS], replies)
    return teacher, full_logits(model, [p.student_prompt_ids for p in PAIRS], replies, lora)


@functools.cache
def naive_forward():
    """Teacher's and student's logits of all reply tokens, (tokens, V)."""
    return jax.jit(naive_logits)(random_lora())


def token_info():
    ids = jnp.asarray([token for pair in PAIRS for token in pair.reply_ids], jnp.int32)
    return TokenInfo(ids, jnp.zeros_like(ids), jnp.ones_like(ids))


@functools.cache
def naive():
    """The same from full logits of each example in a row of its own: plain token mean, plain JAX gradient."""
    objective = make_objective(resolve_loss("ssb"), temperature=T)
    lora = random_lora()
    loss_of = jax.jit(jax.value_and_grad(lambda lora: jnp.mean(objective(*naive_logits(lora), token_info()))))
    value, gradient = loss_of(lora)
    return value, jax.tree.map(lambda x, g: x - g, lora, gradient)


@functools.cache
def packed_step():
    return one_step(whole_batch())


def whole_batch(**kwargs):
    return make_config(distillation={"batch_size": 5, **kwargs}).distillation


def assert_same(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5), found[1], expected[1])


LAYOUTS = {
    "packed": whole_batch(),
    "padded": whole_batch(packing=False),
    "micro": whole_batch(micro_batch=2),
    "one chunk, no remat": whole_batch(chunk_tokens=512, remat="none"),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_loss_and_gradient_are_those_of_each_example_alone(layout):
    numbers, lora = packed_step() if layout == "packed" else one_step(LAYOUTS[layout])
    assert_same((numbers.loss, lora), naive())


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(2, 2, 2), (1, 2, 4)])
def test_a_mesh_changes_nothing(data, fsdp, tensor):
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    numbers, lora = one_step(LAYOUTS["packed"], mesh=mesh)
    assert_same((numbers.loss, lora), naive())


def test_stored_logits_and_stored_states_give_the_same_step():
    states, logits = packed_step(), one_step(whole_batch(), encoding="logits")
    assert_same((states[0].loss, states[1]), (logits[0].loss, logits[1]))


def test_a_teacher_computed_in_the_step_is_the_stored_one():
    """On a mesh; with health looked at, and weights that fall by nothing."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    found = one_step(whole_batch(), encoding="none", mesh=mesh, health_every=1, fall=0.0)
    stored = packed_step()
    assert_same((found[0].loss, found[1]), (stored[0].loss, stored[1]))
    assert 0 < found[0].health["top10_overlap"] <= 1
    assert found[0].health["outside_top100"] == 0  # the vocabulary has 64 words


def test_packed_is_padded_for_every_loss_of_the_menu():
    """Token by token the same value of each loss; and the same gradient in the adapter, whatever that of the states."""
    (one, micro), (other, padded) = (_states_and_pull(LAYOUTS[name]) for name in ("packed", "padded"))
    for name in MENU:
        found, expected = (_by_token(x, _losses(name, states, x)) for (states, _), x in ((one, micro), (other, padded)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    of_token = np.random.default_rng(0).normal(size=(len(PAIRS), 64, MODEL.hidden_size)).astype(np.float32)
    gradients = []
    for (states, pull), x in ((one, micro), (other, padded)):
        cotangent = of_token[np.asarray(x.example), np.asarray(x.info.position)] * np.asarray(x.weight)[..., None]
        gradients.append((jnp.sum(states * cotangent), pull(jnp.asarray(cotangent))[0]))
    assert_same(*gradients)


def _states_and_pull(settings):
    """The student's states with their pull-back to the adapter, and the micro-batch that they belong to."""
    model, lora = make_model(), random_lora()
    plan = make_plan(MODEL, PAIRS, settings=settings, seed=0)
    stored = stored_targets("hidden")
    batches = prepared_batches(
        plan,
        lambda pair: stored[pair.question_id],
        weighting=Weighting(),
        encoding="hidden",
        pad_id=0,
        views={
            view: (lambda pair, i=i: np.roll(stored[pair.question_id], i, axis=0))
            for i, view in enumerate(("swapped", "hint_only", "bare"), 1)
        },
    )
    micro = jax.tree.map(lambda x: jnp.asarray(x[0]), next(batches).batch)
    return jax.vjp(jax.jit(lambda lora: reply_states(model, lora, micro)), lora), micro


def _losses(name, states, micro):
    """A loss at each slot from full logits."""
    head = make_model().head_weight()
    views = {view: x[0] @ head.T for view, x in micro.teacher.views.items()}
    info = dataclasses.replace(jax.tree.map(lambda x: x[0], micro.info), views=views)
    objective = make_objective(resolve_loss(name), temperature=T, kl_weight=0.7)
    return objective(micro.teacher.values[0] @ head.T, states[0] @ head.T, info)


def _by_token(micro, values):
    """Numbers of the slots that hold tokens, in the order of examples and positions."""
    counted = np.asarray(micro.info.length[0] > 0)
    order = np.lexsort((micro.info.position[0][counted], micro.example[0][counted]))
    return np.asarray(values)[counted][order]


def test_cross_entropy_mixes_in():
    numbers, _ = one_step(whole_batch(), kl_weight=0.3)
    objective = make_objective(resolve_loss("ssb"), temperature=T, kl_weight=0.3)
    np.testing.assert_allclose(numbers.loss, jnp.mean(objective(*naive_forward(), token_info())), rtol=1e-5)


def test_statistics_and_blame():
    numbers, _ = packed_step()
    np.testing.assert_allclose(numbers.example_losses.sum(), numbers.loss, rtol=1e-5)
    t, s = (jax.nn.log_softmax(x) for x in naive_forward())
    np.testing.assert_allclose(numbers.kl, jnp.mean(jnp.sum(jnp.exp(t) * (t - s), -1)), rtol=1e-5)
    np.testing.assert_allclose(numbers.agreement, jnp.mean(t.argmax(-1) == s.argmax(-1)), rtol=1e-6)
    np.testing.assert_allclose(numbers.student_entropy, -jnp.mean(jnp.sum(jnp.exp(s) * s, -1)), rtol=1e-5)
    np.testing.assert_allclose(numbers.teacher_entropy, -jnp.mean(jnp.sum(jnp.exp(t) * t, -1)), rtol=1e-5)
    terms = np.asarray(jnp.sum(jnp.exp(t) * (t - s), -1))
    quarter = np.concatenate([4 * np.arange(n) // n for n in (len(p.reply_ids) for p in PAIRS)])
    np.testing.assert_allclose(numbers.kl_quarters, [terms[quarter == q].mean() for q in range(4)], rtol=1e-5)
    assert numbers.health == {}
    assert numbers.learning_rate == 1.0
    assert numbers.grad_norm > 0


def test_dropout_is_on_when_a_key_is_given():
    plain = naive()[0]
    dropped, _ = one_step(whole_batch(), dropout=0.5, key=3)
    assert abs(dropped.loss - plain) > 1e-3 * plain


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(schedule):
    import torch
    from transformers import get_scheduler

    settings = make_config(distillation={"schedule": schedule, "warmup_steps": 3, "learning_rate": 0.01}).distillation
    ours = make_schedule(settings, 12)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=12)
    for i in range(12):
        np.testing.assert_allclose(float(ours(i)), theirs.get_last_lr()[0], rtol=1e-5, atol=1e-9)
        optimizer.step()
        theirs.step()


def test_adamw_is_torchs():
    import torch

    settings = make_config(distillation={"weight_decay": 0.1, "betas": [0.8, 0.95], "max_grad_norm": 0.5}).distillation
    optimizer = make_optimizer(settings, optax.constant_schedule(0.01))
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    ours, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.1)
    for i in range(8):
        gradient = (rng.normal(size=(5, 3)) * 2.0 ** (i - 5)).astype(np.float32)  # below and above the clip
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.from_numpy(gradient)
        torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        reference.step()
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_steps_state_lies_as_it_came():
    """Key/value matrices came out split over tensor, where they go in whole: the second step was compiled again."""
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    config = make_config()
    lowered = lower_step(MODEL, mesh, PAIRS[:2], settings=config.distillation, lora_settings=config.lora)
    compiled = lowered.compile()
    given, returned = (jax.tree.leaves(x) for x in (compiled.input_shardings[0][1], compiled.output_shardings[0]))
    for before, after, like in zip(given, returned, jax.tree.leaves(lowered.args_info[0][1]), strict=True):
        assert before.is_equivalent_to(after, len(like.shape))
