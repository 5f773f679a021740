"""`ssb bench`: measurements, each one JSON object on stdout."""

import json
from pathlib import Path

import click

from ssb_jax.cli.group import load_settings, main, use_compilation_cache


@main.group()
def bench() -> None:
    """Measure a part of the pipeline: one JSON object on stdout, progress on stderr."""


@bench.command("rollout", context_settings={"ignore_unknown_options": True})
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--against", type=click.Choice(["transformers", "tunix"]), help="A peer for the same requests.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="The peer's batch.")
@click.option("--batches", type=click.IntRange(1), help="The peer answers so many of its batches; all by default.")
@click.option("--singles", type=click.IntRange(0), default=4, show_default=True, help="Sequences the peer does alone.")
@click.option("--forced", is_flag=True, help="No stop tokens: every sequence has rollouts.max_new_tokens tokens.")
@click.option("--once", is_flag=True, help="No second, warm run of the engine.")
def bench_rollout(config: Path, overrides: tuple[str, ...], **how: object) -> None:
    """Sample the rollouts of CONFIG's questions, cold and warm, and through a peer."""
    settings = load_settings(config, overrides)
    use_compilation_cache(settings)
    from ssb_jax.bench.rollout import bench_rollout as measure

    report = measure(settings, **how)
    click.echo(json.dumps(report, indent=1))
