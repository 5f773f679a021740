"""Properties of the forward pass: cache, packing, rematerialisation, compile size, parameter counts."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_helpers import CONFIG, forward, logits, make_lora, make_model, make_tokens, steps

from ssb_jax.config import SsbError
from ssb_jax.model.cache import KVCache, init_cache
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.transformer import Transformer, abstract_model, count_parameters

QWEN25_3B = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "max_window_layers": 70,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
LENGTHS = (13, 5, 9)  # of ragged rows
S = 16


def ragged_positions(start, stop):
    """Positions start..stop of each row, and S (written nowhere) where the row has ended."""
    at = np.arange(start, stop)[None].repeat(len(LENGTHS), 0)
    return jnp.asarray(np.where(at < np.array(LENGTHS)[:, None], at, S), jnp.int32)


@pytest.mark.parametrize("pieces", [(13,), (4, 9), (1,) * 13, (6, 1, 1, 5)], ids=str)
def test_cached_equals_uncached_on_ragged_rows(pieces):
    model, tokens = make_model(), make_tokens((3, 13))
    expected, _ = forward(model, tokens, positions=steps(tokens))
    # What an earlier sequence left in the cache must not be seen.
    stale = 100.0 * jax.random.normal(
        jax.random.key(0), (CONFIG.num_layers, 3, CONFIG.num_kv_heads, S, CONFIG.head_dim)
    )
    cache, hidden, start = KVCache(k=stale, v=stale), [], 0
    for size in pieces:
        positions = ragged_positions(start, start + size)
        out, cache = forward(model, tokens[:, start : start + size], positions=positions, cache=cache)
        hidden.append(out)
        start += size
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(
            jnp.concatenate(hidden, axis=1)[row, :length], expected[row, :length], atol=1e-5, rtol=0
        )


def test_rows_of_one_batch_may_be_at_different_positions():
    model, tokens = make_model(), make_tokens((3, 13))
    expected, _ = forward(model, tokens, positions=steps(tokens))
    _, cache = forward(model, tokens, positions=ragged_positions(0, 13), cache=init_cache(CONFIG, 3, S))
    following = jnp.asarray(LENGTHS, jnp.int32)[:, None]
    token = jnp.take_along_axis(jnp.pad(tokens, ((0, 0), (0, 1))), following, axis=1)
    hidden, cache = forward(model, token, positions=following, cache=cache)
    for row, length in enumerate(LENGTHS[1:], 1):
        np.testing.assert_allclose(hidden[row, 0], expected[row, length], atol=1e-5, rtol=0)


def test_positions_beyond_the_cache_are_written_nowhere():
    cache = init_cache(CONFIG, 2, S)
    tokens = make_tokens((2, 4))
    _, after = forward(make_model(), tokens, positions=jnp.full((2, 4), S, jnp.int32), cache=cache)
    jax.tree.map(np.testing.assert_array_equal, after, cache)


def test_packed_equals_separate():
    model, parts = make_model(), [make_tokens((1, n), seed=n) for n in (5, 8, 3)]
    padding = 4
    packed = jnp.concatenate([*parts, jnp.zeros((1, padding), jnp.int32)], axis=1)
    positions = jnp.concatenate([*map(steps, parts), jnp.zeros((1, padding), jnp.int32)], axis=1)
    segments = np.repeat([1, 2, 3, 0], [5, 8, 3, padding])[None]
    hidden, _ = forward(model, packed, positions=positions, segment_ids=jnp.asarray(segments))
    assert np.isfinite(hidden).all()
    for number, part in enumerate(parts, 1):
        alone, _ = forward(model, part, positions=steps(part))
        np.testing.assert_allclose(hidden[0, segments[0] == number], alone[0], atol=1e-5, rtol=0)


def test_a_cache_and_segments_exclude_each_other():
    tokens = make_tokens((1, 3))
    with pytest.raises(ValueError, match="one of the two"):
        forward(
            make_model(), tokens, positions=steps(tokens), segment_ids=steps(tokens), cache=init_cache(CONFIG, 1, 4)
        )


def test_rematerialisation_changes_memory_and_not_gradients():
    model, tokens = make_model(), make_tokens((2, 12))
    lora = make_lora(dropout=0.2, target_modules=("down_proj",))

    def gradient(lora, remat):
        def loss(lora):
            hidden, _ = model(tokens, positions=steps(tokens), lora=lora, remat=remat, dropout_key=jax.random.key(3))
            return jnp.square(hidden).sum()

        return jax.grad(loss)(lora)

    programs = {
        remat: jax.jit(partial(gradient, remat=remat)).lower(lora).compile() for remat in ("none", "dots", "full")
    }
    memory = [program.memory_analysis().temp_size_in_bytes for program in programs.values()]
    assert memory[0] > memory[1] > memory[2]
    for remat in ("dots", "full"):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), programs[remat](lora), programs["none"](lora)
        )


def test_unknown_rematerialisation_is_refused():
    tokens = make_tokens((1, 3))
    with pytest.raises(SsbError, match="none, dots, full"):
        make_model()(tokens, positions=steps(tokens), remat="some")


def test_program_size_does_not_grow_with_depth():
    def lines(layers):
        config = replace(CONFIG, num_layers=layers)
        tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
        cache = jax.eval_shape(lambda: init_cache(config, 2, S))
        lora = jax.eval_shape(lambda: make_lora(config, trained=False))
        lowered = forward.lower(abstract_model(config), tokens, positions=tokens, cache=cache, lora=lora)
        return len(lowered.as_text().splitlines())

    assert lines(2) == lines(8)


def test_a_donated_decode_step_does_not_copy_the_cache():
    config = replace(CONFIG, num_layers=8)
    cache = jax.eval_shape(lambda: init_cache(config, 4, 256))
    token = jax.ShapeDtypeStruct((4, 1), jnp.int32)
    step = jax.jit(lambda model, token, at, cache: model(token, positions=at, cache=cache), donate_argnames="cache")
    memory = step.lower(abstract_model(config), token, token, cache).compile().memory_analysis()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= size, "the cache is updated where it lies"
    assert memory.temp_size_in_bytes < size / 2, "no second cache: at most the slices of a layer at a time"


def test_bfloat16_weights_give_bfloat16_hidden_states_and_float32_logits():
    model, tokens = make_model(dtype=jnp.bfloat16), make_tokens()
    hidden, cache = forward(
        model, tokens, positions=steps(tokens), cache=init_cache(CONFIG, 2, S, jnp.bfloat16), lora=make_lora()
    )
    assert (hidden.dtype, cache.k.dtype, model.logits(hidden).dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    wide = logits(jax.tree.map(lambda x: x.astype(jnp.float32), model), tokens, lora=make_lora())
    error = np.abs(model.logits(hidden) - wide)
    assert error.mean() < 0.02 * np.std(wide)


def test_parameter_count_of_qwen25_3b():
    model = abstract_model(ModelConfig.from_json_dict(QWEN25_3B), jnp.bfloat16)
    assert count_parameters(model) == 3_085_938_688
    assert model.head_weight().shape == (151936, 2048)
    hidden = jax.ShapeDtypeStruct((4, 2048), jnp.bfloat16)
    assert jax.eval_shape(Transformer.logits, model, hidden).shape == (4, 151936)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3"}, "model_type must be 'qwen2', got 'qwen3'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0}}, "rope scaling 'linear'"),
        ({"use_sliding_window": True, "max_window_layers": 28}, "sliding-window"),
        ({"layer_types": ["sliding_attention"] * 36}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_size": None, "rms_norm_eps": None}, "missing: hidden_size, rms_norm_eps"),
        ({"num_key_value_heads": 3}, "16 query heads are not a multiple of 3"),
        ({"num_hidden_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"hidden_size": "big"}, "hidden_size must be a whole number, got 'big'"),
    ],
)
def test_an_unsupported_config_is_refused(change, message):
    with pytest.raises(SsbError, match=message):
        ModelConfig.from_json_dict(QWEN25_3B | change)


def test_both_spellings_of_the_rotary_base_are_read():
    older = ModelConfig.from_json_dict(QWEN25_3B)
    newer = {k: v for k, v in QWEN25_3B.items() if k != "rope_theta"}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000000.0}
    assert ModelConfig.from_json_dict(newer) == older
    assert ModelConfig.from_json_dict(older.to_json_dict()) == older
