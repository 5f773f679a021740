"""`ssb study`."""

from pathlib import Path

import click

from ssb_jax.cli.compare import compare
from ssb_jax.cli.group import in_run_folder, use_compilation_cache
from ssb_jax.config import SsbError, load_config


@in_run_folder
def study(config: Path, out: Path | str, overrides: tuple[str, ...]) -> None:
    """Run the grid that the section `study` names, and compare; finished runs are skipped.

    The comparison goes to study.csv, study.json and study.svg in the study's folder too.
    """
    from ssb_jax import hosts
    from ssb_jax.artifacts import owning

    if not isinstance(out, Path):
        raise click.UsageError(f"--out {out}: expected a folder on a disk; a study has no mirror in a bucket")
    try:
        settings = load_config(config, overrides)
    except SsbError as error:
        raise click.UsageError(str(error)) from None
    with hosts.stopping_on_sigterm(), owning(out):
        use_compilation_cache(settings)
        from ssb_jax.study import run_study

        folders = run_study(settings, out)
    files = {name: out / f"study.{ending}" for name, ending in (("csv", "csv"), ("json", "json"), ("figure", "svg"))}
    compare.callback(tuple(folders), reach=None, against=None, **files)
