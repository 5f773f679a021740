"""From pairs to the student: the teacher's distributions, then the adapter."""

from ssb_jax.artifacts import Manifest, read_manifest
from ssb_jax.config import SsbError
from ssb_jax.pipeline.pairs import load_pairs
from ssb_jax.pipeline.run import Run, completed, settings_of
from ssb_jax.stages import distillation, targets

_SPEED_OF_DISTILLATION = (
    *("tensorboard", "wandb_project", "checkpoint_every", "keep_checkpoints", "on_nan"),
    *("remat", "chunk_tokens", "packing", "micro_batch"),
)


def make_targets(run: Run) -> Manifest:
    """The teacher's distributions on the pairs' replies."""
    folder = run.folder / "targets"
    pairs = load_pairs(run)
    made_from = {
        "pairs": read_manifest(run.folder / "pairs").digest,
        "model": run.workspace.model_identity,
        **settings_of(run.config.targets, leave_out=("batch_size",)),
    }
    return completed(
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
        **settings_of(
            run.config.distillation,
            leave_out=_SPEED_OF_DISTILLATION,
        ),
    }
    return completed(
        folder,
        "distillation",
        made_from,
        lambda: distillation.run(
            pairs, config=run.config, store_folder=run.folder / "targets", folder=folder, workspace=run.workspace
        ),
        patterns=("metrics.jsonl", "adapter/*"),
    )
