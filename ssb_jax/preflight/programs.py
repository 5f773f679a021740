"""The stages' own jitted functions, lowered for the devices of a topology; nothing is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ssb_jax.model.cache import Cache, KVCache, cache_shardings, init_cache
from ssb_jax.model.lora import Lora, init_lora, lora_shardings
from ssb_jax.model.sharding import use_mesh
from ssb_jax.model.transformer import Transformer, model_shardings
from ssb_jax.preflight import estimate, workload
from ssb_jax.preflight.job import Job, abstract
from ssb_jax.preflight.workload import Generation
from ssb_jax.sampling import device, schedule
from ssb_jax.sampling.slots import STOP_IDS
from ssb_jax.stages.targets import head_function, lower_teacher
from ssb_jax.training.layout import Shape, bucket
from ssb_jax.training.lowering import lower_policy, lower_step, placed


@dataclass(frozen=True)
class Program:
    """A program that a stage runs.

    Attributes:
      lower: lowers it for the job's devices.
      held: of its arguments, bytes a chip by what they are (weights, cache, optimizer).
      beside: bytes a chip that lie in memory while it runs and are not among its arguments.
      temporaries: bytes a chip that it is expected to take beside them.
    """

    stage: str
    name: str
    lower: Callable[[], jax.stages.Lowered]
    held: dict[str, int]
    beside: dict[str, int] = field(default_factory=dict)
    temporaries: float = 0.0

    @property
    def expected(self) -> float:
        """Bytes a chip, by estimate."""
        return sum(self.held.values()) + sum(self.beside.values()) + self.temporaries


def stage_programs(job: Job, stage: str) -> list[Program]:
    """The programs of one stage, in the order in which it runs them."""
    if stage == "targets":
        return list(_scoring(job))
    if stage == "distill":
        return [_training(job)]
    if stage == "grpo":
        return list(_reinforcement(job))
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
    model = abstract(job.shape, job.dtype, job.config.model.attention)
    return placed(model, model_shardings(model, job.mesh))


def cache_on(job: Job, rows: int, length: int, layers: int | None = None) -> KVCache:
    """A cache as it lies on the mesh."""
    cache = jax.eval_shape(lambda: init_cache(job.shape, rows, length, job.dtype, layers=layers))
    return placed(cache, cache_shardings(cache, job.mesh))


def adapter_on(job: Job) -> Lora:
    """A trained adapter as evaluation holds it."""
    lora = jax.eval_shape(lambda key: init_lora(job.shape, job.config.lora, key=key), jax.random.key(0))
    return placed(lora, lora_shardings(lora, job.mesh))


def _generation(job: Job, stage: str, work: Generation) -> Iterator[Program]:
    """The engine's programs: prompts, chunks of decode steps, and making the cache longer."""
    mesh, slots, length = job.mesh, work.slots, work.cache_length
    parts = schedule.cache_parts(job.shape, mesh)

    def slots_of(length: int) -> Cache:
        return (cache_on(job, slots, length, job.shape.num_layers // parts),) * parts

    model, cache = model_on(job), slots_of(length)
    lora = adapter_on(job) if work.adapter else None
    T = work.prefill_length
    P = workload.prefill_rows(job, work, T)
    staged = cache_on(job, P, T)
    layers = None
    if parts > 1:
        layers = jax.eval_shape(lambda model, lora: model.layers_in_parts(parts, lora), model, lora)
        layers = placed(layers, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), layers))
    held = {"weights": chip_bytes((model, layers))} | ({} if lora is None else {"adapter": chip_bytes(lora)})

    tokens, lengths = _whole(job, (P, T), jnp.int32), _whole(job, (P,), jnp.int32)
    yield Program(
        stage,
        f"prefill, {P} x {T}",
        _in_mesh(job, device.prefill, model, lora, tokens, lengths, None),
        held,
        {"cache": chip_bytes(cache)},
        estimate.prefill_temporaries(job, P, T) + chip_bytes(staged),
    )
    rows = device.empty_rows(slots, STOP_IDS)
    rows = placed(rows, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), rows))
    history = _whole(job, (slots, length), jnp.int32) if work.penalised else None
    steps = job.config.engine.chunk
    yield Program(
        stage,
        f"decode, {slots} x {length}",
        _in_mesh(
            job, device.decode, model, lora, layers, cache, rows, history, _whole(job, (), jnp.int32), steps=steps
        ),
        held | {"cache": chip_bytes(cache)},
        {"staged": chip_bytes(staged)},
        estimate.decode_temporaries(job, work),
    )
    shorter = slots_of(schedule.shorter(length))
    if shorter[0].length < length:
        # The last array of them: the others are longer already and lie beside it, as do the staged prompts.
        last, longer = shorter[-1].v, cache[-1].v
        yield Program(
            stage,
            f"longer cache, {shorter[0].length} to {length}",
            _in_mesh(job, device.resize, last, None, length=length),
            {"cache": chip_bytes(last)},
            {
                "weights": sum(held.values()),
                "cache": chip_bytes(cache) - chip_bytes(longer),
                "staged": chip_bytes(staged),
            },
            chip_bytes(longer),
        )


def _scoring(job: Job) -> Iterator[Program]:
    """The teacher's pass, and the head where logits are stored."""
    work, model = workload.scoring(job), model_on(job)
    held = {"weights": chip_bytes(model)}
    temporaries = estimate.pass_temporaries(job, work.rows, work.length)

    def teacher():
        return lower_teacher(job.shape, job.mesh, work.batch, dtype=job.dtype, attention=job.config.model.attention)

    yield Program("targets", f"teacher, {work.rows} x {work.length}", teacher, held, temporaries=temporaries)
    if job.config.targets.encoding in ("logits", "topk"):
        replies = bucket(len(work.batch[0].reply_ids))
        states = _whole(job, (replies, job.shape.hidden_size), job.dtype)
        yield Program("targets", f"head, {replies} tokens", _in_mesh(job, head_function(job.mesh), model, states), held)


def _training(job: Job) -> Program:
    """The step on a batch of the longest pairs."""
    work, config = workload.training(job), job.config
    shape = work.longest.shapes[0]
    # Of one batch alone there are few steps; a warm-up changes numbers of the program, not what it takes.
    settings = config.distillation.model_copy(update={"warmup_steps": 0})

    def step():
        return lower_step(
            job.shape,
            job.mesh,
            work.pairs,
            settings=settings,
            lora_settings=config.lora,
            dtype=job.dtype,
            encoding=config.targets.encoding,
            attention=config.model.attention,
            top_k=config.targets.top_k,
        )

    # The adapter and Adam's two moments of it.
    held = {"weights": chip_bytes(model_on(job)), "optimizer": 3 * chip_bytes(adapter_on(job))}
    temporaries = estimate.step_temporaries(job, shape, chunk=work.longest.grid.chunk)
    return Program("distill", f"step, {_named(shape)}", step, held, temporaries=temporaries)


def _reinforcement(job: Job) -> Iterator[Program]:
    """Method `grpo`: the engine's programs with the adapter, the reference's pass, the update."""
    work, config, adapter = workload.reinforcement(job), job.config, chip_bytes(adapter_on(job))
    for program in _generation(job, "grpo", work.sampling):
        yield replace(program, beside=program.beside | {"optimizer": 2 * adapter})  # Adam's moments
    score, update = lower_policy(
        job.shape,
        job.mesh,
        work.answers,
        settings=config.grpo,
        training=config.distillation,
        lora_settings=config.lora,
        dtype=job.dtype,
        attention=config.model.attention,
    )
    size, chunk, weights = work.longest, work.grid.chunk, chip_bytes(model_on(job))
    # Of the base, for each place of a reply: the last state, and a log-probability.
    reference = size.micros * size.replies * (job.shape.hidden_size * job.dtype.itemsize + 4)
    yield Program(
        "grpo",
        f"reference, {_named(size)}",
        score,
        {"weights": weights},
        {"optimizer": 3 * adapter},
        estimate.scored_temporaries(job, size, chunk=chunk) + reference,
    )
    yield Program(
        "grpo",
        f"update, {_named(size)}",
        update,
        {"weights": weights, "optimizer": 3 * adapter},
        temporaries=estimate.step_temporaries(job, size, chunk=chunk) + reference,
    )


def _named(size: Shape) -> str:
    return f"{size.micros} x {size.rows} x {size.length}"


def _in_mesh(job: Job, function: Any, *arguments: Any, **static: Any) -> Callable[[], jax.stages.Lowered]:
    """Lowers a jitted function where constraints take effect."""

    def lower():
        with use_mesh(job.mesh):
            return function.lower(*arguments, **static)

    return lower


def _whole(job: Job, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(job.mesh, PartitionSpec()))
