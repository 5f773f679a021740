"""Distillation on the student's own answers, and rounds: the parts that are theirs alone."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_case import make_config, make_model, make_pairs, make_workspace, random_lora
from safetensors.numpy import load_file

from ssb_jax import pipeline, rounds
from ssb_jax.artifacts import complete
from ssb_jax.config import load_config
from ssb_jax.model.adapters import save_adapter
from ssb_jax.model.lora import init_lora, merge
from ssb_jax.model.weights import load_model, read_config, resolve_model
from ssb_jax.stages import on_policy
from ssb_jax.stages.targets import teacher_targets
from ssb_jax.training.policy import make_score


def moved(kind, step, **settings):
    config = make_config(on_policy={"teacher": kind, **settings})
    teacher, student = random_lora(), random_lora()
    student = dataclasses.replace(student, a=jax.tree.map(lambda x: x + 1, student.a))
    after = on_policy._moved(teacher, student, step, config)
    return float(jnp.mean(after.a["q_proj"] - teacher.a["q_proj"]))


def test_the_teacher_stays_follows_slowly_or_jumps():
    assert moved("base", 10) == 0
    assert moved("ema", 10, teacher_rate=0.25) == pytest.approx(0.25, abs=1e-6)
    assert moved("refreshed", 10, teacher_every=4) == 0
    assert moved("refreshed", 12, teacher_every=4) == pytest.approx(1, abs=1e-6)


def test_answers_are_scored_as_the_teachers_stage_scores_them():
    model, pairs = make_model(), make_pairs(5, seed=2)
    workspace = SimpleNamespace(**vars(make_workspace(model)), config=make_config())
    score = make_score(temperature=1.0, chunk=16)
    ours = on_policy._targets(pairs, None, score, workspace)
    hinted = on_policy._targets(pairs, random_lora(), score, workspace)
    for pair, expected in teacher_targets(model, pairs):
        np.testing.assert_allclose(ours[pair.question_id], expected, atol=1e-5)
        assert np.abs(hinted[pair.question_id] - expected).max() > 1e-2


def test_a_round_starts_from_the_merged_student_of_the_one_before(tmp_path, monkeypatch):
    base = resolve_model("builtin:tiny")
    shape, started = read_config(base), []

    def run_all(run):
        """Trains nothing: leaves a random adapter where training leaves its own."""
        started.append(run.config.model.path)
        lora = init_lora(shape, run.config.lora, key=jax.random.key(len(started)))
        lora = dataclasses.replace(lora, b=jax.tree.map(lambda x: x + 0.01, lora.b))
        made_from = {"model": run.workspace.model_identity}
        folder = run.training_folder
        complete(
            folder, stage="x", made_from=made_from, make=lambda: save_adapter(lora, run.adapter_folder, base="") or {}
        )
        return {"round": len(started)}

    monkeypatch.setattr(pipeline, "run_all", run_all)
    config = load_config("configs/tiny.yaml", ["--rounds", "2", "--lora.rank", "2", "--mesh.fsdp", "8"])
    assert rounds.run_rounds(config, tmp_path) == [{"round": 1}, {"round": 2}]
    merged = tmp_path / "rounds/01/merged"
    assert started == ["builtin:tiny", str(merged)]
    assert json.loads((merged / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    lora = init_lora(shape, config.lora, key=jax.random.key(1))
    lora = dataclasses.replace(lora, b=jax.tree.map(lambda x: x + 0.01, lora.b))
    expected = merge(load_model(base, dtype="float32"), lora)
    got = load_model(merged, dtype="float32")
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert (
        load_file(tmp_path / "rounds/02/merged/model.safetensors").keys()
        == load_file(base / "model.safetensors").keys()
    )
