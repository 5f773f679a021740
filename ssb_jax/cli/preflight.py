"""`ssb preflight`."""

import json
from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, load_settings, main
from ssb_jax.console import note


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("config", type=LocalPath())
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--topology", default="local", show_default=True, help="A TPU slice such as v5e:4x4, or this machine.")
@click.option(
    "--stage",
    default="all",
    show_default=True,
    help="rollout, teach, targets, distill, grpo, eval (commas), or all of the method's.",
)
@click.option("--model-config", type=LocalPath(), help="A config.json to take the model's shape from.")
@click.option("--question-tokens", type=click.IntRange(1), default=256, show_default=True, help="Of a prompt.")
@click.option("--answer-tokens", type=click.IntRange(1), default=320, show_default=True, help="Of an average answer.")
@click.option("--longest-answer", type=click.IntRange(1), help="That comes up; by default what max_new_tokens allows.")
@click.option(
    "--pair-share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.25,
    show_default=True,
    help="Pairs that come of a question.",
)
@click.option("--suggest", is_flag=True, help="Find the mesh, slots and micro-batch that fit and take least.")
@click.option("--estimate", is_flag=True, help="Compile nothing: memory by estimate too, in seconds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def preflight(
    context: click.Context,
    config: Path,
    overrides: tuple[str, ...],
    topology: str,
    stage: str,
    model_config: Path | None,
    suggest: bool,
    estimate: bool,
    as_json: bool,
    **assumed: int | float | None,
) -> None:
    """What a run of CONFIG needs on a TPU slice, without one: memory, collectives, time.

    The exit status is 1 where it does not fit.
    """
    settings = load_settings(config, overrides)
    from ssb_jax.preflight.chips import load_topology
    from ssb_jax.preflight.estimate import SAFE
    from ssb_jax.preflight.job import Assumed, make_job
    from ssb_jax.preflight.models import model_shape
    from ssb_jax.preflight.report import preflight as check
    from ssb_jax.preflight.report import show
    from ssb_jax.preflight.workload import STAGES, check_amounts, stages_of

    stages = stages_of(settings) if stage == "all" else tuple(stage.split(","))
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise click.UsageError(f"--stage: expected all, or some of {', '.join(STAGES)}; got {', '.join(unknown)}")
    shape, source = model_shape(settings.model, file=model_config)
    job = make_job(settings, shape, load_topology(topology), Assumed(**assumed), stage=stages[0])
    check_amounts(job, stages)
    report = {}
    if suggest:
        from ssb_jax.preflight.suggest import suggest as find

        found = find(job, stages, compiling=not estimate)
        job, report = found[0].job, {"suggested": found[0].overrides}
        share = found[0].peak / job.topology.chip.memory
        how = "that fit by estimate, the fastest"
        if share > SAFE:
            how = f"that may fit, {100 * share:.0f} % full by estimate"
        note(f"of {len(found)} meshes {how}: {' '.join(found[0].overrides)}")
    report |= check(job, stages=stages, source=source, compiling=not estimate)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        show(report)
        if suggest:
            click.echo(f"Suggested: {' '.join(report['suggested'])}")
    context.exit(0 if report["fits"] else 1)
