"""A base in 8 bits is the base with the dequantized weights, in logits and gradients and on a mesh; its limits."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import CONFIG, make_lora, make_model

from ssb_jax.config import SsbError, config_from_dict
from ssb_jax.model.lora import merge
from ssb_jax.model.quantization import quantize, quantizes, whole
from ssb_jax.model.sharding import leaf_name, make_mesh, use_mesh
from ssb_jax.model.transformer import Transformer
from ssb_jax.model.weights import load_model
from ssb_jax.preflight.chips import load_topology
from ssb_jax.preflight.job import Assumed, make_job
from ssb_jax.store import model_fingerprint
from ssb_jax.workspace import Workspace

TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, CONFIG.vocab_size, (4, 24)), jnp.int32)


def quantized(model: Transformer) -> Transformer:
    def put(path, x):
        return quantize(x, leaf_name(path)) if quantizes(leaf_name(path), "int8") else x

    return jax.tree_util.tree_map_with_path(put, model)


def dequantized(model: Transformer) -> Transformer:
    copy = jax.tree.map(lambda x: x, model)
    for parameter in copy.layers.values():
        parameter.set_value(whole(parameter.get_value()))
    return copy


@jax.jit
def logits(model, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return model.logits(model(tokens, positions=positions)[0])


@jax.jit
@jax.grad
def gradient(lora, model):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    hidden = model(TOKENS, positions=positions, lora=lora, remat="full")[0]
    return -jnp.mean(jax.nn.log_softmax(model.logits(hidden))[..., 5])


def test_each_weight_is_near_its_own():
    """Half of a 255th of what its output's weights span."""
    rng = np.random.default_rng(1)
    for name, shape, inputs in (("layers.q_proj", (2, 64, 4, 8), (1,)), ("layers.o_proj", (2, 4, 8, 64), (1, 2))):
        weight = rng.normal(size=shape).astype(np.float32)
        error = np.abs(whole(quantize(jnp.asarray(weight), name)) - weight)
        assert (error <= np.abs(weight).max(inputs, keepdims=True) / 127.5 / 2 * (1 + 1e-4)).all()
        assert error.max() > 0


def test_logits_and_gradients_are_those_of_the_dequantized_weights():
    small = quantized(make_model(CONFIG))
    same = dequantized(small)
    np.testing.assert_array_equal(logits(small, TOKENS), logits(same, TOKENS))
    lora = make_lora(CONFIG)
    ours, theirs = gradient(lora, small), gradient(lora, same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7, rtol=1e-4), ours, theirs)
    assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(ours.b))


def test_loaded_over_a_mesh_it_is_the_same_and_smaller():
    alone = load_model("builtin:tiny", quantization="int8")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    spread = load_model("builtin:tiny", mesh=mesh, quantization="int8")
    on_one = logits(alone, TOKENS)
    with use_mesh(mesh):
        np.testing.assert_allclose(logits(spread, TOKENS), on_one, atol=2e-4)
    weight = spread.layers["up_proj"].get_value()
    assert weight.qvalue.sharding.shard_shape(weight.shape)[1:] == (weight.shape[1] // 2, weight.shape[2] // 2)
    base = load_model("builtin:tiny")
    assert sum(x.nbytes for x in jax.tree.leaves(alone)) < 0.33 * sum(x.nbytes for x in jax.tree.leaves(base))
    assert len({model_fingerprint(m) for m in (alone, spread)}) == 1
    assert model_fingerprint(alone) != model_fingerprint(base)
    teacher, student = jax.nn.log_softmax(logits(base, TOKENS)), jax.nn.log_softmax(on_one)
    divergence = float(jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), -1)))
    assert 0 < divergence < 2e-3  # on random tokens


def test_what_a_quantized_base_cannot_do_is_said(monkeypatch):
    settings = {"path": "builtin:tiny", "quantization": "int8"}
    config = config_from_dict({"model": settings, "questions": {"path": "builtin:arithmetic"}})
    with pytest.raises(SsbError, match="merged into a quantized model; load it with quantization none"):
        merge(quantized(make_model(CONFIG)), make_lora(CONFIG))
    with pytest.raises(SsbError, match="preflight plans whole weights only"):
        make_job(config, CONFIG, load_topology("local"), Assumed())
    real = builtins.__import__

    def without_qwix(name, *rest, **more):
        if name == "qwix":
            raise ImportError("No module named 'qwix'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_qwix)
    with pytest.raises(SsbError, match=r"needs qwix: pip install 'ssb-jax\[quantization\]'"):
        load_model("builtin:tiny", quantization="int8")


def test_runs_with_another_quantization_are_other_runs():
    def identity(**more):
        config = config_from_dict({"model": {"path": "builtin:tiny"} | more, "questions": {"path": "x"}})
        return Workspace(config).model_identity

    assert "quantization" not in identity()  # what was made before there was a choice is taken up
    assert identity(quantization="int8") == identity() | {"quantization": "int8"}
