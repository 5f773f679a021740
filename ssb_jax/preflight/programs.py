"""The stages' own jitted functions, lowered for the devices of a topology; nothing is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ssb_jax.losses.chunked import Teacher
from ssb_jax.losses.menu import TokenInfo
from ssb_jax.model.cache import KVCache, cache_shardings, init_cache
from ssb_jax.model.lora import Lora, init_lora, lora_shardings
from ssb_jax.model.sharding import spec, use_mesh
from ssb_jax.model.transformer import Transformer, abstract_model, model_shardings
from ssb_jax.preflight import workload
from ssb_jax.preflight.workload import Generation, Job
from ssb_jax.sampling import device, schedule
from ssb_jax.sampling.slots import STOP_IDS
from ssb_jax.stages.targets import head_function, states_function
from ssb_jax.training.batches import Batch
from ssb_jax.training.layout import Shape
from ssb_jax.training.step import batch_shardings, build_step, init_state, run_keys, state_shardings


@dataclass(frozen=True)
class Program:
    """A program that a stage runs.

    Attributes:
      lower: lowers it for the job's devices.
      held: of its arguments, bytes a chip by what they are (weights, cache, optimizer).
      beside: bytes a chip that lie in memory while it runs and are not among its arguments.
      steps: how many times its outer loop goes round in one call, where the compiled text does not say.
    """

    stage: str
    name: str
    lower: Callable[[], jax.stages.Lowered]
    held: dict[str, int]
    beside: dict[str, int] = field(default_factory=dict)
    steps: int = 1


def stage_programs(job: Job, stage: str) -> list[Program]:
    """The programs of one stage, in the order in which it runs them."""
    if stage == "targets":
        return list(_scoring(job))
    if stage == "distill":
        return [_training(job)]
    if stage == "eval":
        sets = workload.evaluations(job)
        # The sets differ in length alone: the one with the longest sequences needs most.
        return list(_generation(job, stage, max(sets, key=lambda s: s.slots * s.cache_length))) if sets else []
    work = workload.rollouts(job) if stage == "rollout" else workload.teaching(job)
    return list(_generation(job, stage, work))


def chip_bytes(tree: Any) -> int:
    """Bytes on each chip of a tree of arrays or abstract arrays with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x in leaves)


def model_on(job: Job) -> Transformer:
    """The base model as it lies on the mesh, without its numbers."""
    model = abstract_model(job.shape, job.dtype)
    return _placed(model, model_shardings(model, job.mesh))


def cache_on(job: Job, rows: int, length: int) -> KVCache:
    """A cache as it lies on the mesh."""
    cache = jax.eval_shape(lambda: init_cache(job.shape, rows, length, job.dtype))
    return _placed(cache, cache_shardings(cache, job.mesh))


def adapter_on(job: Job) -> Lora:
    """A trained adapter as evaluation holds it."""
    lora = jax.eval_shape(lambda key: init_lora(job.shape, job.config.lora, key=key), jax.random.key(0))
    return _placed(lora, lora_shardings(lora, job.mesh))


def _generation(job: Job, stage: str, work: Generation) -> Iterator[Program]:
    """The engine's programs: prompts, chunks of decode steps, and making the cache longer."""
    mesh, slots, length = job.mesh, work.slots, work.cache_length
    model, cache = model_on(job), cache_on(job, slots, length)
    lora = adapter_on(job) if work.adapter else None
    most = schedule.PREFILL_TOKENS_CPU if schedule.on_cpu(mesh) else schedule.PREFILL_TOKENS
    T = work.prefill_length
    P = schedule.prefill_rows(T, parts=schedule.row_parts(mesh), tokens=most)
    P = min(P, max(schedule.row_parts(mesh), 1 << (work.prompts - 1).bit_length()))
    staged = cache_on(job, P, T)
    held = {"weights": chip_bytes(model)} | ({} if lora is None else {"adapter": chip_bytes(lora)})

    def lower(function, *arguments, **static):
        def in_mesh():
            with use_mesh(mesh):
                return function.lower(*arguments, **static)

        return in_mesh

    tokens, lengths = _whole(job, (P, T), jnp.int32), _whole(job, (P,), jnp.int32)
    yield Program(
        stage,
        f"prefill, {P} x {T}",
        lower(device.prefill, model, lora, tokens, lengths, None),
        held,
        {"cache": chip_bytes(cache)},
    )
    rows = _placed(device.empty_rows(slots, STOP_IDS), NamedSharding(mesh, PartitionSpec()))
    history = _whole(job, (slots, length), jnp.int32) if work.penalised else None
    steps = job.config.engine.chunk
    yield Program(
        stage,
        f"decode, {slots} x {length}",
        lower(device.decode, model, lora, cache, rows, history, _whole(job, (), jnp.int32), steps=steps),
        held | {"cache": chip_bytes(cache)},
        {"staged": chip_bytes(staged)},
        steps=steps,
    )
    shorter = cache_on(job, slots, schedule.shorter(length))
    if shorter.length < length:
        # Values last: the new keys lie beside them, and the staged prompts.
        yield Program(
            stage,
            f"longer cache, {shorter.length} to {length}",
            lower(device.resize, shorter.v, None, length=length),
            {"cache": chip_bytes(shorter.v)},
            {"weights": sum(held.values()), "cache": chip_bytes(cache.k), "staged": chip_bytes(staged)},
        )


def _scoring(job: Job) -> Iterator[Program]:
    """The teacher's pass, and the head where logits are stored."""
    work, model = workload.scoring(job), model_on(job)
    rows = NamedSharding(job.mesh, spec("batch", "tokens"))
    tokens = jax.ShapeDtypeStruct((work.rows, work.length), jnp.int32, sharding=rows)
    index = jax.ShapeDtypeStruct((work.rows, work.replies), jnp.int32, sharding=rows)
    held = {"weights": chip_bytes(model)}

    def teacher():
        with use_mesh(job.mesh):
            return states_function(job.mesh).lower(model, tokens, tokens, tokens, index)

    yield Program("targets", f"teacher, {work.rows} x {work.length}", teacher, held)
    if job.config.targets.encoding == "logits":
        states = _whole(job, (work.replies, job.shape.hidden_size), job.dtype)

        def head():
            with use_mesh(job.mesh):
                return head_function(job.mesh).lower(model, states)

        yield Program("targets", f"head, {work.replies} tokens", head, held)


def _training(job: Job) -> Program:
    plan, model = workload.training(job).longest, model_on(job)
    shape = plan.shapes[0]
    settings, seed = job.config.distillation, job.config.seed
    step, optimizer = build_step(settings, job.config.lora, steps=plan.steps, chunk=plan.grid.chunk, seed=seed)
    state = jax.eval_shape(lambda k: init_state(model, job.config.lora, optimizer, key=k), run_keys(seed)[0])
    state = _placed(state, state_shardings(state, optimizer, job.mesh))
    batch = _batch(job, shape, plan.grid.groups)
    batch = _placed(batch, batch_shardings(batch, job.mesh))

    def lower():
        with use_mesh(job.mesh):
            return step.lower(model, state, batch)

    held = {"weights": chip_bytes(model), "optimizer": chip_bytes(state)}
    return Program("distill", f"step, {shape.micros} x {shape.rows} x {shape.length}", lower, held)


def _batch(job: Job, shape: Shape, groups: int) -> Batch:
    """The arrays of a step, without numbers."""
    M, B, T, P = shape.micros, shape.rows, shape.length, shape.replies
    hidden = job.config.targets.encoding == "hidden"
    stored = job.config.targets.dtype
    values = jax.ShapeDtypeStruct(
        (M, groups, P, job.shape.hidden_size if hidden else job.shape.vocab_size),
        job.dtype if stored == "auto" else jnp.dtype(stored),
    )
    tokens = jax.ShapeDtypeStruct((M, B, T), jnp.int32)
    slots = jax.ShapeDtypeStruct((M, groups, P), jnp.int32)
    return Batch(
        tokens=tokens,
        positions=tokens,
        segment_ids=tokens,
        index=slots,
        info=TokenInfo(slots, slots, slots),
        example=slots,
        weight=jax.ShapeDtypeStruct(slots.shape, jnp.float32),
        teacher=Teacher(values, job.config.targets.encoding),
        chunks=jax.ShapeDtypeStruct((M,), jnp.int32),
    )


def _whole(job: Job, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(job.mesh, PartitionSpec()))


def _placed(tree: Any, sharding: Any) -> Any:
    """Abstract arrays with shardings: one for all, or a tree of them."""
    shardings = jax.tree.map(lambda _: sharding, tree) if isinstance(sharding, NamedSharding) else sharding

    def abstract(x, s):
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s)

    return jax.tree.map(abstract, tree, shardings)
