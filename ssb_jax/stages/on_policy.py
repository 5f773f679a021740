"""Method `on-policy`: the student answers the bare question, and the hinted teacher says of each of its tokens what it
would have written instead.

One step: answers from the adapter of this moment, the teacher's distributions on their tokens after the hinted prompt,
one step of the ordinary distillation with any loss of the menu. The teacher is the base model, a slow average of the
student, or the student itself as it was some steps ago. As in OPSD (arXiv 2601.18734) and SDFT (arXiv 2601.19897).
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ssb_jax.answering import sample
from ssb_jax.artifacts import read_jsonl, write_jsonl
from ssb_jax.checkpoint import checkpoints, restore, save
from ssb_jax.config import Config, SsbError
from ssb_jax.console import note, progress
from ssb_jax.metrics import open_metrics, read_metrics
from ssb_jax.model.adapters import replace_adapter
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.records import Hint, Pair, Question, Rollout, StopReason
from ssb_jax.training.batches import Example, Weighting, cut, data_order
from ssb_jax.training.policy import answers_grid, make_score, policy_batch, states_by_example
from ssb_jax.training.step import StepNumbers, build_step, init_state, metrics_of, put_batch, run_keys
from ssb_jax.workspace import Workspace

_ON_POLICY_SEED = 32_452_843  # its random keys differ from the rollouts' and the evaluation's of the same question


def run(
    questions: Sequence[Question], hints: Mapping[str, Hint], *, config: Config, folder: Path, workspace: Workspace
) -> dict:
    """Trains the adapter and saves it as `folder/adapter` in PEFT's format; `folder/answers` has every answer as a
    pair of the two prompts that it follows.

    Args:
      hints: question id -> what the teacher is shown.

    Returns:
      Counts of the whole run, interrupted parts included.

    Raises:
      SsbError: the loss is not finite.
    """
    own = config.on_policy
    settings = config.distillation.model_copy(update={"batch_size": own.batch_questions * own.group_size})
    order = data_order(len(questions), batch_size=own.batch_questions, epochs=own.epochs, seed=config.seed)
    step, optimizer = build_step(settings, config.lora, steps=len(order), chunk=settings.chunk_tokens, seed=config.seed)
    score, mesh = make_score(temperature=1.0, chunk=settings.chunk_tokens), workspace.mesh
    with checkpoints(folder / "checkpoints", keep=settings.keep_checkpoints) as manager:
        with use_mesh(mesh):
            state = init_state(workspace.model, config.lora, optimizer, key=run_keys(config.seed)[0], mesh=mesh)
            teacher = jax.tree.map(jnp.copy, state.lora)  # B is 0: the base
            found = restore(manager, like=(state, teacher))
        done = 0
        if found is not None:
            (state, teacher), done = found[0], found[1]["step"]
            note(f"on-policy distillation continues after step {done} of {len(order)}")
        with (
            open_metrics(folder, done=done, tensorboard=settings.tensorboard) as log,
            progress("on-policy", len(order), done=done) as advance,
        ):
            for number in range(done + 1, len(order) + 1):
                started = time.monotonic()
                members = [questions[i] for i in order[number - 1]]
                path = answers_file(folder, number)
                if not path.exists():
                    write_jsonl(path, _answers(members, hints, number, state.lora, workspace))
                pairs = read_jsonl(path, Pair)
                with use_mesh(mesh):
                    targets = _targets(pairs, None if own.teacher == "base" else teacher, score, workspace)
                    state, numbers = step(workspace.model, state, _batch(pairs, targets, workspace))
                    teacher = _moved(teacher, state.lora, number, config)
                row = _row(number, jax.device_get(numbers), pairs) | {"seconds": time.monotonic() - started}
                log.write(number, row)
                advance(loss=row["loss"], kl=row["kl"])
                if number % own.checkpoint_every == 0 or number == len(order):
                    log.sync()
                    save(manager, number, state=(state, teacher), data={"step": number})
    replace_adapter(state.lora, folder / "adapter", base=config.model.path)
    return _summary(folder)


def answers_file(folder: Path, step: int) -> Path:
    """Where the answers of a step are."""
    return folder / "answers" / f"step-{step:06d}.jsonl"


def _answers(
    members: Sequence[Question], hints: Mapping[str, Hint], step: int, lora: Lora, workspace: Workspace
) -> list[Pair]:
    """The student's answers of a step, without generations that failed."""
    own, chat = workspace.config.on_policy, workspace.chat
    answers = sample(
        {q.id: chat.encode_prompt(workspace.prompts.student_messages(q.question)) for q in members},
        num_samples=own.group_size,
        params=workspace.sampling_params(own),
        workspace=workspace,
        seed=_ON_POLICY_SEED + 1_000_003 * workspace.config.seed + step,
        lora=lora,
    )
    asked = {q.id: q for q in members}
    return [
        _pair(answer, asked[answer.question_id], hints[answer.question_id], workspace)
        for answer in answers
        if answer.stop is not StopReason.FAILED
    ]


def _pair(answer: Rollout, question: Question, hint: Hint, workspace: Workspace) -> Pair:
    """The student's own answer after both prompts."""
    chat, prompts = workspace.chat, workspace.prompts
    hinted = prompts.teacher_messages(question.question, hint.correct_text, hint.incorrect_text)
    stop = workspace.config.prompts.teach_stop and answer.stop is StopReason.END_OF_TURN
    return Pair(
        question_id=f"{question.id} {answer.sample}",
        question=question.question,
        answer=question.answer,
        solution=answer.text,
        teacher_prompt_ids=tuple(chat.encode_prompt(hinted)),
        student_prompt_ids=tuple(chat.encode_prompt(prompts.student_messages(question.question))),
        reply_ids=answer.token_ids + ((chat.end_of_turn_id,) if stop else ()),
        teacher_stop=stop,
    )


def _targets(
    pairs: Sequence[Pair], teacher: Lora | None, score, workspace: Workspace
) -> dict[str, Float[np.ndarray, "R D"]]:
    """Pair -> the teacher's states at the answer's tokens, after the hinted prompt."""
    examples = [Example(pair, pair.teacher_prompt_ids, pair.reply_ids) for pair in pairs]
    limit = workspace.model.config.max_position_embeddings
    for pair in pairs:
        if (length := len(pair.teacher_prompt_ids) + len(pair.reply_ids)) > limit:
            raise SsbError(
                f"{pair.question_id}: hinted prompt and answer have {length} tokens, the context {limit}; lower "
                "rollouts.max_new_tokens and on_policy.max_new_tokens"
            )
    grid = answers_grid(workspace.config.distillation, workspace.mesh)
    nothing = [np.zeros(len(pair.reply_ids), np.float32) for pair in pairs]
    batch = policy_batch(examples, nothing, grid=grid, pad_id=workspace.chat.pad_id)
    states = score(workspace.model, teacher, put_batch(batch, workspace.mesh)).states
    rows = states_by_example(jax.device_get(states), batch)
    return {pair.question_id: row for pair, row in zip(pairs, rows, strict=True)}


def _batch(pairs: Sequence[Pair], targets: Mapping[str, Float[np.ndarray, "R D"]], workspace: Workspace):
    """The arrays of a step of distillation on the student's answers."""
    settings, chat = workspace.config.distillation, workspace.chat
    examples = [cut(pair, workspace.model.config.max_position_embeddings) for pair in pairs]
    special = frozenset(chat.tokenizer.all_special_ids) - {chat.end_of_turn_id}
    ignored = special if settings.ignore_special_tokens else frozenset()
    weighting = Weighting(settings.reduction, settings.stop_weight, settings.skip_first, ignored, settings.last_weight)
    batch = policy_batch(
        examples,
        weighting(examples),
        grid=answers_grid(settings, workspace.mesh),
        pad_id=chat.pad_id,
        targets=lambda pair: targets[pair.question_id],
    )
    return put_batch(batch, workspace.mesh)


def _moved(teacher: Lora, student: Lora, step: int, config: Config) -> Lora:
    """The teacher's adapter after a step: `(1 - rate) teacher + rate student`, every so many steps."""
    own = config.on_policy
    rate = {"base": 0.0, "ema": own.teacher_rate, "refreshed": float(step % own.teacher_every == 0)}[own.teacher]
    return jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, teacher, student)


def _row(step: int, numbers: StepNumbers, pairs: Sequence[Pair]) -> dict[str, float]:
    row = metrics_of(numbers)
    if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
        raise SsbError(
            f"on-policy, step {step}: the loss ({row['loss']}) or its gradient ({row['grad_norm']}) is not finite; the "
            "checkpoints before it are kept. Lower distillation.learning_rate"
        )
    lengths = [len(pair.reply_ids) - pair.teacher_stop for pair in pairs]
    return row | {"reply_tokens": sum(lengths), "reply_length": float(np.mean(lengths))}


def _summary(folder: Path) -> dict:
    rows = read_metrics(folder)
    return {
        "steps": len(rows),
        "tokens": int(sum(row["reply_tokens"] for row in rows)),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "seconds": round(sum(row["seconds"] for row in rows), 2),
    }
