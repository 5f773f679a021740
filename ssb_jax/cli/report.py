"""`ssb report`."""

from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, OutputFile, main


@main.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=LocalPath())
@click.option("--out", required=True, type=OutputFile(), help="The HTML file.")
@click.option(
    "--questions", type=click.IntRange(min=0), default=120, show_default=True, help="Of each set, in the reader."
)
@click.option(
    "--replies", type=click.IntRange(min=0), default=24, show_default=True, help="With their tokens shaded by KL."
)
def report(folders: tuple[Path, ...], out: Path, questions: int, replies: int) -> None:
    """One HTML file of runs, finished or not: accuracy, funnel, curves, and a reader of their questions."""
    from ssb_jax.report import write_report

    write_report(folders, out, questions=questions, replies=replies)
