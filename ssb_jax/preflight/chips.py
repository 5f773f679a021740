"""What a chip can do, and the devices of a topology that is not here."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from ssb_jax.config import SsbError
from ssb_jax.model.mesh import device_memory

GIB = 2**30
LOCAL = "local"


@dataclass(frozen=True)
class Chip:
    """One chip. None: not known, so no time is estimated.

    Attributes:
      memory: bytes that a program may use; of a TPU, what libtpu's compiler allows (it keeps a part of the HBM).
      flops: peak of bfloat16 products a second.
      bandwidth: bytes a second between the chip and its HBM.
      links: bytes a second that a chip can receive from the others of its slice (half of the published bidirectional
        bandwidth of the inter-chip interconnect).
    """

    kind: str
    memory: int
    flops: float | None = None
    bandwidth: float | None = None
    links: float | None = None


# Peaks, bandwidths, links: cloud.google.com/tpu/docs, pages v4, v5e, v5p, v6e, as of November 2026. Memory: what
# libtpu 0.0.52 names when it refuses a program ("... exceeds available HBM (15.75G)").
CHIPS = {
    "v4": Chip("v4", int(30.75 * GIB), 275e12, 1228e9, 150e9),
    "v5e": Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 100e9),
    "v5p": Chip("v5p", int(95.73 * GIB), 459e12, 2765e9, 300e9),
    "v6e": Chip("v6e", int(31.24 * GIB), 918e12, 1640e9, 200e9),
}
_LIBTPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
KNOWN = {"v4": _CUBE, "v5e": _FLAT, "v5p": _CUBE, "v6e": _FLAT}
_HOST = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2"}  # of a slice of several, as libtpu has them


@dataclass(frozen=True)
class Topology:
    """A slice: its devices, for which programs can be compiled, and what each chip can do."""

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]

    def of_one_host(self) -> tuple[jax.Device, ...]:
        """The devices of the first host: as a slice of their own, where libtpu has one of that size.

        For a part of a slice libtpu 0.0.52 cannot compile every program: of a host's chips in a v5e:4x4, an all-gather
        over all four makes it abort.
        """
        own = tuple(d for d in self.devices if d.process_index == self.devices[0].process_index)
        if len(own) == len(self.devices) or self.devices[0].platform != "tpu":
            return own
        alone = load_topology(f"{self.chip.kind}:{_HOST[self.chip.kind]}").devices
        return alone if len(alone) == len(own) else own


def load_topology(name: str) -> Topology:
    """The devices of a slice such as `v5e:4x4`, or of this machine (`local`).

    Raises:
      SsbError: the name is not one of a slice, libtpu is not installed, or it does not know the slice.
    """
    if name == LOCAL:
        return _local()
    kind, _, shape = name.partition(":")
    if kind not in KNOWN or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise SsbError(f"topology {name!r} is not known; expected {known_topologies()}")
    if shape.count("x") != KNOWN[kind][0].count("x"):
        raise SsbError(f"topology {name!r}: a {kind} slice has a shape such as {KNOWN[kind][2]}, got {shape}")
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise SsbError(
            f"topology {name}: libtpu is not installed, and it compiles for TPUs on any machine: "
            "pip install 'ssb-jax[tpu]' or pip install libtpu"
        )
    # Do not ask the metadata server of a cloud that we are not in; and no chip is used, so others may load libtpu too.
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    try:
        # A v4 chip's two cores are one device, as JAX has it on the machines themselves.
        options = {"chip_config_name": "megacore"} if kind == "v4" else {}
        devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SsbError(
            f"topology {name!r}: libtpu does not give it ({reason}); expected {known_topologies()}"
        ) from None
    return Topology(name, CHIPS[kind], tuple(devices))


def known_topologies() -> str:
    """The usual slices, and `local`."""
    listed = "; ".join(f"{kind}:{', '.join(shapes)}" for kind, shapes in KNOWN.items())
    return f"{listed}; or {LOCAL} for the devices of this machine"


def _local() -> Topology:
    devices = tuple(jax.devices())
    first, memory = devices[0], device_memory(devices)
    if first.platform == "cpu":
        return Topology(LOCAL, Chip("cpu", memory), devices)
    tpu = next((CHIPS[kind] for kind in CHIPS if _is_kind(first.device_kind, kind)), Chip(first.device_kind, memory))
    return Topology(LOCAL, Chip(tpu.kind, memory, tpu.flops, tpu.bandwidth, tpu.links), devices)


def _is_kind(device_kind: str, kind: str) -> bool:
    names = {
        "v4": ("TPU v4",),
        "v5e": ("TPU v5 lite", "TPU v5e"),
        "v5p": ("TPU v5", "TPU v5p"),
        "v6e": ("TPU v6 lite", "TPU v6e"),
    }
    return device_kind in names[kind]
