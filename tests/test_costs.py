"""FLOPs against XLA's own count of the compiled network, and the cost of a run folder."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from model_helpers import CONFIG, make_lora, make_model

from ssb_jax.artifacts import complete, write_atomically, write_jsonl
from ssb_jax.config import Lora, SsbError
from ssb_jax.costs import Cost, generation_flops, read_cost, run_cost, scoring_flops, training_flops, write_cost
from ssb_jax.model.transformer import Transformer
from ssb_jax.model.weights import read_config, resolve_model
from ssb_jax.records import Pair, Rollout, StopReason

# One layer, because XLA counts a loop's body once, and wide, so that what is no matrix product hardly counts.
WIDE = dataclasses.replace(
    CONFIG, num_layers=1, hidden_size=256, intermediate_size=1024, num_heads=8, head_dim=32, vocab_size=512
)
T = 24


def xla_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def unmasked(flops_of_causal):
    """XLA counts the scores of every pair of tokens, we those that attention looks at."""
    return flops_of_causal + 4 * WIDE.num_heads * WIDE.head_dim * (T * T - T * (T + 1) / 2)


def forward(model: Transformer, tokens, lora=None):
    return model(tokens, positions=jnp.arange(T)[None], lora=lora)[0]


def test_a_forward_pass_costs_what_xla_counts():
    tokens = jnp.zeros((1, T), jnp.int32)
    counted = xla_flops(lambda model: model.logits(forward(model, tokens)), make_model(WIDE))
    assert unmasked(scoring_flops(WIDE, [(0, T)], head=True)) == pytest.approx(counted, rel=0.02)


def test_a_training_step_costs_what_xla_counts():
    tokens = jnp.zeros((1, T), jnp.int32)
    settings = {"rank": 32, "alpha": 32.0}

    def loss(lora, embedding, model):
        hidden = forward(model, tokens, lora) + embedding
        return jnp.sum(jax.nn.log_softmax(model.logits(hidden))[..., 0])

    lora = make_lora(WIDE, **settings)
    counted = xla_flops(jax.grad(loss, argnums=(0, 1)), lora, jnp.zeros((1, T, 256)), make_model(WIDE))
    expected = training_flops(WIDE, [(0, T)], lora=Lora(**settings), teacher_head=False)
    # Nobody asks for the gradient of the first layer's input, so XLA leaves out q, k and v's share of it.
    first = 2 * T * WIDE.hidden_size * (WIDE.num_heads + 2 * WIDE.num_kv_heads) * WIDE.head_dim
    assert expected - first == pytest.approx(counted, rel=0.02)


def test_samples_share_their_prompt_and_see_it():
    one, two = (generation_flops(CONFIG, [(50, [9] * samples)]) for samples in (1, 2))
    whole = scoring_flops(CONFIG, [(50, 9)], head=True)
    assert one == whole
    assert two == 2 * one - scoring_flops(CONFIG, [(50, 0)])


def run_folder(folder):
    """A finished run of two questions, written by hand."""
    write_atomically(folder / "config.yaml", "model: {path: builtin:tiny}\nquestions: {path: q.jsonl}\n")

    def stage(name, filename, rows, **counts):
        def make():
            write_jsonl(folder / name / filename, rows)
            return counts

        complete(folder / name, stage=name, made_from={}, make=make)

    rollouts = [
        Rollout(q, sample, "t", (1,) * length, StopReason.END_OF_TURN, prompt_tokens=30)
        for q, lengths in {"q1": (10, 20), "q2": (5, 6)}.items()
        for sample, length in enumerate(lengths)
    ]
    stage("blocks/0000/rollouts", "part-00000.jsonl", rollouts)
    stage("blocks/0000/teaching", "part-00000.jsonl", [Rollout("q1", 0, "t", (1,) * 12, StopReason.END_OF_TURN, 90)])
    pair = Pair("q1", "q", "1", "t", (1,) * 90, (1,) * 30, (1,) * 13, True)
    stage("pairs", "pairs.jsonl", [pair])
    stage("targets", "targets", [])
    stage("distillation", "metrics.jsonl", [], seconds=7.0)


def test_the_cost_of_a_run_folder_is_the_sum_of_its_stages(tmp_path):
    run_folder(tmp_path)
    cost = run_cost(tmp_path, devices=2)
    tiny = read_config(resolve_model("builtin:tiny"))
    assert (cost.questions, cost.generated_tokens) == (2, 10 + 20 + 5 + 6 + 12)
    assert cost.flops == (
        generation_flops(tiny, [(30, [10, 20]), (30, [5, 6]), (90, [12])])
        + scoring_flops(tiny, [(90, 13)])
        + training_flops(tiny, [(30, 13)] * 3, lora=Lora())
    )
    assert 14 < cost.device_seconds < 20


def test_a_recorded_cost_is_taken_and_a_broken_one_is_named(tmp_path):
    assert run_cost(tmp_path) is None
    cost = Cost(questions=32, generated_tokens=1000, flops=1e12, device_seconds=3.5)
    write_cost(tmp_path, cost)
    assert run_cost(tmp_path) == read_cost(tmp_path) == cost
    (tmp_path / "cost.json").write_text('{"questions": 1}')
    with pytest.raises(SsbError, match=r"cost\.json: expected questions, generated_tokens, flops, device_seconds"):
        run_cost(tmp_path)
