"""The run folder: which stage follows which, what each one is made from, and what a whole run reports.

    questions/                               the questions, once
    blocks/0000/{rollouts,verification,hints,teaching}/   block by block, until there are enough pairs
    pairs/                                   the first `teaching.max_pairs` pairs in question order
    targets/  distillation/                  the teacher's distributions, the adapter
    evaluation/SET/{questions,base,ssb}/     answers of each model; evaluation/results.json with every row

Each folder is completed by a manifest that says what it was made from; a complete folder is not made again, one that
was cut off is continued, one made from other settings is refused. Settings that change only speed (mesh, engine,
batch sizes of forward passes, logging) are not part of what a folder is made from.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssb_jax.answering import load_rollouts
from ssb_jax.artifacts import Manifest, complete, digest, read_jsonl, read_manifest, write_atomically, write_jsonl
from ssb_jax.config import Config, Data, EvaluationSet, Section, SsbError, dump_config
from ssb_jax.console import mapping, note
from ssb_jax.model.adapters import load_adapter
from ssb_jax.model.lora import Lora
from ssb_jax.records import DropReason, Hint, Lesson, Pair, Question, Verdict
from ssb_jax.stages import distillation, evaluation, hints, questions, rollouts, targets, teaching, verification
from ssb_jax.workspace import Workspace

_SPEED_OF_DISTILLATION = (
    *("tensorboard", "wandb_project", "checkpoint_every", "keep_checkpoints"),
    *("remat", "chunk_tokens", "packing", "micro_batch"),
)


@dataclass(frozen=True)
class Run:
    """A run folder and the settings it is made with."""

    folder: Path
    workspace: Workspace

    @property
    def config(self) -> Config:
        return self.workspace.config

    def block_folder(self, block: int, stage: str) -> Path:
        return self.folder / "blocks" / f"{block:04d}" / stage

    @property
    def adapter_folder(self) -> Path:
        return self.folder / "distillation" / "adapter"


def save_config(run: Run, *, replace: bool) -> None:
    """Writes the resolved settings to `config.yaml`; with `replace`, over those of an earlier command."""
    if replace or not (run.folder / "config.yaml").exists():
        write_atomically(run.folder / "config.yaml", dump_config(run.config))


def load_questions(run: Run) -> list[Question]:
    """The run's questions, loaded once and kept."""
    return _questions(run, run.config.questions, run.folder / "questions")


def roll_out(run: Run) -> int:
    """Rollouts, verification and hints, block by block, until as many questions are mixed as pairs are still wanted.

    Returns:
      How many questions wait for the teacher.
    """
    wanted = run.config.teaching.max_pairs
    _refuse_other_number_of_pairs(run)
    taught = _taught_pairs(run)
    waiting = 0
    for block, members in _blocks(run):
        enough = wanted is not None and waiting >= wanted - taught
        if enough and read_manifest(run.block_folder(block, "rollouts")) is None:
            break
        mixed = _roll_out_block(run, block, members)
        if read_manifest(run.block_folder(block, "teaching")) is None:
            waiting += mixed
    return waiting


def teach(run: Run) -> bool:
    """Teaches block by block those that have hints, until there are enough; returns whether the pairs are complete.

    They are when there are `teaching.max_pairs` of them, or no more questions.

    Raises:
      SsbError: every question is used and not one pair came of it.
    """
    _refuse_other_number_of_pairs(run)
    wanted, found, sources = run.config.teaching.max_pairs, 0, []
    for block, members in _blocks(run):
        hinted = read_manifest(run.block_folder(block, "hints"))
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


def _blocks(run: Run) -> Iterator[tuple[int, list[Question]]]:
    members = load_questions(run)
    size = run.config.rollouts.block_size or len(members)
    for block, start in enumerate(range(0, len(members), size)):
        yield block, members[start : start + size]


def _roll_out_block(run: Run, block: int, members: list[Question]) -> int:
    """Rollouts, verification and hints of one block; returns the number of mixed questions."""
    config, workspace = run.config, run.workspace
    label = f"block {block}: " if run.config.rollouts.block_size else ""
    folder = {stage: run.block_folder(block, stage) for stage in ("rollouts", "verification", "hints")}
    source = _complete(
        folder["rollouts"],
        "rollouts",
        {
            "questions": [q.id for q in members],
            "model": workspace.model_identity,
            "prompts": _prompt_identity(run, "system", "question", "examples"),
            "seed": config.seed,
            **_settings(config.rollouts, leave_out=("block_size", "attempts")),
        },
        lambda: rollouts.run(members, folder["rollouts"], workspace=workspace, description=f"{label}rollouts"),
    )
    source = _complete(
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
    )
    chosen = _complete(
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
    )
    return chosen.counts["mixed"]


def _teach_block(run: Run, block: int, members: list[Question], source: Manifest) -> Manifest:
    config = run.config
    label = f"block {block}: " if config.rollouts.block_size else ""
    return _complete(
        run.block_folder(block, "teaching"),
        "teaching",
        {
            "hints": source.digest,
            "model": run.workspace.model_identity,
            "prompts": {
                **_prompt_identity(run, "system", "question", "hinted", "examples"),
                "student_prompt": config.prompts.student_prompt,
                "teach_stop": config.prompts.teach_stop,
            },
            "seed": config.seed,
            **_settings(config.teaching, leave_out=("max_pairs", "min_wrong_count")),
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
    manifests = (read_manifest(run.block_folder(block, "teaching")) for block, _ in _blocks(run))
    return sum(manifest.counts["pairs"] for manifest in manifests if manifest is not None)


def _refuse_other_number_of_pairs(run: Run) -> None:
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
    _complete(run.folder / "pairs", "pairs", made_from, make)


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


def funnel(run: Run) -> dict[str, int]:
    """From questions to pairs: how many are left after each step, and `dropped: reason` for the others."""
    counts = {"questions": len(load_questions(run)), "rolled out": 0, "mixed": 0, "hinted": 0, "verified": 0, "kept": 0}
    dropped: Counter[str] = Counter()
    for block, _ in _blocks(run):
        chosen = read_manifest(run.block_folder(block, "hints"))
        taught = read_manifest(run.block_folder(block, "teaching"))
        if chosen is not None:
            counts["rolled out"] += chosen.counts["questions"]
            counts["mixed"] += chosen.counts["mixed"]
        if taught is not None:
            counts["hinted"] += taught.counts["hinted"]
            counts["verified"] += taught.counts["pairs"]
        for manifest in filter(None, (chosen, taught)):
            dropped.update({reason: manifest.counts.get(reason, 0) for reason in DropReason})
    pairs = read_manifest(run.folder / "pairs")
    counts["kept"] = 0 if pairs is None else pairs.counts["pairs"]
    return counts | {f"dropped: {reason}": number for reason, number in dropped.items() if number}


def make_targets(run: Run) -> Manifest:
    """The teacher's distributions on the pairs' replies."""
    folder = run.folder / "targets"
    pairs = load_pairs(run)
    made_from = {
        "pairs": read_manifest(run.folder / "pairs").digest,
        "model": run.workspace.model_identity,
        **_settings(run.config.targets, leave_out=("batch_size",)),
    }
    return _complete(
        folder,
        "targets",
        made_from,
        lambda: targets.run(pairs, config=run.config, folder=folder, workspace=run.workspace),
    )


def distil(run: Run) -> Manifest:
    """Trains the adapter."""
    source = read_manifest(run.folder / "targets")
    if source is None:
        raise SsbError(f"{run.folder}: the targets are not complete; run `ssb targets` first")
    folder = run.folder / "distillation"
    pairs = load_pairs(run)
    made_from = {
        "targets": source.digest,
        "model": run.workspace.model_identity,
        "seed": run.config.seed,
        "lora": run.config.lora.model_dump(mode="json"),
        **_settings(
            run.config.distillation,
            leave_out=_SPEED_OF_DISTILLATION,
        ),
    }
    return _complete(
        folder,
        "distillation",
        made_from,
        lambda: distillation.run(
            pairs, config=run.config, store_folder=run.folder / "targets", folder=folder, workspace=run.workspace
        ),
        patterns=("metrics.jsonl", "adapter/*"),
    )


def evaluate(run: Run) -> dict[str, dict]:
    """Base and, when there is one, adapter on every evaluation set; writes `evaluation/results.json`.

    Returns:
      Set name -> summary (stages/evaluation.py).
    """
    if not run.config.evaluation.sets:
        note("evaluation.sets is empty: nothing is evaluated")
        return {}
    trained = read_manifest(run.folder / "distillation")
    if trained is None:
        note(f"{run.folder} has no finished adapter: only the base model is evaluated")
    contestants = {"base": None} | ({"ssb": _adapter_identity(trained)} if trained is not None else {})
    results, sources = {}, {}
    for evaluation_set in run.config.evaluation.sets:
        members = _questions(run, evaluation_set.data, run.folder / "evaluation" / evaluation_set.name / "questions")
        answers = {}
        for name, identity in contestants.items():
            manifest = _answer_set(run, evaluation_set, members, name=name, adapter=identity)
            sources[f"{evaluation_set.name}/{name}"] = manifest.digest
            answers[name] = evaluation.load_answers(_answers_folder(run, evaluation_set, name), members)
        results[evaluation_set.name] = evaluation.summarise(
            members, answers, num_samples=evaluation_set.num_samples, settings=run.config.evaluation
        )
    evaluation.write_results(run.folder / "evaluation" / "results.json", results, made_from=sources)
    return results


def _answers_folder(run: Run, evaluation_set: EvaluationSet, name: str) -> Path:
    return run.folder / "evaluation" / evaluation_set.name / name


def _answer_set(
    run: Run, evaluation_set: EvaluationSet, members: list[Question], *, name: str, adapter: str | None
) -> Manifest:
    folder = _answers_folder(run, evaluation_set, name)
    made_from = {
        "questions": {q.id: q.answer for q in members},
        "model": run.workspace.model_identity,
        "adapter": adapter,
        "prompts": _prompt_identity(run, "system", "question", "examples"),
        "seed": run.config.seed,
        "num_samples": evaluation_set.num_samples,
        **_settings(evaluation_set.sampling),
    }

    def make() -> dict:
        lora = None if adapter is None else _load_adapter(run)
        return evaluation.run(
            members,
            folder,
            evaluation_set=evaluation_set,
            workspace=run.workspace,
            lora=lora,
            description=f"{evaluation_set.name}: {name}",
        )

    return _complete(folder, "evaluation", made_from, make)


def _adapter_identity(trained: Manifest) -> str:
    """Of the adapter's files alone: the log beside them holds times."""
    return digest({name: facts["sha256"] for name, facts in trained.files.items() if name.startswith("adapter/")})


def _load_adapter(run: Run) -> Lora:
    return load_adapter(run.adapter_folder, run.workspace.model.config, mesh=run.workspace.mesh)


def _questions(run: Run, data: Data, folder: Path) -> list[Question]:
    earlier = read_manifest(folder)
    file = questions.source_identity(data)
    if file is None and earlier is not None:
        file = earlier.made_from["file"]  # questions once read do not need their file any more
    made_from = {**_settings(data), "file": file}
    _complete(folder, "questions", made_from, lambda: questions.run(data, folder), quiet=True)
    return read_jsonl(folder / "questions.jsonl", Question)


def _complete(
    folder: Path, stage: str, made_from: dict[str, Any], make: Callable[[], dict], *, quiet: bool = False, **more: Any
) -> Manifest:
    manifest, was_there = complete(folder, stage=stage, made_from=made_from, make=make, **more)
    if not quiet:
        state = "complete, skipped" if was_there else f"{manifest.seconds:.1f} s"
        note(f"{stage}: {mapping(manifest.counts)} ({state})")
    return manifest


def _settings(section: Section, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude=set(leave_out))


def _prompt_identity(run: Run, *names: str) -> dict[str, str]:
    return {name: text for name, text in run.workspace.prompt_identity.items() if name in names}
