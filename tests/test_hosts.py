"""Many processes: who is missing or differs is named; the run ends as that of one process, whoever is lost meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch.local import free_port
from ssb_jax.artifacts import read_jsonl
from ssb_jax.config import SsbError
from ssb_jax.hosts.rendezvous import Place, meet
from ssb_jax.records import Pair

ROOT = Path(__file__).parent.parent
IDENTITY = {"config": {"seed": 0, "lora": {"rank": 32}}, "versions": {"jax": "0.10.2"}}


def met(identities, *, count=None, indices=None, timeout=1.0):
    """What each process of a group is told: None, or why the run does not start."""
    address = f"localhost:{free_port()}"

    def one(index, identity):
        try:
            return meet(Place(address, count or len(identities), index), identity, timeout=timeout)
        except SsbError as error:
            return str(error)

    with ThreadPoolExecutor(len(identities)) as pool:
        return list(pool.map(one, indices or range(len(identities)), identities))


def test_processes_that_are_alike_meet():
    assert met([IDENTITY] * 4, timeout=30) == [None] * 4


def test_who_never_joins_is_named_everywhere():
    for told in met([IDENTITY] * 2, count=4, indices=[0, 2]):
        assert "processes 1, 3 of 4 did not join within 1 s" in told
        assert "there: process 0 on" in told


def test_without_process_0_the_others_say_so():
    assert "process 0 of 2 did not answer process 1 on" in met([IDENTITY], count=2, indices=[1])[0]


def test_another_setting_or_version_is_named_everywhere():
    for told in met([IDENTITY, IDENTITY, IDENTITY | {"config": {"seed": 1, "lora": {"rank": 32}}}], timeout=30):
        assert "process 2 on" in told
        assert "config.seed was 0, now 1" in told


def test_two_processes_with_one_number_are_refused():
    told = met([IDENTITY] * 3, indices=[0, 1, 1], timeout=5)
    assert "have the same number" in told[0]


SMALL = (
    *("--questions.limit", "12", "--rollouts.block_size", "6", "--teaching.max_pairs", "6"),
    *("--rollouts.num_samples", "4", "--engine.slots", "8", "--engine.chunk", "8"),
    *("--distillation.epochs", "2", "--distillation.checkpoint_every", "1", "--distillation.tensorboard", "false"),
    "--compilation_cache=null",
    "--evaluation.sets=[{name: test, data: {path: 'builtin:arithmetic', split: test, limit: 6}, "
    "sampling: {temperature: 0.0, max_new_tokens: 96}}]",
)
# The tests' own process has eight virtual devices; and code that runs for seconds is not worth optimizing.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}


def launched(folder, processes, devices, *more):
    command = (
        [sys.executable, "-m", "launch", "local", "--processes", str(processes), "--devices", str(devices), "--"]
        + ["run", "configs/tiny.yaml", "--out", str(folder)]
        + [*SMALL, *more]
    )
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def same_run(one, other):
    """The same pairs, loss curve to 1e-5, adapter to 1e-4, and evaluation."""
    assert read_jsonl(one / "pairs/pairs.jsonl", Pair) == read_jsonl(other / "pairs/pairs.jsonl", Pair)
    losses = [
        [json.loads(line)["loss"] for line in (f / "distillation/metrics.jsonl").read_text().splitlines()]
        for f in (one, other)
    ]
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)
    adapters = [load_file(f / "distillation/adapter/adapter_model.safetensors") for f in (one, other)]
    for name, value in adapters[0].items():
        np.testing.assert_allclose(value, adapters[1][name], atol=1e-4, rtol=0, err_msg=name)
    results = [json.loads((f / "evaluation/results.json").read_text())["sets"] for f in (one, other)]
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process with one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    process = launched(folder, 1, 1)
    assert process.wait() == 0, process.stderr.read()
    return folder


def test_two_hosts_end_as_one_though_one_of_them_is_killed(alone, tmp_path):
    folder = tmp_path / "run"
    group = launched(folder, 2, 1)
    metrics = folder / "distillation/metrics.jsonl"
    while group.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.kill(int(children(group.pid)[1]), signal.SIGKILL)
    _, errors = group.communicate()
    assert group.returncode == 0, errors
    assert "a process died of SIGKILL; starting again" in errors
    assert {path.name for path in folder.glob("blocks/0000/rollouts/part-*")} == {
        "part-00000.jsonl",
        "part-00001.jsonl",
    }
    same_run(alone, folder)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
