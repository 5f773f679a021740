"""LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, both ways.

PEFT stores A as (R, in) and B as (out, R), one pair for each layer and module.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssb_jax.artifacts import file_digest, write_atomically
from ssb_jax.config import SsbError
from ssb_jax.console import note
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.lora import LORA_MODULES, Lora, lora_shapes, lora_shardings
from ssb_jax.model.weights import DISK_DTYPES, opened_safetensors, read_json, save_tensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "base.json"  # ours: digests of the base's weight files
# What we do not implement: option -> the values that switch it off.
OFF = {
    "bias": ("none", None),
    # The other ways to start (pissa, olora, loftq, ...) change the base model's weights too.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
    **dict.fromkeys(
        ("use_rslora", "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out"), (False, None)
    ),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (None, {})),
    **dict.fromkeys(("modules_to_save", "exclude_modules", "layers_to_transform", "layer_replication"), (None, [])),
    **dict.fromkeys(("trainable_token_indices", "target_parameters", "alora_invocation_tokens"), (None, [])),
    **dict.fromkeys(("arrow_config", "kasa_config", "velora_config", "monteclora_config"), (None,)),
}


def save_adapter(lora: Lora, folder: str | Path, *, base: str) -> None:
    """Writes an adapter that peft loads on the model `base` (a hub id or folder, kept as its base's name).

    Each file appears whole or not at all, adapter_config.json last.
    """
    folder = Path(folder)
    tensors = {}
    for module in lora.a:
        a, b = np.asarray(lora.a[module]), np.asarray(lora.b[module])
        for layer in range(a.shape[0]):
            tensors[tensor_name(layer, module, "A")] = a[layer].T
            tensors[tensor_name(layer, module, "B")] = b[layer].T
    config = {
        "base_model_name_or_path": base,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.a),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
    }
    save_tensors(tensors, folder / WEIGHTS_FILE)
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")


def replace_adapter(lora: Lora, folder: Path, *, base: str) -> None:
    """As `save_adapter`, in place of what was there: the folder appears with all its files, or not at all."""
    parts = folder.with_name(f".{folder.name}.part")
    for leftover in (parts, folder):
        if leftover.exists():
            shutil.rmtree(leftover)
    save_adapter(lora, parts, base=base)
    parts.rename(folder)


def load_adapter(folder: str | Path, config: ModelConfig, *, mesh: jax.sharding.Mesh | None = None) -> Lora:
    """Reads a PEFT adapter for a base model of this shape, as float32, over `mesh` or on the default device.

    Raises SsbError when a file is missing or broken, when the adapter uses what we do not implement, and, listing
    every tensor concerned, when its tensors are not exactly those that its config and the base call for.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    rank, modules = settings["r"], [name for name in LORA_MODULES if name in settings["target_modules"]]
    sizes, layers = lora_shapes(config), range(config.num_layers)
    expected = {}
    for module in modules:
        for layer in layers:
            size_in, size_out = sizes[module]
            expected[tensor_name(layer, module, "A")] = (rank, size_in)
            expected[tensor_name(layer, module, "B")] = (size_out, rank)
    tensors = _read_tensors(folder / WEIGHTS_FILE, expected)

    def stacked(module: str, matrix: str) -> np.ndarray:
        return np.stack([tensors[tensor_name(layer, module, matrix)].T for layer in layers]).astype(np.float32)

    lora = Lora(
        a={module: stacked(module, "A") for module in modules},
        b={module: stacked(module, "B") for module in modules},
        alpha=float(settings["lora_alpha"]),
        rank=rank,
        dropout=float(settings.get("lora_dropout", 0.0)),
    )
    return jax.tree.map(jnp.asarray, lora) if mesh is None else jax.device_put(lora, lora_shardings(lora, mesh))


def check_base(folder: str | Path, base: str, base_folder: Path) -> None:
    """Refuses an adapter that says it was trained on another model than `base`, whose files lie in `base_folder`.

    It is the same model when the digests in its base.json, or the files of the folder that it names, are those of the
    base's weights; where there is neither, when the last parts of both names agree.

    Raises SsbError naming both.
    """
    named = str(read_json(Path(folder) / CONFIG_FILE, "an adapter folder needs one").get("base_model_name_or_path"))
    theirs = _weight_files(Path(named))
    if (Path(folder) / BASE_FILE).exists():
        theirs = read_json(Path(folder) / BASE_FILE, "delete it to have only names compared").get("weights")
    same_name = Path(named).name.casefold() in (Path(base).name.casefold(), base_folder.resolve().name.casefold())
    if theirs == _weight_files(base_folder) if theirs else same_name:
        if not theirs and Path(named).is_absolute():
            note(f"warning: {folder} names its base {named}, which is not here: only the names were compared")
        return
    raise SsbError(
        f"the adapter in {folder} was trained on {named}, not on this run's {base}; evaluate it with its own base, or, "
        f"if both have the same weights, correct base_model_name_or_path in its {CONFIG_FILE}"
    )


def write_base(folder: Path, base_folder: Path) -> None:
    """Says in an adapter's folder which weights it belongs to, wherever they lie by then."""
    write_atomically(folder / BASE_FILE, json.dumps({"weights": _weight_files(base_folder)}, indent=1) + "\n")


def _weight_files(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in folder.glob("*.safetensors")}


def tensor_name(layer: int, module: str, matrix: str) -> str:
    """PEFT's name of the A or B matrix of a layer's module."""
    block = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    return f"base_model.model.model.layers.{layer}.{block}.{module}.lora_{matrix}.weight"


def _read_settings(folder: Path) -> dict[str, Any]:
    """The adapter's config, checked to be one that we implement."""
    path = folder / CONFIG_FILE
    settings = read_json(path, "an adapter folder needs one; train again or give the right folder")
    problems = []
    if settings.get("peft_type") != "LORA":
        problems.append(f"peft_type must be LORA, got {settings.get('peft_type')!r}")
    problems += [
        f"{name}={settings[name]!r} is not implemented"
        for name, off in OFF.items()
        if name in settings and settings[name] not in off
    ]
    rank, alpha, targets = (settings.get(name) for name in ("r", "lora_alpha", "target_modules"))
    if type(rank) is not int or rank < 1:
        problems.append(f"r must be a positive whole number, got {rank!r}")
    if not _is_number(alpha):
        problems.append(f"lora_alpha must be a number, got {alpha!r}")
    if not _is_number(settings.get("lora_dropout", 0.0)):
        problems.append(f"lora_dropout must be a number, got {settings['lora_dropout']!r}")
    if not isinstance(targets, list) or not targets or any(name not in LORA_MODULES for name in targets):
        problems.append(f"target_modules must be a list of {', '.join(LORA_MODULES)}; got {targets!r}")
    if problems:
        raise SsbError(f"{path}: {'; '.join(problems)}")
    return settings


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # neither infinite nor NaN


def _read_tensors(path: Path, expected: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
    """Reads exactly the expected tensors, or raises SsbError listing what is missing, unmapped or misshaped."""
    with opened_safetensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        dtypes = {name: file.get_slice(name).get_dtype() for name in shapes}
        problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in shapes]
        problems += [f"unmapped: {name}" for name in sorted(set(shapes) - set(expected))]
        problems += [
            f"misshaped: {name} is {shapes[name]}, expected {shape}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ]
        problems += [f"dtype: {name} is {dtype}" for name, dtype in dtypes.items() if dtype not in DISK_DTYPES]
        if not problems:
            tensors = {name: file.get_tensor(name) for name in expected}
            problems = [
                f"not finite: {name}" for name, x in tensors.items() if not np.isfinite(x.astype(np.float32)).all()
            ]
        if not problems:
            return tensors
    listed = "\n  ".join(problems)
    raise SsbError(f"{path} does not fit its config and this base model ({len(problems)} problems):\n  {listed}")
