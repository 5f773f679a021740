"""What XLA is told when it compiles a training program.

On a CPU, XLA of jaxlib 0.10 hands whole fusions that end in a reduction to its library YNNPACK, which writes every
intermediate result to memory fresh from the system: of a pass over a chunk's logits that keeps one number a token,
several arrays of (C, V). Products of matrices it does well, so they stay with it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def compiler_options(platform: str | None = None) -> dict[str, Any] | None:
    """The options for `jax.jit` of a program with a loss over the vocabulary; None where there are none to give.

    Args:
      platform: of the devices it is compiled for ("cpu", "tpu", "gpu"); None: the default ones.
    """
    return _cpu_options() if (platform or jax.default_backend()) == "cpu" else None


@functools.cache
def _cpu_options() -> dict[str, Any] | None:
    """An experimental option goes as it came: a jaxlib that no longer knows it compiles in its own way."""
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=_CPU).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return None
    return _CPU
