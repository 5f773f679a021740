"""A finished run's pairs and targets through several losses, without new rollouts.

For each reply token and loss: its value, the gradient in the student's last hidden state (norm, and cosine with the
published loss's), and the share of the gradient in the logits that falls outside the teacher's 100 most likely words.
For each loss: norm and cosine of the adapter's gradient, which is what the optimizer would see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ssb_jax.config import SsbError
from ssb_jax.lab.sample import Sample, states_and_pulls, take_sample
from ssb_jax.losses.checks import check_loss
from ssb_jax.losses.chunked import Objective, decode, make_objective
from ssb_jax.losses.health import TOP, top_mask
from ssb_jax.losses.menu import Loss, entropy, kl
from ssb_jax.model.adapters import load_adapter
from ssb_jax.model.lora import Lora, init_lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.model.transformer import Transformer
from ssb_jax.pipeline import Run, load_pairs, view_pairs
from ssb_jax.stages.distillation import open_view
from ssb_jax.stages.targets import whole_targets
from ssb_jax.store import open_store
from ssb_jax.training.batches import Batch
from ssb_jax.training.step import run_keys

PUBLISHED = "ssb"


@dataclass(frozen=True)
class Token:
    """A reply token, and what each loss makes of it: name -> (value, gradient's norm, cosine, share outside)."""

    question_id: str
    position: int
    length: int
    token_id: int
    teacher_entropy: float
    student_entropy: float
    kl: float
    losses: Mapping[str, tuple[float, float, float, float]]


@dataclass(frozen=True)
class Replayed:
    """What came of it.

    Attributes:
      gradients: name of a loss -> norm of the adapter's gradient, and its cosine with the published loss's.
    """

    tokens: Sequence[Token]
    gradients: Mapping[str, tuple[float, float]]
    student: str
    temperature: float


def replay(run: Run, losses: Mapping[str, Loss], *, student: str, count: int) -> Replayed:
    """Replays the first `count` pairs through the losses, of which the published one must be one.

    Args:
      student: `base`, a fresh adapter, as at the first step; or `adapter`, the run's trained one.

    Raises:
      SsbError: the run has no pairs, targets or adapter yet, or its targets do not give one of the losses.
    """
    config, workspace = run.config, run.workspace
    pairs = load_pairs(run)
    store = open_store(run.folder / "targets")
    store.check(pairs, workspace.model)
    for name, loss in losses.items():
        try:
            check_loss(
                loss, encoding="hidden", views=config.targets.views, vocab_size=workspace.model.config.vocab_size
            )
        except SsbError as error:
            raise SsbError(f"--losses {name}: {error}") from None
    views = {
        name: open_view(run.folder / "targets" / name, view, workspace.model)
        for name, view in view_pairs(run, pairs).items()
    }
    pairs = pairs[:count]
    sample = take_sample(
        workspace.model.config,
        pairs,
        settings=config.distillation,
        mesh=workspace.mesh,
        pad_id=workspace.chat.pad_id,
    )
    read, encoding = whole_targets(store, workspace.model, pairs, mesh=workspace.mesh)
    batch = sample.batch(read, encoding=encoding, views=views)
    T = config.distillation.temperature
    tokens, gradients = _replay(
        workspace.model, _student(run, student), sample, batch.batch, batch.names, losses, temperature=T
    )
    return Replayed(tokens, gradients, student, T)


def _student(run: Run, which: str) -> Lora:
    model, config = run.workspace.model.config, run.config
    if which == "base":
        return init_lora(model, config.lora, key=run_keys(config.seed)[0])
    if not run.adapter_folder.is_dir():
        raise SsbError(f"{run.folder} has no adapter yet; run `ssb distill` first, or take --student base")
    return load_adapter(run.adapter_folder, model, mesh=run.workspace.mesh)


def _replay(model, lora, sample: Sample, batch: Batch, names, losses: Mapping[str, Loss], *, temperature: float):
    examine = {
        name: _examiner(make_objective(loss, temperature=temperature), sample.plan.grid.chunk, temperature)
        for name, loss in losses.items()
    }
    rows: list[Token] = []
    totals: dict[str, Any] = {}
    student = states_and_pulls(sample, batch, model, lora, remat="full")
    for (states, pull), micro in zip(student, sample.micros(batch), strict=True):
        seen = {name: look(states, micro, model) for name, look in examine.items()}
        for name, found in seen.items():
            _refuse_not_finite(name, found, micro, names)
            cotangent = (found["gradient"] * micro.weight[..., None]).astype(states.dtype)
            with use_mesh(sample.mesh):
                (gradient,) = pull(cotangent)
            totals[name] = jax.tree.map(jnp.add, totals[name], gradient) if name in totals else gradient
        rows += _rows(micro, names, seen)
    published = totals[PUBLISHED]
    norm = {name: float(optax.tree.norm(gradient)) for name, gradient in totals.items()}
    cosines = {
        name: float(optax.tree.vdot(gradient, published)) / max(norm[name] * norm[PUBLISHED], 1e-30)
        for name, gradient in totals.items()
    }
    return rows, {name: (norm[name], cosines[name]) for name in totals}


def _refuse_not_finite(name: str, found: Mapping[str, Array], micro: Batch, names: Sequence[str]) -> None:
    counted = np.asarray(micro.weight) > 0
    sound = np.isfinite(np.asarray(found["value"])) & np.isfinite(np.asarray(found["gradient"])).all(-1)
    where = np.argwhere(counted & ~sound)
    if len(where):
        example = names[int(np.asarray(micro.example)[tuple(where[0])])]
        raise SsbError(
            f"ssb losses: {name} or its gradient is not finite at {len(where)} of {counted.sum()} reply tokens, the "
            f"first of {example}; mind log(0) and divisions by 0 in it"
        )


def _examiner(objective: Objective, chunk: int, temperature: float):
    """(states, micro-batch, model) -> arrays (groups, P) and the gradient (groups, P, D) of each token's own loss."""

    def of_chunk(arrays, head, encoding):
        state, values, views, info = jax.tree.map(lambda x: x[None], arrays)
        V = head.shape[0]
        teacher = decode(values, encoding, head=head, V=V)[0]
        stored = {name: decode(view, encoding, head=head, V=V)[0] for name, view in views.items()}
        info = replace(jax.tree.map(lambda x: x[0], info), views=stored)
        student = decode(state, head=head, V=V)[0]
        value, back = jax.vjp(lambda student: objective(teacher, student, info), student)
        (d_logits,) = back(jnp.ones_like(value))
        size = jnp.abs(d_logits)
        outside = jnp.where(top_mask(teacher, TOP), 0.0, size)
        t, s = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
        return {
            "value": value,
            "gradient": (d_logits @ head.astype(jnp.float32)),
            "outside": outside.sum(-1) / jnp.maximum(size.sum(-1), 1e-30),
            "teacher_entropy": entropy(t),
            "student_entropy": entropy(s),
            "kl": kl(t, s),
        }

    @jax.jit
    def examine(states: Float[Array, "groups P D"], micro: Batch, model: Transformer) -> dict[str, Array]:
        groups, P, _ = states.shape
        arrays = (states, micro.teacher.values, dict(micro.teacher.views), micro.info)
        chunks = jax.tree.map(lambda x: x.reshape(groups * P // chunk, chunk, *x.shape[2:]), arrays)
        head, encoding = model.head_weight(), micro.teacher.encoding
        found = jax.lax.map(lambda part: of_chunk(part, head, encoding), chunks)
        return jax.tree.map(lambda x: x.reshape(groups, P, *x.shape[2:]), found)

    return examine


def _rows(micro: Batch, names: Sequence[str], seen: Mapping[str, Mapping[str, Array]]) -> list[Token]:
    """The tokens of a micro-batch, example after example."""
    published = np.asarray(seen[PUBLISHED]["gradient"], np.float64)
    sizes = {name: np.linalg.norm(np.asarray(found["gradient"], np.float64), axis=-1) for name, found in seen.items()}
    columns = {
        name: np.stack(
            [
                np.asarray(found["value"]),
                sizes[name],
                np.sum(np.asarray(found["gradient"]) * published, -1)
                / np.maximum(sizes[name] * sizes[PUBLISHED], 1e-30),
                np.asarray(found["outside"]),
            ],
            axis=-1,
        )
        for name, found in seen.items()
    }
    info, example, about = jax.device_get((micro.info, micro.example, seen[PUBLISHED]))
    where = np.argwhere(info.length > 0)
    return [
        Token(
            names[example[g, p]],
            int(info.position[g, p]),
            int(info.length[g, p]),
            int(info.reply_ids[g, p]),
            float(about["teacher_entropy"][g, p]),
            float(about["student_entropy"][g, p]),
            float(about["kl"][g, p]),
            {name: tuple(map(float, column[g, p])) for name, column in columns.items()},
        )
        for g, p in where
    ]
