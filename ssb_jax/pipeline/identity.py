"""What a comparison must know of a run: how its method is called, and which settings its model comes from."""

from typing import Any

from ssb_jax.artifacts import digest
from ssb_jax.config import Config
from ssb_jax.pipeline.run import Run, settings_of
from ssb_jax.pipeline.student import SPEED_OF_DISTILLATION, trained_config

_OPTIMIZER = ("betas", "eps", "weight_decay", "max_grad_norm")  # which GRPO takes from `distillation`
_AMOUNT = ("limit", "shuffle_seed")  # of questions, and which: a comparison's axis, and a seed
_LABELS_OF_DATA = ("question_column", "answer_column", "answer_pattern", "id_column")


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
        "questions": settings_of(config.questions, leave_out=(*_AMOUNT, *_LABELS_OF_DATA)),
        "prompts": settings_of(config.prompts),
        "lora": settings_of(config.lora),
        **_of_method(config),
    }
    flat = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {"model": model_name(run), **flat}


def _of_method(config: Config) -> dict[str, dict[str, Any]]:
    if config.method == "grpo":
        optimizer = {key: value for key, value in settings_of(config.distillation).items() if key in _OPTIMIZER}
        return {"grpo": settings_of(config.grpo, leave_out=("checkpoint_every",)), "distillation": optimizer}
    sections = {
        "rollouts": settings_of(config.rollouts, leave_out=("block_size", "attempts")),
        "distillation": settings_of(config.distillation, leave_out=SPEED_OF_DISTILLATION),
    }
    if config.method == "on-policy":
        return sections | {"on_policy": settings_of(config.on_policy, leave_out=("checkpoint_every",))}
    if config.method == "rft":
        return sections
    sections["teaching"] = settings_of(config.teaching, leave_out=("max_pairs",))
    if config.method == "ssb" and config.targets.encoding == "topk":  # the other encodings are exact
        sections["targets"] = {"encoding": "topk", "top_k": config.targets.top_k}
    return sections
