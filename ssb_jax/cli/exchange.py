"""`ssb exchange`: pairs and logits as the published PyTorch scripts write and read them."""

from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, in_run_folder, opened
from ssb_jax.console import note


@in_run_folder
@click.option("--write", "target", type=LocalPath(), help="Folder for the scripts' files, made from DIR.")
@click.option("--read", "source", type=LocalPath(exists=True), help="The scripts' files, taken into DIR.")
def exchange(
    config: Path, out: Path | str, overrides: tuple[str, ...], target: Path | None, source: Path | None
) -> None:
    """Exchange pairs and teacher logits with the published PyTorch scripts.

    After --read go on with `ssb distill` and `ssb eval`.
    """
    if (target is None) == (source is None):
        raise click.UsageError("expected either --write FOLDER or --read FOLDER")
    with opened(config, out, overrides) as (pipeline, current):
        from ssb_jax.exchange import read_scripts_files, write_scripts_files

        if target is not None:
            pipeline.confirm(current)
            note(f"{write_scripts_files(current, target)} pairs written to {target}")
        else:
            note(f"{read_scripts_files(current, source)} pairs taken from {source}; go on with `ssb distill`")
