"""The jitted step of policy optimisation: the student's own answers, the loss of losses/policy.py, AdamW.

The log-probability of a token comes out of the chunked head, so that no (batch, tokens, vocabulary) array exists; the
loss is then plain arithmetic on one number a token. Knows no files, no rewards and no sampling.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ssb_jax.config import Distillation, Grpo
from ssb_jax.losses.chunked import Objective, Teacher, TokenStats, token_losses
from ssb_jax.losses.policy import PolicyTokens, policy_loss
from ssb_jax.model.lora import Lora
from ssb_jax.model.transformer import Transformer
from ssb_jax.training.batches import Batch, Example, collate
from ssb_jax.training.compiling import compiler_options
from ssb_jax.training.layout import Grid, Placement, Shape, place
from ssb_jax.training.plan import Targets
from ssb_jax.training.step import TrainState, laid_out, reply_states


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scored:
    """What a model says of the reply tokens of a batch."""

    states: Float[Array, "M groups P D"]  # after the last norm
    logp: Float[Array, "M groups P"]  # of the tokens, at the sampling temperature


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyNumbers:
    """What a step reports; means are over all reply tokens."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]  # before clipping
    learning_rate: Float[Array, ""]
    ratio: Float[Array, ""]
    clipped: Float[Array, ""]
    kl: Float[Array, ""]  # the estimate that the loss holds
    full_kl: Float[Array, ""]  # KL(base, policy) over the whole vocabulary at temperature 1
    entropy: Float[Array, ""]  # of the policy at temperature 1


PolicyStep = Callable[..., tuple[TrainState, PolicyNumbers]]


def answers_grid(settings: Distillation, mesh: Mesh | None) -> Grid:
    """What the mesh asks of a batch of answers. Without packing the number of rows is always the same."""
    data, fsdp = (1, 1) if mesh is None else (mesh.shape["data"], mesh.shape["fsdp"])
    return Grid(data, data * fsdp, settings.chunk_tokens, packing=False, micro_batch=settings.micro_batch)


def place_answers(totals: Sequence[int], replies: Sequence[int], grid: Grid) -> tuple[Placement, Shape]:
    """Where answers that were just sampled lie: as `place`, in one of few shapes.

    Powers of two with room for replies as long as their rows: what later steps need is not known, and each shape is a
    compilation.
    """
    placement, need = place(totals, replies, grid)
    rows = grid.row_multiple << (need.rows // grid.row_multiple - 1).bit_length()
    length = 1 << (need.length - 1).bit_length()
    room = -(-rows // grid.groups * length // grid.chunk) * grid.chunk
    return placement, Shape(need.micros, rows, length, max(room, need.replies))


def policy_batch(
    examples: Sequence[Example],
    weights: Sequence[Float[np.ndarray, "R"]],
    *,
    grid: Grid,
    pad_id: int,
    targets: Targets | None = None,
) -> Batch:
    """The arrays of answers that were just sampled; without targets the teacher is empty."""
    placement, shape = place_answers([e.tokens for e in examples], [len(e.reply) for e in examples], grid)
    return collate(
        examples,
        targets or (lambda pair: np.zeros((len(pair.reply_ids), 0), np.float32)),
        placement=placement,
        shape=shape,
        grid=grid,
        weights=weights,
        encoding="hidden",
        pad_id=pad_id,
    )


def states_by_example(states: Float[np.ndarray, "M groups P D"], batch: Batch) -> list[Float[np.ndarray, "R D"]]:
    """Of each example of a batch, the states that predict its reply."""
    filled = batch.info.length > 0
    return [states[filled & (batch.example == i)] for i in range(int(batch.example.max()) + 1)]


def make_score(
    *, temperature: float, chunk: int, platform: str | None = None
) -> Callable[[Transformer, Lora | None, Batch], Scored]:
    """The compiled forward pass over a batch; without an adapter it is the reference."""
    objective = _surprisal(temperature)

    def score(model: Transformer, lora: Lora | None, batch: Batch) -> Scored:
        def one(micro: Batch) -> Scored:
            states = reply_states(model, lora, micro)
            losses, _ = token_losses(
                states,
                Teacher(states),
                model.head_weight(),
                micro.info,
                objective=objective,
                chunk=chunk,
                chunks=micro.chunks,
            )
            return Scored(states, -losses)

        return jax.lax.map(one, batch)

    return jax.jit(score, compiler_options=compiler_options(platform))


def make_policy_step(
    *,
    settings: Grpo,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    chunk: int,
    remat: str,
    platform: str | None = None,
) -> PolicyStep:
    """The compiled step (model, state, batch, advantages, reference, sampled_logp) -> (state, numbers).

    `state` is donated. `advantages` (answers,) holds one number for each example of the batch; `sampled_logp` (M,
    groups, P) is None in the first update on a batch, where the policy is still the one that answered.
    """
    objective = _surprisal(settings.temperature)
    clip_high = settings.clip if settings.clip_high is None else settings.clip_high

    def loss_of(lora, model, micro: Batch, advantages, reference_logp, sampled_logp):
        states = reply_states(model, lora, micro, remat=remat)
        head = jax.lax.stop_gradient(model.head_weight())
        losses, stats = token_losses(
            states, micro.teacher, head, micro.info, objective=objective, chunk=chunk, chunks=micro.chunks
        )
        tokens = policy_loss(
            -losses,
            sampled_logp=-losses if sampled_logp is None else sampled_logp,
            reference_logp=reference_logp,
            advantage=advantages[micro.example],
            clip=settings.clip,
            clip_high=clip_high,
            beta=settings.beta,
        )
        counted = (micro.info.length > 0).astype(jnp.float32)
        sums = jax.tree.map(lambda x: jnp.sum(x * counted), (tokens, stats))
        return jnp.sum(tokens.loss * micro.weight), (sums, jnp.sum(counted))

    def step(model, state: TrainState, batch: Batch, advantages, reference: Scored, sampled_logp=None):
        batch = dataclasses.replace(batch, teacher=Teacher(reference.states))

        def add_micro(total, part):
            micro, reference_logp, sampled = part
            (loss, aux), gradient = jax.value_and_grad(loss_of, has_aux=True)(
                state.lora, model, micro, advantages, reference_logp, sampled
            )
            return jax.tree.map(jnp.add, total, (loss, aux, gradient)), None

        zero = jnp.zeros((), jnp.float32)
        sums = (PolicyTokens(zero, zero, zero, zero), TokenStats(zero, zero, zero, zero))
        start = (zero, (sums, zero), jax.tree.map(jnp.zeros_like, state.lora))
        total, _ = jax.lax.scan(add_micro, start, (batch, reference.logp, sampled_logp))
        loss, ((tokens, stats), count), gradient = total
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.lora)
        numbers = PolicyNumbers(
            loss=loss,
            grad_norm=optax.tree.norm(gradient),
            learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
            ratio=tokens.ratio / count,
            clipped=tokens.clipped / count,
            kl=tokens.kl / count,
            full_kl=stats.kl / count,
            entropy=stats.student_entropy / count,
        )
        state = TrainState(optax.apply_updates(state.lora, updates), optimizer_state, state.step + 1)
        return laid_out(state, optimizer), numbers

    return jax.jit(step, donate_argnums=1, compiler_options=compiler_options(platform))


def _surprisal(temperature: float) -> Objective:
    """-log p of the reply token at a temperature."""

    def objective(teacher_logits, student_logits, info):
        logp = jax.nn.log_softmax(student_logits / temperature)
        return -jnp.take_along_axis(logp, info.reply_ids[:, None], axis=-1)[:, 0]

    return objective
