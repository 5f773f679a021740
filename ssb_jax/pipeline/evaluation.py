"""Base, adapters and answers from elsewhere, on the same questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ssb_jax import hosts
from ssb_jax.answering import check_questions
from ssb_jax.artifacts import Manifest, digest, file_digest, read_jsonl, read_manifest
from ssb_jax.config import EvaluationSet, SsbError
from ssb_jax.console import note
from ssb_jax.costs import run_cost
from ssb_jax.given import GivenAnswer, belonging, given_rollouts, read_given
from ssb_jax.model.adapters import check_base, load_adapter
from ssb_jax.pipeline.identity import method_label, model_name, settings_of_training
from ssb_jax.pipeline.run import Run, completed, kept_questions, prompt_identity, settings_of
from ssb_jax.records import Question, Rollout, normalise
from ssb_jax.scores import Answers, format_failures, summarise
from ssb_jax.stages import evaluation, questions

BASE = "base"


@dataclass(frozen=True)
class _Contestant:
    """Whose answers: the base's, those of the base with the adapter in a folder, those that are given, or kept ones."""

    name: str
    adapter: Path | None = None
    identity: str | None = None  # of the adapter's files, or of the file of answers
    given: tuple[GivenAnswer, ...] | None = None
    source: Path | None = None
    kept: bool = False  # evaluated by an earlier call, which alone knows where it is from


def evaluate(run: Run, *, adapter: Path | None = None, answers: Path | None = None) -> dict[str, dict]:
    """Base and, when there is one, adapter on every evaluation set; writes `evaluation/results.json`.

    Args:
      adapter: a PEFT adapter that was trained elsewhere, to be evaluated too, under its folder's name.
      answers: a file of answers from elsewhere (given.py), under its name; then nothing is sampled, and beside it
        stands what is evaluated already.

    Returns:
      Set name -> summary (scores.py).

    Raises:
      SsbError: the adapter belongs to another base, or the answers do not fit the questions of any set.
    """
    config = run.config
    if not config.evaluation.sets:
        note("evaluation.sets is empty: nothing is evaluated")
        return {}
    contestants = _contestants(run, adapter, answers)
    results, sources, asked, training = {}, {}, {}, _training_texts(run)
    for evaluation_set in config.evaluation.sets:
        members = _members(run, evaluation_set)
        asked[evaluation_set.name] = members
        found: dict[str, Answers] = {}
        for contestant in [*contestants, *_kept(run, evaluation_set, contestants)]:
            folder = run.folder / "evaluation" / evaluation_set.name / contestant.name
            if answers is not None and contestant.given is None and read_manifest(folder) is None:
                continue
            manifest = _answer_set(run, evaluation_set, members, folder, contestant)
            if manifest is not None:
                sources[f"{evaluation_set.name}/{contestant.name}"] = manifest
                found[contestant.name] = evaluation.load_answers(folder, members)
                graded = _graded(run, evaluation_set, manifest)
        if found:
            results[evaluation_set.name] = _summary(run, evaluation_set, members, found, training) | {"graded": graded}
    if answers is not None and not any(name.endswith(f"/{answers.stem}") for name in sources):
        sets = ", ".join(s.name for s in config.evaluation.sets)
        raise SsbError(f"{answers}: no row belongs to a question of {sets}; check id, question and set of the rows")
    if answers is not None:
        _tell_of_strangers(answers, contestants[-1].given, asked)
    cost = run_cost(run.folder, devices=jax.device_count())
    models = {name.rpartition("/")[2] for name in sources}
    own = config.method if config.method in models and read_manifest(run.training_folder) is not None else None
    if hosts.is_first():
        evaluation.write_results(
            run.folder / "evaluation" / "results.json",
            results,
            method=None if own is None else method_label(config),
            own=own,
            seed=config.seed,
            settings=_settings(run, trained=own is not None, with_base=BASE in models),
            cost=None if cost is None else vars(cost),
            **({} if own is None else {"limit": config.questions.limit}),
            made_from={name: manifest.digest for name, manifest in sources.items()},
        )
    return results


def _settings(run: Run, *, trained: bool, with_base: bool) -> dict[str, Any]:
    """What made the models that are this run's own: answers from elsewhere need no model here."""
    if trained:
        return settings_of_training(run)
    return {"model": model_name(run)} if with_base else {}


def load_sets(run: Run) -> None:
    """Loads the questions of every evaluation set and keeps them, so that one that is missing, or too long, is known
    before the work and not after it."""
    for evaluation_set in run.config.evaluation.sets:
        check_questions(_members(run, evaluation_set), run.workspace)


def _members(run: Run, evaluation_set: EvaluationSet) -> list[Question]:
    return kept_questions(run, evaluation_set.data, run.folder / "evaluation" / evaluation_set.name / "questions")


def _contestants(run: Run, adapter: Path | None, answers: Path | None) -> list[_Contestant]:
    """The base first, then the run's adapter, then what comes from elsewhere."""
    trained = read_manifest(run.training_folder)
    contestants = [_Contestant(BASE)]
    if trained is not None:
        contestants.append(_Contestant(run.config.method, run.adapter_folder, _adapter_identity(trained)))
    elif adapter is None and answers is None:
        note(f"{run.folder} has no finished adapter: only the base model is evaluated")
    if adapter is not None:
        check_base(adapter, run.config.model.path, run.workspace.model_folder)
        files = {path.name: file_digest(path) for path in sorted(adapter.glob("adapter_*"))}
        contestants.append(_Contestant(adapter.resolve().name, adapter, digest(files)))
    if answers is not None:
        rows = tuple(read_given(answers))
        contestants.append(_Contestant(answers.stem, None, file_digest(answers), rows, answers))
    names = [contestant.name for contestant in contestants]
    if len(set(names)) < len(names) or "questions" in names:
        raise SsbError(f"the evaluated models need different names, got {', '.join(names)}; rename the folder or file")
    return contestants


def _kept(run: Run, evaluation_set: EvaluationSet, others: Sequence[_Contestant]) -> list[_Contestant]:
    """Models that earlier calls evaluated on the set: their answers stay among the results."""
    taken = {"questions", *(contestant.name for contestant in others)}
    folders = sorted(path.parent for path in (run.folder / "evaluation" / evaluation_set.name).glob("*/manifest.json"))
    return [_Contestant(folder.name, kept=True) for folder in folders if folder.name not in taken]


def _summary(
    run: Run, evaluation_set: EvaluationSet, members: list[Question], found: dict[str, Answers], training: set[str]
) -> dict[str, Any]:
    """The set's summary, with what it shares with the training questions; says what a reader must know."""
    settings = run.config.evaluation
    unreported = [k for k in settings.pass_at if k > evaluation_set.num_samples]
    if unreported:
        note(f"{evaluation_set.name}: {evaluation_set.num_samples} sample(s) a question, no pass@{unreported}")
    summary = summarise(members, found, num_samples=evaluation_set.num_samples, settings=settings)
    shared = _shared_with_training(members, training)
    if shared:
        note(
            f"warning: {len(shared)} of the {len(members)} questions of {evaluation_set.name} are training questions "
            f"too, such as {shared[0]}: its accuracy is not that of unseen questions"
        )
    for sentence in format_failures(summary):
        note(f"warning: {evaluation_set.name}: {sentence}")
    return summary | {"shared_with_training": shared}


def _shared_with_training(members: Sequence[Question], training: set[str]) -> list[str]:
    """Ids of questions whose text, white space and case aside, is that of a training question."""
    return [question.id for question in members if _text_key(question) in training]


def _training_texts(run: Run) -> set[str]:
    """Keys of the run's questions; of a folder that only evaluates, those that its settings name."""
    folder = run.folder / "questions"
    try:
        if read_manifest(folder) is not None:
            training = read_jsonl(folder / "questions.jsonl", Question)
        else:
            training, _ = questions.load_questions(run.config.questions)
    except SsbError as error:
        note(f"warning: not checked whether questions are training questions too: {error}")
        return set()
    return {_text_key(question) for question in training}


def _text_key(question: Question) -> str:
    return normalise(question.question).replace(" ", "")


def _graded(run: Run, evaluation_set: EvaluationSet, manifest: Manifest) -> dict[str, Any]:
    """How answers were drawn and graded: what must be equal for accuracies to be comparable."""
    return {
        "grader": {name: manifest.versions.get(name) for name in ("math-verify", "sympy")},
        "prompts": digest(prompt_identity(run, "system", "question", "examples"))[:12],
        "sampling": settings_of(evaluation_set.sampling),
    }


def _answer_set(
    run: Run, evaluation_set: EvaluationSet, members: list[Question], folder: Path, contestant: _Contestant
) -> Manifest | None:
    """One contestant's answers to one set; None where the given answers are to other sets."""
    label = f"{evaluation_set.name}: {contestant.name}"
    gold = {q.id: q.answer for q in members}
    if contestant.kept:
        manifest = read_manifest(folder)
        return manifest if manifest.made_from.get("questions") == gold else None
    if contestant.given is not None:
        rollouts = given_rollouts(
            contestant.given,
            members,
            set_name=evaluation_set.name,
            num_samples=evaluation_set.num_samples,
            source=contestant.source,
        )
        return _import(run, folder, members, rollouts, label) if rollouts else None
    made_from = {
        "questions": gold,
        "model": run.workspace.model_identity,
        "adapter": contestant.identity,
        "prompts": prompt_identity(run, "system", "question", "examples"),
        "seed": run.config.seed,
        "num_samples": evaluation_set.num_samples,
        **settings_of(evaluation_set.sampling),
    }

    def make() -> dict:
        workspace, lora = run.workspace, None
        if contestant.adapter is not None:
            lora = load_adapter(contestant.adapter, workspace.model.config, mesh=workspace.mesh)
        return evaluation.run(
            members, folder, evaluation_set=evaluation_set, workspace=workspace, lora=lora, description=label
        )

    return completed(folder, "evaluation", made_from, make)


def _import(run: Run, folder: Path, members: list[Question], rollouts: list[Rollout], label: str) -> Manifest:
    made_from = {
        "questions": {q.id: q.answer for q in members},
        "answers": digest([[r.question_id, r.sample, r.text, r.stop] for r in rollouts]),
    }
    return completed(
        folder,
        "evaluation",
        made_from,
        lambda: evaluation.import_answers(members, rollouts, folder, settings=run.config.grading, description=label),
        alone=True,
    )


def _tell_of_strangers(source: Path, rows: Sequence[GivenAnswer], asked: Mapping[str, Sequence[Question]]) -> None:
    """Says how many given answers are to no question of any set, which a wrong file or set has."""
    known = {id(row) for name, members in asked.items() for row in belonging(rows, members, set_name=name)}
    strangers = [row for row in rows if id(row) not in known]
    if strangers:
        first = strangers[0].id or strangers[0].question
        note(
            f"warning: {len(strangers)} of the {len(rows)} rows of {source} belong to no question of "
            f"{', '.join(asked)}, such as {first!r}: they were passed over"
        )


def _adapter_identity(trained: Manifest) -> str:
    """Of the adapter's files alone: the log beside them holds times."""
    return digest({name: facts["sha256"] for name, facts in trained.files.items() if name.startswith("adapter/")})
