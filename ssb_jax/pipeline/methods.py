"""What each method does between questions and adapter. All share rollouts, grading, LoRA and evaluation.

ssb         rollouts -> hints -> hinted solutions -> the teacher's distributions -> distillation
ssb-torch   the same pairs; teacher and student by the published trainer in PyTorch
sft         the same pairs; cross-entropy on the hinted solutions
rft         pairs of the model's own right rollouts; cross-entropy
grpo        the student's own answers, graded while it learns
"""

from ssb_jax import hosts
from ssb_jax.answering import load_rollouts
from ssb_jax.artifacts import Manifest, read_jsonl, read_manifest, write_jsonl
from ssb_jax.config import SsbError
from ssb_jax.losses.menu import loss_identity
from ssb_jax.pipeline.evaluation import evaluate, load_sets
from ssb_jax.pipeline.funnel import funnel
from ssb_jax.pipeline.pairs import (
    check_new_questions,
    confirm_blocks,
    load_pairs,
    make_pairs,
    refuse_other_number_of_pairs,
    roll_out,
    taken_from_scripts,
    verify_block,
)
from ssb_jax.pipeline.run import Run, blocks, completed, load_questions, prompt_identity, settings_of
from ssb_jax.pipeline.student import SPEED_OF_DISTILLATION, check_settings, distil, make_targets
from ssb_jax.records import Hint, Outcome, Pair, Question, Verdict
from ssb_jax.stages import grpo, on_policy
from ssb_jax.stages.teaching import make_pair


def train(run: Run) -> Manifest:
    """Everything between questions and adapter, as `method` says.

    Raises:
      SsbError: also where the method does not know many processes.
    """
    if run.config.method in ("grpo", "on-policy", "ssb-torch"):
        hosts.refuse_many(f"method {run.config.method}")
    return _trained(run)


def _trained(run: Run) -> Manifest:
    match run.config.method:
        case "grpo":
            return reinforce(run)
        case "on-policy":
            return distil_on_policy(run)
        case "rft":
            make_own_pairs(run)
        case _:
            make_pairs(run)
    if run.config.method == "ssb-torch":
        return distil_in_torch(run)
    make_targets(run)
    return distil(run)


def run_all(run: Run) -> dict[str, dict]:
    """From questions to the evaluation, whose results it returns; complete stages are skipped."""
    check_settings(run.config)
    run.workspace.check_meshes()
    load_sets(run)
    train(run)
    return evaluate(run)


def confirm(run: Run) -> None:
    """Compares the settings with those that the run's rollouts, pairs, targets and adapter were made from, as far as
    they are complete, and makes nothing: for commands that begin after them.

    Raises:
      SsbError: naming the setting that differs.
    """
    if read_manifest(run.training_folder) is not None and not taken_from_scripts(run):
        _trained(run)
        return
    if taken_from_scripts(run):
        return
    if read_manifest(run.folder / "pairs") is None:
        confirm_blocks(run)
        return
    if run.config.method == "rft":
        make_own_pairs(run)
    else:
        make_pairs(run)
    if read_manifest(run.folder / "targets") is not None:
        make_targets(run)


def survey(run: Run) -> dict[str, int]:
    """How many questions are left after each step of the run's method."""
    trained = read_manifest(run.training_folder)
    match run.config.method:
        case "grpo":
            answers = 0 if trained is None else trained.counts["answers"]
            return {"questions": len(load_questions(run)), "answers graded": answers}
        case "rft":
            pairs = read_manifest(run.folder / "pairs")
            counts = {"rolled out": 0, "answered right": 0, "pairs": 0} if pairs is None else pairs.counts
            return {"questions": len(load_questions(run)), **counts}
    return funnel(run)


def make_own_pairs(run: Run) -> list[Pair]:
    """Method `rft`: of each question the first right rollout, block by block until there are enough.

    Rejection sampling as in arXiv 2308.01825, with one answer a question, as the hinted teacher gives. The "teacher" of
    such a pair reads the bare question too, so its logged KL says how far the student has gone from the base.

    Raises:
      SsbError: no question was answered right.
    """
    refuse_other_number_of_pairs(run)
    if read_manifest(run.folder / "pairs") is None:
        check_new_questions(run)
    wanted, right, sources, asked = run.config.teaching.max_pairs, [], [], 0
    for block, members in blocks(run):
        sources.append(verify_block(run, block, members))
        asked += len(members)
        right += _first_right(run, block, members)
        if wanted is not None and len(right) >= wanted:
            break

    def make() -> dict:
        if not right:
            raise SsbError(f"rft: none of {asked} questions was answered right; raise rollouts.num_samples")
        kept = right[:wanted]
        write_jsonl(run.folder / "pairs" / "pairs.jsonl", kept)
        return {"rolled out": asked, "answered right": len(right), "pairs": len(kept)}

    made_from = {
        "verdicts": [manifest.digest for manifest in sources],
        "own answers": True,
        "max_pairs": wanted,
        "prompts": {
            **prompt_identity(run, "system", "question", "examples"),
            "student_prompt": run.config.prompts.student_prompt,
            "teach_stop": run.config.prompts.teach_stop,
        },
    }
    completed(run.folder / "pairs", "pairs", made_from, make, alone=True)
    return load_pairs(run)


def _first_right(run: Run, block: int, members: list[Question]) -> list[Pair]:
    rollouts = load_rollouts(run.block_folder(block, "rollouts"), [q.id for q in members])
    verdicts = read_jsonl(run.block_folder(block, "verification") / "verdicts.jsonl", Verdict)
    first = {}
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        if verdict.outcome is Outcome.CORRECT:
            first.setdefault(rollout.question_id, rollout)
    workspace, pairs = run.workspace, []
    for question in members:
        if question.id in first:
            bare = workspace.chat.encode_prompt(workspace.prompts.student_messages(question.question))
            pairs.append(make_pair(question, first[question.id], teacher_prompt=bare, workspace=workspace))
    return pairs


def reinforce(run: Run) -> Manifest:
    """Method `grpo`: trains the adapter on its own graded answers to every question of the run."""
    config, members = run.config, load_questions(run)
    made_from = {
        "questions": {q.id: q.answer for q in members},
        "model": run.workspace.model_identity,
        "prompts": prompt_identity(run, "system", "question", "examples"),
        "seed": config.seed,
        "lora": settings_of(config.lora),
        "optimizer": {
            name: getattr(config.distillation, name) for name in ("betas", "eps", "weight_decay", "max_grad_norm")
        },
        **settings_of(config.grpo, leave_out=("checkpoint_every",)),
    }
    folder = run.training_folder
    return completed(
        folder,
        "grpo",
        made_from,
        lambda: grpo.run(members, config=config, folder=folder, workspace=run.workspace),
        patterns=("metrics.jsonl", "adapter/*", "trials/*"),
    )


def distil_on_policy(run: Run) -> Manifest:
    """Method `on-policy`: distils on the student's own answers to the first `teaching.max_pairs` mixed questions."""
    roll_out(run)
    hints, members, sources = {}, [], []
    for block, questions in blocks(run):
        source = read_manifest(run.block_folder(block, "hints"))
        if source is not None:
            sources.append(source.digest)
            rows = read_jsonl(run.block_folder(block, "hints") / "hints.jsonl", Hint)
            hints |= {hint.question_id: hint for hint in rows if hint.dropped is None}
            members += [question for question in questions if question.id in hints]
    members = members[: run.config.teaching.max_pairs]
    if not members:
        raise SsbError("on-policy: no question has both a right and a wrong rollout; raise rollouts.num_samples")
    config, folder = run.config, run.training_folder
    made_from = {
        "hints": sources,
        "questions": [question.id for question in members],
        "model": run.workspace.model_identity,
        "prompts": {
            **prompt_identity(run, "system", "question", "hinted", "examples"),
            "teach_stop": config.prompts.teach_stop,
        },
        "seed": config.seed,
        "lora": settings_of(config.lora),
        "distillation": settings_of(config.distillation, leave_out=SPEED_OF_DISTILLATION),
        **loss_identity(config.distillation.loss),
        **settings_of(config.on_policy, leave_out=("checkpoint_every",)),
    }
    return completed(
        folder,
        "on-policy",
        made_from,
        lambda: on_policy.run(members, hints, config=config, folder=folder, workspace=run.workspace),
        patterns=("metrics.jsonl", "adapter/*", "answers/*"),
    )


def distil_in_torch(run: Run) -> Manifest:
    """Method `ssb-torch`: teacher and student of the published trainer on the run's pairs, order and first adapter."""

    def make() -> dict:
        from ssb_jax.baselines import torch_trainer  # the extra `torch`

        return torch_trainer.run(load_pairs(run), config=config, folder=folder, workspace=run.workspace)

    folder, config = run.training_folder, run.config
    made_from = {
        "pairs": read_manifest(run.folder / "pairs").digest,
        "trainer": "torch",
        "model": run.workspace.model_identity,
        "seed": config.seed,
        "lora": settings_of(config.lora),
        "distillation": settings_of(config.distillation, leave_out=("tensorboard", "wandb_project")),
    }
    return completed(
        folder,
        "distillation",
        made_from,
        make,
        patterns=("metrics.jsonl", "adapter/*"),
    )
