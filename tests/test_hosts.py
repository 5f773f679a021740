"""Many processes: who is missing or differs is named; a run ends as that of one process, whoever is lost meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hosts_case
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import local
from ssb_jax.config import SsbError
from ssb_jax.hosts import group
from ssb_jax.hosts.rendezvous import Place, meet
from ssb_jax.model.sharding import make_mesh

ROOT = Path(__file__).parent.parent
IDENTITY = {"config": {"seed": 0, "lora": {"rank": 32}}, "versions": {"jax": "0.10.2"}}


def met(identities, *, count=None, indices=None, timeout=1.0):
    """What each process of a group is told: None, or why the run does not start."""
    address = f"localhost:{local.free_port()}"

    def one(index, identity):
        size = count[index] if isinstance(count, list) else count or len(identities)
        try:
            return meet(Place(address, size, index), identity, timeout=timeout)
        except SsbError as error:
            return f"{error} (status {error.exit_status})"

    with ThreadPoolExecutor(len(identities)) as pool:
        return list(pool.map(one, indices or range(len(identities)), identities))


def test_processes_that_are_alike_meet():
    assert met([IDENTITY] * 4, timeout=30) == [None] * 4


def test_who_never_joins_is_named_everywhere():
    for told in met([IDENTITY] * 2, count=4, indices=[0, 2]):
        assert "processes 1, 3 of 4 did not join within 1 s" in told
        assert "there: process 0 on" in told
        assert "(status 75)" in told, "it may come yet: launchers start again"


def test_without_process_0_the_others_say_so():
    assert "process 0 of 2 did not answer process 1 on" in met([IDENTITY], count=2, indices=[1])[0]


def test_processes_that_were_told_of_other_numbers_say_so():
    for told in met([IDENTITY] * 2, count=[2, 4], timeout=30):
        assert "was told of 4 processes" in told
        assert "(status 1)" in told


@pytest.mark.parametrize("seconds", ["soon", "nan", "inf", "-5"])
def test_a_time_to_join_is_seconds(seconds, monkeypatch):
    monkeypatch.setenv("SSB_JOIN_TIMEOUT", seconds)
    with pytest.raises(SsbError, match="SSB_JOIN_TIMEOUT: expected seconds, 0.1 to 86400, got"):
        group._join_timeout()


def test_another_setting_or_version_is_named_everywhere():
    for told in met([IDENTITY, IDENTITY, IDENTITY | {"config": {"seed": 1, "lora": {"rank": 32}}}], timeout=30):
        assert "process 2 on" in told
        assert "config.seed was 0, now 1" in told


def test_two_processes_with_one_number_are_refused():
    told = met([IDENTITY] * 3, indices=[0, 1, 1], timeout=2)
    assert "have the same number" in told[0]


EPOCHS = 12
# The tests' own process has eight virtual devices.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def started(folder, processes):
    """Processes with a device each that run hosts_case.py."""
    command = [sys.executable, str(ROOT / "tests/hosts_case.py"), str(folder), str(EPOCHS)]
    planned = local.plan((), processes=processes, devices=1, port=local.free_port())
    return [
        subprocess.Popen(command, env=ENVIRONMENT | environment, stderr=subprocess.PIPE, text=True)
        for environment, _ in planned
    ]


def ended(process):
    """Exit status, and what it said."""
    _, errors = process.communicate()
    return process.returncode, errors


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "distillation/metrics.jsonl").read_text().splitlines()]


def test_two_hosts_stopped_at_one_step_go_on_as_one_and_end_as_one_would(tmp_path):
    hosts_case.both_stages(tmp_path / "alone", EPOCHS, make_mesh(devices=jax.devices()[:1]))
    folder = tmp_path / "group"
    group = started(folder, 2)
    while group[0].poll() is None and lines(folder / "distillation/metrics.jsonl") < 3:
        time.sleep(0.002)
    group[1].send_signal(signal.SIGTERM)
    ends = [ended(process) for process in group]
    assert [status for status, _ in ends] == [75, 75], ends
    done = len(losses(folder))
    assert 3 <= done < len(losses(tmp_path / "alone"))
    assert [path.name for path in (folder / "distillation/checkpoints").glob("[0-9]*")] == [str(done)]
    assert len(list((folder / "targets").glob("index-*.json"))) == 2
    (process,) = started(folder, 1)
    status, errors = ended(process)
    assert status == 0, errors
    np.testing.assert_allclose(losses(folder), losses(tmp_path / "alone"), atol=1e-5, rtol=0)
    adapters = [
        load_file(tmp_path / name / "distillation/adapter/adapter_model.safetensors") for name in ("alone", "group")
    ]
    for name, value in adapters[0].items():
        np.testing.assert_allclose(adapters[1][name], value, atol=1e-4, rtol=0, err_msg=name)
