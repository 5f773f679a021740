"""From questions to training pairs, block by block until there are enough."""

from ssb_jax.answering import check_questions, load_rollouts
from ssb_jax.artifacts import Manifest, read_jsonl, read_manifest, write_jsonl
from ssb_jax.config import SsbError
from ssb_jax.console import mapping, note
from ssb_jax.pipeline.funnel import funnel
from ssb_jax.pipeline.run import Run, blocks, completed, prompt_identity, settings_of
from ssb_jax.records import DropReason, Hint, Lesson, Pair, Question, Verdict
from ssb_jax.stages import hints, rollouts, teaching, verification


def roll_out(run: Run) -> int:
    """Rollouts, verification and hints, block by block, until as many questions are mixed as pairs are still wanted.

    Returns:
      How many questions wait for the teacher.
    """
    wanted = run.config.teaching.max_pairs
    refuse_other_number_of_pairs(run)
    if run.config.rollouts.temperature == 0:
        raise SsbError(
            "rollouts.temperature is 0: all samples of a question would be the same, and none right where another is "
            "wrong; set it above 0 (published: 0.8)"
        )
    taught = _taught_pairs(run)
    if wanted is None or taught < wanted:
        check_new_questions(run)
    waiting = 0
    for block, members in blocks(run):
        enough = wanted is not None and waiting >= wanted - taught
        if enough and read_manifest(run.block_folder(block, "rollouts")) is None:
            break
        mixed = _roll_out_block(run, block, members)
        if read_manifest(run.block_folder(block, "teaching")) is None:
            waiting += mixed
    return waiting


def check_new_questions(run: Run) -> None:
    """Whether every question that has no rollouts yet can be asked: said before the first is.

    Raises:
      SsbError: naming one that fills the model's context.
    """
    for block, members in blocks(run):
        if read_manifest(run.block_folder(block, "rollouts")) is None:
            check_questions(members, run.workspace)


def teach(run: Run) -> bool:
    """Teaches block by block those that have hints, until there are enough; returns whether the pairs are complete.

    They are when there are `teaching.max_pairs` of them, or no more questions.

    Raises:
      SsbError: nothing was rolled out yet, or every question is used and not one pair came of it.
    """
    refuse_other_number_of_pairs(run)
    wanted, found, sources = run.config.teaching.max_pairs, 0, []
    for block, members in blocks(run):
        hinted = read_manifest(run.block_folder(block, "hints"))
        if hinted is None and not sources:
            raise SsbError(f"{run.folder} has no hints to teach with; run `ssb rollout` first")
        if hinted is None:
            return False
        sources.append(_teach_block(run, block, members, hinted))
        found += sources[-1].counts["pairs"]
        if wanted is not None and found >= wanted:
            break
    _select_pairs(run, sources)
    return True


def make_pairs(run: Run) -> list[Pair]:
    """Alternates rollouts and teaching until the pairs are complete."""
    roll_out(run)
    while not teach(run):
        roll_out(run)
    return load_pairs(run)


def load_pairs(run: Run) -> list[Pair]:
    """The training pairs.

    Raises:
      SsbError: they are not complete yet.
    """
    if read_manifest(run.folder / "pairs") is None:
        raise SsbError(f"{run.folder}: the pairs are not complete; run `ssb rollout` and `ssb teach` (again) first")
    return read_jsonl(run.folder / "pairs" / "pairs.jsonl", Pair)


def confirm_blocks(run: Run) -> None:
    """Compares the settings with what the blocks that have hints were made from; makes nothing."""
    if not (run.folder / "blocks").exists():
        return  # nor are questions wanted where nothing was asked: a base model is evaluated without them
    for block, members in blocks(run):
        if read_manifest(run.block_folder(block, "hints")) is not None:
            _roll_out_block(run, block, members, quiet=True)


def taken_from_scripts(run: Run) -> bool:
    """Whether the pairs came from the published scripts' files, not of rollouts of the run."""
    pairs = read_manifest(run.folder / "pairs")
    return pairs is not None and "scripts" in pairs.made_from


def verify_block(run: Run, block: int, members: list[Question], *, quiet: bool = False) -> Manifest:
    """Rollouts of one block and their verification."""
    config, workspace = run.config, run.workspace
    label = f"block {block}: " if run.config.rollouts.block_size else ""
    folder = {stage: run.block_folder(block, stage) for stage in ("rollouts", "verification")}
    source = completed(
        folder["rollouts"],
        "rollouts",
        {
            "questions": [q.id for q in members],
            "model": workspace.model_identity,
            "prompts": prompt_identity(run, "system", "question", "examples"),
            "seed": config.seed,
            **settings_of(config.rollouts, leave_out=("block_size", "attempts")),
        },
        lambda: rollouts.run(members, folder["rollouts"], workspace=workspace, description=f"{label}rollouts"),
        quiet=quiet,
    )
    return completed(
        folder["verification"],
        "verification",
        {"rollouts": source.digest, "answers": {q.id: q.answer for q in members}},
        lambda: verification.run(
            members,
            load_rollouts(folder["rollouts"], [q.id for q in members]),
            folder["verification"],
            settings=config.grading,
            description=f"{label}verification",
        ),
        alone=True,
        quiet=quiet,
    )


def _roll_out_block(run: Run, block: int, members: list[Question], *, quiet: bool = False) -> int:
    """Rollouts, verification and hints of one block; returns the number of mixed questions."""
    config = run.config
    source = verify_block(run, block, members, quiet=quiet)
    folder = {stage: run.block_folder(block, stage) for stage in ("rollouts", "verification", "hints")}
    chosen = completed(
        folder["hints"],
        "hints",
        {"verdicts": source.digest, "seed": config.seed, "min_wrong_count": config.teaching.min_wrong_count},
        lambda: hints.run(
            load_rollouts(folder["rollouts"], [q.id for q in members]),
            read_jsonl(folder["verification"] / "verdicts.jsonl", Verdict),
            folder["hints"],
            seed=config.seed,
            min_wrong_count=config.teaching.min_wrong_count,
        ),
        alone=True,
        quiet=quiet,
    )
    return chosen.counts["mixed"]


def _teach_block(run: Run, block: int, members: list[Question], source: Manifest) -> Manifest:
    config = run.config
    # Whoever keeps truncated solutions makes what was made before there was a choice.
    unsaid = ("truncated",) if config.teaching.truncated == "keep" else ()
    label = f"block {block}: " if config.rollouts.block_size else ""
    return completed(
        run.block_folder(block, "teaching"),
        "teaching",
        {
            "hints": source.digest,
            "model": run.workspace.model_identity,
            "prompts": {
                **prompt_identity(run, "system", "question", "hinted", "examples"),
                "student_prompt": config.prompts.student_prompt,
                "teach_stop": config.prompts.teach_stop,
            },
            "seed": config.seed,
            **settings_of(config.teaching, leave_out=("max_pairs", "min_wrong_count", *unsaid)),
        },
        lambda: teaching.run(
            members,
            read_jsonl(run.block_folder(block, "hints") / "hints.jsonl", Hint),
            run.block_folder(block, "teaching"),
            workspace=run.workspace,
            description=f"{label}teaching",
        ),
    )


def _taught_pairs(run: Run) -> int:
    manifests = (read_manifest(run.block_folder(block, "teaching")) for block, _ in blocks(run))
    return sum(manifest.counts["pairs"] for manifest in manifests if manifest is not None)


def refuse_other_number_of_pairs(run: Run) -> None:
    """Before anything is sampled for it: finished pairs stay what they are."""
    pairs, wanted = read_manifest(run.folder / "pairs"), run.config.teaching.max_pairs
    if pairs is not None and pairs.made_from["max_pairs"] != wanted:
        raise SsbError(
            f"{run.folder} has its pairs, made with teaching.max_pairs {pairs.made_from['max_pairs']}, now {wanted}. "
            f"Use another --out, or delete pairs, targets, distillation and evaluation/*/ssb in {run.folder} to go on"
        )


def _select_pairs(run: Run, sources: list[Manifest]) -> None:
    """Keeps the first `max_pairs` pairs of the taught blocks, in question order, as the run's pairs."""
    wanted = run.config.teaching.max_pairs

    def make() -> dict:
        found = [
            lesson.pair
            for block in range(len(sources))
            for lesson in read_jsonl(run.block_folder(block, "teaching") / "lessons.jsonl", Lesson)
            if lesson.pair is not None
        ]
        if not found:
            raise SsbError(_no_pairs(run))
        kept = found[:wanted]
        write_jsonl(run.folder / "pairs" / "pairs.jsonl", kept)
        if wanted is not None and len(kept) < wanted:
            note(f"{len(kept)} pairs, fewer than teaching.max_pairs ({wanted}): every question is used")
        return {"pairs": len(kept), "found": len(found)}

    made_from = {"lessons": [manifest.digest for manifest in sources], "max_pairs": wanted}
    completed(run.folder / "pairs", "pairs", made_from, make, alone=True)


def _no_pairs(run: Run) -> str:
    counts = funnel(run)
    advice = (
        "the model is always right: take harder questions"
        if counts.get(f"dropped: {DropReason.NO_INCORRECT}", 0) > counts["questions"] / 2
        else "raise rollouts.num_samples, rollouts.temperature or rollouts.max_new_tokens, or take other questions"
        if not counts["mixed"]
        else "raise teaching.attempts or teaching.max_new_tokens, or change prompts.hinted"
    )
    return f"no training pair came of {mapping(counts)}; a pair needs a question with both a correct and an " + (
        f"incorrect rollout, and a verified hinted solution: {advice}"
    )
