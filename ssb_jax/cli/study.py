"""`ssb study`."""

from pathlib import Path

import click

from ssb_jax.cli.group import in_run_folder, use_compilation_cache
from ssb_jax.config import SsbError, load_config


@in_run_folder
def study(config: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Run the grid of runs that the section `study` names; finished ones are skipped."""
    from ssb_jax.artifacts import owning

    try:
        settings = load_config(config, overrides)
    except SsbError as error:
        raise click.UsageError(str(error)) from None
    with owning(out):
        use_compilation_cache(settings)
        from ssb_jax.study import run_study

        run_study(settings, out)
