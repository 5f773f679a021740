"""`ssb study`."""

from pathlib import Path

import click

from ssb_jax.cli.compare import compare
from ssb_jax.cli.group import in_run_folder, load_settings, use_compilation_cache
from ssb_jax.config import SsbError


def _part(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int]:
    number, slash, count = (value or "1/1").partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(f"expected I/N with I from 1 to N, such as 2/3, got {value}")
    return int(number), int(count)


@in_run_folder
@click.option("--part", metavar="I/N", callback=_part, help="Only every N-th cell from the I-th: one part a host.")
def study(config: Path, out: Path | str, overrides: tuple[str, ...], part: tuple[int, int]) -> None:
    """Run the grid that the section `study` names, and compare; finished runs are skipped.

    The comparison goes to study.csv, study.json and study.svg in the study's folder too. Hosts that see the folder can
    share the grid: `--part 1/3`, `--part 2/3` and `--part 3/3`.
    """
    if not isinstance(out, Path):
        raise click.UsageError(f"--out {out}: expected a folder on a disk; a study has no mirror in a bucket")
    settings = load_settings(config, overrides)
    from ssb_jax import hosts

    with hosts.stopping_on_sigterm():
        use_compilation_cache(settings)
        from ssb_jax.study import Part, cells, run_study

        try:
            grid = cells(settings)
        except SsbError as error:
            raise click.UsageError(str(error)) from None
        folders = run_study(settings, grid, out, part=Part(*part))
    files = {name: out / f"study.{ending}" for name, ending in (("csv", "csv"), ("json", "json"), ("figure", "svg"))}
    if folders:  # a part of a grid with fewer cells than parts has nothing yet
        compare.callback(tuple(folders), reach=None, against=None, **files)
