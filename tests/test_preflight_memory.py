"""Preflight's bytes against a real run on eight virtual devices: its live arrays, and its own programs' memory."""

import jax
import numpy as np
import pytest
from distillation_case import make_workspace, train

from ssb_jax.config import Engine, config_from_dict
from ssb_jax.model.weights import load_model, resolve_model
from ssb_jax.preflight.chips import load_topology
from ssb_jax.preflight.job import Assumed, make_job
from ssb_jax.preflight.models import model_shape
from ssb_jax.preflight.report import preflight
from ssb_jax.records import Pair
from ssb_jax.sampling import Request, SamplingParams, device, generate
from ssb_jax.stages import distillation, targets

PROMPT, ANSWER, PAIRS = 130, 60, 8
CONFIG = config_from_dict(
    {
        "model": {"path": "builtin:tiny"},
        "questions": {"path": "unused", "limit": 16},
        "rollouts": {"num_samples": 4, "max_new_tokens": ANSWER, "repetition_penalty": 1.0},
        "teaching": {"max_new_tokens": ANSWER, "repetition_penalty": 1.0, "max_pairs": PAIRS},
        "distillation": {"epochs": 1, "tensorboard": False, "chunk_tokens": 64},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "engine": {"slots": 16},
    }
)


def on_first_device():
    """Bytes of all arrays on the first device. Asking a shard for its data would make another array."""
    live = [x for x in jax.live_arrays() if jax.devices()[0] in x.sharding.device_set]
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in live)


class Recorder:
    """Stands for a jitted function: compiles it for its real arguments, notes what it takes, and runs that program."""

    def __init__(self, function, rows, name, start):
        self.function, self.rows, self.name, self.start, self.compiled = function, rows, name, start, {}

    def __call__(self, *arguments, **static):
        key = str(jax.tree.map(np.shape, arguments))
        if key not in self.compiled:
            self.compiled[key] = self.function.lower(*arguments, **static).compile()
        memory = self.compiled[key].memory_analysis()
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        row = {"new": new, "arguments": memory.argument_size_in_bytes, "live": on_first_device() - self.start}
        self.rows.setdefault(self.name, []).append(row)
        return self.compiled[key](*arguments)  # refuses arguments that lie otherwise than those it was compiled for


def pairs_of(assumed):
    """Pairs of the lengths that the settings and assumptions allow at most."""

    def ids(n, seed):
        return tuple(np.random.default_rng(seed).integers(3, 400, n).tolist())

    hinted = assumed.question_tokens + 200 + 2 * ANSWER
    return [Pair(f"q{i}", "", "", "", ids(hinted, i), ids(PROMPT, i), ids(ANSWER, 99 + i), True) for i in range(PAIRS)]


@pytest.fixture(scope="module")
def planned():
    shape, source = model_shape(CONFIG.model)
    assumed = Assumed(question_tokens=PROMPT, answer_tokens=ANSWER, pair_share=0.5)
    job = make_job(CONFIG, shape, load_topology("local"), assumed)
    return job, preflight(job, stages=("rollout", "targets", "distill"), source=source)


@pytest.fixture(scope="module")
def ran(planned, tmp_path_factory):
    """What the stages' programs took in a real run on the same mesh."""
    job, _ = planned
    rows, start = {}, on_first_device()
    model = load_model(resolve_model("builtin:tiny"), mesh=job.mesh)
    folder = tmp_path_factory.mktemp("run")
    build, states = distillation.build_step, targets._states_function

    def recording_step(*arguments, **options):
        step, *others = build(*arguments, **options)
        return Recorder(step, rows, "step", start), *others

    with pytest.MonkeyPatch.context() as patch:
        for name in ("prefill", "decode"):
            patch.setattr(device, name, Recorder(getattr(device, name), rows, name, start))
        patch.setattr(targets, "_states_function", lambda mesh: Recorder(states(mesh), rows, "teacher", start))
        patch.setattr(distillation, "build_step", recording_step)
        params = SamplingParams(max_new_tokens=ANSWER)
        requests = [Request(f"q{i}", (i + 3,) * PROMPT, params, samples=(0, 1, 2, 3)) for i in range(16)]
        assert len(list(generate(model, requests, seed=0, settings=Engine(slots=16), mesh=job.mesh))) == 64
        pairs, workspace = pairs_of(job.assumed), make_workspace(model, job.mesh)
        targets.run(pairs, config=CONFIG, folder=folder / "targets", workspace=workspace)
        train(pairs, folder, config=CONFIG, model=model, mesh=job.mesh)
    return rows


@pytest.mark.parametrize(
    ("stage", "index", "name"),
    [("rollout", 0, "prefill"), ("rollout", 1, "decode"), ("targets", 0, "teacher"), ("distill", 0, "step")],
)  # fmt: skip
def test_bytes_are_those_of_a_real_run(stage, index, name, planned, ran):
    program = planned[1]["stages"][stage]["programs"][index]
    new = max(row["new"] for row in ran[name])
    live = max(row["live"] for row in ran[name])
    assert program["temporary_bytes"] == pytest.approx(new, rel=0.1)
    assert program["total_bytes"] - program["temporary_bytes"] == pytest.approx(live, rel=0.1)
    assert program["total_bytes"] == pytest.approx(live + new, rel=0.1)
