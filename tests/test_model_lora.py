"""Properties of the adapter: a fresh one changes nothing, merging equals adding, only it receives gradients."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import CONFIG, forward, logits, make_lora, make_model, make_tokens, steps

from ssb_jax.config import Lora as LoraSettings
from ssb_jax.config import SsbError
from ssb_jax.model.cache import init_cache
from ssb_jax.model.lora import LORA_MODULES, init_lora, lora_delta, lora_shapes, merge


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_fresh_adapter_equals_the_base_exactly(dtype):
    model, tokens = make_model(dtype=dtype), make_tokens()
    np.testing.assert_array_equal(logits(model, tokens, lora=make_lora(trained=False)), logits(model, tokens))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("modules", [LORA_MODULES, *((name,) for name in LORA_MODULES)], ids="+".join)
def test_merged_equals_adapter_on(tied, modules):
    config = replace(CONFIG, tie_word_embeddings=tied)
    model, tokens, lora = make_model(config), make_tokens(), make_lora(config, target_modules=modules)
    base, adapted, merged = logits(model, tokens), logits(model, tokens, lora=lora), logits(merge(model, lora), tokens)
    np.testing.assert_allclose(merged, adapted, atol=1e-5 * np.abs(base).max(), rtol=0)
    assert np.abs(adapted - base).max() > 1e-2
    np.testing.assert_array_equal(logits(model, tokens), base, err_msg="the base itself is untouched")


def test_the_adapter_acts_with_a_cache_too():
    model, tokens, lora = make_model(), make_tokens(), make_lora()
    hidden, _ = forward(model, tokens, positions=steps(tokens), cache=init_cache(CONFIG, 2, 16), lora=lora)
    np.testing.assert_allclose(model.logits(hidden), logits(model, tokens, lora=lora), atol=1e-4, rtol=0)


def test_gradients_reach_every_part_of_the_adapter():
    model, tokens = make_model(), make_tokens()

    def loss(lora):
        hidden, _ = model(tokens, positions=steps(tokens), lora=lora)
        return jax.nn.log_softmax(model.logits(hidden))[..., 0].mean()

    gradient = jax.jit(jax.grad(loss))
    fresh, trained = gradient(make_lora(trained=False)), gradient(make_lora())
    for name in LORA_MODULES:
        for layer in range(CONFIG.num_layers):
            assert np.abs(fresh.b[name][layer]).max() > 0
            assert np.abs(trained.a[name][layer]).max() > 0
        np.testing.assert_array_equal(fresh.a[name], 0, err_msg="with B = 0 nothing reaches A")


def test_the_gradient_is_the_slope():
    model, tokens, lora = make_model(), make_tokens((1, 6)), make_lora(target_modules=("q_proj", "down_proj"))

    @jax.jit
    def loss(lora):
        hidden, _ = model(tokens, positions=steps(tokens), lora=lora)
        return jnp.square(hidden).mean()

    direction = jax.tree.map(lambda x: jnp.sign(jnp.sin(jnp.arange(x.size, dtype=jnp.float32))).reshape(x.shape), lora)
    step = 1e-3

    def moved(by):
        return loss(jax.tree.map(lambda x, d: x + by * d, lora, direction))

    slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.jit(jax.grad(loss))(lora), direction)))
    np.testing.assert_allclose((moved(step) - moved(-step)) / (2 * step), slope, rtol=1e-2)


def test_dropout_is_on_only_with_a_key_and_keeps_the_mean():
    model, tokens = make_model(), make_tokens((1, 5))
    lora = make_lora(dropout=0.5, target_modules=("down_proj",))
    silent = replace(lora, dropout=0.0)
    key = jax.random.key(0)
    on = logits(model, tokens, lora=lora, dropout_key=key)
    np.testing.assert_array_equal(logits(model, tokens, lora=lora), logits(model, tokens, lora=silent))
    np.testing.assert_array_equal(on, logits(model, tokens, lora=lora, dropout_key=key))
    assert np.abs(on - logits(model, tokens, lora=lora, dropout_key=jax.random.key(1))).max() > 0

    # In one layer's sum dropout is unbiased: average over many masks.
    one = replace(CONFIG, num_layers=1)
    model, lora = make_model(one), make_lora(one, dropout=0.5, target_modules=("down_proj",))
    x = jax.random.normal(key, (1, 5, CONFIG.intermediate_size))
    a, b = lora.a["down_proj"][0], lora.b["down_proj"][0]
    average = jax.vmap(lambda key: lora_delta(x, a, b, scale=2.0, dropout=0.5, key=key))(jax.random.split(key, 8192))
    expected = lora_delta(x, a, b, scale=2.0)
    np.testing.assert_allclose(average.mean(0), expected, atol=6 * np.std(average) / np.sqrt(8192), rtol=0)


def test_a_module_starts_the_same_whichever_others_are_adapted():
    alone = make_lora(target_modules=("up_proj",), trained=False)
    np.testing.assert_array_equal(alone.a["up_proj"], make_lora(trained=False).a["up_proj"])


def test_shapes_and_dtypes():
    lora = make_lora(rank=5)
    for name, (size_in, size_out) in lora_shapes(CONFIG).items():
        assert lora.a[name].shape == (CONFIG.num_layers, size_in, 5)
        assert lora.b[name].shape == (CONFIG.num_layers, 5, size_out)
        assert lora.a[name].dtype == lora.b[name].dtype == jnp.float32


def test_unknown_modules_are_refused():
    settings = LoraSettings.model_construct(rank=4, alpha=4.0, dropout=0.0, target_modules=("q_proj", "lm_head"))
    with pytest.raises(SsbError, match="target modules must be among"):
        init_lora(CONFIG, settings, key=jax.random.key(0))
