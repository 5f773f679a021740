"""The plans for TPU VMs, GKE and SkyPilot, from a slice's name and the command."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from launch.script import cost, fill

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Slice:
    """A TPU slice as the clouds name it.

    Attributes:
      kind: what TPU VMs and SkyPilot call it.
      gke: (accelerator, topology) for GKE's node selectors.
      runtime: the software of TPU VMs.
    """

    kind: str
    chips: int
    hosts: int
    gke: tuple[str, str]
    runtime: str

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts


def _v5e(topology: str, chips: int, hosts: int) -> Slice:
    return Slice(f"v5litepod-{chips}", chips, hosts, ("tpu-v5-lite-podslice", topology), "v2-alpha-tpuv5-lite")


def _v5p(topology: str, chips: int) -> Slice:
    # The number in its name counts cores, two a chip.
    return Slice(f"v5p-{2 * chips}", chips, chips // 4, ("tpu-v5p-slice", topology), "v2-alpha-tpuv5")


def _v6e(topology: str, chips: int, hosts: int) -> Slice:
    return Slice(f"v6e-{chips}", chips, hosts, ("tpu-v6e-slice", topology), "v2-alpha-tpuv6e")


SLICES = {
    "v5e:2x2": _v5e("2x2", 4, 1),
    "v5e:2x4": _v5e("2x4", 8, 2),
    "v5e:4x4": _v5e("4x4", 16, 4),
    "v5e:4x8": _v5e("4x8", 32, 8),
    "v5e:8x8": _v5e("8x8", 64, 16),
    "v5p:2x2x1": _v5p("2x2x1", 4),
    "v5p:2x2x2": _v5p("2x2x2", 8),
    "v5p:2x2x4": _v5p("2x2x4", 16),
    "v5p:2x4x4": _v5p("2x4x4", 32),
    "v5p:4x4x4": _v5p("4x4x4", 64),
    "v6e:2x2": _v6e("2x2", 4, 1),
    "v6e:2x4": _v6e("2x4", 8, 2),
    "v6e:4x4": _v6e("4x4", 16, 4),
    "v6e:4x8": _v6e("4x8", 32, 8),
}


def is_in_bucket(arguments: Sequence[str]) -> bool:
    """Whether `ssb` is to work in Google's object store."""
    return re.search(r"--out[ =]gs://", " ".join(arguments)) is not None


def _extras(arguments: Sequence[str]) -> str:
    """Of the package, for hosts that are to run this."""
    return "[tpu,gcs]" if any("gs://" in argument for argument in arguments) else "[tpu]"


def tpu_vm(
    arguments: Sequence[str],
    *,
    name: str,
    topology: str,
    project: str,
    zone: str,
    spot: bool,
    attempts: int,
    setup: str,
    price: float | None,
) -> str:
    """The script for TPU VMs.

    Args:
      setup: a shell command for each host before each run, such as mounting the disk of an --out that is no URL.
    """
    where = SLICES[topology]
    command = f"cd ssb-jax; SSB_COORDINATOR=auto ../ssb/bin/ssb {shlex.join(arguments)}"
    install = (
        "mkdir -p ssb-jax && tar -xzf ssb-jax.tar.gz -C ssb-jax && "
        f"python3 -m venv ssb && ssb/bin/pip install --quiet './ssb-jax{_extras(arguments)}'"
    )
    template = (HERE / "tpu_vm.sh").read_text()
    # An option, or nothing: not a value to be quoted.
    template = template.replace(" @tier@", " --spot" if spot else "")
    return fill(
        template,
        {
            "name": name,
            "project": project,
            "zone": zone,
            "accelerator": where.kind,
            "runtime": where.runtime,
            "spot": "yes" if spot else "no",
            "attempts": attempts,
            "poll_seconds": 20,
            "install": f"{setup} && {install}" if setup else install,
            "run": f"rm -f ssb-status; {command}; echo $? > ~/ssb-status",
            "cost": cost(where.chips, price),
        },
    )


def gke(
    arguments: Sequence[str],
    *,
    name: str,
    topology: str,
    namespace: str,
    image: str,
    claim: str | None,
    spot: bool,
    restarts: int,
    price: float | None,
) -> str:
    """The script for GKE, with its manifest."""
    manifest = jobset(arguments, name=name, topology=topology, image=image, claim=claim, spot=spot, restarts=restarts)
    return fill(
        (HERE / "gke.sh").read_text(),
        {
            "name": name,
            "namespace": namespace,
            "manifest": yaml.safe_dump(manifest, sort_keys=False),
            "poll_seconds": 10,
            "cost": cost(SLICES[topology].chips, price),
        },
    )


def jobset(
    arguments: Sequence[str], *, name: str, topology: str, image: str, claim: str | None, spot: bool, restarts: int
) -> dict:
    """A JobSet: one pod a host; lost pods restart all of them, an error of `ssb` (1, 2) restarts none."""
    where = SLICES[topology]
    accelerator, shape = where.gke
    selector = {"cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": shape}
    if spot:
        selector["cloud.google.com/gke-spot"] = "true"
    container = {
        "name": "ssb",
        "image": image,
        "command": ["ssb", *arguments],
        "env": [{"name": "SSB_COORDINATOR", "value": "auto"}],
        "resources": {"limits": {"google.com/tpu": where.chips_per_host}},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,
        "nodeSelector": selector,
        "containers": [container],
    }
    if claim is not None:
        container["volumeMounts"] = [{"name": "runs", "mountPath": "/runs"}]
        pod["volumes"] = [{"name": "runs", "persistentVolumeClaim": {"claimName": claim}}]
    job = {
        "parallelism": where.hosts,
        "completions": where.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "ssb", "operator": "In", "values": [1, 2]},
                }
            ]
        },
        "template": {"spec": pod},
    }
    error = {"name": "error", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": {"maxRestarts": restarts, "rules": [error]},
            "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": job}}],
        },
    }


def skypilot(arguments: Sequence[str], *, name: str, topology: str, setup: str, spot: bool, price: float | None) -> str:
    """The script for SkyPilot, with its task."""
    task = sky_task(arguments, name=name, topology=topology, setup=setup, spot=spot)
    text = yaml.safe_dump(task, sort_keys=False)
    values = {"name": name, "task": text, "cost": cost(SLICES[topology].chips, price)}
    return fill((HERE / "sky.sh").read_text(), values)


def sky_task(arguments: Sequence[str], *, name: str, topology: str, setup: str, spot: bool) -> dict:
    """A SkyPilot task: `run` is executed on every host of the slice."""
    where = SLICES[topology]
    return {
        "name": name,
        "workdir": ".",
        "resources": {
            "infra": "gcp",
            "accelerators": f"tpu-{where.kind}",
            "accelerator_args": {"runtime_version": where.runtime},
            "use_spot": spot,
            # Stopped; and killed, or ended because another host was.
            "job_recovery": {"strategy": "FAILOVER", "recover_on_exit_codes": [75, 134, 137, 143]},
        },
        "setup": "\n".join(
            filter(None, ["python3 -m venv ~/ssb", f"~/ssb/bin/pip install '.{_extras(arguments)}'", setup])
        ),
        "run": f"SSB_COORDINATOR=auto ~/ssb/bin/ssb {shlex.join(arguments)}",
    }
