"""How arrays lie on the mesh: one table from logical axis names to mesh axes.

Changing the strategy is changing `LOGICAL_RULES`. Modules name the axes of their arrays (`PARAMETER_AXES` in
transformer.py and the like); this file turns such names into shardings. It knows no model.

Activations are constrained only inside `with use_mesh(mesh):`; without a mesh every constraint is a no-op, so the
same code runs on one device and on a pod.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssb_jax.config import SsbError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axis, axes, or None (replicated). Parameters are split over `fsdp` along the width and over
# `tensor` along heads, ffn and vocab; activations are split over data and fsdp along the batch.
LOGICAL_RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "tokens": None,
    "width": None,  # D of an activation
    "embed": "fsdp",  # D of a parameter
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ffn": "tensor",
    "vocab": "tensor",
    "head_vocab": ("fsdp", "tensor"),  # V in the loss: hidden states are smaller to move than the head
    "groups": "data",  # the batch's reply tokens in the loss, grouped by slice of the data axis
    "rank": None,
    "layers": None,
    "kv_out": None,  # K * H of a LoRA matrix: small, and K may be less than the tensor axis
}

# Key/value heads fewer than the tensor axis are replicated (multi-query style): they are few and small.
REPLICATED_IF_UNDIVIDED = ("kv_heads",)


class MeshError(SsbError):
    """A mesh that the devices do not make up, or that does not divide the model."""


def make_mesh(*, data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes (data, fsdp, tensor) over all devices; one of the sizes may be -1: the rest.

    Raises MeshError when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    wanted = ", ".join(f"{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise MeshError(f"mesh: sizes must be positive, at most one of them -1 (the rest); got {wanted}")
    known = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise MeshError(f"mesh: {wanted} does not fit {len(devices)} devices; the sizes must multiply to that")
    shape = tuple(sizes[name] for name in MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def use_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Context in which `constrain` takes effect; with None, a context that does nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def spec(*names: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these logical names (None = replicated axis).

    Raises SsbError for an unknown name and for a mesh axis used twice.
    """
    for name in names:
        if name is not None and name not in LOGICAL_RULES:
            raise SsbError(f"sharding: unknown logical axis {name!r}; known: {', '.join(LOGICAL_RULES)}")
    entries = [None if name is None else LOGICAL_RULES[name] for name in names]
    used = [axis for entry in entries for axis in _axes(entry)]
    twice = sorted({axis for axis in used if used.count(axis) > 1})
    if twice:
        raise SsbError(f"sharding: axes {names} use mesh axis {', '.join(twice)} twice")
    return PartitionSpec(*entries)


def fitted_spec(names: Sequence[str | None], shape: Sequence[int], mesh) -> PartitionSpec:
    """`spec` for an array of this shape on this mesh.

    Raises SsbError where the mesh does not divide a dimension, except for `REPLICATED_IF_UNDIVIDED`.
    """
    if len(names) != len(shape):
        raise SsbError(f"sharding: axes {tuple(names)} do not match an array of shape {tuple(shape)}")
    entries = []
    for name, entry, size in zip(names, spec(*names), shape, strict=True):
        parts = math.prod(mesh.shape[axis] for axis in _axes(entry))
        if size % parts == 0:
            entries.append(entry)
        elif name in REPLICATED_IF_UNDIVIDED:
            entries.append(None)
        else:
            axes = "x".join(_axes(entry))
            raise SsbError(
                f"sharding: {name} of size {size} cannot be split over mesh axes {axes} = {parts} devices; "
                f"choose a mesh that divides it"
            )
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Asks XLA to lay an activation out by its logical axes; a no-op outside `use_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, fitted_spec(names, x.shape, mesh))


def shardings(tree: Any, axes_of: Callable[[str], tuple[str | None, ...]], mesh: Mesh) -> Any:
    """A tree of NamedSharding with the structure of `tree` (arrays or abstract shapes).

    `axes_of` maps a leaf's dotted path, such as "layers.q_proj", to its logical axes.
    """

    def leaf(path, x):
        return NamedSharding(mesh, fitted_spec(axes_of(leaf_name(path)), x.shape, mesh))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def leaf_name(path) -> str:
    """Dotted name of a leaf: a variable's own `.value` is left out."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else entry
