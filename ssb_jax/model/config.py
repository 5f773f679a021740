"""The shape of a Qwen2 network, read from a checkpoint's config.json. Knows numbers, no arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssb_jax.config import SsbError

DEFAULT_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class ModelConfig:
    """Numbers that fix every array's shape, in the dimension letters of the package."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in _SIZES.values():
            if getattr(self, name) < 1:
                raise SsbError(f"model config: {name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise SsbError(
                f"model config: {self.num_heads} query heads are not a multiple of {self.num_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise SsbError(f"model config: rotary embedding needs an even head size, got {self.head_dim}")

    @classmethod
    def from_json_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads a parsed config.json.

        Raises SsbError listing everything in it that this network does not implement or that is absent.
        """
        if problems := _malformed(raw):
            raise SsbError("config.json does not describe a supported Qwen2 model: " + "; ".join(problems))
        problems = _unsupported(raw)
        missing = [name for name in (*_SIZES, "rms_norm_eps") if raw.get(name) is None and name not in _DERIVABLE]
        if missing:
            problems.append(f"missing: {', '.join(missing)}")
        if problems:
            raise SsbError("config.json does not describe a supported Qwen2 model: " + "; ".join(problems))
        sizes = {ours: raw[theirs] for theirs, ours in _SIZES.items() if raw.get(theirs) is not None}
        sizes.setdefault("num_kv_heads", sizes["num_heads"])
        if "head_dim" not in sizes:
            if sizes["hidden_size"] % sizes["num_heads"]:
                raise SsbError(
                    f"config.json: hidden_size {sizes['hidden_size']} is not a multiple of "
                    f"num_attention_heads {sizes['num_heads']} and no head_dim is given"
                )
            sizes["head_dim"] = sizes["hidden_size"] // sizes["num_heads"]
        return cls(
            **sizes,
            rope_theta=_number("rope_theta", DEFAULT_ROPE_THETA, _rope(raw), raw),
            rms_norm_eps=float(raw["rms_norm_eps"]),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            initializer_range=_number("initializer_range", 0.02, raw),
        )

    def to_json_dict(self) -> dict[str, Any]:
        """The config.json of this model, as transformers reads it."""
        sizes = {theirs: getattr(self, ours) for theirs, ours in _SIZES.items()}
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            **sizes,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
        }


# config.json's name -> ours
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
}
_LARGEST = {name: 10_000 if name == "num_hidden_layers" else 1 << 31 for name in _SIZES}
_DERIVABLE = ("num_key_value_heads", "head_dim")


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings: transformers 5 writes `rope_parameters`, earlier versions `rope_scaling`."""
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _number(name: str, default: float, *holders: Mapping[str, Any]) -> float:
    """A number from the first holder that has it; null is nothing."""
    return float(next((holder[name] for holder in holders if holder.get(name) is not None), default))


def _malformed(raw: Mapping[str, Any]) -> list[str]:
    """What is not even of the right type."""
    problems = []
    for name in _SIZES:
        if raw.get(name) is not None and type(raw[name]) is not int:
            problems.append(f"{name} must be a whole number, got {raw[name]!r}")
        elif (raw.get(name) or 0) >= _LARGEST[name]:
            problems.append(f"{name} must be below {_LARGEST[name]:,}, got {raw[name]:,}")
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(raw.get(name) or {}, dict):
            problems.append(f"{name} must be an object, got {raw[name]!r}")
    if not isinstance(raw.get("layer_types") or [], list):
        problems.append(f"layer_types must be a list, got {raw['layer_types']!r}")
    for holder in (raw, {} if problems else _rope(raw)):
        for name in ("rope_theta", "rms_norm_eps", "initializer_range", "partial_rotary_factor", "max_window_layers"):
            value = holder.get(name)
            if value is not None and (type(value) not in (int, float) or not 0 <= value <= 1e30):
                problems.append(f"{name} must be a number that is not negative, got {value!r}")
    return problems


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """Everything in a config.json that would change the forward pass in a way that we do not implement."""
    problems = []
    if raw.get("model_type") != "qwen2":
        problems.append(f"model_type must be 'qwen2', got {raw.get('model_type')!r}")
    if raw.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act must be 'silu', got {raw['hidden_act']!r}")
    rope_type = _rope(raw).get("rope_type", _rope(raw).get("type", "default"))
    if rope_type != "default":
        problems.append(f"rope scaling {rope_type!r} is not implemented; remove it from config.json")
    for holder in (raw, _rope(raw)):
        if holder.get("partial_rotary_factor", 1.0) != 1.0:
            problems.append("partial_rotary_factor other than 1 is not implemented")
    depth = raw.get("num_hidden_layers") or 0
    if raw.get("use_sliding_window") and raw.get("sliding_window") and raw.get("max_window_layers", 28) < depth:
        problems.append("sliding-window attention is in use and not implemented")
    elif other := [kind for kind in raw.get("layer_types") or () if kind != "full_attention"]:
        problems.append(f"layer_types other than full_attention: {other[:3]}")
    if raw.get("quantization_config"):
        problems.append("quantized weights are not supported; use the float checkpoint")
    return problems
