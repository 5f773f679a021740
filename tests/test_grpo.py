"""GRPO against the published formulas, written here once more in torch over full logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from distillation_case import MODEL, full_logits, make_model, make_pairs, random_lora

from ssb_jax.config import Distillation, Grpo
from ssb_jax.losses.policy import advantages, token_weights
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import make_mesh, use_mesh
from ssb_jax.model.transformer import model_shardings
from ssb_jax.records import Outcome
from ssb_jax.stages.grpo import reward
from ssb_jax.training.batches import cut
from ssb_jax.training.layout import Grid
from ssb_jax.training.policy import answers_grid, make_policy_step, make_score, policy_batch
from ssb_jax.training.step import TrainState, make_optimizer, put_batch, state_shardings

GROUP, TEMPERATURE, MOST = 4, 0.7, 32
PAIRS = make_pairs(2 * GROUP, seed=3)  # recorded answers: the first group is mixed, the second has one right
REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]])


def torch_advantages(rewards, scale="group"):
    """TRL's: centred by the group's mean, divided by the standard deviation + 1e-4."""
    rewards = torch.tensor(rewards, dtype=torch.float64)
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "none":
        return centred
    return centred / ((rewards.std(1, keepdim=True) if scale == "group" else rewards.std()) + 1e-4)


def torch_loss(logits, old, reference, gains, *, clip=(0.2, 0.2), beta=0.04, normalisation="sequence"):
    """(loss, ratio, KL estimate) from lists of logits (R, V) of each answer."""
    ids = [torch.tensor(pair.reply_ids)[:, None] for pair in PAIRS]

    def logp(x):
        rows = (torch.log_softmax(rows / TEMPERATURE, -1) for rows in x)
        return [rows.gather(-1, y)[:, 0] for rows, y in zip(rows, ids, strict=True)]

    losses, ratios, kls = [], [], []
    for now, before, base, gain in zip(logp(logits), logp(old), logp(reference), gains, strict=True):
        ratio = torch.exp(now - before)
        surrogate = torch.min(ratio * gain, torch.clamp(ratio, 1 - clip[0], 1 + clip[1]) * gain)
        kl = torch.exp(base - now) - (base - now) - 1
        losses.append(-surrogate + beta * kl)
        ratios.append(ratio)
        kls.append(kl)
    total = {
        "sequence": torch.stack([loss.mean() for loss in losses]).mean(),
        "token": torch.cat(losses).mean(),
        "constant": torch.cat(losses).sum() / (len(losses) * MOST),
    }[normalisation]
    return total.item(), torch.cat(ratios).mean().item(), torch.cat(kls).mean().item()


def shifted(amount):
    lora = random_lora()
    return dataclasses.replace(lora, b=jax.tree.map(lambda x: x * amount, lora.b))


def logits_of(lora):
    out = full_logits(make_model(), [p.student_prompt_ids for p in PAIRS], [p.reply_ids for p in PAIRS], lora)
    return [
        torch.tensor(np.asarray(x, np.float64))
        for x in jnp.split(out, np.cumsum([len(p.reply_ids) for p in PAIRS])[:-1])
    ]


def our_numbers(lora: Lora, old: Lora | None, gains, settings: Grpo, *, micro_batch=None):
    model, grid = make_model(), Grid(chunk=16, micro_batch=micro_batch)
    examples = [cut(pair, MODEL.max_position_embeddings) for pair in PAIRS]
    lengths = [len(example.reply) for example in examples]
    weights = token_weights(lengths, normalisation=settings.normalisation, max_new_tokens=MOST)
    batch = put_batch(policy_batch(examples, weights, grid=grid, pad_id=0), None)
    score = make_score(temperature=TEMPERATURE, chunk=16)
    optimizer = make_optimizer(Distillation(), lambda step: 0.0)
    step = make_policy_step(settings=settings, optimizer=optimizer, schedule=lambda _: 0.0, chunk=16, remat="none")
    state = TrainState(jax.tree.map(jnp.copy, lora), optimizer.init(lora), jnp.zeros((), jnp.int32))
    sampled = None if old is None else score(model, old, batch).logp
    gains = np.asarray(gains, np.float32).ravel()
    return jax.device_get(step(model, state, batch, gains, score(model, None, batch), sampled)[1])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_trls(scale):
    np.testing.assert_allclose(advantages(REWARDS, scale=scale), torch_advantages(REWARDS, scale), atol=1e-6)


def test_advantages_by_sign_and_without_a_reward():
    both = advantages(REWARDS)
    assert np.array_equal(advantages(REWARDS, reinforce="positive"), np.maximum(both, 0))
    assert np.array_equal(advantages(REWARDS, reinforce="negative"), np.minimum(both, 0))
    unknown = REWARDS.copy()
    unknown[0, 2] = np.nan
    got = advantages(unknown)
    assert got[0, 2] == 0
    np.testing.assert_allclose(got[0, [0, 1, 3]], torch_advantages([[1.0, 0.0, 1.0]])[0], atol=1e-6)
    assert not advantages(np.ones((2, 4))).any()


@pytest.mark.parametrize(
    ("normalisation", "clip", "beta", "micro_batch"),
    [("sequence", (0.2, 0.2), 0.04, None), ("token", (0.1, 0.3), 0.0, 3), ("constant", (0.2, 0.2), 0.5, None)],
)
def test_loss_ratio_and_kl_are_trls(normalisation, clip, beta, micro_batch):
    gains = torch_advantages(REWARDS).flatten()
    settings = Grpo(
        normalisation=normalisation,
        clip=clip[0],
        clip_high=clip[1],
        beta=beta,
        temperature=TEMPERATURE,
        max_new_tokens=MOST,
    )
    now, old = shifted(0.08), shifted(0.06)
    ours = our_numbers(now, old, gains, settings, micro_batch=micro_batch)
    loss, ratio, kl = torch_loss(
        logits_of(now), logits_of(old), logits_of(None), gains, clip=clip, beta=beta, normalisation=normalisation
    )
    np.testing.assert_allclose([ours.loss, ours.ratio, ours.kl], [loss, ratio, kl], rtol=1e-5, atol=1e-5)
    assert 0 < ours.clipped < 1


def test_the_first_update_has_ratio_one_and_the_gradient_of_the_dense_formula():
    lora, gains = shifted(0.08), torch_advantages(REWARDS).flatten()
    ours = our_numbers(lora, None, gains, Grpo(temperature=TEMPERATURE, max_new_tokens=MOST))
    assert ours.ratio == 1
    assert ours.clipped == 0

    prompts, replies = [p.student_prompt_ids for p in PAIRS], [p.reply_ids for p in PAIRS]
    ids = jnp.asarray([token for reply in replies for token in reply])
    weight = jnp.asarray([1 / (len(PAIRS) * len(reply)) for reply in replies for _ in reply])
    gain = jnp.asarray([float(g) for g, reply in zip(gains, replies, strict=True) for _ in reply])

    def dense(lora):
        def logp(lora):
            logits = full_logits(make_model(), prompts, replies, lora)
            return jnp.take_along_axis(jax.nn.log_softmax(logits / TEMPERATURE), ids[:, None], 1)[:, 0]

        now, base = logp(lora), logp(None)
        kl = jnp.exp(base - now) - (base - now) - 1
        return jnp.sum(weight * (-jnp.exp(now - jax.lax.stop_gradient(now)) * gain + 0.04 * kl))

    gradient = jax.grad(dense)(lora)
    norm = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(ours.grad_norm, norm, rtol=1e-5)


def test_on_a_mesh_the_state_lies_as_it_came():
    """Else the second update is compiled once more. And the numbers are those of one device."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    model = make_model()
    model = jax.tree.map(jax.device_put, model, model_shardings(model, mesh))
    gains, settings = np.asarray(torch_advantages(REWARDS), np.float32).ravel(), Grpo(temperature=TEMPERATURE)
    optimizer = make_optimizer(Distillation(), lambda step: 0.0)
    step = make_policy_step(settings=settings, optimizer=optimizer, schedule=lambda _: 0.0, chunk=16, remat="none")
    examples = [cut(pair, MODEL.max_position_embeddings) for pair in PAIRS]
    weights = token_weights([len(e.reply) for e in examples], normalisation="sequence", max_new_tokens=MOST)
    grid = answers_grid(Distillation(chunk_tokens=16), mesh)
    batch = put_batch(policy_batch(examples, weights, grid=grid, pad_id=0), mesh)
    lora = shifted(0.08)
    with use_mesh(mesh):
        state = TrainState(jax.tree.map(jnp.copy, lora), optimizer.init(lora), jnp.zeros((), jnp.int32))
        state = jax.tree.map(jax.device_put, state, state_shardings(state, optimizer, mesh))
        reference = make_score(temperature=TEMPERATURE, chunk=16)(model, None, batch)
        before = jax.tree.map(lambda x: x.sharding, state)
        state, numbers = step(model, state, batch, gains, reference, None)
    for array, sharding in zip(*map(jax.tree.leaves, (state, before)), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    alone = our_numbers(lora, None, gains, settings)
    for name in ("loss", "grad_norm", "kl", "full_kl", "entropy"):
        np.testing.assert_allclose(getattr(numbers, name), getattr(alone, name), rtol=1e-4, atol=1e-6, err_msg=name)


def test_rewards():
    settings = Grpo(format_reward=0.1)
    assert reward(Outcome.CORRECT, "7", settings) == pytest.approx(1.1)
    assert reward(Outcome.INCORRECT, "8", settings) == pytest.approx(0.1)
    assert reward(Outcome.TRUNCATED, None, settings) == 0
    assert reward(Outcome.TIMEOUT, "8", settings) is None
