"""`ssb preflight`: its bytes are those of a real run, its counts those of independent formulas, its errors clear."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from click.testing import CliRunner

from ssb_jax.cli import main
from ssb_jax.config import Mesh, Model, SsbError, load_config
from ssb_jax.costs import scoring_flops, training_flops
from ssb_jax.model.mesh import of_one_host
from ssb_jax.model.transformer import abstract_model, count_parameters
from ssb_jax.preflight.chips import GIB, Chip, Topology, load_topology
from ssb_jax.preflight.compiled import read_collectives
from ssb_jax.preflight.job import Assumed, make_job
from ssb_jax.preflight.models import model_shape, published_shapes
from ssb_jax.preflight.report import preflight
from ssb_jax.preflight.roofline import attention_flops, head_flops, layer_flops, stage_steps
from ssb_jax.preflight.suggest import suggest
from ssb_jax.records import Outcome, Pair, Question, StopReason, Trial
from ssb_jax.stages import grpo
from ssb_jax.training.lowering import lower_policy
from ssb_jax.workspace import Workspace

CONFIGS = Path(__file__).parent.parent / "configs"

# As the model cards' safetensors say.
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
}


def ssb(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_published_shapes_have_the_published_parameters():
    shapes = published_shapes()
    assert {name: count_parameters(abstract_model(shape)) for name, shape in shapes.items()} == PARAMETERS


def test_a_shape_comes_from_a_file_a_folder_or_a_name(tmp_path):
    shape, source = model_shape(Model(path="Qwen/Qwen2.5-7B-Instruct"))
    assert (shape.hidden_size, source) == (3584, "the published shape of qwen2.5-7b")
    (tmp_path / "config.json").write_text(json.dumps(shape.to_json_dict()))
    assert model_shape(Model(path="unused"), file=tmp_path / "config.json")[0] == shape
    assert model_shape(Model(path=str(tmp_path)))[0] == shape
    with pytest.raises(SsbError, match="--model-config"):
        model_shape(Model(path="nobody/nothing"))


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:", "v5e:2x2x2", "v5p:2x2", "4x4", ""])
def test_an_unknown_topology_is_told_the_known_ones(name):
    with pytest.raises(SsbError, match="v5.*2x2"):
        load_topology(name)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SsbError, match="pip install libtpu"):
        load_topology("v5e:2x2")


def test_slices_that_are_not_here():
    pytest.importorskip("libtpu", reason="libtpu, which knows TPU slices, is not installed")
    assert [len(load_topology(name).devices) for name in ("v4:2x2x1", "v5e:4x4", "v5p:2x2x2", "v6e:2x4")] == [
        4,
        16,
        8,
        8,
    ]
    with pytest.raises(SsbError, match="libtpu does not give it"):
        load_topology("v5e:3x3")


def test_the_devices_of_this_machine():
    topology = load_topology("local")
    assert topology.devices == tuple(jax.devices())
    assert topology.chip.memory > GIB // 16


HLO = """HloModule jit_f

%region_sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%inner (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %k = bf16[8,128]{1,0} custom-call(%x), custom_call_target="kernel", frontend_attributes={kernel_metadata={
"block": 512
}}, backend_config={}
  %g = bf16[8,128]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={1}
}

%layers (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %r = f32[16]{0} all-reduce(%y), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%region_sum
  %loop = (s32[], bf16[8,128]) while(%t), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

%bound (p: (s32[], bf16[8,128])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[16]) -> f32[16] {
  %w = (s32[], f32[16]) while(%t), condition=%c, body=%layers, backend_config={"known_trip_count":{"n":"10"}}
  %u = (s32[], f32[16]) while(%t), condition=%c, body=%inner
  %v = (s32[], bf16[8,128]) while(%t), condition=%bound, body=%inner
  %p = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  ROOT %d = f32[4]{0} collective-permute-done(%p)
}
"""


def test_collectives_count_as_often_as_their_loops_go_round():
    found = read_collectives(HLO)
    gathers = 10 * 3 + 1 + 5
    assert found.counts == {"all-gather": gathers, "all-reduce": 10, "collective-permute": 1}
    gathered, reduced = 8 * 128 * 2 * 3 / 4, 2 * 16 * 4 * 1 / 2
    assert found.bytes == {"all-gather": gathers * gathered, "all-reduce": 10 * reduced, "collective-permute": 16}
    assert found.open_loops == 1


def test_counted_operations_are_those_of_xla():
    shape = dataclasses.replace(published_shapes()["qwen2.5-0.5b"], num_layers=1, vocab_size=1024)
    tokens = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def logits(model, tokens):
        return model.logits(model(tokens, positions=tokens)[0])

    compiled = jax.jit(logits).lower(abstract_model(shape), tokens).compile()
    counted = layer_flops(shape, 512) + attention_flops(shape, 512, 256) + head_flops(shape, 512)
    assert counted == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


GRPO = ("--method", "grpo", "--distillation.remat", "none", "--grpo.max_new_tokens", "256")


def grpo_job(*overrides):
    """Steps of 16 answers of 256 tokens to prompts of 256: what fills its shapes, with nothing padded."""
    config = load_config(CONFIGS / "tiny.yaml", [*GRPO, *overrides])
    topology = Topology("eight", Chip("v5e", 15 * GIB, 197e12, 819e9, 100e9), tuple(jax.devices()))
    shape = published_shapes()["qwen2.5-0.5b"]
    return make_job(config, shape, topology, Assumed(question_tokens=256, answer_tokens=256))


@pytest.mark.parametrize("updates", [1, 2])
def test_a_step_of_grpo_takes_the_operations_of_its_answers(updates):
    job = grpo_job("--mesh.data", "8", "--mesh.fsdp", "1", "--questions.limit", "64", "--grpo.updates", str(updates))
    prefill, decode, reference, update = stage_steps(job, "grpo")
    assert (prefill.count, decode.count) == (16, 16 * 256)
    assert (reference.count, update.count) == (16 * updates, 16 * updates)
    answers, shape = [(256, 256)] * 16, job.shape
    masked = 16 * (attention_flops(shape, 512, 512) - attention_flops(shape, 512, 513 / 2))  # no kernel skips it here
    assert 8 * reference.flops == pytest.approx(scoring_flops(shape, answers, head=True) + masked)
    # The base's logits are there too, for the divergence from it that is logged.
    assert 8 * update.flops == pytest.approx(training_flops(shape, answers, lora=job.config.lora) + 3 * masked)


def test_grpo_is_planned_with_the_batches_of_its_stage():
    """What is lowered takes the very arrays that the stage makes of such answers."""
    config = load_config(CONFIGS / "tiny.yaml", [*GRPO, "--mesh.data", "2", "--mesh.tensor", "2"])
    workspace = Workspace(config)
    question = Question("q", "How many?", "7")
    prompt = len(workspace.chat.encode_prompt(workspace.prompts.student_messages(question.question)))
    trials = [
        Trial("q", i, "", (5,) * 40, StopReason.LENGTH, prompt, Outcome.CORRECT, "7", 1.0, 0.5) for i in range(16)
    ]
    batch, gains = grpo._batch([question], trials, workspace)
    pairs = [Pair(f"{i}", "", "", "", (0,), (0,) * prompt, (0,) * 40, False) for i in range(16)]
    score, update = lower_policy(
        workspace.model.config,
        workspace.mesh,
        pairs,
        settings=config.grpo,
        training=config.distillation,
        lora_settings=config.lora,
        dtype=workspace.dtype,
    )
    planned = jax.tree.map(lambda x: (x.shape, x.dtype), (score().args_info[0][2], update().args_info[0][2:4]))
    made = jax.tree.map(lambda x: (x.shape, x.dtype), (batch, (batch, gains)))
    assert jax.tree.leaves(planned) == jax.tree.leaves(made)


def test_an_estimate_of_grpo_needs_no_compiler():
    command = ("preflight", CONFIGS / "tiny.yaml", "--method", "grpo", "--estimate", "--json", "--questions.limit")
    result = ssb(*command, "32")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert list(report["stages"]) == ["grpo", "eval"]
    assert [p["name"].split(",")[0] for p in report["stages"]["grpo"]["programs"]][-2:] == ["reference", "update"]
    assert not report["compiled"]
    result = ssb(*command, "null")
    assert result.exit_code == 1
    assert "how many questions does grpo ask? set questions.limit" in result.output


def test_a_suggestion_fits_by_estimate_and_comes_fastest_first():
    config = load_config(CONFIGS / "tiny.yaml")
    topology = Topology("eight", Chip("v5e", 15 * GIB, 197e12, 819e9, 100e9), tuple(jax.devices()))
    shape = published_shapes()["qwen2.5-3b"]
    job = make_job(config, shape, topology, Assumed())
    found = suggest(job, ("rollout", "targets"))
    assert [s.hours for s in found] == sorted(s.hours for s in found)
    assert all(s.peak < topology.chip.memory for s in found)
    assert {tuple(s.job.mesh.shape.values()) for s in found} >= {(4, 1, 2), (8, 1, 1), (1, 8, 1)}
    again = load_config(CONFIGS / "tiny.yaml", found[0].overrides)
    assert make_job(again, shape, topology, Assumed()).mesh == found[0].job.mesh
    small = dataclasses.replace(topology, chip=dataclasses.replace(topology.chip, memory=GIB))
    with pytest.raises(SsbError, match=r"nothing fits eight .*: engine\.slots: .* do not fit"):
        suggest(make_job(config, shape, small, Assumed()), ("rollout", "targets"))


def test_what_is_too_close_for_an_estimate_is_left_to_the_compiler():
    config = load_config(CONFIGS / "tiny.yaml", ["--targets.batch_size", "1"])
    topology = Topology("eight", Chip("v5e", 15 * GIB, 197e12, 819e9, 100e9), tuple(jax.devices()))
    shape = published_shapes()["qwen2.5-3b"]
    least = min(s.peak for s in suggest(make_job(config, shape, topology, Assumed()), ("targets",)))
    close = dataclasses.replace(topology, chip=dataclasses.replace(topology.chip, memory=int(least / 0.95)))
    job = make_job(config, shape, close, Assumed(), stage="targets")
    with pytest.raises(SsbError, match="the least, by estimate .* GiB a chip, is needed on mesh data"):
        suggest(job, ("targets",))
    [found] = suggest(job, ("targets",), compiling=True)
    assert found.peak == pytest.approx(least)


def test_each_stage_is_planned_on_the_mesh_that_it_runs_on():
    config = load_config(CONFIGS / "tiny.yaml", ["--mesh.rule", "auto", "--distillation.batch_size", "8"])
    topology = Topology("eight", Chip("v5e", 15 * GIB, 197e12, 819e9, 100e9), tuple(jax.devices()))
    job = make_job(config, model_shape(config.model)[0], topology, Assumed())
    found = preflight(job, stages=("rollout", "targets", "distill"), compiling=False)["stages"]
    meshes = {stage: tuple(result["mesh"].values()) for stage, result in found.items()}
    assert meshes == {"rollout": (4, 1, 2), "targets": (8, 1, 1), "distill": (8, 1, 1)}


def test_one_hosts_part_of_a_mesh():
    sizes = [
        (m.data, m.fsdp, m.tensor) for m in map(of_one_host, (Mesh(data=4, fsdp=1, tensor=2), Mesh(), Mesh(data=2)))
    ]
    assert sizes == [(-1, 1, 2), (1, -1, 1), (1, -1, 1)]
    assert of_one_host(Mesh(rule="auto")) == Mesh(rule="auto")


def test_hosts_that_share_a_stage_each_make_a_part_of_its_steps():
    config = load_config(CONFIGS / "tiny.yaml", ["--mesh.data", "2", "--mesh.fsdp", "1", "--mesh.tensor", "2"])
    chip, shape = Chip("v5e", 15 * GIB, 197e12, 819e9, 100e9), model_shape(config.model)[0]
    alone = make_job(config, shape, Topology("one host", chip, tuple(jax.devices()[:4])), Assumed())
    shared = dataclasses.replace(alone, topology=Topology("two hosts", chip, tuple(jax.devices())))
    assert (alone.shares, shared.shares) == (1, 2)
    for one, half in zip(stage_steps(alone, "rollout"), stage_steps(shared, "rollout"), strict=True):
        assert (half.count, half.seconds) == (math.ceil(one.count / 2), one.seconds)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_on_several_hosts_each_answers_on_its_own_chips():
    config = load_config(CONFIGS / "tiny.yaml", ["--mesh.data", "8", "--mesh.fsdp", "1", "--mesh.tensor", "2"])
    shape, topology = model_shape(config.model)[0], load_topology("v5e:4x4")
    jobs = {
        stage: make_job(config, shape, topology, Assumed(), stage=stage) for stage in ("rollout", "targets", "distill")
    }
    meshes = {stage: tuple(job.mesh.shape.values()) for stage, job in jobs.items()}
    assert meshes == {"rollout": (2, 1, 2), "targets": (2, 1, 2), "distill": (8, 1, 2)}
    assert {device.process_index for device in jobs["rollout"].mesh.devices.flat} == {0}
    alone = [device.id for device in load_topology("v5e:2x2").devices]
    assert sorted(device.id for device in jobs["rollout"].mesh.devices.flat) == alone, "a slice of their own"
    with pytest.raises(SsbError, match="grpo runs on one host, and v5e:4x4 has several"):
        make_job(config, shape, topology, Assumed(), stage="grpo")


def test_bad_usage_is_said():
    tiny = CONFIGS / "tiny.yaml"
    assert "--stage" in ssb("preflight", tiny, "--stage", "nonsense").output
    result = ssb("preflight", tiny, "--mesh.data", "3", "--mesh.fsdp", "1")
    assert result.exit_code == 1
    assert "does not fit 8 devices" in result.output
    result = ssb("preflight", tiny, "--mesh.tensor", "8")
    assert result.exit_code == 1
    assert "num_attention_heads 4 by tensor=8" in result.output
