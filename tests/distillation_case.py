"""A random tiny model and random pairs of unequal lengths, for the tests of targets and distillation."""

import functools
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from ssb_jax.config import Config, config_from_dict
from ssb_jax.model.lora import Lora, lora_shapes
from ssb_jax.model.sharding import leaf_name
from ssb_jax.model.transformer import ModelConfig, Transformer, abstract_model
from ssb_jax.records import Pair
from ssb_jax.stages import distillation, targets

STOP = 63
MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=128,
)


@functools.cache
def make_model(seed: int = 0) -> Transformer:
    """Weights from numpy: compiling JAX's generator for each shape takes longer than the tests."""
    model = abstract_model(MODEL)
    rng = np.random.default_rng(seed)

    def draw(path, x):
        name = leaf_name(path)
        if "norm" in name:
            return jnp.ones(x.shape, x.dtype)
        scale = 1.0 if name == "embed" else 0.3
        return jnp.asarray(rng.normal(size=x.shape) * scale, x.dtype)

    return jax.tree_util.tree_map_with_path(draw, model)


def make_pairs(count: int = 6, seed: int = 0, longest: int = 20) -> list[Pair]:
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return tuple(int(x) for x in rng.integers(0, STOP, rng.integers(low, high)))

    return [
        Pair(f"q{i}", "", "", "", ids(10, 2 * longest), ids(4, longest), (*ids(4, longest), STOP), True)
        for i in range(count)
    ]


def make_config(**sections) -> Config:
    base = {
        "model": {"path": "unused"},
        "questions": {"path": "unused"},
        "lora": {"rank": 4, "alpha": 8.0},
        "distillation": {"epochs": 2, "batch_size": 2, "tensorboard": False, "checkpoint_every": 3, "chunk_tokens": 16},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
    return config_from_dict(base)


def make_workspace(model: Transformer, mesh=None) -> SimpleNamespace:
    """What a stage asks of a workspace."""
    tokenizer = SimpleNamespace(all_special_ids=[STOP])
    chat = SimpleNamespace(pad_id=0, end_of_turn_id=STOP, tokenizer=tokenizer)
    return SimpleNamespace(
        model=model,
        model_on={mesh: model}.__getitem__,
        mesh=mesh,
        teacher_mesh=mesh,
        training_mesh=mesh,
        chat=chat,
        dtype=model.dtype,
    )


def make_targets(pairs, folder: Path, *, config: Config | None = None, model=None, mesh=None, views=None) -> dict:
    workspace = make_workspace(model or make_model(), mesh)
    return targets.run(pairs, config=config or make_config(), folder=folder, workspace=workspace, views=views)


def train(pairs, root: Path, *, config: Config | None = None, model=None, mesh=None, views=None) -> dict:
    """Distillation from `root/targets` into `root/distillation`."""
    return distillation.run(
        pairs,
        config=config or make_config(),
        store_folder=root / "targets",
        folder=root / "distillation",
        workspace=make_workspace(model or make_model(), mesh),
        views=views,
    )


def full_logits(model: Transformer, prompts, replies, lora=None):
    """Logits (all reply tokens, V), reply after reply: one padded row a sequence, every position, all words."""
    lengths = [len(p) + len(r) for p, r in zip(prompts, replies, strict=True)]
    tokens = np.zeros((len(prompts), max(lengths)), np.int32)
    rows, columns = [], []
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        tokens[row, : lengths[row]] = (*prompt, *reply)
        rows += [row] * len(reply)
        columns += range(len(prompt) - 1, lengths[row] - 1)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    hidden, _ = model(jnp.asarray(tokens), positions=positions, lora=lora)
    return model.logits(hidden)[jnp.asarray(rows), jnp.asarray(columns)]


def random_lora(rank: int = 4, alpha: float = 8.0, dropout: float = 0.0) -> Lora:
    """An adapter of all modules whose B is not 0, so that student and teacher differ."""
    rng = np.random.default_rng(5)
    L, shapes = MODEL.num_layers, lora_shapes(MODEL)
    a = {k: jnp.asarray(rng.normal(size=(L, i, rank)) * i**-0.5, jnp.float32) for k, (i, _) in shapes.items()}
    b = {k: jnp.asarray(rng.normal(size=(L, rank, o)) * 0.1, jnp.float32) for k, (_, o) in shapes.items()}
    return Lora(a=a, b=b, alpha=alpha, rank=rank, dropout=dropout)
