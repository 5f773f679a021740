"""The mesh that the settings ask for, and the rule behind `mesh: auto`.

    generation (rollout, teach, eval)   tensor = the most devices that share the key/value heads evenly: each step reads
                                        all weights, so the more chips share them the better, and a cache of whole heads
                                        is never held twice
    training (targets, distill)         tensor = 1: the base is frozen, so copies have nothing to exchange but the
                                        adapter's gradient, while a tensor axis sums activations in every layer; or
                                        what leaves no more copies than a batch has examples

    then, both: while a chip's share of the weights is more than 40 % of its memory, tensor grows to the next size that
    divides the model; what tensor leaves of the devices is data. If no tensor size is enough, the rest is fsdp.

`ssb preflight --suggest` compares all meshes instead, with memory and time of every stage.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from ssb_jax.config import Mesh as MeshSettings
from ssb_jax.config import SsbError
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.sharding import make_mesh
from ssb_jax.model.transformer import parameter_count

GENERATION, TRAINING = "generation", "training"
WEIGHTS_SHARE = 0.4  # of a chip's memory; the rest is for cache or activations


def mesh_for(
    settings: MeshSettings,
    config: ModelConfig,
    *,
    itemsize: int,
    stage: str = GENERATION,
    rows: int = 1,
    devices: Sequence[jax.Device] | None = None,
    memory: int | None = None,
) -> Mesh:
    """The mesh of the settings over these devices (None: all of this run's).

    Args:
      itemsize: bytes of one weight.
      stage: GENERATION or TRAINING.
      rows: examples in a batch of training.
      memory: bytes of a device; None: as the first device says.

    Raises:
      SsbError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": settings.data, "fsdp": settings.fsdp, "tensor": settings.tensor}
    if settings.rule == "auto":
        memory = device_memory(devices) if memory is None else memory
        weights = parameter_count(config) * itemsize
        sizes = auto_sizes(config, weights=weights, devices=len(devices), memory=memory, stage=stage, rows=rows)
    return make_mesh(**sizes, devices=devices)


def of_one_host(settings: MeshSettings) -> MeshSettings:
    """What the settings of a mesh over all hosts' devices are to one host that answers its share of the questions.

    `tensor` stays. The rest of its devices hold copies, where the whole mesh splits weights by `tensor` alone (fsdp 1),
    and otherwise split them further. Where the sizes are chosen, they are chosen for its devices.
    """
    if settings.rule == "auto":
        return settings
    rest = {"data": -1, "fsdp": 1} if settings.fsdp == 1 else {"data": 1, "fsdp": -1}
    return MeshSettings(tensor=max(settings.tensor, 1), **rest)


def auto_sizes(
    config: ModelConfig, *, weights: int, devices: int, memory: int, stage: str = GENERATION, rows: int = 1
) -> dict[str, int]:
    """The rule of `mesh: auto`; see the module's docstring.

    Args:
      weights: bytes of one copy of the model.
      memory: bytes of a device.
      rows: examples in a batch of training.
    """
    if stage not in (GENERATION, TRAINING):
        raise SsbError(f"mesh: expected the stage {GENERATION} or {TRAINING}, got {stage!r}")
    options = [size for size in range(1, devices + 1) if devices % size == 0 and _divides(config, size)]
    if stage == GENERATION:
        start = max(size for size in options if config.num_kv_heads % size == 0)
    else:
        start = next((size for size in options if devices // size <= rows), max(options))
    room = WEIGHTS_SHARE * memory
    tensor = next((size for size in options if size >= start and weights / size <= room), None)
    if tensor is not None:
        return {"data": devices // tensor, "fsdp": 1, "tensor": tensor}
    fsdp = max(n for n in range(1, devices // start + 1) if devices // start % n == 0 and config.hidden_size % n == 0)
    return {"data": devices // start // fsdp, "fsdp": fsdp, "tensor": start}


def device_memory(devices: Sequence[jax.Device]) -> int:
    """Bytes of one device. Virtual CPU devices share half of the machine's memory; the rest is for other programs."""
    own = next(d for d in devices if d.process_index == jax.process_index())
    if own.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // len(devices)
    return own.memory_stats()["bytes_limit"]


def _divides(config: ModelConfig, tensor: int) -> bool:
    """Whether a tensor axis of this size splits heads, feed-forward and vocabulary, and key/value heads or copies."""
    sizes = (config.num_heads, config.intermediate_size, config.vocab_size)
    whole = not config.num_kv_heads % tensor or not tensor % config.num_kv_heads
    return whole and not any(size % tensor for size in sizes)
