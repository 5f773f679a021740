"""The training step as a run would compile it, lowered for a mesh from shapes alone: nothing is loaded or executed.

For compiling ahead of time (`python -m ssb_jax.bench.ahead_step`, `ssb preflight`) on devices that need not be there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssb_jax.config import Distillation, Grpo
from ssb_jax.config import Lora as LoraSettings
from ssb_jax.model.sharding import spec, use_mesh
from ssb_jax.model.transformer import ModelConfig, abstract_model, model_shardings
from ssb_jax.records import Pair
from ssb_jax.store import Rows
from ssb_jax.training.batches import Batch, Weighting, cut
from ssb_jax.training.plan import Plan, make_plan, prepared_batches
from ssb_jax.training.policy import answers_grid, make_policy_step, make_score, policy_batch
from ssb_jax.training.step import (
    batch_shardings,
    build_step,
    init_state,
    make_optimizer,
    make_schedule,
    run_keys,
    state_shardings,
)


def lower_step(
    config: ModelConfig,
    mesh: Mesh,
    pairs: Sequence[Pair],
    *,
    settings: Distillation,
    lora_settings: LoraSettings,
    dtype: jnp.dtype = jnp.bfloat16,
    encoding: str = "hidden",
    attention: str = "auto",
    top_k: int = 100,
) -> jax.stages.Lowered:
    """The step on the first batch that these pairs give; `.compile()` of it says how much memory a chip needs."""
    plan = make_plan(config, pairs, settings=settings, seed=0, mesh=mesh, recompute=encoding == "none")
    platform = mesh.devices.flat[0].platform
    step, optimizer = build_step(
        settings, lora_settings, steps=plan.steps, chunk=plan.grid.chunk, seed=0, platform=platform
    )
    model = abstract_model(config, dtype)
    model.attention = attention
    state = jax.eval_shape(lambda key: init_state(model, lora_settings, optimizer, key=key), run_keys(0)[0])
    width = {"hidden": config.hidden_size, "logits": config.vocab_size, "topk": top_k, "none": 0}[encoding]
    batch = _first_batch(plan, width=width, dtype=dtype, encoding=encoding, temperature=settings.temperature)
    arguments = (
        placed(model, model_shardings(model, mesh)),
        placed(state, state_shardings(state, optimizer, mesh)),
        placed(batch, batch_shardings(batch, mesh)),
    )
    with use_mesh(mesh):  # in here nothing may be computed: the mesh's devices are perhaps not there
        return step.lower(*arguments)


def lower_policy(
    config: ModelConfig,
    mesh: Mesh,
    answers: Sequence[Pair],
    *,
    settings: Grpo,
    training: Distillation,
    lora_settings: LoraSettings,
    dtype: jnp.dtype = jnp.bfloat16,
    attention: str = "auto",
) -> tuple[Callable[[], jax.stages.Lowered], Callable[[], jax.stages.Lowered]]:
    """Method `grpo`: what lowers the reference's pass over a step's answers, and what lowers the update on them."""
    model = abstract_model(config, dtype)
    model.attention = attention
    schedule = make_schedule(settings.model_copy(update={"warmup_steps": 0}), 1)
    optimizer, chunk = make_optimizer(training, schedule), training.chunk_tokens
    platform = mesh.devices.flat[0].platform
    score = make_score(temperature=settings.temperature, chunk=chunk, platform=platform)
    update = make_policy_step(
        settings=settings, optimizer=optimizer, schedule=schedule, chunk=chunk, remat=training.remat, platform=platform
    )
    examples = [cut(pair, config.max_position_embeddings) for pair in answers]
    weights = [np.zeros(len(example.reply), np.float32) for example in examples]
    batch = policy_batch(examples, weights, grid=answers_grid(training, mesh), pad_id=0)
    state = jax.eval_shape(lambda key: init_state(model, lora_settings, optimizer, key=key), run_keys(0)[0])
    reference = jax.eval_shape(score, model, None, batch)
    grouped = NamedSharding(mesh, PartitionSpec(None, *spec("groups")))
    gains = jax.ShapeDtypeStruct((len(answers),), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    model = placed(model, model_shardings(model, mesh))
    state = placed(state, state_shardings(state, optimizer, mesh))
    batch = placed(batch, batch_shardings(batch, mesh))
    reference = placed(reference, jax.tree.map(lambda _: grouped, reference))

    def lower_score():
        with use_mesh(mesh):
            return score.lower(model, None, batch)

    def lower_update():
        with use_mesh(mesh):
            return update.lower(model, state, batch, gains, reference)

    return lower_score, lower_update


def made_up_pairs(count: int, *, prompt: int, reply: int, teacher_prompt: int, vocabulary: int) -> list[Pair]:
    """Pairs of random tokens with these lengths, always the same ones."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, vocabulary, length).tolist())

    return [
        Pair(f"made-up-{i}", "", "", "", ids(teacher_prompt), ids(prompt), ids(reply), teacher_stop=False)
        for i in range(count)
    ]


def placed(tree: Any, shardings: Any) -> Any:
    """Each array of a tree as its shape, dtype and sharding."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s), tree, shardings)


def _first_batch(plan: Plan, *, width: int, dtype: jnp.dtype, encoding: str, temperature: float) -> Batch:
    known = (1.0, temperature)

    def targets(pair: Pair) -> Rows:
        R = len(pair.reply_ids)
        rows = np.zeros((R, width), dtype)
        if encoding != "topk":
            return rows
        return {"targets": rows, "ids": np.zeros((R, width), np.int32), "tail": np.zeros((R, len(known)), np.float32)}

    batches = prepared_batches(plan, targets, weighting=Weighting(), encoding=encoding, pad_id=0, temperatures=known)
    return next(batches).batch
