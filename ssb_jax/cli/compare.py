"""`ssb compare`."""

import math
from collections.abc import Sequence
from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, OutputFile, main
from ssb_jax.console import table
from ssb_jax.figures import FORMATS


def _number(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("expected an accuracy from 0 to 1, got nan")
    return value


def _format(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in FORMATS:
        raise click.BadParameter(f"expected a name that ends with {', '.join(FORMATS)}, got {value}")
    return value


@main.command()
@click.argument("sources", metavar="DIR...", nargs=-1, required=True, type=LocalPath())
@click.option(
    "--reach",
    type=click.FloatRange(0, 1),
    callback=_number,
    help="Accuracy to be reached; the weakest method's best, or the base's where that is more.",
)
@click.option("--against", metavar="METHOD", help="The method that differences are taken to; ssb, or the first.")
@click.option("--csv", type=OutputFile(), help="File for the points as CSV.")
@click.option("--json", type=OutputFile(), help="File for everything as JSON.")
@click.option("--figure", type=OutputFile(), callback=_format, help="File for the figures: .svg, .png or .pdf.")
def compare(
    sources: tuple[Path, ...],
    reach: float | None,
    against: str | None,
    csv: Path | None,
    json: Path | None,
    figure: Path | None,
) -> None:
    """Accuracy against questions, tokens, FLOPs and time, of run folders and files of results."""
    _refuse_same_files(sources, [path for path in (csv, json, figure) if path is not None])
    from ssb_jax.compare import compare as points_of
    from ssb_jax.compare import output, read_results

    comparison = points_of(read_results(sources), accuracy=reach, against=against)
    for path, write in ((csv, output.write_csv), (json, output.write_json), (figure, output.write_figure)):
        if path is not None:
            write(comparison, path)
    for title, header, rows in (*output.point_tables(comparison), *output.reach_tables(comparison)):
        table(title, header, rows)
    for warning in comparison.warnings:  # part of what the tables say
        click.echo(f"warning: {warning}")


def _refuse_same_files(sources: Sequence[Path], outputs: Sequence[Path]) -> None:
    taken = {source.resolve() for source in sources}
    for path in outputs:
        if path.resolve() in taken:
            raise click.UsageError(f"{path} is an input, or named twice; give each output a file of its own")
        taken.add(path.resolve())
