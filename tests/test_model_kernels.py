"""Attention kernels against the plain XLA path: in interpret mode, and compiled ahead of time for a TPU."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies

from ssb_jax.config import SsbError
from ssb_jax.model import kernels
from ssb_jax.model.attention import Mask, attention
from ssb_jax.model.sharding import make_mesh, use_mesh
from ssb_jax.model.transformer import ModelConfig, Transformer


def arrays(T, S, *, heads=4, kv_heads=2, rows=2, head_dim=64):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((rows, T, heads, head_dim), (rows, S, kv_heads, head_dim), (rows, S, kv_heads, head_dim))
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def rule(T, S, *, start, segments=None, rows=2):
    index = start + jnp.arange(T, dtype=jnp.int32)
    return Mask(jnp.tile(index[None], (rows, 1)), jnp.arange(S, dtype=jnp.int32), segments, start=start)


SEGMENTS = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 2]], [70, 50, 40], axis=1), jnp.int32)
CASES = {
    "prefill": (160, 160, 0, None),
    "after a prefix": (130, 226, 96, None),
    "packed": (160, 160, 0, SEGMENTS),
}


@pytest.mark.parametrize("case", CASES)
def test_splash_equals_xla(case):
    T, S, start, segments = CASES[case]
    q, k, v = arrays(T, S)
    expected = attention(q, k, v, rule(T, S, start=start, segments=segments), kernel="xla")
    got = jax.jit(lambda *x: kernels.splash(*x, segments, start=start, interpret=True))(q, k, v)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_queries_in_blocks_see_what_they_see_at_once(case):
    T, S, start, segments = CASES[case]
    q, k, v = arrays(T, S)
    in_blocks = rule(T, S, start=start, segments=segments)
    at_once = dataclasses.replace(in_blocks, start=None)
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

    def loss(q, k, v, mask):
        return jnp.sum(weight * attention(q, k, v, mask, kernel="xla"))

    both = [jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v, mask) for mask in (in_blocks, at_once)]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), *both)
    widest = [_most_scores(jax.make_jaxpr(loss)(q, k, v, mask)) for mask in (in_blocks, at_once)]
    assert widest[0] < 0.6 * widest[1]  # of two blocks the second has all keys, for half of the queries


def _most_scores(jaxpr):
    """The most numbers that a product in the program gives."""
    shapes = re.findall(r"f32\[([\d,]+)\] = dot_general", str(jaxpr))
    return max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)


def test_splash_on_a_mesh_with_fewer_key_heads_than_devices():
    q, k, v = arrays(128, 128)
    mesh = make_mesh(data=2, fsdp=1, tensor=4)
    with use_mesh(mesh):
        got = jax.jit(lambda *x: kernels.splash(*x, None, start=0, interpret=True))(q, k, v)
    np.testing.assert_allclose(got, attention(q, k, v, rule(128, 128, start=0), kernel="xla"), atol=2e-5)


def test_splash_has_the_gradients_of_xla():
    q, k, v = arrays(160, 160)
    mask = rule(160, 160, start=0, segments=SEGMENTS)
    weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)
    by_splash = lambda *x: jnp.sum(weight * kernels.splash(*x, SEGMENTS, start=0, interpret=True))  # noqa: E731
    by_xla = lambda *x: jnp.sum(weight * attention(*x, mask, kernel="xla"))  # noqa: E731
    got, expected = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (by_splash, by_xla))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_call_that_cudnn_gets_says_the_same_mask(case):
    """The same call of JAX with XLA's implementation in cuDNN's place: no GPU here."""
    T, S, start, segments = CASES[case]
    q, k, v = arrays(T, S)
    mask = rule(T, S, start=start, segments=segments)
    visible = None if start == 0 and segments is None else mask.dense()
    got = kernels.fused(q, k, v, visible, implementation="xla")
    np.testing.assert_allclose(got, attention(q, k, v, mask, kernel="xla"), atol=2e-5)


def test_a_kernel_is_chosen_by_device_and_shape(monkeypatch):
    q, k, _ = (x.astype(jnp.bfloat16) for x in arrays(128, 160))
    assert kernels.choose("auto", q, k, start=32) == "xla"
    with pytest.raises(SsbError, match="model.attention: splash needs a tpu, the devices are cpu"):
        attention(q, k, k, rule(128, 160, start=32), kernel="splash")
    for platform, kernel in (("tpu", "splash"), ("gpu", "cudnn")):
        monkeypatch.setattr(kernels, "_platform", lambda platform=platform: platform)
        assert kernels.choose("auto", q, k, start=32) == kernels.choose(kernel, q, k, start=32) == kernel
        assert kernels.choose("xla", q, k, start=32) == "xla"
        assert kernels.choose("auto", q[:, :1], k, start=None) == "xla"


def test_splash_compiles_for_a_tpu_in_prefill_and_training():
    pytest.importorskip("libtpu", reason="libtpu compiles for TPUs without one")
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=devices)
    config = ModelConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=1,
        head_dim=128,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
    )
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)  # noqa: E731
    tokens = place(jax.ShapeDtypeStruct((2, 300), jnp.int32))

    def loss(model, tokens, segments):
        return jnp.sum(model(tokens, positions=tokens, segment_ids=segments, remat="full")[0].astype(jnp.float32))

    with use_mesh(mesh), jax.default_matmul_precision("default"):  # the kernel's products of bfloat16 know no other
        lowered = jax.jit(jax.grad(loss)).lower(jax.tree.map(place, model), tokens, tokens)
    assert "splash_mha_fwd_segmented" in lowered.as_text()
    assert lowered.compile().memory_analysis().temp_size_in_bytes > 0
