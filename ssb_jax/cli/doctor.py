"""`ssb doctor`."""

from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, load_settings, main, place


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("config", type=LocalPath())
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--out", default="runs", show_default=True, callback=place, help="The run's folder, or its URL.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list on stdout.")
@click.pass_context
def doctor(context: click.Context, config: Path, overrides: tuple[str, ...], out: Path | str, as_json: bool) -> None:
    """Check tokenizer, prompts, questions, devices and disk of CONFIG before anything expensive.

    The exit status is 1 where a check fails.
    """
    settings = load_settings(config, overrides)
    from ssb_jax import doctor as checks

    findings = checks.examine(settings, out=out)
    if as_json:
        click.echo(checks.as_json(findings))
    else:
        checks.show(findings)
    context.exit(1 if any(f.status is checks.Status.FAIL for f in findings) else 0)
