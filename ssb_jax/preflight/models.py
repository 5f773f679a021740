"""The shape of the model, without its weights: from a file, a folder, the published Qwen2.5 shapes, or the hub."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ssb_jax.config import Model, SsbError
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.weights import BUILTIN_TINY, read_config, read_json, resolve_model

# What every published Qwen2.5 instruct model's config.json says, beside the sizes in shapes.json.
_COMMON = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
}


def published_shapes() -> dict[str, ModelConfig]:
    """Qwen2.5 models by name (`qwen2.5-3b`), base and instruct alike."""
    raw = json.loads((files("ssb_jax") / "preflight" / "shapes.json").read_text())
    return {name: ModelConfig.from_json_dict(_COMMON | sizes) for name, sizes in raw.items()}


def model_shape(settings: Model, *, file: Path | None = None) -> tuple[ModelConfig, str]:
    """The model's shape, and where it was read: a config.json given as `file`, or what `model.path` names.

    A published name needs no network; of any other hub id only config.json is fetched.

    Raises:
      SsbError: there is no such file, folder or hub id, or it describes a model that we do not implement.
    """
    if file is not None:
        return _read(file), str(file)
    path = Path(settings.path).expanduser()
    if settings.path == BUILTIN_TINY or path.is_dir():
        return read_config(resolve_model(settings.path)), settings.path
    published = published_shapes()
    name = settings.path.rpartition("/")[2].lower().removesuffix("-instruct")
    if name in published:
        return published[name], f"the published shape of {name}"
    try:
        found = huggingface_hub.hf_hub_download(settings.path, "config.json", revision=settings.revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SsbError(
            f"model {settings.path!r}: no such folder, not one of {', '.join(published)}, and the hub did not give its "
            f"config.json ({reason}); give --model-config FILE.json"
        ) from None
    return _read(Path(found)), settings.path


def _read(path: Path) -> ModelConfig:
    return ModelConfig.from_json_dict(read_json(path, "a model's config.json is expected there"))
