"""A frozen base in 8 bits through qwix: the matrices of the layers. Embedding, head, norms and biases stay.

A matrix is made whole again where a layer multiplies by it, so products, adapters and gradients are those of the
model with the dequantized weights; only what lies in memory is smaller. Each output of a matrix has a scale.

qwix's nf4 is not offered: it flattens an array to look its values up, which gathers sharded weights on every device.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ssb_jax.config import SsbError
from ssb_jax.model.lora import LORA_MODULES

if TYPE_CHECKING:
    from qwix import QArray


def quantizes(name: str, kind: str) -> bool:
    """Whether the parameter of this dotted name is stored in fewer bits."""
    return kind != "none" and name.removeprefix("layers.") in LORA_MODULES


def quantize(weight: jax.Array, name: str) -> QArray:
    """A parameter of all layers in 8 bits, on the devices where it lies.

    Raises:
      SsbError: qwix is not installed.
    """
    try:
        import qwix
    except ImportError as error:
        raise SsbError(f"model.quantization needs qwix: pip install 'ssb-jax[quantization]' ({error})") from None
    inputs = (1, 2) if name.endswith("o_proj") else (1,)
    outputs = [axis for axis in range(weight.ndim) if axis not in inputs]  # and layers
    return jax.jit(partial(qwix.quantize, qtype=jnp.int8, channelwise_axes=outputs))(weight)


def whole(weight: jax.Array | QArray) -> jax.Array:
    """The numbers that a weight stands for."""
    if isinstance(weight, jax.Array):
        return weight
    import qwix

    return qwix.dequantize(weight)
