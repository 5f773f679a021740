"""Temporaries of a program, estimated from shapes: what `--suggest` compares meshes with, before it compiles one.

The largest arrays that XLA was seen to keep, in programs compiled for v5e: gathered weights, activations of one layer,
scores where no kernel keeps them in the chip's vector memory, logits. With weights and cache, which are exact, they
came out between 3 % below and 14 % above what was compiled.
"""

from __future__ import annotations

import jax

from ssb_jax.model import kernels
from ssb_jax.model.lora import lora_shapes
from ssb_jax.model.sharding import use_mesh
from ssb_jax.preflight.job import Job
from ssb_jax.preflight.workload import Generation
from ssb_jax.sampling import schedule
from ssb_jax.training.layout import Shape

SAFE = 0.92  # of a chip's memory: estimates are not exact


def prefill_temporaries(job: Job, rows: int, length: int) -> float:
    """One pass over prompts into a cache, which is a result."""
    return _gathered(job) + _layer(job, rows, length) + _scores(job, rows, length, length)


def decode_temporaries(job: Job, work: Generation) -> float:
    """A chunk of decode steps; the cache is updated in place."""
    rows, tensor = work.slots / schedule.row_parts(job.mesh), job.mesh.shape["tensor"]
    logits = rows * job.shape.vocab_size / tensor * 4
    scores = rows * job.shape.num_heads / tensor * work.cache_length * 4
    return _gathered(job, head=True) + 4 * logits + 2 * scores


def pass_temporaries(job: Job, rows: int, length: int) -> float:
    """One pass over whole sequences."""
    return _gathered(job, head=True) + _layer(job, rows, length) + _scores(job, rows, length, length)


def step_temporaries(job: Job, size: Shape, *, chunk: int) -> float:
    """A training step: one micro-batch at a time, its layers' inputs kept for the backward pass."""
    shape, mesh, settings = job.shape, job.mesh, job.config.distillation
    tokens, item = size.rows * size.length / schedule.row_parts(mesh), job.dtype.itemsize
    layer = _layer(job, size.rows, size.length)
    inputs = shape.num_layers * tokens * shape.hidden_size * item
    kept = {"full": inputs, "dots": inputs + shape.num_layers * layer, "none": inputs + 2 * shape.num_layers * layer}
    logits = _chunk_logits(job, chunk)
    scores = _scores(job, size.rows, size.length, size.length)
    scores *= shape.num_layers if settings.remat == "none" else 1
    return _gathered(job, head=True) + 4 * layer + kept[settings.remat] + 5 * logits + scores


def scored_temporaries(job: Job, size: Shape, *, chunk: int) -> float:
    """The reference's pass over the answers of a step: one micro-batch after the other through layers and head."""
    return pass_temporaries(job, size.rows, size.length) + 3 * _chunk_logits(job, chunk)


def _chunk_logits(job: Job, chunk: int) -> float:
    return chunk * job.shape.vocab_size / (job.mesh.shape["fsdp"] * job.mesh.shape["tensor"]) * 4


def _gathered(job: Job, *, head: bool = False) -> float:
    """Weights that are brought from the other fsdp shards: two layers' at a time, and the embedding."""
    shape, mesh = job.shape, job.mesh
    if mesh.shape["fsdp"] == 1:
        return 0.0
    layer = sum(i * o for i, o in lora_shapes(shape).values())
    embedding = shape.vocab_size * shape.hidden_size if head else 0
    return (2 * layer + embedding) * job.dtype.itemsize / mesh.shape["tensor"]


def _layer(job: Job, rows: int, length: int) -> float:
    """Activations of one layer."""
    tokens = rows * length / schedule.row_parts(job.mesh)
    width = 3 * job.shape.hidden_size + 1.5 * job.shape.intermediate_size / job.mesh.shape["tensor"]
    return tokens * width * job.dtype.itemsize


def _scores(job: Job, rows: int, queries: int, keys: int) -> float:
    """Attention scores of one layer in float32, where no kernel is in use."""
    if fused_attention(job, queries):
        return 0.0
    return rows / schedule.row_parts(job.mesh) * job.shape.num_heads / job.mesh.shape["tensor"] * queries * keys * 4.0


def fused_attention(job: Job, queries: int) -> bool:
    """Whether a kernel keeps the scores of so many queries out of the chip's memory."""
    shape = (1, queries, job.shape.num_heads, job.shape.head_dim)
    q = k = jax.ShapeDtypeStruct(shape, job.dtype)
    with use_mesh(job.mesh):
        return kernels.choose(job.config.model.attention, q, k, start=0) != "xla"
