"""`ssb torch-distill`."""

from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, main
from ssb_jax.config import SsbError, load_config


@main.command("torch-distill", context_settings={"ignore_unknown_options": True})
@click.argument("folder", metavar="DIR", type=LocalPath(exists=True, file_okay=False))
@click.option("--out", required=True, type=LocalPath(), help="Folder for metrics and adapter.")
@click.option("--stored", is_flag=True, help="Learn from DIR's targets; otherwise torch runs the teacher first.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def torch_distill(folder: Path, out: Path, stored: bool, overrides: tuple[str, ...]) -> None:
    """Train on the pairs of a run with the published trainer, in PyTorch (extra `torch`)."""
    try:
        config = load_config(folder / "config.yaml", overrides)
    except SsbError as error:
        raise click.UsageError(str(error)) from None
    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator is torch's

    from ssb_jax.artifacts import complete, owning, read_jsonl, read_manifest
    from ssb_jax.baselines import torch_trainer
    from ssb_jax.console import mapping, note
    from ssb_jax.records import Pair
    from ssb_jax.workspace import Workspace

    source = read_manifest(folder / "pairs")
    if source is None:
        raise SsbError(f"{folder} has no finished pairs; run `ssb run` or `ssb teach` first")
    workspace = Workspace(config)
    made_from = {
        "pairs": source.digest,
        "stored_targets": stored,
        "model": workspace.model_identity,
        "seed": config.seed,
        "lora": config.lora.model_dump(mode="json"),
        "distillation": config.distillation.model_dump(mode="json"),
    }
    with owning(out):
        manifest, was_there = complete(
            out,
            stage="torch-distill",
            made_from=made_from,
            make=lambda: torch_trainer.run(
                read_jsonl(folder / "pairs" / "pairs.jsonl", Pair),
                config=config,
                folder=out,
                workspace=workspace,
                store_folder=folder / "targets" if stored else None,
            ),
            patterns=("metrics.jsonl", "adapter/*"),
        )
    note(f"torch-distill: {mapping(manifest.counts)}" + (" (complete, skipped)" if was_there else ""))
