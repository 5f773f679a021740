"""One device or many, the numbers are the same; a mesh that does not fit says so."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from model_helpers import CONFIG, forward, make_lora, make_model, make_tokens, steps

from ssb_jax.config import SsbError
from ssb_jax.model.cache import cache_shardings, init_cache
from ssb_jax.model.lora import lora_shardings, merge
from ssb_jax.model.sharding import LOGICAL_RULES, constrain, make_mesh, spec, use_mesh
from ssb_jax.model.transformer import model_shardings
from ssb_jax.model.weights import load_model, random_model, save_model

MESHES = [(2, 2, 2), (1, 2, 4), (8, 1, 1), (1, 8, 1)]
close = partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5)


def sharded_model(config, mesh):
    model = make_model(config)
    return jax.device_put(model, model_shardings(model, mesh))


def mesh_of(shape):
    data, fsdp, tensor = shape
    return make_mesh(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize(("shape", "tied"), [(shape, True) for shape in MESHES] + [((2, 2, 2), False)], ids=str)
def test_sharded_equals_unsharded(tmp_path, shape, tied):
    """With 2 key/value heads, the mesh of 4 on the tensor axis also shows their replication."""
    config = replace(CONFIG, tie_word_embeddings=tied)
    single, tokens, lora = make_model(config), make_tokens((8, 12)), make_lora(config)
    expected, expected_cache = forward(
        single, tokens, positions=steps(tokens), cache=init_cache(config, 8, 16), lora=lora
    )
    save_model(single, tmp_path)
    mesh = mesh_of(shape)
    model = load_model(tmp_path, mesh=mesh)
    with use_mesh(mesh):
        lora = jax.device_put(lora, lora_shardings(lora, mesh))
        cache = init_cache(config, 8, 16)
        for start in (0, 7):
            piece = slice(start, start + 7)
            hidden, cache = forward(model, tokens[:, piece], positions=steps(tokens)[:, piece], cache=cache, lora=lora)
            close(hidden, expected[:, piece])
            close(jax.jit(type(model).logits)(model, hidden), single.logits(expected[:, piece]))
    jax.tree.map(close, cache, expected_cache)


@pytest.mark.parametrize("shape", MESHES[:2], ids=str)
def test_sharded_gradients_equal_unsharded(shape):
    single, tokens, lora = make_model(), make_tokens((8, 12)), make_lora(target_modules=("k_proj", "o_proj", "up_proj"))

    def loss(lora, model):
        hidden, _ = model(tokens, positions=steps(tokens), lora=lora, remat="full")
        return jax.nn.log_softmax(model.logits(hidden))[..., 0].mean()

    expected = jax.jit(jax.grad(loss))(lora, single)
    mesh = mesh_of(shape)
    with use_mesh(mesh):
        shardings = lora_shardings(lora, mesh)
        model = jax.device_put(single, model_shardings(single, mesh))
        gradient = jax.jit(jax.grad(loss), out_shardings=shardings)(jax.device_put(lora, shardings), model)
    jax.tree.map(close, gradient, expected)


def test_every_array_is_split_as_the_table_says():
    mesh = mesh_of((2, 2, 2))
    model, lora = sharded_model(CONFIG, mesh), make_lora()
    cache = jax.device_put(init_cache(CONFIG, 4, 8), cache_shardings(init_cache(CONFIG, 4, 8), mesh))
    shards = {name: x[...].addressable_shards[0].data.shape for name, x in model.layers.items()}
    L, D, N, K, H, F = 3, 32, 4, 2, 8, 48
    assert shards["q_proj"] == (L, D // 2, N // 2, H)
    assert shards["k_proj"] == (L, D // 2, K // 2, H)
    assert shards["o_proj"] == (L, N // 2, H, D // 2)
    assert shards["down_proj"] == (L, F // 2, D // 2)
    assert model.embed[...].addressable_shards[0].data.shape == (96 // 2, D // 2)
    assert cache.k.addressable_shards[0].data.shape == (L, 4 // 4, K // 2, 8, H)
    assert lora_shardings(lora, mesh).a["q_proj"].spec == PartitionSpec(None, "fsdp", None)
    assert lora_shardings(lora, mesh).b["down_proj"].spec == PartitionSpec(None, None, "fsdp")


def test_merging_keeps_the_layout():
    mesh = mesh_of((1, 2, 4))
    model, lora = sharded_model(CONFIG, mesh), make_lora()
    merged = merge(model, jax.device_put(lora, lora_shardings(lora, mesh)))
    for name, weight in merged.layers.items():
        assert weight[...].sharding.is_equivalent_to(model.layers[name][...].sharding, weight[...].ndim), name


@pytest.mark.parametrize("shape", MESHES[:2], ids=str)
def test_a_sharded_decode_step_neither_copies_nor_gathers_the_cache(shape):
    """On the second mesh, key/value heads are fewer than devices on the tensor axis, and each holds them all."""
    config = replace(CONFIG, num_layers=8)
    mesh = mesh_of(shape)
    model = sharded_model(config, mesh)
    with use_mesh(mesh):
        cache = init_cache(config, 8, 256)
        token = jnp.zeros((8, 1), jnp.int32)
        step = jax.jit(lambda model, token, at, cache: model(token, positions=at, cache=cache), donate_argnames="cache")
        memory = step.lower(model, token, token, cache).compile().memory_analysis()
    share = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= share, "updated where it lies"
    assert memory.temp_size_in_bytes < share, "at most slices of a layer beside it"


def test_the_rest_of_the_devices():
    assert dict(make_mesh().shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert dict(make_mesh(data=-1, fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(make_mesh().axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("sizes", [(2, 2, 4), (1, 3, 1), (-1, -1, 1), (0, 1, 8), (3, -1, 1), (16, -1, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(SsbError, match="mesh: "):
        mesh_of(sizes)


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 2}, (1, 2, 4), "num_attention_heads 6 by tensor=4"),
        ({"num_heads": 12, "num_kv_heads": 3}, (1, 4, 2), "num_key_value_heads 3 by tensor=2, nor the reverse"),
        ({"vocab_size": 97}, (1, 4, 2), "vocab_size 97 by tensor=2"),
        ({"intermediate_size": 50}, (1, 2, 4), "intermediate_size 50 by tensor=4"),
        ({"hidden_size": 36}, (1, 8, 1), "hidden_size 36 by fsdp=8"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(change, shape, message):
    with pytest.raises(SsbError, match=message):
        random_model(replace(CONFIG, **change), mesh=mesh_of(shape))


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    model, tokens = make_model(), make_tokens((3, 4))
    with use_mesh(mesh_of((2, 2, 2))), pytest.raises(SsbError, match="batch of size 3"):
        forward(model, tokens, positions=steps(tokens))


def test_spec_refuses_a_mesh_axis_used_twice_and_unknown_names():
    assert spec("batch", None, "heads") == PartitionSpec(("data", "fsdp"), None, "tensor")
    with pytest.raises(SsbError, match="fsdp twice"):
        spec("batch", "embed")
    with pytest.raises(SsbError, match="unknown logical axis 'haeds'"):
        spec("haeds")


def test_constrain_without_a_mesh_does_nothing():
    x = jnp.ones((3, 5))
    assert constrain(x, "batch", "ffn") is x


def test_rules_name_mesh_axes():
    mesh = make_mesh()
    for rule in LOGICAL_RULES.values():
        axes = () if rule is None else (rule,) if isinstance(rule, str) else rule
        assert math.prod(mesh.shape[axis] for axis in axes) >= 1
