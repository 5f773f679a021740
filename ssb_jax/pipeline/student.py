"""From pairs to the student: the teacher's distributions, then the adapter."""

from ssb_jax.artifacts import Manifest, digest, read_manifest
from ssb_jax.config import Config, SsbError
from ssb_jax.losses.menu import loss_identity
from ssb_jax.pipeline.pairs import load_pairs
from ssb_jax.pipeline.run import Run, completed, settings_of
from ssb_jax.pipeline.views import view_pairs
from ssb_jax.stages import distillation, targets
from ssb_jax.store import pair_digest

SPEED_OF_DISTILLATION = (
    *("tensorboard", "wandb_project", "checkpoint_every", "keep_checkpoints", "on_nan", "health_every"),
    *("remat", "chunk_tokens", "packing", "micro_batch"),
)


def make_targets(run: Run) -> Manifest:
    """The teacher's distributions on the pairs' replies."""
    check_settings(run.config)
    folder, settings = run.folder / "targets", run.config.targets
    pairs = load_pairs(run)
    views = view_pairs(run, pairs)
    made_from = {
        "pairs": read_manifest(run.folder / "pairs").digest,
        "model": run.workspace.model_identity,
        **settings_of(settings, leave_out=("batch_size", "top_k", "views")),
    }
    if settings.encoding == "topk":
        made_from |= {"top_k": settings.top_k, "temperatures": targets.temperatures(run.config)}
    if views:
        made_from |= {"views": {name: digest([pair_digest(pair) for pair in view]) for name, view in views.items()}}
    return completed(
        folder,
        "targets",
        made_from,
        lambda: targets.run(pairs, config=run.config, folder=folder, workspace=run.workspace, views=views),
        patterns=("*", "*/*"),
    )


def check_settings(config: Config) -> None:
    """Whether the loss can be had from the targets that there will be: said before the first rollout.

    Raises:
      SsbError: it cannot.
    """
    if config.method in ("ssb", "sft", "rft"):
        distillation.check_settings(trained_config(config))


def distil(run: Run) -> Manifest:
    """Trains the adapter: on the teacher's distributions, or, method `sft` and `rft`, on the replies as they are."""
    config = trained_config(run.config)
    source = read_manifest(run.folder / "targets")
    if source is None:
        raise SsbError(f"{run.folder}: the targets are not complete; run `ssb targets` first")
    folder = run.folder / "distillation"
    pairs = load_pairs(run)
    made_from = {
        "targets": source.digest,
        "model": run.workspace.model_identity,
        "seed": config.seed,
        "lora": config.lora.model_dump(mode="json"),
        **settings_of(
            config.distillation,
            leave_out=SPEED_OF_DISTILLATION,
        ),
        **loss_identity(config.distillation.loss),
    }
    return completed(
        folder,
        "distillation",
        made_from,
        lambda: distillation.run(
            pairs,
            config=config,
            store_folder=run.folder / "targets",
            folder=folder,
            workspace=run.workspace,
            views=view_pairs(run, pairs),
        ),
        patterns=("metrics.jsonl", "adapter/*"),
    )


def trained_config(config: Config) -> Config:
    """The settings with the loss that the method means."""
    if config.method not in ("sft", "rft"):
        return config
    plain = config.distillation.model_copy(update={"loss": "cross_entropy", "loss_options": {}})
    return config.model_copy(update={"distillation": plain})
