"""Checkpoints in the hub's format: config.json and safetensors, one file or an index of many.

Loading is a bijection: every tensor of the files has one place in the model and every place is filled, or one error
lists all that is wrong. Each device's slice is read from the memory-mapped file by itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ssb_jax.artifacts import write_atomically
from ssb_jax.config import SsbError
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.layout import DISK_LAYOUTS, IGNORED
from ssb_jax.model.quantization import quantize, quantizes
from ssb_jax.model.sharding import leaf_name
from ssb_jax.model.transformer import Transformer, abstract_model, check_mesh, model_shardings, parameter_shapes

BUILTIN_TINY = "builtin:tiny"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
# Beside the weights, what a model folder may hold and a saved copy should keep.
COMPANION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
MAX_SHARD_BYTES = 5 * 10**9
DISK_DTYPES = ("BF16", "F16", "F32")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
COMPARED_ROWS = 4096


def resolve_model(path: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: a local folder, "builtin:tiny", a hub id (downloaded to the hub's cache), or a URL of a
    bucket (downloaded to the cache of ssb_jax/remote).

    Raises SsbError when there is no such folder and the hub does not give one.
    """
    if str(path) == BUILTIN_TINY:
        return Path(str(files("ssb_jax") / "tiny" / "model"))
    if "://" in str(path):
        from ssb_jax.remote import fetched

        return fetched(str(path))
    folder = Path(path).expanduser()
    if os.path.isdir(folder):  # False also for a name that no folder can have
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) or str(path).startswith((".", "/")):
        raise SsbError(
            f"model {str(path)!r}: no such folder; give a folder, a hub id such as Qwen/Qwen2.5-3B-Instruct, "
            f"or {BUILTIN_TINY}"
        )
    try:
        return Path(huggingface_hub.snapshot_download(str(path), revision=revision, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SsbError(
            f"model {str(path)!r}: no such folder, and the hub did not give it ({reason}); "
            f"check the name and the network, or download it and give the folder"
        ) from error


def read_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a model folder. Raises SsbError when config.json is absent, broken or unsupported."""
    return ModelConfig.from_json_dict(read_json(Path(folder) / "config.json", "a model folder needs one"))


def load_model(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: jnp.dtype = jnp.float32,
    revision: str | None = None,
    quantization: str = "none",
) -> Transformer:
    """Loads a checkpoint (see `resolve_model`), laid out over `mesh` or on the default device, as `dtype`.

    With `quantization` int8 each matrix of the layers is put into 8 bits before the next one is read.

    Raises SsbError listing every tensor that is unmapped, missing, duplicate, misshaped or of another dtype.
    """
    folder = resolve_model(path, revision)
    config = read_config(folder)
    abstract = abstract_model(config, dtype)
    targets = _target_shardings(abstract, mesh)
    with ExitStack() as stack:
        tensors, duplicates = _open_tensors(folder, stack)
        _check_bijection(tensors, duplicates, config, folder)

        def load(path, abstract_leaf, sharding):
            name = leaf_name(path)
            weight = _load_parameter(name, abstract_leaf, sharding, tensors)
            return quantize(weight, name) if quantizes(name, quantization) else weight

        return jax.tree_util.tree_map_with_path(load, abstract, targets)


def random_model(
    config: ModelConfig, *, mesh: jax.sharding.Mesh | None = None, dtype: jnp.dtype = jnp.float32, seed: int = 0
) -> Transformer:
    """A model with random weights made on the devices where they belong: for benchmarks and pretraining."""
    targets = _target_shardings(abstract_model(config, dtype), mesh)
    make = jax.jit(lambda key: Transformer(config, rngs=nnx.Rngs(params=key), dtype=dtype), out_shardings=targets)
    return make(jax.random.key(seed))


def save_model(model: Transformer, folder: str | Path, *, source_folder: str | Path | None = None) -> None:
    """Writes a folder that transformers loads: config.json, safetensors, and the companions of `source_folder`.

    The source's config.json gives the settings that are not shapes (token ids and the like). Weights above 5 GB are
    split over files with an index. Every file appears whole or not at all, and config.json last: a folder that a
    crash left unfinished has none, and is refused when loaded.
    """
    folder, source = Path(folder), None if source_folder is None else Path(source_folder)
    config = {}
    if source is not None and (source / "config.json").exists():
        config = read_json(source / "config.json", "save_model copies its settings")
    for key in ("torch_dtype", "rope_scaling", "rope_parameters"):
        config.pop(key, None)
    config |= model.config.to_json_dict() | {"dtype": jnp.dtype(model.dtype).name}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    if source is not None and source.resolve() != folder.resolve():
        for name in COMPANION_FILES:
            if (source / name).is_file():
                write_atomically(folder / name, (source / name).read_bytes())
    _save_weights(model, folder)
    write_atomically(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def disk_tensors(model: Transformer) -> Iterator[tuple[str, int, Callable[[], np.ndarray]]]:
    """(name on disk, bytes, function that fetches it) of every tensor, layer by layer."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        name = leaf_name(path)
        layout = DISK_LAYOUTS[name]
        if name.startswith("layers."):
            for layer in range(leaf.shape[0]):
                fetch = partial(
                    lambda leaf, layer, layout: layout.to_disk(np.asarray(leaf[layer])), leaf, layer, layout
                )
                yield layout.name(layer), leaf.nbytes // leaf.shape[0], fetch
        else:
            yield (
                layout.name(0),
                leaf.nbytes,
                partial(lambda leaf, layout: layout.to_disk(np.asarray(leaf)), leaf, layout),
            )


def _save_weights(model: Transformer, folder: Path) -> None:
    """The weights as one file, or as files of at most MAX_SHARD_BYTES (one tensor at least) and their index."""
    shards, room = [[]], MAX_SHARD_BYTES
    for name, size, fetch in disk_tensors(model):
        if size > room and shards[-1]:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append((name, size, fetch))
        room -= size
    count = len(shards)
    names = [WEIGHTS_FILE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for stale in [*folder.glob("model*.safetensors"), folder / INDEX_FILE]:
        if stale.name not in names:
            stale.unlink(missing_ok=True)
    for file, shard in zip(names, shards, strict=True):
        save_tensors({name: fetch() for name, _, fetch in shard}, folder / file)
    if count > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name, _, _ in shard}
        total = sum(size for shard in shards for _, size, _ in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomically(folder / INDEX_FILE, json.dumps(index, indent=2, sort_keys=True) + "\n")


def save_tensors(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Writes a safetensors file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def opened_safetensors(path: Path) -> Iterator[safe_open]:
    """A memory-mapped safetensors file. Raises SsbError when it is missing, cut off or not such a file."""
    try:
        file = safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise SsbError(f"{path} does not exist; download or save the folder again") from None
    except (SafetensorError, OSError) as error:
        raise SsbError(f"{path} is not a whole safetensors file ({error}); download or save it again") from None
    with file:
        yield file


def read_json(path: Path, why: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SsbError(f"{path} cannot be read ({error.strerror}); {why}") from None
    except (ValueError, RecursionError) as error:
        raise SsbError(f"{path} is not JSON ({error}); {why}") from None
    if not isinstance(content, dict):
        raise SsbError(f"{path} must hold a JSON object; {why}")
    return content


def _target_shardings(abstract: Transformer, mesh: jax.sharding.Mesh | None) -> Transformer:
    if mesh is not None:
        check_mesh(abstract.config, mesh)
        return model_shardings(abstract, mesh)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: device, abstract)


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or those that the index names."""
    if (folder / INDEX_FILE).exists():
        index = read_json(folder / INDEX_FILE, "it says which file holds which tensor")
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_file_name, weight_map.values())):
            raise SsbError(f"{folder / INDEX_FILE} has no weight_map of file names; download the folder again")
        return [folder / name for name in sorted(set(weight_map.values()))]
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    raise SsbError(f"{folder} holds no weights: expected {WEIGHTS_FILE} or {INDEX_FILE}; download the folder again")


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) is not None


def _open_tensors(folder: Path, stack: ExitStack) -> tuple[dict[str, Any], list[str]]:
    """Name -> lazily read tensor over all files, and the names that more than one file holds."""
    tensors, homes, problems = {}, {}, []
    for path in _weight_files(folder):
        file = stack.enter_context(opened_safetensors(path))
        for name in file.keys():  # noqa: SIM118  (not a dict)
            if name in homes:
                problems.append(f"duplicate: {name} in {homes[name]} and {path.name}")
            homes[name] = path.name
            tensors[name] = file.get_slice(name)
    return tensors, problems


def _check_bijection(tensors: dict[str, Any], duplicates: list[str], config: ModelConfig, folder: Path) -> None:
    """Raises SsbError listing all that keeps the tensors from being exactly the model's parameters."""
    expected = {}
    for name, shape in parameter_shapes(config).items():
        layout, stacked = DISK_LAYOUTS[name], name.startswith("layers.")
        for layer in range(config.num_layers if stacked else 1):
            expected[layout.name(layer)] = layout.disk_shape(shape[1:] if stacked else shape)
    found = {name for name in tensors if not IGNORED.fullmatch(name)}
    if config.tie_word_embeddings and _is_redundant_head(tensors):
        found.discard(HEAD)
    problems = [*duplicates]
    problems += [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    problems += [f"unmapped: {name}" for name in sorted(found - set(expected))]
    for name in sorted(found & set(expected)):
        shape, dtype = tuple(tensors[name].get_shape()), tensors[name].get_dtype()
        if shape != expected[name]:
            problems.append(f"misshaped: {name} is {shape}, expected {expected[name]}")
        if dtype not in DISK_DTYPES:
            problems.append(f"dtype: {name} is {dtype}, expected one of {', '.join(DISK_DTYPES)}")
    if problems:
        listed = "\n  ".join(problems)
        raise SsbError(f"{folder}: the weights do not match config.json ({len(problems)} problems):\n  {listed}")


def _is_redundant_head(tensors: dict[str, Any]) -> bool:
    """Whether the head of a tied checkpoint is a copy of the embedding, as some exporters write it."""
    if HEAD not in tensors or EMBEDDING not in tensors:
        return False
    head, embedding = tensors[HEAD], tensors[EMBEDDING]
    if head.get_shape() != embedding.get_shape():
        return False
    size = head.get_shape()[0]
    parts = [slice(start, min(start + COMPARED_ROWS, size)) for start in range(0, size, COMPARED_ROWS)]
    return all(np.array_equal(head[part], embedding[part]) for part in parts)


def _load_parameter(name: str, abstract: jax.ShapeDtypeStruct, sharding: Any, tensors: dict[str, Any]) -> jax.Array:
    """One parameter as a global array, of which each device's part is read from disk once."""
    layout, stacked = DISK_LAYOUTS[name], name.startswith("layers.")
    shape = abstract.shape[1:] if stacked else abstract.shape
    parts: dict[tuple, np.ndarray] = {}

    def read_layer(layer: int, slices: tuple[slice, ...]) -> np.ndarray:
        tensor = tensors[layout.name(layer)][layout.disk_slices(slices, shape)]
        sizes = tuple(len(range(*part.indices(size))) for part, size in zip(slices, shape, strict=True))
        return layout.from_disk(tensor, sizes)

    def read_part(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple(part.indices(size) for part, size in zip(index, abstract.shape, strict=True))
        if key not in parts:
            if stacked:
                layers = range(abstract.shape[0])[index[0]]
                parts[key] = np.stack([read_layer(layer, index[1:]).astype(abstract.dtype) for layer in layers])
            else:
                parts[key] = read_layer(0, index).astype(abstract.dtype)
        return parts[key]

    return jax.make_array_from_callback(abstract.shape, sharding, read_part)
