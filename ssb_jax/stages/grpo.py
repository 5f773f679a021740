"""Method `grpo`: the student answers, its answers are graded, and those better than their group's mean become likelier.

One step: `group_size` answers to each of `batch_questions` questions from the adapter of this moment, rewards,
advantages, `updates` optimizer updates. The answers of a step are written before its updates; a run that was cut off
continues from its last checkpoint with the same answers, losses and adapter as if it had not been.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ssb_jax.answering import graded, sample
from ssb_jax.answers import GraderPool
from ssb_jax.artifacts import read_jsonl, write_jsonl
from ssb_jax.checkpoint import checkpoints, restore, save
from ssb_jax.config import Config, Grpo, SsbError
from ssb_jax.console import note, progress
from ssb_jax.losses.policy import advantages, token_weights
from ssb_jax.metrics import open_metrics, read_metrics
from ssb_jax.model.adapters import replace_adapter
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.records import Outcome, Pair, Question, StopReason, Trial
from ssb_jax.training.batches import Batch, cut, data_order
from ssb_jax.training.policy import PolicyNumbers, answers_grid, make_policy_step, make_score, policy_batch
from ssb_jax.training.step import TrainState, init_state, make_optimizer, make_schedule, put_batch, run_keys
from ssb_jax.workspace import Workspace

_GRPO_SEED = 15_485_863  # its random keys differ from the rollouts' and the evaluation's of the same question
_ATTEMPTS = 2


def run(questions: Sequence[Question], *, config: Config, folder: Path, workspace: Workspace) -> dict:
    """Trains the adapter and saves it as `folder/adapter` in PEFT's format; `folder/trials` has every answer.

    Returns:
      Counts of the whole run, interrupted parts included.

    Raises:
      SsbError: a setting does not fit, or the loss is not finite.
    """
    if config.lora.dropout > 0:
        raise SsbError("grpo: lora.dropout must be 0, or the policy that is trained is not the one that answered")
    settings = config.grpo
    order = data_order(len(questions), batch_size=settings.batch_questions, epochs=settings.epochs, seed=config.seed)
    schedule = make_schedule(settings, len(order) * settings.updates)
    optimizer = make_optimizer(config.distillation, schedule)
    learn = _make_learn(config, optimizer, schedule, workspace)
    with (
        GraderPool(workers=config.grading.workers, time_limit=config.grading.time_limit) as pool,
        checkpoints(folder / "checkpoints", keep=config.distillation.keep_checkpoints) as manager,
    ):
        key, mesh = run_keys(config.seed)[0], workspace.mesh
        with use_mesh(mesh):
            state = init_state(workspace.model, config.lora, optimizer, key=key, mesh=mesh)
            found = restore(manager, like=state)
        state, done = (state, 0) if found is None else (found[0], found[1]["step"])
        if done:
            note(f"grpo continues after step {done} of {len(order)}")
        with (
            open_metrics(folder, done=done, tensorboard=config.distillation.tensorboard) as log,
            progress("grpo", len(order), done=done) as advance,
        ):
            for number in range(done + 1, len(order) + 1):
                started = time.monotonic()
                members = [questions[i] for i in order[number - 1]]
                trials = _trials(
                    members, trials_file(folder, number), step=number, lora=state.lora, pool=pool, workspace=workspace
                )
                sampled = time.monotonic()
                state, numbers = learn(state, members, trials)
                row = _row(trials, numbers, settings, number)
                row |= {"sampling_seconds": sampled - started, "seconds": time.monotonic() - started}
                log.write(number, row)
                advance(reward=row["reward"], kl=row["kl"])
                if number % settings.checkpoint_every == 0 or number == len(order):
                    log.sync()
                    save(manager, number, state=state, data={"step": number})
    replace_adapter(state.lora, folder / "adapter", base=config.model.path)
    return _summary(folder)


def trials_file(folder: Path, step: int) -> Path:
    """Where the answers of a step are."""
    return folder / "trials" / f"step-{step:06d}.jsonl"


def _trials(
    members: Sequence[Question], path: Path, *, step: int, lora: Lora, pool: GraderPool, workspace: Workspace
) -> list[Trial]:
    """The graded answers of a step, sampled unless they are there already."""
    if path.exists():
        return read_jsonl(path, Trial)
    config, settings = workspace.config, workspace.config.grpo
    rollouts = sample(
        {q.id: _prompt(q, workspace) for q in members},
        num_samples=settings.group_size,
        params=workspace.sampling_params(settings),
        workspace=workspace,
        seed=_GRPO_SEED + 1_000_003 * config.seed + step,
        lora=lora,
        attempts=_ATTEMPTS,
    )
    verdicts = list(graded(rollouts, {q.id: q.answer for q in members}, pool=pool))
    rewards = [reward(verdict.outcome, verdict.extracted, settings) for verdict in verdicts]
    known = np.array([math.nan if r is None else r for r in rewards]).reshape(len(members), settings.group_size)
    gains = advantages(known, scale=settings.scale, reinforce=settings.reinforce).ravel()
    trials = [
        Trial(
            question_id=answer.question_id,
            sample=answer.sample,
            text=answer.text,
            token_ids=answer.token_ids,
            stop=answer.stop,
            prompt_tokens=answer.prompt_tokens,
            outcome=verdict.outcome,
            extracted=verdict.extracted,
            reward=worth,
            advantage=float(gain),
        )
        for answer, verdict, worth, gain in zip(rollouts, verdicts, rewards, gains, strict=True)
    ]
    write_jsonl(path, trials)
    return trials


def reward(outcome: Outcome, extracted: str | None, settings: Grpo) -> float | None:
    """1 for a right answer, `format_reward` for one in a box; None where generation or grading failed."""
    if outcome in (Outcome.FAILED, Outcome.TIMEOUT):
        return None
    return float(outcome is Outcome.CORRECT) + settings.format_reward * (extracted is not None)


def _make_learn(config: Config, optimizer, schedule, workspace: Workspace):
    """(state, questions, their trials) -> (state, numbers of each update)."""
    settings, training, mesh = config.grpo, config.distillation, workspace.mesh
    score = make_score(temperature=settings.temperature, chunk=training.chunk_tokens)
    update = make_policy_step(
        settings=settings, optimizer=optimizer, schedule=schedule, chunk=training.chunk_tokens, remat=training.remat
    )

    def learn(state: TrainState, members: Sequence[Question], trials: Sequence[Trial]):
        batch, gains = _batch(members, [t for t in trials if t.stop is not StopReason.FAILED], workspace)
        with use_mesh(mesh):
            batch = put_batch(batch, mesh)
            reference = score(workspace.model, None, batch)
            sampled = score(workspace.model, state.lora, batch).logp if settings.updates > 1 else None
            numbers = []
            for _ in range(settings.updates):
                state, last = update(workspace.model, state, batch, gains, reference, sampled)
                numbers.append(last)
        return state, jax.device_get(numbers)

    return learn


def _batch(members: Sequence[Question], trials: Sequence[Trial], workspace: Workspace) -> tuple[Batch, np.ndarray]:
    """The arrays of a step, and the advantage of each answer; one too few to fill the usual batch has advantage 0."""
    config = workspace.config
    by_id = {q.id: (q, tuple(_prompt(q, workspace))) for q in members}
    limit = workspace.model.config.max_position_embeddings
    examples = [cut(_pair(*by_id[trial.question_id], trial, workspace), limit) for trial in trials]
    weights = token_weights(
        [len(example.reply) for example in examples],
        normalisation=config.grpo.normalisation,
        max_new_tokens=config.grpo.max_new_tokens,
    )
    grid = answers_grid(config.distillation, workspace.mesh)
    gains = np.zeros(config.grpo.batch_questions * config.grpo.group_size, np.float32)
    gains[: len(trials)] = [trial.advantage for trial in trials]
    return policy_batch(examples, weights, grid=grid, pad_id=workspace.chat.pad_id), gains


def _pair(question: Question, prompt: tuple[int, ...], trial: Trial, workspace: Workspace) -> Pair:
    stopped = trial.stop is StopReason.END_OF_TURN
    return Pair(
        question_id=f"{trial.question_id} {trial.sample}",
        question=question.question,
        answer=question.answer,
        solution=trial.text,
        teacher_prompt_ids=prompt,
        student_prompt_ids=prompt,
        reply_ids=trial.token_ids + ((workspace.chat.end_of_turn_id,) if stopped else ()),
        teacher_stop=stopped,
    )


def _prompt(question: Question, workspace: Workspace) -> list[int]:
    return workspace.chat.encode_prompt(workspace.prompts.student_messages(question.question))


def _row(trials: Sequence[Trial], numbers: Sequence[PolicyNumbers], settings: Grpo, step: int) -> dict[str, float]:
    """The row of a step in metrics.jsonl: means over its updates, and what was sampled."""
    row = {name: float(np.mean([getattr(n, name) for n in numbers])) for name in PolicyNumbers.__dataclass_fields__}
    if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
        raise SsbError(
            f"grpo, step {step}: the loss ({row['loss']}) or its gradient ({row['grad_norm']}) is not finite; the "
            "checkpoints before it are kept. Lower grpo.learning_rate or grpo.updates, or raise grpo.beta"
        )
    rewards = [t.reward for t in trials if t.reward is not None]
    lengths = [len(t.token_ids) for t in trials]
    groups = [trials[i : i + settings.group_size] for i in range(0, len(trials), settings.group_size)]
    return row | {
        "reward": float(np.mean(rewards)) if rewards else 0.0,
        "correct": float(np.mean([t.outcome is Outcome.CORRECT for t in trials])),
        "mixed": float(np.mean([len({t.reward for t in group}) > 1 for group in groups])),  # have something to teach
        "truncated": float(np.mean([t.stop is StopReason.LENGTH for t in trials])),
        "reply_tokens": sum(lengths),
        "reply_length": float(np.mean(lengths)),
    }


def _summary(folder: Path) -> dict:
    rows = read_metrics(folder)
    return {
        "steps": len(rows),
        "answers": sum(1 for path in (folder / "trials").glob("step-*.jsonl") for _ in read_jsonl(path, Trial)),
        "tokens": int(sum(row["reply_tokens"] for row in rows)),
        "first_reward": rows[0]["reward"],
        "last_reward": rows[-1]["reward"],
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }
