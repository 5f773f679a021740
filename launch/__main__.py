"""`python -m launch BACKEND [options] -- SSB-COMMAND`."""

import sys

import click

from launch import local

ARGUMENTS = click.argument("arguments", nargs=-1, type=click.UNPROCESSED, required=True)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print exactly what would be executed, and stop.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run `ssb ARGUMENTS` on many hosts, for example: local --processes 2 -- run configs/tiny.yaml --out runs/tiny."""


@main.command("local")
@ARGUMENTS
@DRY_RUN
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, help="Virtual CPU devices of each.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of process 0; a free one by default.")
@click.option("--restarts", type=click.IntRange(0), default=20, show_default=True, help="After lost processes.")
def _local(arguments, dry_run, processes, devices, port, restarts) -> None:
    """Processes on this machine."""
    if dry_run:
        port = port or local.free_port()
        click.echo(local.show(local.plan(arguments, processes=processes, devices=devices, port=port)), nl=False)
        return
    sys.exit(local.run(arguments, processes=processes, devices=devices, port=port, restarts=restarts))


main(prog_name="launch")
