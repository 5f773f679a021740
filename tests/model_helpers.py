"""Small checkpoints for the model's tests, drawn wide so that every term of the forward pass shows in the logits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ssb_jax.config import Lora as LoraSettings
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.lora import init_lora
from ssb_jax.model.sharding import leaf_name
from ssb_jax.model.transformer import Transformer, abstract_model

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=128,
)

forward = jax.jit(Transformer.__call__, static_argnames="remat")


def make_model(config=CONFIG, *, seed=0, dtype=jnp.float32):
    """A model with no weight at a special value: norms about 1, biases not 0."""
    random = np.random.default_rng(seed)

    def draw(path, x):
        centre = 1.0 if "norm" in leaf_name(path) else 0.0
        return jnp.asarray(centre + 0.2 * random.standard_normal(x.shape), dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_model(config, dtype))


def make_lora(config=CONFIG, *, seed=1, trained=True, **settings):
    """An adapter; `trained` gives it a B that is not 0."""
    lora = init_lora(config, LoraSettings(**{"rank": 4, "alpha": 8.0} | settings), key=jax.random.key(seed))
    if not trained:
        return lora
    random = np.random.default_rng(seed)
    return replace(
        lora, b={k: jnp.asarray(0.1 * random.standard_normal(v.shape), jnp.float32) for k, v in lora.b.items()}
    )


def make_tokens(shape=(2, 13), *, seed=2, config=CONFIG):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, shape), jnp.int32)


def steps(tokens):
    """Positions 0, 1, ... of every row."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)


def logits(model, tokens, **options):
    hidden, _ = forward(model, tokens, positions=steps(tokens), **options)
    return model.logits(hidden)


def truncated(model, depth):
    """The first `depth` layers of a model, under its last norm."""
    leaves = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    abstract = abstract_model(replace(model.config, num_layers=depth), model.dtype)
    return jax.tree_util.tree_map_with_path(lambda path, x: leaves[leaf_name(path)][: x.shape[0]], abstract)
