"""What is planned: a run on a slice, and the mesh that each of its stages has there."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ssb_jax.config import Config, SsbError
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.mesh import GENERATION, TRAINING, mesh_for, of_one_host
from ssb_jax.model.transformer import Transformer, abstract_model, check_mesh
from ssb_jax.preflight.chips import Topology


@dataclass(frozen=True)
class Assumed:
    """What no configuration says.

    Attributes:
      question_tokens: of a bare question's prompt, system message and template included.
      answer_tokens: of an answer, on average. 320 is the middle of the published run's replies (230 to 390).
      longest_answer: of the longest answer that comes up. None: as long as max_new_tokens lets it be.
      pair_share: pairs that come of a question.
      set_size: questions of an evaluation set without `limit`.
    """

    question_tokens: int = 256
    answer_tokens: int = 320
    longest_answer: int | None = None
    pair_share: float = 0.25
    set_size: int = 500


@dataclass(frozen=True)
class Job:
    """A run on a slice: everything that its programs follow from."""

    config: Config
    shape: ModelConfig
    topology: Topology
    mesh: jax.sharding.Mesh
    assumed: Assumed = Assumed()

    @property
    def shares(self) -> int:
        """Hosts that each do a part of the stage, on a mesh of their own."""
        return len(self.topology.devices) // self.mesh.size

    @property
    def dtype(self) -> jnp.dtype:
        return dtype_of(self.config, self.topology.devices[0].platform)


def make_job(
    config: Config, shape: ModelConfig, topology: Topology, assumed: Assumed, *, stage: str = "rollout"
) -> Job:
    """The job with the mesh that a stage runs on: of all chips, or of one host's, as `Workspace` has it.

    Raises:
      SsbError: the mesh does not fit the chips, or does not divide the model; the stage knows one host only.
    """
    if config.model.quantization != "none":
        raise SsbError("preflight plans whole weights only; set model.quantization none for an upper bound")
    dtype = dtype_of(config, topology.devices[0].platform)
    devices, settings = topology.devices, config.mesh
    alone = len({device.process_index for device in devices}) == 1
    training = stage == "distill" or (alone and stage == "targets")
    if not alone and stage == "grpo":
        raise SsbError(
            f"preflight: method grpo runs on one host, and {topology.name} has several; take a smaller slice"
        )
    if not alone and not training:
        devices = topology.of_one_host()
        settings = of_one_host(settings)
    mesh = mesh_for(
        settings,
        shape,
        itemsize=dtype.itemsize,
        stage=TRAINING if training else GENERATION,
        rows=config.distillation.batch_size,
        devices=devices,
        memory=topology.chip.memory,
    )
    check_mesh(shape, mesh)
    return Job(config, shape, topology, mesh, assumed)


def dtype_of(config: Config, platform: str) -> jnp.dtype:
    """Of weights and activations, as `Workspace` chooses it on such devices."""
    name = config.model.dtype
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)


@functools.cache
def abstract(shape: ModelConfig, dtype: jnp.dtype, attention: str = "auto") -> Transformer:
    """The model without its numbers."""
    model = abstract_model(shape, dtype)
    model.attention = attention
    return model
