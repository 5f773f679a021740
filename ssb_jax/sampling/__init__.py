"""The rollout engine: requests in, completions out. Knows token ids, no text and no files."""

from ssb_jax.sampling.engine import generate
from ssb_jax.sampling.loop import generate_simple
from ssb_jax.sampling.params import Completion, Request, SamplingParams
from ssb_jax.sampling.stats import EngineStats

__all__ = ["Completion", "EngineStats", "Request", "SamplingParams", "generate", "generate_simple"]
