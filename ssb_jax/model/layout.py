"""Where each parameter lies in a checkpoint of the hub: names, and how axes are folded into matrices."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DiskLayout:
    """Where a parameter lies in a checkpoint: its tensor's name ("{}" = the layer) and how its axes are folded.

    On disk a linear map is one matrix (out, in); ours is (*in, *out). `axes_in` counts our leading axes of the input;
    None means that the tensor's axes are kept (embeddings).
    """

    template: str
    axes_in: int | None = 0

    def name(self, layer: int) -> str:
        return self.template.format(layer)

    def disk_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape on disk, given our shape of one layer."""
        if self.axes_in is None:
            return shape
        sizes = (math.prod(shape[self.axes_in :]), math.prod(shape[: self.axes_in]))
        return sizes if self.axes_in else sizes[:1]

    def disk_slices(self, slices: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The slices on disk of our slices of one layer."""
        if self.axes_in is None:
            return slices
        ours = list(zip(slices, shape, strict=True))
        folded = (_fold(ours[self.axes_in :]), _fold(ours[: self.axes_in]))
        return folded if self.axes_in else folded[:1]

    def from_disk(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return tensor if self.axes_in is None else tensor.T.reshape(shape)

    def to_disk(self, array: np.ndarray) -> np.ndarray:
        shape = self.disk_shape(array.shape)
        return array if self.axes_in is None else array.reshape(shape[::-1]).T


_LAYER = "model.layers.{}."
DISK_LAYOUTS = {
    "embed": DiskLayout("model.embed_tokens.weight", None),
    "norm": DiskLayout("model.norm.weight"),
    "lm_head": DiskLayout("lm_head.weight", None),
    "layers.input_norm": DiskLayout(_LAYER + "input_layernorm.weight"),
    "layers.q_proj": DiskLayout(_LAYER + "self_attn.q_proj.weight", 1),
    "layers.k_proj": DiskLayout(_LAYER + "self_attn.k_proj.weight", 1),
    "layers.v_proj": DiskLayout(_LAYER + "self_attn.v_proj.weight", 1),
    "layers.q_bias": DiskLayout(_LAYER + "self_attn.q_proj.bias"),
    "layers.k_bias": DiskLayout(_LAYER + "self_attn.k_proj.bias"),
    "layers.v_bias": DiskLayout(_LAYER + "self_attn.v_proj.bias"),
    "layers.o_proj": DiskLayout(_LAYER + "self_attn.o_proj.weight", 2),
    "layers.post_norm": DiskLayout(_LAYER + "post_attention_layernorm.weight"),
    "layers.gate_proj": DiskLayout(_LAYER + "mlp.gate_proj.weight", 1),
    "layers.up_proj": DiskLayout(_LAYER + "mlp.up_proj.weight", 1),
    "layers.down_proj": DiskLayout(_LAYER + "mlp.down_proj.weight", 1),
}
# Buffers that old checkpoints carry and that follow from the config.
IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def _fold(axes: list[tuple[slice, int]]) -> slice:
    """One slice over several axes flattened to one; only the first of them may be partial."""
    if not axes:
        return slice(0, 1)
    inner = math.prod(size for _, size in axes[1:])
    assert all(part.indices(size) == (0, size, 1) for part, size in axes[1:]), "only the first axis is split"
    start, stop, _ = axes[0][0].indices(axes[0][1])
    return slice(start * inner, stop * inner)
