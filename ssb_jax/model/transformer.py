"""The Qwen2 / Qwen2.5 decoder in Flax NNX: tokens to hidden states, the head apart.

Parameters are stacked over layers and the forward pass is one scan, so compile time does not grow with depth. The
KV cache rides in the scan's carry and is updated in place. Knows no files (weights.py) and no sampling.

Reference: `transformers.models.qwen2`; RMSNorm arXiv 1910.07467, SwiGLU arXiv 2002.05202, grouped queries arXiv
2305.13245.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from ssb_jax.config import SsbError
from ssb_jax.model.attention import Mask, attention, rotary_angles, rotate
from ssb_jax.model.cache import Cache, KVCache, read, write
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.lora import LORA_MODULES, Lora, lora_delta
from ssb_jax.model.quantization import whole
from ssb_jax.model.sharding import MeshError, constrain, shardings

__all__ = ["ModelConfig", "Transformer", "abstract_model", "count_parameters", "model_shardings"]

# Parameter -> logical axes. The layout of each array is the one its einsum wants.
PARAMETER_AXES: dict[str, tuple[str, ...]] = {
    "embed": ("vocab", "embed"),
    "norm": ("width",),
    "lm_head": ("vocab", "embed"),
    "layers.input_norm": ("layers", "width"),
    "layers.q_proj": ("layers", "embed", "heads", "head_dim"),
    "layers.k_proj": ("layers", "embed", "kv_heads", "head_dim"),
    "layers.v_proj": ("layers", "embed", "kv_heads", "head_dim"),
    "layers.q_bias": ("layers", "heads", "head_dim"),
    "layers.k_bias": ("layers", "kv_heads", "head_dim"),
    "layers.v_bias": ("layers", "kv_heads", "head_dim"),
    "layers.o_proj": ("layers", "heads", "head_dim", "embed"),
    "layers.post_norm": ("layers", "width"),
    "layers.gate_proj": ("layers", "embed", "ffn"),
    "layers.up_proj": ("layers", "embed", "ffn"),
    "layers.down_proj": ("layers", "ffn", "embed"),
}

REMAT_POLICIES = {
    "none": None,  # keep every intermediate
    # Keep what the weight matrices gave, and of the attention its result: no such product is computed twice.
    "dots": jax.checkpoint_policies.save_only_these_names("product", "low_rank", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only the layer's input
}


class Transformer(nnx.Module):
    """A Qwen2 decoder. A JAX pytree: `jax.jit` takes it as an argument; `config` is static."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32):
        """Random weights as transformers draws them: normal(initializer_range), norms 1, biases 0."""
        self.config = config
        self.attention = "auto"  # the kernel: see `attention`
        shapes = parameter_shapes(config)

        def parameter(name: str) -> nnx.Param:
            if "norm" in name:
                return nnx.Param(jnp.ones(shapes[name], dtype))
            if "bias" in name:
                return nnx.Param(jnp.zeros(shapes[name], dtype))
            normal = jax.random.normal(rngs.params(), shapes[name], jnp.float32)
            return nnx.Param((normal * config.initializer_range).astype(dtype))

        layers = [name.removeprefix("layers.") for name in shapes if name.startswith("layers.")]
        self.embed = parameter("embed")
        self.layers = nnx.Dict({name: parameter(f"layers.{name}") for name in layers})
        self.norm = parameter("norm")
        self.lm_head = None if config.tie_word_embeddings else parameter("lm_head")

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the weights, and of the hidden states."""
        return self.embed.get_value().dtype

    def head_weight(self) -> Float[Array, "V D"]:
        """The output projection: the embedding itself when tied."""
        return (self.embed if self.lm_head is None else self.lm_head).get_value()

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Next-token logits in float32 of hidden states after the last norm."""
        out = jnp.einsum("...d,vd->...v", hidden, self.head_weight(), preferred_element_type=jnp.float32)
        return constrain(out, "batch", *[None] * (hidden.ndim - 2), "vocab") if hidden.ndim > 1 else out

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | Cache | None = None,
        lora: Lora | None = None,
        dropout_key: Key[Array, ""] | None = None,
        remat: str = "none",
        start: int | None = None,
        layers: list | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | Cache | None]:
        """Hidden states after the last norm, and the updated cache.

        Without a cache, token t sees tokens up to t, of its own segment if `segment_ids` are given (0 = padding).
        With a cache, each token's keys and values are written at its position (>= 0; those >= S nowhere, which is
        how padding is written) and the token sees cache indices up to its position. Prefill, prefill in pieces and
        decode are therefore the same call, and rows may be ragged. A cache and segments exclude each other. The layers
        are one scan, or one for each part of a cache in equal parts, whose `layers` a loop gives to each call.

        `start` says of a cache of length start + T that every token t, unless it is padding, has position start + t:
        attention kernels want to know it when they are compiled.

        LoRA's dropout is on exactly when `dropout_key` is given. `remat`, what the backward pass recomputes within
        a layer: "none", "dots" (all but weight matmuls) or "full".
        """
        if cache is not None and segment_ids is not None:
            raise ValueError("segment_ids say which tokens see each other without a cache; give one of the two")
        if remat not in REMAT_POLICIES:
            raise SsbError(f"remat must be one of {', '.join(REMAT_POLICIES)}; got {remat!r}")
        config = self.config
        B, T = tokens.shape
        parts = cache if isinstance(cache, tuple) else (cache,)
        if cache is None:
            steps = jnp.arange(T, dtype=jnp.int32)
            mask = Mask(jnp.broadcast_to(steps[None], (B, T)), steps, segment_ids, start=0)
        else:
            mask = Mask(positions, jnp.arange(parts[0].length, dtype=jnp.int32), start=start)
        attend = functools.partial(attention, mask=mask, kernel=self.attention)
        rotary = functools.partial(rotary_angles, head_dim=config.head_dim, theta=config.rope_theta)
        if len(parts) == 1:
            angles = rotary(positions)
        else:  # from a table: beside several scans XLA computes cosines again in every layer, on one core
            angles = tuple(table[0][positions] for table in rotary(mask.key_index[None]))

        def layer(carry, per_layer):
            x, cache = carry
            index, place, weights, adapter = per_layer  # of the layer in the model, and in its part of the cache
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            project = _projector(weights, adapter, lora, key)
            normed = rms_norm(x, weights["input_norm"], config.rms_norm_eps)
            mixed, cache = _attend(normed, weights, project, config, angles, attend, cache, place, positions)
            x = constrain(x + mixed, "batch", "tokens", "width")
            x = x + _feed_forward(rms_norm(x, weights["post_norm"], config.rms_norm_eps), project)
            return (constrain(x, "batch", "tokens", "width"), cache), None

        if remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
        x = constrain(self.embed[...][tokens], "batch", "tokens", "width")
        written = []
        for part, own in zip(parts, layers or self.layers_in_parts(len(parts), lora), strict=True):
            (x, part), _ = jax.lax.scan(layer, (x, part), own)
            written.append(part)
        return rms_norm(x, self.norm[...], config.rms_norm_eps), tuple(written) if parts is cache else written[0]

    def layers_in_parts(self, count: int, lora: Lora | None) -> list:
        """What the layers of each of `count` equal parts scan over: (index, place in the part, weights, adapter).

        Taking them out copies them, except where one part is the whole: a loop wants it done before.
        """
        weights = {name: parameter.get_value() for name, parameter in self.layers.items()}
        adapter = {} if lora is None else {name: (lora.a[name], lora.b[name]) for name in lora.a}
        indices = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        size = self.config.num_layers // count
        everything = (indices, indices % size, weights, adapter)
        if count == 1:
            return [everything]
        return [jax.tree.map(lambda x, i=i: _take(x, np.int32(i * size), size), everything) for i in range(count)]


@jax.jit(static_argnames="count")
def _take(x: Array, first: Int[Array, ""], count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, first, count)


def rms_norm(x: Float[Array, "*batch D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) in float32, then times weight in x's dtype, as Qwen2 rounds it."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * jnp.expand_dims(weight, tuple(range(x.ndim - 1)))


def _projector(weights, adapter, lora, key):
    """A function (module, x (B, T, *in)) -> (B, T, *out): frozen weight, plus the adapter where there is one."""

    def project(name: str, x: Array) -> Array:
        weight = whole(weights[name])
        axes_in = x.ndim - 2
        out = jnp.tensordot(x, weight, axes=axes_in)
        if name in adapter:
            a, b = adapter[name]
            flat = x.reshape(*x.shape[:2], a.shape[0])
            module_key = None if key is None else jax.random.fold_in(key, LORA_MODULES.index(name))
            delta = lora_delta(flat, a, b, scale=lora.scale, dropout=lora.dropout, key=module_key)
            out = out + delta.reshape(out.shape)
        return checkpoint_name(out, "product")

    return project


def _attend(x, weights, project, config, angles, attend, cache, index, positions):
    """Self-attention of one layer: (B, T, D) -> (B, T, D), and the cache with this layer's keys and values."""
    q = project("q_proj", x) + weights["q_bias"][None, None]
    k = project("k_proj", x) + weights["k_bias"][None, None]
    v = project("v_proj", x) + weights["v_bias"][None, None]
    q = constrain(rotate(q, *angles), "batch", "tokens", "heads", "head_dim")
    k = constrain(rotate(k, *angles), "batch", "tokens", "kv_heads", "head_dim")
    v = constrain(v, "batch", "tokens", "kv_heads", "head_dim")
    if cache is not None:
        cache = KVCache(k=write(cache.k, k, index, positions), v=write(cache.v, v, index, positions))
        k, v = read(cache.k, index).astype(q.dtype), read(cache.v, index).astype(q.dtype)
    return project("o_proj", attend(q, k, v)), cache


def _feed_forward(x, project):
    """SwiGLU: (B, T, D) -> (B, T, D)."""
    gate = constrain(project("gate_proj", x), "batch", "tokens", "ffn")
    return project("down_proj", jax.nn.silu(gate) * project("up_proj", x))


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by its dotted name."""
    sizes = {
        "layers": config.num_layers,
        "vocab": config.vocab_size,
        "embed": config.hidden_size,
        "width": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "ffn": config.intermediate_size,
    }
    shapes = {name: tuple(sizes[axis] for axis in axes) for name, axes in PARAMETER_AXES.items()}
    if config.tie_word_embeddings:
        del shapes["lm_head"]
    return shapes


def parameter_count(config: ModelConfig) -> int:
    """Number of parameters of a model of this shape."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def abstract_model(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> Transformer:
    """The model with ShapeDtypeStruct in place of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), dtype=dtype))


def count_parameters(tree: object) -> int:
    """Number of parameters in a tree of arrays or abstract shapes (tied weights once)."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def check_mesh(config: ModelConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises MeshError listing every size of the model that the mesh does not divide."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    splits = {
        "hidden_size": (config.hidden_size, "fsdp", fsdp),
        "num_attention_heads": (config.num_heads, "tensor", tensor),
        "intermediate_size": (config.intermediate_size, "tensor", tensor),
        "vocab_size": (config.vocab_size, "tensor", tensor),
    }
    problems = [f"{name} {n} by {axis}={parts}" for name, (n, axis, parts) in splits.items() if n % parts]
    if config.num_kv_heads % tensor and tensor % config.num_kv_heads:
        problems.append(f"num_key_value_heads {config.num_kv_heads} by tensor={tensor}, nor the reverse")
    if problems:
        raise MeshError(f"mesh: it does not divide {'; '.join(problems)}; choose another mesh.fsdp, mesh.tensor")


def model_shardings(model: Transformer, mesh: jax.sharding.Mesh) -> Transformer:
    """NamedSharding of each parameter, in a tree like `model` (arrays or abstract shapes).

    Raises SsbError when the mesh does not divide heads, ffn, vocab or width.
    """
    return shardings(model, PARAMETER_AXES.__getitem__, mesh)
