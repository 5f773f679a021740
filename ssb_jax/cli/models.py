"""`ssb export` and `ssb pretrain-tiny`."""

from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, main


@main.command()
@click.argument("folder", metavar="DIR", type=LocalPath(exists=True, file_okay=False))
@click.option("--peft", type=LocalPath(), help="Folder for the adapter in PEFT's format.")
@click.option("--merged", type=LocalPath(), help="Folder for the base with the adapter merged in.")
def export(folder: Path, peft: Path | None, merged: Path | None) -> None:
    """Write a finished run's adapter for peft, or merged for transformers and vLLM."""
    if peft is None and merged is None:
        raise click.UsageError("expected --peft OUT, --merged OUT or both")
    from ssb_jax.export import export as write

    write(folder, peft=peft, merged=merged)


@main.command("pretrain-tiny")
@click.option("--out", required=True, type=LocalPath(), help="Folder for the checkpoint.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; the shipped model's by default.")
@click.option("--seed", default=0, show_default=True, help="Of the weights and the corpus.")
def pretrain_tiny(out: Path, steps: int | None, seed: int) -> None:
    """Pretrain the small model that ships in the package, from nothing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"--out {out}: expected a folder that is new or empty")
    from ssb_jax.tiny.pretrain import pretrain_tiny as pretrain

    pretrain(out, seed=seed, **({} if steps is None else {"steps": steps}))
