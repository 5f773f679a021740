"""`ssb verify`."""

import json
from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, OutputFile, main


@main.command()
@click.argument("source", metavar="IN.jsonl", required=False, type=LocalPath())
@click.option("--out", type=OutputFile(), help="Where the graded rows go.")
@click.option("--explain", nargs=2, metavar="RESPONSE GOLD", help="Grade one response and say why.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, 60, min_open=True),
    default=1.5,
    show_default=True,
    help="Seconds a response.",
)
def verify(source: Path | None, out: Path | None, explain: tuple[str, str] | None, time_limit: float) -> None:
    """Grade rows with `gold` and `response`; adds `correct`, `extracted` and `reason`."""
    from ssb_jax import answers

    if explain is not None:
        if source is not None or out is not None:
            raise click.UsageError("--explain grades one pair; give either it or IN.jsonl and --out")
        click.echo(answers.explain(*explain, time_limit=time_limit))
        return
    if source is None or out is None:
        raise click.UsageError("expected IN.jsonl and --out OUT.jsonl, or --explain RESPONSE GOLD")
    if out.resolve() == source.resolve():
        raise click.UsageError(f"--out {out} is the input itself; choose another file")
    click.echo(json.dumps(answers.verify_file(source, out, time_limit=time_limit)))
