"""What the stages of one run share, each loaded when first asked for: tokenizer, prompts, mesh, base model.

A run whose stages are all complete loads none of it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ssb_jax import hosts
from ssb_jax.chat import Chat, generation_defaults, load_chat
from ssb_jax.config import Config, Sampling, SsbError
from ssb_jax.config import Mesh as MeshSettings
from ssb_jax.console import note
from ssb_jax.model.mesh import GENERATION, TRAINING, mesh_for, of_one_host
from ssb_jax.model.transformer import Transformer, check_mesh, model_shardings
from ssb_jax.model.weights import load_model, read_config, resolve_model
from ssb_jax.prompts import PromptSet, load_prompts, prompt_texts
from ssb_jax.sampling import SamplingParams

# What transformers' GenerationConfig uses where neither the caller nor the model says.
_TRANSFORMERS_DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
_SAMPLED = 1 << 20  # bytes of each end of a weight file that go into the model's identity


@dataclass(frozen=True)
class Workspace:
    """The settings of a run and what is loaded from them, once."""

    config: Config

    @cached_property
    def model_folder(self) -> Path:
        return resolve_model(self.config.model.path, self.config.model.revision)

    @cached_property
    def tokenizer_folder(self) -> Path:
        name = self.config.model.tokenizer
        return self.model_folder if name is None else resolve_model(name)

    @cached_property
    def chat(self) -> Chat:
        return load_chat(self.tokenizer_folder, generation_folder=self.model_folder)

    @cached_property
    def prompts(self) -> PromptSet:
        return load_prompts(self.config.prompts)

    @cached_property
    def dtype(self) -> jnp.dtype:
        name = self.config.model.dtype
        if name == "auto":
            name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        return jnp.dtype(name)

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """Of this process's own devices, where it samples its share of the answers.

        Sizes that are set describe the mesh of all devices; see `of_one_host` for what they are to one of several.
        """
        self._refuse_half_a_group()
        asked = self.config.mesh if hosts.count() == 1 else of_one_host(self.config.mesh)
        return self._mesh_for(asked, GENERATION, jax.local_devices())

    @cached_property
    def training_mesh(self) -> jax.sharding.Mesh:
        """Of all devices of the run, where the student is trained."""
        self._refuse_half_a_group()
        return self._mesh_for(self.config.mesh, TRAINING, jax.devices())

    @property
    def teacher_mesh(self) -> jax.sharding.Mesh:
        """Where this process computes its share of the targets: the mesh of training, unless others share that."""
        return self.training_mesh if hosts.count() == 1 else self.mesh

    def check_meshes(self) -> None:
        """Whether the model can be laid out for every stage.

        Raises:
          SsbError: a mesh does not fit the devices, or does not divide the model.
        """
        shape = read_config(self.model_folder)
        for mesh in (self.mesh, self.training_mesh):
            check_mesh(shape, mesh)

    def _refuse_half_a_group(self) -> None:
        if jax.process_count() != hosts.count():
            raise SsbError(
                f"JAX sees the devices of {jax.process_count()} processes, but this run was started as one of "
                f"{hosts.count()}; set SSB_COORDINATOR=auto on all hosts"
            )

    def _mesh_for(self, settings: MeshSettings, stage: str, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
        shape, rows = read_config(self.model_folder), self.config.distillation.batch_size
        return mesh_for(settings, shape, itemsize=self.dtype.itemsize, stage=stage, rows=rows, devices=devices)

    @property
    def model(self) -> Transformer:
        """The base model on `mesh`; see `model_on`."""
        return self.model_on(self.mesh)

    def model_on(self, mesh: jax.sharding.Mesh) -> Transformer:
        """The base model on a mesh.

        The same devices hold one copy: what lies on another mesh of theirs is laid out anew, array by array.

        Raises:
          SsbError: the checkpoint is not complete, or the tokenizer gives ids that the model has no embedding for.
        """
        if mesh not in self._models:
            there = next((m for m in self._models if {*m.devices.flat} == {*mesh.devices.flat}), None)
            if there is None:
                self._models[mesh] = self._load(mesh)
            else:
                note(f"weights go from mesh {dict(there.shape)} to {dict(mesh.shape)}")
                self._move(there, mesh)
        return self._models[mesh]

    def _move(self, there: jax.sharding.Mesh, mesh: jax.sharding.Mesh) -> None:
        places = jax.tree.leaves(model_shardings(self._models[there], mesh))
        arrays, shape = jax.tree.flatten(self._models.pop(there))
        for i, place in enumerate(places):  # one of them at a time is held twice
            arrays[i] = jax.block_until_ready(jax.device_put(arrays[i], place))
        self._models[mesh] = jax.tree.unflatten(shape, arrays)

    @cached_property
    def _models(self) -> dict[jax.sharding.Mesh, Transformer]:
        return {}

    def _load(self, mesh: jax.sharding.Mesh) -> Transformer:
        note(f"loading {self.config.model.path} ({self.dtype.name}, mesh {dict(mesh.shape)})")
        quantization = self.config.model.quantization
        model = load_model(self.model_folder, mesh=mesh, dtype=self.dtype, quantization=quantization)
        model.attention = self.config.model.attention
        have, need = model.config.vocab_size, self.chat.vocabulary_size
        if need > have:
            raise SsbError(
                f"the tokenizer of {self.tokenizer_folder} gives ids up to {need - 1:,}, the model of "
                f"{self.model_folder} embeds {have:,}; set model.tokenizer to the model's own"
            )
        return model

    def sampling_params(self, settings: Sampling) -> SamplingParams:
        """Fills what the settings leave open from generation_config.json, then from transformers' defaults."""
        defaults = generation_defaults(self.model_folder)
        values = {
            name: next(v for v in (getattr(settings, name), defaults.get(name), fallback) if v is not None)
            for name, fallback in _TRANSFORMERS_DEFAULTS.items()
        }
        return SamplingParams(**values, max_new_tokens=settings.max_new_tokens, stop_ids=self.chat.stop_ids)

    @cached_property
    def model_identity(self) -> dict[str, Any]:
        """What a run's fingerprints say of the base model, whatever folder it lies in."""
        return {
            "weights": _folder_digest(self.model_folder, "*.safetensors"),
            "config": _folder_digest(self.model_folder, "config.json"),
            "generation": _folder_digest(self.model_folder, "generation_config.json"),
            "tokenizer": _folder_digest(self.tokenizer_folder, "tokenizer*.json", "*token*.json", "chat_template*"),
            "dtype": self.dtype.name,
        } | ({} if self.config.model.quantization == "none" else {"quantization": self.config.model.quantization})

    @cached_property
    def prompt_identity(self) -> dict[str, str]:
        """The texts of the prompts."""
        return prompt_texts(self.config.prompts)


def _folder_digest(folder: Path, *patterns: str) -> str:
    """Digest of names, sizes and both ends of the matching files: new weights in an old place are noticed."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_SAMPLED))
            file.seek(max(0, size - _SAMPLED))
            digest.update(file.read(_SAMPLED))
    return digest.hexdigest()[:16]
