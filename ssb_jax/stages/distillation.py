"""Step 5: the student (base + LoRA) sees the bare question and learns the teacher's distribution on the reply.

`distil` is the loop: data order, steps, metrics, checkpoints. It continues from the last checkpoint, with the same next
loss as if it had never stopped; metrics.jsonl then has every step once.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssb_jax import hosts
from ssb_jax.checkpoint import checkpoints, restore, save
from ssb_jax.config import Config, Distillation, SsbError
from ssb_jax.config import Lora as LoraSettings
from ssb_jax.console import note, progress
from ssb_jax.losses.checks import check_loss
from ssb_jax.losses.menu import resolve_loss
from ssb_jax.metrics import MetricsLog, no_metrics, open_metrics, read_metrics
from ssb_jax.model.adapters import replace_adapter
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.model.transformer import Transformer
from ssb_jax.model.weights import read_config, resolve_model
from ssb_jax.records import Pair
from ssb_jax.store import StoreInfo, open_store
from ssb_jax.training.batches import Weighting
from ssb_jax.training.plan import Plan, Prepared, Targets, make_plan, prepared_batches
from ssb_jax.training.step import StepNumbers, build_step, init_state, metrics_of, put_batch, run_keys
from ssb_jax.workspace import Workspace


def run(
    pairs: Sequence[Pair],
    *,
    config: Config,
    store_folder: Path,
    folder: Path,
    workspace: Workspace,
    views: Mapping[str, Sequence[Pair]] | None = None,
) -> dict:
    """Trains the adapter and saves it as `folder/adapter` in PEFT's format.

    Args:
      views: the pairs with other prompts for the teacher, whose targets lie in folders of these names in the store.

    Returns:
      Steps, first and last loss, tokens, seconds, how many prompts and replies were cut.

    Raises:
      SsbError: targets are missing or another model's, the loss is not finite, a setting does not fit.
    """
    mesh = workspace.training_mesh
    model = workspace.model_on(mesh)
    store = open_store(store_folder)
    store.check(pairs, model)
    check_settings(config, store.info, vocab_size=model.config.vocab_size)
    special = frozenset(workspace.chat.tokenizer.all_special_ids)
    lora, summary = distil(
        model,
        pairs,
        store.read,
        settings=config.distillation,
        lora_settings=config.lora,
        encoding=store.info.encoding,
        temperatures=store.info.temperatures,
        views={name: open_view(store_folder / name, there, model) for name, there in (views or {}).items()},
        seed=config.seed,
        folder=folder,
        mesh=mesh,
        pad_id=workspace.chat.pad_id,
        special_ids=special - {workspace.chat.end_of_turn_id},
    )
    whole = _whole(lora, mesh)
    hosts.on_first(lambda: replace_adapter(whole, folder / "adapter", base=config.model.path))
    return summary


def check_settings(config: Config, info: StoreInfo | None = None, *, vocab_size: int | None = None) -> None:
    """Says before anything is computed whether loss and targets fit each other.

    Args:
      info: of the targets that there are.
      vocab_size: the model's. None: as its config.json has it, if the loss is not one of the menu.

    Raises:
      SsbError: they do not.
    """
    settings = config.distillation
    loss = resolve_loss(settings.loss, settings.loss_options)
    encoding, top_k = (config.targets.encoding, config.targets.top_k) if info is None else (info.encoding, info.width)
    if vocab_size is None and ":" in settings.loss:
        vocab_size = read_config(resolve_model(config.model.path, config.model.revision)).vocab_size
    check_loss(
        loss,
        encoding=encoding,
        top_k=top_k,
        views=config.targets.views,
        kl_weight=settings.kl_weight,
        vocab_size=vocab_size,
    )
    if info is not None and encoding == "topk" and settings.temperature not in info.temperatures:
        raise SsbError(
            f"distillation.temperature is {settings.temperature}, the targets know the mass of their bucket at "
            f"{', '.join(map(str, info.temperatures))}; take one of these, or make the targets again"
        )


def open_view(folder: Path, prompted: Sequence[Pair], model: Transformer) -> Targets:
    """What reads a view's targets by pair: those of the same reply after the view's own prompt."""
    store = open_store(folder)
    store.check(prompted, model)
    by_id = {pair.question_id: pair for pair in prompted}
    return lambda pair: store.read(by_id[pair.question_id])


def distil(
    model: Transformer,
    pairs: Sequence[Pair],
    targets: Targets,
    *,
    settings: Distillation,
    lora_settings: LoraSettings,
    folder: Path,
    encoding: str = "hidden",
    temperatures: tuple[float, ...] = (),
    views: Mapping[str, Targets] | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    pad_id: int = 0,
    special_ids: frozenset[int] = frozenset(),
) -> tuple[Lora, dict[str, Any]]:
    """Trains an adapter on pairs and their targets; checkpoints and metrics go to `folder`.

    Args:
      targets: a pair's targets, one row a reply token: states after the last norm or logits, as `encoding` says; with
        `topk` at some `temperatures`.
      views: targets under further prompts, in the same encoding.
      special_ids: what `settings.ignore_special_tokens` leaves out of the loss.

    Returns:
      The adapter and a summary of the whole run, interrupted parts included.
    """
    recompute = encoding == "none"
    plan = make_plan(model.config, pairs, settings=settings, seed=seed, mesh=mesh, recompute=recompute)
    step, optimizer = build_step(settings, lora_settings, steps=plan.steps, chunk=plan.grid.chunk, seed=seed)
    ignored = special_ids if settings.ignore_special_tokens else frozenset()
    weighting = Weighting(
        settings.reduction, settings.stop_weight, settings.skip_first, ignored, settings.last_weight, settings.rise
    )
    batches = prepared_batches(
        plan,
        targets,
        weighting=weighting,
        encoding=encoding,
        pad_id=pad_id,
        temperatures=temperatures,
        views=views,
    )
    stopped = False
    with (
        hosts.stopping_between_steps() as stop_asked,
        checkpoints(folder / "checkpoints", keep=settings.keep_checkpoints) as manager,
        use_mesh(mesh),
    ):
        state = init_state(model, lora_settings, optimizer, key=run_keys(seed)[0], mesh=mesh)
        found = restore(manager, like=state)
        if found is not None:
            state, position = found
            batches.set_state(position)
            note(f"distillation continues after step {int(state.step)} of {plan.steps}")
        done = int(state.step)
        with (
            _open_log(folder, done, settings) as log,
            progress("distillation", plan.steps, done=done) as advance,
        ):
            report = _Reporter(log, advance, plan, skip=settings.on_nan == "skip")
            for number in range(done + 1, plan.steps + 1):
                prepared = next(batches)
                state, numbers = step(model, state, put_batch(prepared.batch, mesh))
                report.later(number, numbers, prepared)
                stopped = stop_asked() and number < plan.steps
                if number % settings.checkpoint_every == 0 or number == plan.steps or stopped:
                    report.flush()
                    log.sync()
                    save(manager, number, state=state, data=batches.get_state())
                if stopped:
                    break
    if stopped:
        note(f"another process was asked to stop: stopped after step {number} of {plan.steps}")
        raise SystemExit(hosts.STOPPED)
    return state.lora, hosts.on_first(lambda: _summary(folder, plan))


def _open_log(folder: Path, done: int, settings: Distillation) -> contextlib.AbstractContextManager[MetricsLog]:
    if not hosts.is_first():
        return contextlib.nullcontext(no_metrics())
    return open_metrics(
        folder,
        done=done,
        tensorboard=settings.tensorboard,
        wandb_project=settings.wandb_project,
        config=settings.model_dump(mode="json"),
    )


class _Reporter:
    """Writes each step's numbers one step late, so that the host prepares a step while the device works on another."""

    def __init__(self, log: MetricsLog, advance: Callable[..., None], plan: Plan, *, skip: bool):
        self._log, self._advance, self._plan, self._skip = log, advance, plan, skip
        self._pending: tuple[int, StepNumbers, Prepared] | None = None
        self._last = time.monotonic()

    def later(self, step: int, numbers: StepNumbers, prepared: Prepared) -> None:
        """Takes a step's numbers, which may still be computed, and writes those of the step before."""
        self.flush()
        self._pending = step, numbers, prepared

    def flush(self) -> None:
        """Waits for the last step taken and writes its row.

        Raises:
          SsbError: its loss or gradient is not finite, and such steps are not skipped; names the examples.
        """
        if self._pending is None:
            return
        (step, numbers, prepared), self._pending = self._pending, None
        row, example_losses = metrics_of(numbers), np.asarray(numbers.example_losses)
        skipped = not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"])
        if skipped:
            what = _not_finite(step, row, example_losses, prepared)
            if not self._skip:
                raise SsbError(
                    f"{what}; training stopped, the checkpoints before it are kept. Look at these pairs and the loss, "
                    "lower distillation.learning_rate, or leave such batches out with distillation.on_nan skip"
                )
            note(f"{what}; it changes nothing (distillation.on_nan is skip)")
            row = {name: value for name, value in row.items() if math.isfinite(value)} | {"skipped": 1.0}
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        row |= {
            "epoch": step * self._plan.epochs / self._plan.steps,
            "reply_tokens": prepared.reply_tokens,
            "reply_length": prepared.reply_tokens / len(prepared.names),
            **prepared.phrases,
            "tokens_per_second": prepared.tokens / seconds,
            "seconds": seconds,
        }
        self._log.write(step, row)
        self._advance(**({} if skipped else {name: row[name] for name in ("loss", "kl", "agreement")}))


def _not_finite(step: int, row: dict[str, float], example_losses: np.ndarray, prepared: Prepared) -> str:
    """What to say of a loss or gradient that is not finite: which examples of the step are to blame, if it shows."""
    bad = [name for name, loss in zip(prepared.names, example_losses, strict=False) if not np.isfinite(loss)]
    which = f"the loss of {', '.join(bad)}" if bad else f"the gradient of {', '.join(prepared.names)}"
    return f"step {step}: {which} is not finite (loss {row['loss']}, gradient norm {row['grad_norm']})"


def _summary(folder: Path, plan: Plan) -> dict[str, Any]:
    rows = read_metrics(folder)
    counted = [row for row in rows if "skipped" not in row]
    if not counted:
        raise SsbError(f"{folder}: every step was skipped, its loss or gradient not finite; nothing was trained")
    return {
        "steps": plan.steps,
        "examples": len(plan.examples),
        "first_loss": counted[0]["loss"],
        "last_loss": counted[-1]["loss"],
        "skipped": len(rows) - len(counted),
        "reply_tokens": int(sum(row["reply_tokens"] for row in rows)),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "cut_prompts": plan.cut_prompts,
        "cut_replies": plan.cut_replies,
    }


def _whole(lora: Lora, mesh: Mesh | None) -> Lora:
    """The adapter in arrays that every process can read."""
    return lora if mesh is None else jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(lora)
