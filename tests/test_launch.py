"""Launching: dry runs are the golden files, what is created is deleted, lost hosts start again and errors do not."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "launch"
COMMAND = ("--", "run", "configs/qwen2.5-3b-gsm8k.yaml", "--out", "/runs/it's")
SLICE = ("--topology", "v5e:4x4", "--price-per-chip-hour", "0.5")
DRY_RUNS = {
    "local": ("local", "--processes", "2", "--devices", "4", "--port", "12345"),
    "tpu-vm": ("tpu-vm", *SLICE, "--project", "ours", "--zone", "us-west4-a", "--setup", "sudo mount /runs"),
    "gke": ("gke", *SLICE, "--image", "registry/ssb-jax:1", "--claim", "runs"),
    "skypilot": ("skypilot", *SLICE, "--on-demand", "--setup", "sudo mount /runs"),
}


def launch(*arguments, **options):
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


@pytest.mark.parametrize("name", DRY_RUNS)
def test_a_dry_run_prints_what_would_be_executed(name):
    result = launch(*DRY_RUNS[name], "--dry-run", *COMMAND)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.replace(sys.executable, "python") == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.parametrize("name", DRY_RUNS)
def test_scripts_pass_shellcheck(name):
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, "--shell=bash", GOLDEN / f"{name}.sh"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_jobset_is_valid():
    jsonschema = pytest.importorskip("jsonschema")
    if "SSB_JOBSET_CRD" not in os.environ:
        pytest.skip("SSB_JOBSET_CRD does not name a copy of jobset.x-k8s.io_jobsets.yaml")
    crd = yaml.safe_load(Path(os.environ["SSB_JOBSET_CRD"]).read_text())
    schema = next(v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1alpha2")
    jsonschema.validate(manifest_of("gke", "manifest="), _closed(schema))


def _closed(schema):
    """The schema with unknown fields refused, as the API server refuses them when asked to."""
    if isinstance(schema, dict):
        schema = {key: _closed(value) for key, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
            free = schema.get("x-kubernetes-preserve-unknown-fields") or set(schema["properties"]) == set()
            if not free and schema.get("type") == "object" and "metadata" not in schema.get("required", ()):
                schema["additionalProperties"] = False
    return schema


def manifest_of(name, prefix):
    """The YAML that a golden script holds as one quoted word."""
    words = shlex.split((GOLDEN / f"{name}.sh").read_text(), comments=True)
    return yaml.safe_load(next(word.removeprefix(prefix) for word in words if word.startswith(prefix)))


def test_manifests_say_what_the_command_line_says():
    jobset = manifest_of("gke", "manifest=")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert container["command"] == ["ssb", *COMMAND[1:]]
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == 16
    task = manifest_of("skypilot", "<<<")
    assert shlex.split(task["run"])[1:] == ["~/ssb/bin/ssb", *COMMAND[1:]]
    assert task["resources"]["use_spot"] is False


def test_a_run_in_a_bucket_needs_no_disk_that_all_hosts_see():
    command = ("--", "run", "configs/qwen2.5-3b-gsm8k.yaml", "--out", "gs://bucket/runs/qwen3b")
    without_claim = [argument for argument in DRY_RUNS["gke"] if argument not in ("--claim", "runs")]
    refused = launch(*without_claim, "--dry-run", *COMMAND)
    assert (refused.returncode, "expected --claim, or --out gs://" in refused.stderr) == (2, True)
    gke = launch(*without_claim, "--dry-run", *command)
    assert (gke.returncode, "persistentVolumeClaim" in gke.stdout, "/runs\n" in gke.stdout) == (0, False, False)
    for name in ("tpu-vm", "skypilot"):
        assert "[tpu,gcs]" in launch(*DRY_RUNS[name], "--dry-run", *command).stdout


# A gcloud that keeps the state of one queued resource in a file, and whose hosts run no command.
GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")"
echo "$*" >> calls
case $* in
  *'queued-resources list'*) cat state 2>/dev/null ;;
  *'queued-resources create'*)
    [ ! -e refuse ] || { echo 'Quota limit exceeded' >&2; exit 1; }
    echo ACTIVE > state ;;
  *'queued-resources delete'*) rm state ;;
  *'cat ssb-status'*)
    head -1 statuses | tr , '\\n'; sed -i 1d statuses
    [ ! -e preempt ] || { rm preempt; echo SUSPENDED > state; } ;;
  *'ssh'*ssb/bin/ssb*) [ ! -e slow ] || sleep 60 ;;
esac
"""


@pytest.fixture
def gcloud(tmp_path):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    return tmp_path


def in_cloud(gcloud, **options):
    return {"env": os.environ | {"PATH": f"{gcloud}:{os.environ['PATH']}"}, **options}


def created(gcloud):
    return (gcloud / "calls").read_text().count("queued-resources create")


def test_a_preempted_slice_is_made_anew_until_the_run_is_done_and_nothing_is_left(gcloud):
    (gcloud / "preempt").touch()
    (gcloud / "statuses").write_text("75,134\n0,0\n")
    result = launch(*DRY_RUNS["tpu-vm"], *COMMAND, **in_cloud(gcloud))
    assert result.returncode == 0, result.stderr
    assert created(gcloud) == 2
    assert not (gcloud / "state").exists()
    assert "16 chips x 0.5 = 8.00 an hour" in result.stderr.splitlines()[0]


def test_an_error_of_the_run_ends_it_and_nothing_is_left(gcloud):
    (gcloud / "statuses").write_text("1,134\n")
    assert launch(*DRY_RUNS["tpu-vm"], *COMMAND, **in_cloud(gcloud)).returncode == 1
    assert created(gcloud) == 1
    assert not (gcloud / "state").exists()


def test_a_refused_quota_is_said_and_nothing_is_left(gcloud):
    (gcloud / "refuse").touch()
    result = launch(*DRY_RUNS["tpu-vm"], *COMMAND, **in_cloud(gcloud))
    assert result.returncode == 1
    assert "Quota limit exceeded" in result.stderr
    assert not (gcloud / "state").exists()


def test_a_resource_of_the_name_is_taken_up(gcloud):
    (gcloud / "state").write_text("ACTIVE\n")
    (gcloud / "statuses").write_text("0\n")
    assert launch(*DRY_RUNS["tpu-vm"], *COMMAND, **in_cloud(gcloud)).returncode == 0
    assert created(gcloud) == 0


def test_ended_in_the_middle_it_deletes_what_it_created(gcloud):
    (gcloud / "slow").touch()
    command = [sys.executable, "-m", "launch", *DRY_RUNS["tpu-vm"], *COMMAND]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, **in_cloud(gcloud))
    while not (gcloud / "calls").exists() or "ssb/bin/ssb" not in (gcloud / "calls").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert not (gcloud / "state").exists()


def test_a_slice_whose_disk_goes_with_it_keeps_no_results():
    without_setup = [argument for argument in DRY_RUNS["tpu-vm"] if argument not in ("--setup", "sudo mount /runs")]
    refused = launch(*without_setup, "--dry-run", *COMMAND)
    assert (refused.returncode, "what is on the slice goes with it" in refused.stderr) == (2, True)


@pytest.mark.parametrize(("applied", "deleted"), [(0, True), (1, False)])
def test_a_jobset_is_deleted_unless_it_was_refused(applied, deleted, tmp_path):
    """Refused is one whose name another run's has: its fields cannot be changed."""
    kubectl = '#!/usr/bin/env bash\necho "$*" >> "$(dirname "$0")/calls"\ncase $1 in\n'
    kubectl += f"  apply) cat > /dev/null; exit {applied} ;;\n  get) echo Completed ;;\nesac\n"
    (tmp_path / "kubectl").write_text(kubectl)
    (tmp_path / "kubectl").chmod(0o755)
    result = launch(*DRY_RUNS["gke"], *COMMAND, **in_cloud(tmp_path))
    assert result.returncode == applied
    assert ("delete jobset" in (tmp_path / "calls").read_text()) == deleted
