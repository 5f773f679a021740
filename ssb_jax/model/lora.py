"""Low-rank adapters (LoRA, arXiv 2106.09685) as a parameter tree of their own, beside the frozen model.

y = x W + (alpha / R) * dropout(x) A B, with B = 0 at the start, so that a fresh student equals its base exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Key

from ssb_jax.config import SsbError
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.sharding import shardings

# Module -> logical axes of its input and of its output, both flattened to one dimension.
LORA_AXES = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "kv_out"),
    "v_proj": ("embed", "kv_out"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "ffn"),
    "up_proj": ("embed", "ffn"),
    "down_proj": ("ffn", "embed"),
}
LORA_MODULES = tuple(LORA_AXES)


class LoraSettings(Protocol):
    """What `init_lora` needs to know; any settings object with these fields will do."""

    rank: int
    alpha: float
    dropout: float
    target_modules: Sequence[str]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lora:
    """Adapter parameters in float32, by module name; `alpha`, `rank` and `dropout` are static."""

    a: Mapping[str, Float[Array, "L I R"]]
    b: Mapping[str, Float[Array, "L R O"]]
    alpha: float = field(metadata={"static": True})
    rank: int = field(metadata={"static": True})
    dropout: float = field(metadata={"static": True})

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def lora_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Module -> (input, output) sizes of one layer's matrix, flattened."""
    D, F = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (D, q),
        "k_proj": (D, kv),
        "v_proj": (D, kv),
        "o_proj": (q, D),
        "gate_proj": (D, F),
        "up_proj": (D, F),
        "down_proj": (F, D),
    }


def init_lora(config: ModelConfig, settings: LoraSettings, *, key: Key[Array, ""]) -> Lora:
    """A fresh adapter: A as peft draws it (Kaiming uniform with a = sqrt 5, that is U(-1/sqrt I, 1/sqrt I)), B = 0.

    A module's numbers depend on the key and its name only, not on which other modules are adapted.
    """
    unknown = sorted(set(settings.target_modules) - set(LORA_MODULES))
    if unknown or not settings.target_modules:
        raise SsbError(
            f"lora: target modules must be among {', '.join(LORA_MODULES)}; got {list(settings.target_modules)}"
        )
    if settings.rank < 1 or not 0 <= settings.dropout < 1:
        raise SsbError(f"lora: rank must be at least 1 and dropout in [0, 1); got {settings.rank}, {settings.dropout}")
    L, R = config.num_layers, settings.rank
    a, b = {}, {}
    for index, (name, (size_in, size_out)) in enumerate(lora_shapes(config).items()):
        if name in settings.target_modules:
            bound = size_in**-0.5
            key_a = jax.random.fold_in(key, index)
            a[name] = jax.random.uniform(key_a, (L, size_in, R), jnp.float32, -bound, bound)
            b[name] = jnp.zeros((L, R, size_out), jnp.float32)
    return Lora(a=a, b=b, alpha=float(settings.alpha), rank=R, dropout=float(settings.dropout))


def lora_shardings(lora: Lora, mesh: jax.sharding.Mesh) -> Lora:
    """NamedSharding of each array of an adapter (or of its abstract shapes)."""

    def axes_of(path: str) -> tuple[str, str, str]:
        matrix, module = path.split(".")
        axis_in, axis_out = LORA_AXES[module]
        return ("layers", axis_in, "rank") if matrix == "a" else ("layers", "rank", axis_out)

    return shardings(lora, axes_of, mesh)


def lora_delta(
    x: Float[Array, "B T I"],
    a: Float[Array, "I R"],
    b: Float[Array, "R O"],
    *,
    scale: float,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "B T O"]:
    """What the adapter adds to a module's output; dropout on the input only when a key is given."""
    if key is not None and dropout > 0:
        kept = jax.random.bernoulli(key, 1 - dropout, x.shape)
        x = jnp.where(kept, x / (1 - dropout), jnp.zeros_like(x))
    return _low_rank(x, a, b, scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _low_rank(x, a, b, scale):
    """x A B * scale, in the activation's dtype: a float32 copy of a (B, T, F) input would cost more than it gains.

    In the gradients x and the output's cotangent are taken as they lie, and only arrays of rank R are transposed.
    """
    return _low_rank_forward(x, a, b, scale)[0]


def _low_rank_forward(x, a, b, scale):
    inner = checkpoint_name(x @ a.astype(x.dtype), "low_rank")
    return inner @ b.astype(x.dtype) * scale, (x, inner, a, b)


def _low_rank_backward(scale, kept, d_out):
    x, inner, a, b = kept
    d_inner = jnp.einsum("bto,ro->btr", d_out, b.astype(x.dtype)) * scale
    d_x = jnp.einsum("btr,ir->bti", d_inner, a.astype(x.dtype))
    d_a = jnp.einsum("btr,bti->ri", d_inner, x, preferred_element_type=jnp.float32)
    d_a = jax.lax.optimization_barrier(d_a).T  # XLA on CPUs has no product of bfloat16 with the transposition folded in
    d_b = jnp.einsum("btr,bto->ro", inner, d_out, preferred_element_type=jnp.float32) * scale
    return d_x, d_a.astype(a.dtype), d_b.astype(b.dtype)


_low_rank.defvjp(_low_rank_forward, _low_rank_backward)


@jax.jit
def merge(model: nnx.Module, lora: Lora) -> nnx.Module:
    """A model of its own whose weights include the adapter: W + (alpha / R) A B, summed in float32.

    Raises SsbError for a quantized model: the sum would be rounded again.
    """
    merged = jax.tree.map(lambda x: x, model)
    for name in lora.a:
        weight = merged.layers[name].get_value()
        if not isinstance(weight, jax.Array):
            raise SsbError("an adapter cannot be merged into a quantized model; load it with quantization none")
        delta = jnp.einsum("lir,lro->lio", lora.a[name], lora.b[name], preferred_element_type=jnp.float32)
        total = weight.astype(jnp.float32) + lora.scale * delta.reshape(weight.shape)
        merged.layers[name][...] = total.astype(weight.dtype)
    return merged
