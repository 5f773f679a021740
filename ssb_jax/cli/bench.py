"""`ssb bench`: measurements, each one JSON object on stdout."""

import json
from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, load_settings, main, use_compilation_cache


@main.group()
def bench() -> None:
    """Measure a part of the pipeline: one JSON object on stdout, progress on stderr."""


@bench.command("rollout", context_settings={"ignore_unknown_options": True})
@click.argument("config", type=LocalPath())
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


def _on_pairs(function):
    """Arguments of a measurement on training pairs."""
    for option in (
        click.option("--reply", type=click.IntRange(1), default=256, show_default=True, help="Tokens of each reply."),
        click.option("--prompt", type=click.IntRange(1), default=160, show_default=True, help="Tokens of each prompt."),
        click.option("--pairs", type=LocalPath(), help="A run whose pairs are taken; else random ones."),
        click.argument("overrides", nargs=-1, type=click.UNPROCESSED),
        click.argument("config", type=LocalPath()),
    ):
        function = option(function)
    return function


@bench.command("distill", context_settings={"ignore_unknown_options": True})
@_on_pairs
@click.option("--against", type=click.Choice(["torch"]), help="The published trainer on the same pairs.")
@click.option("--steps", type=click.IntRange(3), default=5, show_default=True, help="The first is not counted.")
@click.option(
    "--remat",
    type=click.Choice(["none", "dots", "full"]),
    multiple=True,
    default=["none", "dots", "full"],
    show_default=True,
    help="Can be given several times.",
)
def bench_distill(
    config: Path, overrides: tuple[str, ...], against: str | None, steps: int, remat: tuple[str, ...], **pairs
) -> None:
    """Time and memory of CONFIG's training step, alone and against PyTorch."""
    settings = load_settings(config, overrides)
    from ssb_jax.bench.distill import bench_distill as measure

    kinds = tuple(dict.fromkeys(remat))
    click.echo(json.dumps(measure(settings, against=against, steps=steps, remat=kinds, **pairs), indent=1))


@bench.command("targets", context_settings={"ignore_unknown_options": True})
@_on_pairs
def bench_targets(config: Path, overrides: tuple[str, ...], **pairs) -> None:
    """Time and memory of the teacher's pass, and what it stores."""
    settings = load_settings(config, overrides)
    from ssb_jax.bench.distill import bench_targets as measure

    click.echo(json.dumps(measure(settings, **pairs), indent=1))


@bench.command("parity", context_settings={"ignore_unknown_options": True})
@click.argument("folder", metavar="DIR", type=LocalPath(exists=True, file_okay=False))
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--steps", type=click.IntRange(1), default=48, show_default=True, help="At least; epochs are whole.")
@click.option("--prompts", type=click.IntRange(1), default=20, show_default=True, help="Questions answered greedily.")
def bench_parity(folder: Path, overrides: tuple[str, ...], steps: int, prompts: int) -> None:
    """Our trainer against the published one in PyTorch on DIR's pairs: every step, and greedy answers."""
    settings = load_settings(folder / "config.yaml", overrides)
    use_compilation_cache(settings)
    from ssb_jax.bench.parity import bench_parity as measure

    click.echo(json.dumps(measure(settings, folder, steps=steps, prompts=prompts), indent=1))
