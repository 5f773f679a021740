"""The jitted training step: frozen base, LoRA in float32, loss through the chunked head, AdamW.

`make_step` returns a function of (model, state, batch) that runs on one device or on a mesh; its loss is the weighted
sum that the batch prescribes, over any number of micro-batches. Knows no files and no data order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key

from ssb_jax.config import Distillation, SsbError
from ssb_jax.config import Lora as LoraSettings
from ssb_jax.losses.chunked import FURTHER, Objective, Teacher, TokenStats, make_objective, token_losses
from ssb_jax.losses.menu import TokenInfo, resolve_loss
from ssb_jax.losses.selection import fall_with_disagreement, select_tokens
from ssb_jax.model.lora import Lora, init_lora, lora_shardings
from ssb_jax.model.sharding import constrain, leaf_name, spec
from ssb_jax.model.transformer import Transformer
from ssb_jax.training.batches import Batch
from ssb_jax.training.compiling import compiler_options
from ssb_jax.training.recompute import TeacherInput


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes, and a checkpoint keeps."""

    lora: Lora
    optimizer: Any
    step: Int[Array, ""]  # steps done


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepNumbers:
    """What a step reports; means are over all reply tokens, at temperature 1."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]  # before clipping
    learning_rate: Float[Array, ""]
    kl: Float[Array, ""]
    agreement: Float[Array, ""]  # share of tokens where teacher and student have the same most likely token
    student_entropy: Float[Array, ""]
    teacher_entropy: Float[Array, ""]
    kl_quarters: Float[Array, "4"]  # KL in each quarter of the replies
    example_losses: Float[Array, " examples"]  # what each example contributes to the loss
    health: dict[str, Float[Array, ""]]  # see `losses.health`; NaN in steps that do not look, empty if none does


Step = Callable[[Transformer, TrainState, Batch], tuple[TrainState, StepNumbers]]


def metrics_of(numbers: StepNumbers) -> dict[str, float]:
    """A step's numbers as a row of the log; what is not measured in this step is not in it."""
    values = jax.device_get({name: getattr(numbers, name) for name in StepNumbers.__dataclass_fields__})
    quarters, health, _ = (values.pop(name) for name in ("kl_quarters", "health", "example_losses"))
    row = {name: float(value) for name, value in values.items()}
    row |= {f"kl_quarter{i}": float(value) for i, value in enumerate(quarters, 1)}
    return row | {name: float(value) for name, value in health.items() if np.isfinite(value)}


def make_schedule(settings: Distillation, steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1, ...: up to its peak in `warmup_steps`, then to 0 at `steps` (or constant)."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if warmup >= steps:
        raise SsbError(f"distillation.warmup_steps is {warmup}, but there are only {steps} steps; lower it")
    decay = {
        "linear": optax.linear_schedule(peak, 0.0, steps - warmup),
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
        "constant": optax.constant_schedule(peak),
    }[settings.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup]) if warmup else decay


def make_optimizer(settings: Distillation, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (decoupled weight decay) after clipping by the global norm."""
    b1, b2 = settings.betas
    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=settings.eps, weight_decay=settings.weight_decay)
    clip = optax.identity() if settings.max_grad_norm is None else optax.clip_by_global_norm(settings.max_grad_norm)
    return optax.chain(clip, adamw)


def run_keys(seed: int) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The random keys of a run: of the fresh adapter, and of dropout."""
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    return init_key, dropout_key


def init_state(
    model: Transformer,
    settings: LoraSettings,
    optimizer: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    mesh: Mesh | None = None,
) -> TrainState:
    """A fresh adapter and its optimizer, laid out over the mesh."""

    def create(key):
        lora = init_lora(model.config, settings, key=key)
        return TrainState(lora, optimizer.init(lora), jnp.zeros((), jnp.int32))

    if mesh is None:
        return create(key)
    return jax.jit(create, out_shardings=state_shardings(jax.eval_shape(create, key), optimizer, mesh))(key)


def state_shardings(state: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """NamedSharding of each array of a state: the optimizer's moments lie like their parameters."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    lora = lora_shardings(state.lora, mesh)
    moments = optax.tree.map_params(
        optimizer, lambda _, sharding: sharding, state.optimizer, lora, transform_non_params=lambda _: everywhere
    )
    return TrainState(lora, moments, everywhere)


def batch_shardings(batch: Batch, mesh: Mesh) -> Batch:
    """NamedSharding of each array of a batch."""
    rows = NamedSharding(mesh, PartitionSpec(None, *spec("batch", "tokens")))
    grouped = NamedSharding(mesh, PartitionSpec(None, *spec("groups")))
    everywhere = NamedSharding(mesh, PartitionSpec())
    special = {"tokens": rows, "positions": rows, "segment_ids": rows, "chunks": everywhere}

    def sharding(path, _):
        return special.get(leaf_name(path).rpartition(".")[2], grouped)

    return jax.tree_util.tree_map_with_path(sharding, batch)


def put_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """Moves a batch to the devices; each process gives its devices' parts."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, batch)

    def put(x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(put, batch, batch_shardings(batch, mesh))


def build_step(
    settings: Distillation,
    lora_settings: LoraSettings,
    *,
    steps: int,
    chunk: int,
    seed: int,
    platform: str | None = None,
) -> tuple[Step, optax.GradientTransformation]:
    """The step and the optimizer that the settings of a run of so many steps ask for; see `make_step`."""
    schedule = make_schedule(settings, steps)
    optimizer = make_optimizer(settings, schedule)
    loss = resolve_loss(settings.loss, settings.loss_options)
    step = make_step(
        objective=make_objective(loss, temperature=settings.temperature, kl_weight=settings.kl_weight),
        optimizer=optimizer,
        schedule=schedule,
        chunk=chunk,
        examples=settings.batch_size,
        remat=settings.remat,
        dropout_key=run_keys(seed)[1] if lora_settings.dropout > 0 else None,
        select=settings.select,
        select_share=settings.select_share,
        fall=settings.fall,
        temperature=settings.temperature,
        health_every=settings.health_every,
        platform=platform,
    )
    return step, optimizer


def make_step(
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    chunk: int,
    examples: int,
    remat: str = "full",
    dropout_key: Key[Array, ""] | None = None,
    select: str = "all",
    select_share: float = 0.5,
    fall: float | None = None,
    temperature: float = 1.0,
    health_every: int = 0,
    platform: str | None = None,
) -> Step:
    """The compiled step; `state` is donated. A loss or gradient that is not finite leaves adapter and optimizer alone.

    Args:
      chunk: reply tokens that pass through the head at a time.
      examples: the most examples a batch has.
      dropout_key: seeds LoRA's dropout; None switches it off.
      select, select_share, fall: see `losses.selection`; the share is of each micro-batch.
      temperature: the objective's.
      health_every: steps between looks at the most likely words; 0 is never.
      platform: of the devices it is compiled for; None: the default ones.
    """
    further = fall is not None or health_every > 0

    def step(model: Transformer, state: TrainState, batch: Batch) -> tuple[TrainState, StepNumbers]:
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, state.step)
        measure = jnp.asarray(health_every > 0) & (state.step % max(health_every, 1) == 0) if further else None

        def loss_of(lora: Lora, micro: Batch, micro_key):
            losses, stats = reply_losses(
                model,
                lora,
                micro,
                objective=objective,
                chunk=chunk,
                remat=remat,
                dropout_key=micro_key,
                temperature=temperature,
                measure=measure,
            )
            weight = select_tokens(micro.weight, stats, rule=select, share=select_share)
            if fall is not None:
                weight = fall_with_disagreement(weight, stats, micro.info, gamma=fall)
            weighted = losses * weight
            sums = jax.ops.segment_sum(weighted.ravel(), micro.example.ravel(), num_segments=examples)
            counted = (micro.info.length > 0).astype(jnp.float32)
            totals = jax.tree.map(lambda x: jnp.sum(x * counted), stats)
            return jnp.sum(weighted), (totals, jnp.sum(counted), _by_quarter(stats.kl, micro.info), sums)

        def add_micro(total, per_micro):
            micro, i = per_micro
            micro_key = None if key is None else jax.random.fold_in(key, i)
            (loss, aux), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.lora, micro, micro_key)
            return jax.tree.map(jnp.add, total, (loss, aux, gradient)), None

        zeros = jax.tree.map(jnp.zeros_like, state.lora)
        zero = jnp.zeros((), jnp.float32)
        stats = TokenStats(zero, zero, zero, zero, dict.fromkeys(FURTHER, zero) if further else {})
        start = (zero, (stats, zero, jnp.zeros((2, 4), jnp.float32), jnp.zeros(examples, jnp.float32)), zeros)
        micros = batch.tokens.shape[0]
        total, _ = jax.lax.scan(add_micro, start, (batch, jnp.arange(micros, dtype=jnp.int32)))
        loss, (stats, tokens, (quarter_sums, quarter_counts), example_losses), gradient = total
        norm = optax.tree.norm(gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.lora)
        lora = optax.apply_updates(state.lora, updates)
        # Numbers that are not finite would never leave the optimizer's moments again: such a step changes nothing.
        sound = jnp.isfinite(loss) & jnp.isfinite(norm)
        changed, kept = (lora, optimizer_state), (state.lora, state.optimizer)
        lora, optimizer_state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), changed, kept)
        numbers = StepNumbers(
            loss=loss,
            grad_norm=norm,
            learning_rate=jnp.asarray(schedule(_updates_done(state)), jnp.float32),
            example_losses=example_losses,
            kl_quarters=quarter_sums / jnp.maximum(quarter_counts, 1),
            health=_health(stats, tokens, measure) if health_every > 0 else {},
            **{name: getattr(stats, name) / tokens for name in TokenStats.__dataclass_fields__ if name != "further"},
        )
        return laid_out(TrainState(lora, optimizer_state, state.step + 1), optimizer), numbers

    return jax.jit(step, donate_argnums=1, compiler_options=compiler_options(platform))


def laid_out(state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """A step's state lies as it came; else the second step would be compiled for another layout, and the donation lost.

    Outside a mesh it is left as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return state
    return jax.lax.with_sharding_constraint(state, state_shardings(state, optimizer, mesh))


def _updates_done(state: TrainState) -> Int[Array, ""]:
    """By which the schedule goes: one less than the steps for each that changed nothing, where the optimizer counts."""
    counts = optax.tree.get_all_with_path(state.optimizer, "count")
    return counts[0][1] if counts else state.step


def _by_quarter(values: Float[Array, "groups P"], info: TokenInfo) -> Float[Array, "2 4"]:
    """Sums over each quarter of the replies, and how many tokens lie in it."""
    quarter = jnp.where(info.length > 0, 4 * info.position // jnp.maximum(info.length, 1), 4)
    member = jax.nn.one_hot(quarter, 4)  # none of them for padding
    return jnp.stack([jnp.einsum("gp,gpq->q", values, member), jnp.sum(member, axis=(0, 1))])


def _health(stats: TokenStats, tokens: Float[Array, ""], measure: Bool[Array, ""]) -> dict[str, Float[Array, ""]]:
    found = {
        "top10_overlap": stats.further["overlap"] / tokens,
        "outside_top100": stats.further["outside"] / stats.further["soft_kl"],
    }
    return {name: jnp.where(measure, value, jnp.nan) for name, value in found.items()}


def reply_losses(
    model: Transformer,
    lora: Lora | None,
    batch: Batch,
    *,
    objective: Objective,
    chunk: int,
    remat: str = "none",
    dropout_key: Key[Array, ""] | None = None,
    temperature: float = 1.0,
    measure: Bool[Array, ""] | None = None,
) -> tuple[Float[Array, "groups P"], TokenStats]:
    """Loss and statistics at each reply token of one micro-batch (a Batch without its leading axis)."""
    states = reply_states(model, lora, batch, remat=remat, dropout_key=dropout_key)
    head = jax.lax.stop_gradient(model.head_weight())
    return token_losses(
        states,
        teacher_of(model, batch),
        head,
        batch.info,
        objective=objective,
        chunk=chunk,
        chunks=batch.chunks,
        temperature=temperature,
        measure=measure,
    )


def teacher_of(model: Transformer, batch: Batch) -> Teacher:
    """The batch's teacher; where nothing is stored of it, the base model's states on its prompts."""
    if batch.teacher.encoding != "none":
        return batch.teacher
    return Teacher(jax.lax.stop_gradient(reply_states(model, None, batch.teacher.values)))


def reply_states(
    model: Transformer,
    lora: Lora | None,
    batch: Batch | TeacherInput,
    *,
    remat: str = "none",
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "groups P D"]:
    """The states after the last norm that predict the reply tokens of one micro-batch."""
    hidden, _ = model(
        batch.tokens,
        positions=batch.positions,
        segment_ids=batch.segment_ids,
        lora=lora,
        dropout_key=dropout_key,
        remat=remat,
    )
    groups, D = batch.index.shape[0], hidden.shape[-1]
    by_group = constrain(hidden.reshape(groups, -1, D), "groups", None, None)
    return jnp.take_along_axis(by_group, batch.index[..., None], axis=1)
