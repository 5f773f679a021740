"""Base and adapter on the same questions."""

from pathlib import Path

from ssb_jax.artifacts import Manifest, digest, read_manifest
from ssb_jax.config import Config, EvaluationSet
from ssb_jax.console import note
from ssb_jax.model.adapters import load_adapter
from ssb_jax.model.lora import Lora
from ssb_jax.pipeline.run import Run, completed, kept_questions, prompt_identity, settings_of
from ssb_jax.records import Question
from ssb_jax.stages import evaluation


def evaluate(run: Run) -> dict[str, dict]:
    """Base and, when there is one, adapter on every evaluation set; writes `evaluation/results.json`.

    Returns:
      Set name -> summary (stages/evaluation.py).
    """
    if not run.config.evaluation.sets:
        note("evaluation.sets is empty: nothing is evaluated")
        return {}
    trained = read_manifest(run.training_folder)
    if trained is None:
        note(f"{run.folder} has no finished adapter: only the base model is evaluated")
    contestants = {"base": None} | ({run.config.method: _adapter_identity(trained)} if trained is not None else {})
    results, sources = {}, {}
    for evaluation_set in run.config.evaluation.sets:
        members = kept_questions(
            run, evaluation_set.data, run.folder / "evaluation" / evaluation_set.name / "questions"
        )
        unreported = [k for k in run.config.evaluation.pass_at if k > evaluation_set.num_samples]
        if unreported:
            note(f"{evaluation_set.name}: {evaluation_set.num_samples} sample(s) a question, no pass@{unreported}")
        answers = {}
        for name, identity in contestants.items():
            manifest = _answer_set(run, evaluation_set, members, name=name, adapter=identity)
            sources[f"{evaluation_set.name}/{name}"] = manifest.digest
            answers[name] = evaluation.load_answers(_answers_folder(run, evaluation_set, name), members)
        results[evaluation_set.name] = evaluation.summarise(
            members, answers, num_samples=evaluation_set.num_samples, settings=run.config.evaluation
        )
    evaluation.write_results(
        run.folder / "evaluation" / "results.json",
        results,
        method=method_label(run.config),
        seed=run.config.seed,
        made_from=sources,
    )
    return results


def method_label(config: Config) -> str:
    """How a comparison names the run: its method, and its loss where that is not the published one."""
    chosen = config.method.startswith("ssb") and config.distillation.loss != "ssb"
    return f"{config.method} {config.distillation.loss}" if chosen else config.method


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
        "prompts": prompt_identity(run, "system", "question", "examples"),
        "seed": run.config.seed,
        "num_samples": evaluation_set.num_samples,
        **settings_of(evaluation_set.sampling),
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

    return completed(folder, "evaluation", made_from, make)


def _adapter_identity(trained: Manifest) -> str:
    """Of the adapter's files alone: the log beside them holds times."""
    return digest({name: facts["sha256"] for name, facts in trained.files.items() if name.startswith("adapter/")})


def _load_adapter(run: Run) -> Lora:
    return load_adapter(run.adapter_folder, run.workspace.model.config, mesh=run.workspace.mesh)
