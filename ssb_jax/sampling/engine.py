"""The rollout engine: many requests through few compiled shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import jax

from ssb_jax.config import Engine
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.model.transformer import Transformer
from ssb_jax.sampling.loop import generate_simple
from ssb_jax.sampling.params import Completion, Request


def generate(
    model: Transformer,
    requests: Iterable[Request],
    *,
    seed: int,
    lora: Lora | None = None,
    settings: Engine,
    mesh: jax.sharding.Mesh | None = None,
    on_stats: Callable | None = None,
) -> Iterator[Completion]:
    """Yields one completion a (request, sample)."""
    requests = iter(requests)
    while some := list(islice(requests, 16)):
        with use_mesh(mesh):
            done = generate_simple(model, some, seed=seed, lora=lora)
        yield from done
