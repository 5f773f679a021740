"""Every test runs on eight virtual CPU devices, in float32, and refuses silent rank promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
from hypothesis import settings

settings.register_profile("ssb", deadline=None)  # no test is timed: the machine may be busy
settings.load_profile("ssb")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")
