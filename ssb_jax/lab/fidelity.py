"""What each encoding of the targets costs and loses, against full logits in float32, on some pairs of a run.

The student is a fresh adapter, so its gradient is that of the first step. `topk` is measured by the loss that it allows
(`topk_kl`), the others by the published one.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssb_jax.artifacts import write_atomically
from ssb_jax.console import table
from ssb_jax.lab.sample import states_and_pulls, take_sample
from ssb_jax.losses.chunked import decode, make_objective, token_losses
from ssb_jax.losses.menu import kl, resolve_loss
from ssb_jax.model.lora import Lora, init_lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.pipeline import Run, load_pairs
from ssb_jax.records import Pair
from ssb_jax.stages.targets import largest, teacher_targets, temperatures
from ssb_jax.store import StoreInfo
from ssb_jax.training.batches import Reader
from ssb_jax.training.step import run_keys, teacher_of

PAIRS = 16
REFERENCE = "logits, float32"


@dataclass(frozen=True)
class Encoding:
    """A way to store targets: what it keeps of a token's state (D,), and the loss to measure it by.

    Without a name it is not shown: it gives the exact value of its loss.
    """

    name: str | None
    kind: str
    dtype: str
    width: int
    keep: Callable[[jax.Array], Any] | None
    loss: str = "ssb"
    options: tuple[tuple[str, int], ...] = ()

    def info(self, known: tuple[float, ...]) -> StoreInfo:
        return StoreInfo(self.kind, self.dtype, self.width, "", "", known if self.kind == "topk" else ())


def measure_fidelity(run: Run) -> list[dict[str, Any]]:
    """Prints the table of encodings and writes it to `fidelity.json` in the run's folder.

    Raises:
      SsbError: the run has no pairs yet.
    """
    pairs = load_pairs(run)[:PAIRS]
    workspace, config = run.workspace, run.config
    rows = fidelity(run, pairs)
    tokens = sum(len(pair.reply_ids) for pair in pairs)
    about = {
        "model": config.model.path,
        "dtype": workspace.dtype.name,
        "vocabulary": workspace.model.config.vocab_size,
        "width": workspace.model.config.hidden_size,
        "temperature": config.distillation.temperature,
        "pairs": len(pairs),
        "reply_tokens": tokens,
    }
    write_atomically(run.folder / "fidelity.json", json.dumps({**about, "encodings": rows}, indent=1))
    header = ("encoding", "bytes a token", "KL error", "loss error", "gradient cosine", "gradient norm")
    keys = ("encoding", "bytes_per_token", "kl_error", "loss_error", "gradient_cosine", "gradient_norm_ratio")
    table(
        f"Targets against {REFERENCE}: {len(pairs)} pairs, {tokens:,} reply tokens",
        header,
        [tuple(_shown(row[key]) for key in keys) for row in rows],
    )
    return rows


def _shown(value: Any) -> Any:
    return f"{value:.8f}" if isinstance(value, float) and abs(value - 1) < 1e-3 else value


def fidelity(run: Run, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """For each encoding: bytes a token; mean KL(exact, encoded) at the loss's temperature in nats; relative error of
    the loss; cosine of the adapter's gradient with the exact one, and the ratio of their norms."""
    workspace, config = run.workspace, run.config
    model, known = workspace.model, temperatures(config)
    head = model.head_weight()
    by_id = {p.question_id: x.astype(np.float32) for p, x in teacher_targets(model, pairs, mesh=workspace.mesh)}
    states, ends = jnp.asarray(np.concatenate(list(by_id.values()))), np.cumsum([len(x) for x in by_id.values()])
    place = {key: slice(end - len(x), end) for (key, x), end in zip(by_id.items(), ends, strict=True)}
    measured = _Measured(run, pairs)
    rows, exact = [], {}
    for encoding in encodings(head, model.config.hidden_size, config.targets.top_k, known, workspace.dtype.name):
        kept = None if encoding.keep is None else _each(encoding.keep, states)

        def read(pair: Pair, kept: Any = kept) -> Any:
            return jax.tree.map(lambda x: np.asarray(x[place[pair.question_id]]), kept)

        found = measured.value_and_gradient(encoding, read if kept is not None else None, known)
        reference = exact.setdefault(encoding.loss, found)
        if encoding.name is None:
            continue
        T = config.distillation.temperature
        rows.append(
            {
                "encoding": encoding.name,
                "bytes_per_token": encoding.info(known).bytes_per_token,
                "kl_error": 0.0 if kept is None else _kl_error(states, kept, encoding.kind, head, T, known),
                **_compared(found, reference),
            }
        )
    return rows


def encodings(head: jax.Array, D: int, top_k: int, known: tuple[float, ...], dtype: str) -> list[Encoding]:
    """The reference first; before `topk`, the exact value of its loss."""
    V = head.shape[0]
    k = min(top_k, V - 1)
    options = (("k", k),)

    def logits(state: jax.Array) -> jax.Array:
        return jnp.einsum("d,vd->v", state, head, preferred_element_type=jnp.float32)

    def rounded(keep: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda state: keep(state).astype(jnp.bfloat16)

    return [
        Encoding(REFERENCE, "logits", "float32", V, logits),
        Encoding("logits, bfloat16", "logits", "bfloat16", V, rounded(logits)),
        Encoding("hidden, float32", "hidden", "float32", D, lambda state: state),
        Encoding("hidden, bfloat16", "hidden", "bfloat16", D, rounded(lambda state: state)),
        Encoding("none", "none", dtype, 0, None),
        Encoding(None, "logits", "float32", V, logits, "topk_kl", options),
        Encoding(
            f"topk {k}, float32", "topk", "float32", k, lambda s: largest(logits(s), k, known), "topk_kl", options
        ),
    ]


def _each(function: Callable[[Any], Any], tokens: Any) -> Any:
    """A function of each token, for a few tokens at a time."""
    return jax.jit(lambda x: jax.lax.map(function, x, batch_size=64))(tokens)


class _Measured:
    """The student's pass over the pairs, done once; each encoding then costs the head and the way back."""

    def __init__(self, run: Run, pairs: Sequence[Pair]):
        workspace, config = run.workspace, run.config
        self._model, self._temperature = workspace.model, config.distillation.temperature
        self._samples = {
            recompute: take_sample(
                self._model.config,
                pairs,
                settings=config.distillation,
                mesh=workspace.mesh,
                pad_id=workspace.chat.pad_id,
                recompute=recompute,
            )
            for recompute in (False, True)
        }
        sample = self._samples[False]
        plain = sample.batch(lambda pair: np.zeros((len(pair.reply_ids), 0), np.float32), encoding="hidden").batch
        lora = init_lora(self._model.config, config.lora, key=run_keys(config.seed)[0])
        remat = config.distillation.remat
        self._student = states_and_pulls(sample, plain, self._model, lora, remat=remat)

    def value_and_gradient(
        self, encoding: Encoding, reader: Reader | None, known: tuple[float, ...]
    ) -> tuple[float, Lora]:
        """The mean loss over all reply tokens, and its gradient in the adapter."""
        sample = self._samples[reader is None]
        objective = make_objective(resolve_loss(encoding.loss, dict(encoding.options)), temperature=self._temperature)

        @jax.jit
        def step(states, model, micro):
            def total(states):
                losses, _ = token_losses(
                    states,
                    teacher_of(model, micro),
                    model.head_weight(),
                    micro.info,
                    objective=objective,
                    chunk=sample.plan.grid.chunk,
                    temperature=self._temperature,
                )
                return jnp.sum(losses * micro.weight)

            return jax.value_and_grad(total)(states)

        batch = sample.batch(
            reader, encoding=encoding.kind, temperatures=known if encoding.kind == "topk" else ()
        ).batch
        value, gradient = 0.0, None
        with use_mesh(sample.mesh):
            for (states, pull), micro in zip(self._student, sample.micros(batch), strict=True):
                part, cotangent = step(states, self._model, micro)
                value += float(part)
                (pulled,) = pull(cotangent)
                gradient = pulled if gradient is None else jax.tree.map(jnp.add, gradient, pulled)
        return value, gradient


def _compared(found: tuple[float, Lora], exact: tuple[float, Lora]) -> dict[str, float]:
    ours, exactly = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(gradient)])
        for _, gradient in (found, exact)
    )
    norm, exact_norm = np.linalg.norm(ours), np.linalg.norm(exactly)
    return {
        "loss_error": abs(found[0] / exact[0] - 1),
        "gradient_cosine": float(ours @ exactly / (norm * exact_norm)),
        "gradient_norm_ratio": float(norm / exact_norm),
    }


def _kl_error(states, kept, kind: str, head, T: float, known: tuple[float, ...]) -> float:
    """Mean KL(exact, encoded) over all tokens, at temperature T."""

    def of_token(pair):
        state, values = jax.tree.map(lambda x: x[None, None], pair)
        exact = decode(state, head=head, V=head.shape[0])
        stored = decode(values, kind, known if kind == "topk" else (), T, head=head, V=head.shape[0])
        return kl(jax.nn.log_softmax(exact / T), jax.nn.log_softmax(stored / T))[0, 0]

    return float(jnp.mean(_each(of_token, (states, kept))))
