"""What a comparison must know of a run: how its method is called, and which settings its model comes from."""

from pathlib import Path
from typing import Any

from ssb_jax.artifacts import digest, file_digest, read_manifest
from ssb_jax.config import Config
from ssb_jax.pipeline.run import Run, prompt_identity, settings_of
from ssb_jax.pipeline.student import SPEED_OF_DISTILLATION, trained_config
from ssb_jax.stages.questions import source_identity

_OPTIMIZER = ("betas", "eps", "weight_decay", "max_grad_norm")  # which GRPO takes from `distillation`
_QUESTIONS = ("path", "name", "split", "revision")  # not how many, a comparison's axis, nor which first, a seed
_TEXTS = ("system", "question", "hinted", "examples")  # of prompts: files, of which the content counts


def method_label(config: Config) -> str:
    """How a comparison names the run: its method, and its loss where that is not the published one."""
    chosen = config.method.startswith("ssb") and config.distillation.loss != "ssb"
    return f"{config.method} {config.distillation.loss}" if chosen else config.method


def model_name(run: Run) -> str:
    """The base's name, and a digest of its files."""
    path = run.config.model.path.rstrip("/")
    return f"{path.rpartition('/')[2]} {digest(run.workspace.model_identity)[:6]}"


def settings_of_training(run: Run) -> dict[str, Any]:
    """`section.key` -> value of all that decides what the adapter learns, but seed and number of questions.

    Runs of one method that agree in it are seeds of each other; others are not. Of what the method does not use, and of
    what changes only speed, nothing is said.
    """
    config = trained_config(run.config)
    sections = {
        "questions": _questions(run),
        "prompts": settings_of(config.prompts, leave_out=_TEXTS) | {"texts": _prompt_texts(run)},
        "lora": settings_of(config.lora),
        **_of_method(config),
    }
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {"model": model_name(run), **flat}


def _questions(run: Run) -> dict[str, Any]:
    """Where the questions are from; a file on this machine by what is in it."""
    named = {key: value for key, value in settings_of(run.config.questions).items() if key in _QUESTIONS}
    kept = read_manifest(run.folder / "questions")
    file = source_identity(run.config.questions) if kept is None else kept.made_from["file"]
    return named if file is None else named | {"path": f"{Path(named['path']).name} {file[:6]}"}


def _prompt_texts(run: Run) -> str:
    names = ("system", "question", "examples")
    if run.config.method not in ("rft", "grpo"):
        names += ("hinted",)
    return digest(prompt_identity(run, *names))[:6]


def _loss(config: Config) -> str:
    """The loss's name; one in a file of the user's with a digest of that file."""
    name = config.distillation.loss
    path = Path(name.rpartition(":")[0])
    return f"{name} {file_digest(path)[:6]}" if path.suffix == ".py" and path.is_file() else name


def _of_method(config: Config) -> dict[str, dict[str, Any]]:
    if config.method == "grpo":
        optimizer = {key: value for key, value in settings_of(config.distillation).items() if key in _OPTIMIZER}
        return {"grpo": settings_of(config.grpo, leave_out=("checkpoint_every",)), "distillation": optimizer}
    sections = {
        "rollouts": settings_of(config.rollouts, leave_out=("block_size", "attempts")),
        "distillation": settings_of(config.distillation, leave_out=SPEED_OF_DISTILLATION) | {"loss": _loss(config)},
    }
    if config.method == "on-policy":
        return sections | {"on_policy": settings_of(config.on_policy, leave_out=("checkpoint_every",))}
    if config.method == "rft":
        return sections | {"teaching": {"max_pairs": config.teaching.max_pairs}}
    top_k = config.targets.top_k if config.method == "ssb" and config.targets.encoding == "topk" else None
    return sections | {
        "teaching": settings_of(config.teaching),
        "targets": {"top_k": top_k},  # the other encodings are exact
    }
