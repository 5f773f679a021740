"""`python -m launch BACKEND [options] -- SSB-COMMAND`."""

import sys
from collections.abc import Callable

import click

from launch import cloud, local, script

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


def _in_cloud(function: Callable) -> Callable:
    """Options of every cloud."""
    options = (
        ARGUMENTS,
        DRY_RUN,
        click.option("--name", default="ssb", show_default=True, help="Of what is created; taken up if it exists."),
        click.option("--topology", type=click.Choice(list(cloud.SLICES)), required=True),
        click.option("--spot/--on-demand", default=True, show_default=True),
        click.option("--price-per-chip-hour", "price", type=click.FloatRange(0), help="For the cost line."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _carry_out(plan: str, dry_run: bool) -> None:
    if dry_run:
        click.echo(plan, nl=False)
    else:
        sys.exit(script.execute(plan))


@main.command("tpu-vm")
@_in_cloud
@click.option("--project", required=True)
@click.option("--zone", required=True)
@click.option("--attempts", type=click.IntRange(1), default=100, show_default=True, help="Slices made, one at a time.")
@click.option(
    "--setup", default="", help="Shell command on each host first, such as mounting the disk of --out, if it is no URL."
)
def _tpu_vm(arguments, dry_run, **options) -> None:
    """A TPU slice by a queued resource of gcloud; deleted at the end."""
    if not options["setup"] and not cloud.is_in_bucket(arguments):
        raise click.UsageError(
            "expected --out gs://BUCKET/RUN, or --setup that mounts its disk: what is on the slice goes with it"
        )
    _carry_out(cloud.tpu_vm(arguments, **options), dry_run)


@main.command("gke")
@_in_cloud
@click.option("--namespace", default="default", show_default=True)
@click.option("--image", required=True, help="Container image with ssb-jax[tpu], or [tpu,gcs].")
@click.option("--claim", help="PersistentVolumeClaim, mounted at /runs by all pods: for an --out that is no URL.")
@click.option("--restarts", type=click.IntRange(0), default=100, show_default=True, help="After lost pods.")
def _gke(arguments, dry_run, **options) -> None:
    """A JobSet on a GKE cluster; deleted at the end."""
    if options["claim"] is None and not cloud.is_in_bucket(arguments):
        raise click.UsageError(
            "expected --claim, or --out gs://BUCKET/RUN: the pods have no folder that all of them see"
        )
    _carry_out(cloud.gke(arguments, **options), dry_run)


@main.command("skypilot")
@_in_cloud
@click.option(
    "--setup", default="", help="Shell command on each host first, such as mounting the disk of --out, if it is no URL."
)
def _skypilot(arguments, dry_run, **options) -> None:
    """A managed job of SkyPilot."""
    _carry_out(cloud.skypilot(arguments, **options), dry_run)


main(prog_name="launch")
