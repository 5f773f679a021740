"""What distillation needs on a TPU: the training step and the teacher's forward pass, compiled ahead of time.

    python -m ssb_jax.bench.ahead_step v5e:2x2
    python -m ssb_jax.bench.ahead_step v5e:2x2 --layers 72

Prints one JSON object: bytes a chip and seconds of compiling. Runs on any machine that has libtpu.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

import click
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from ssb_jax.bench.ahead import QWEN25_3B
from ssb_jax.config import Distillation, Lora
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.sharding import make_mesh
from ssb_jax.stages.targets import lower_teacher
from ssb_jax.training.lowering import lower_step, made_up_pairs


def compile_distillation(
    config: ModelConfig,
    mesh: Mesh,
    *,
    examples: int = 4,
    student: int = 2048,
    teacher: int = 4096,
    reply: int = 1024,
    settings: Distillation | None = None,
    dtype: jnp.dtype = jnp.bfloat16,
) -> dict[str, dict[str, Any]]:
    """Compiles the step and the teacher's pass for `examples` sequences; nothing is executed.

    Args:
      student, teacher: tokens of prompt and reply that each of them reads.
      reply: reply tokens among them.
      settings: the published run's by default.
    """
    settings = settings or Distillation(batch_size=examples)
    prompts = {"prompt": student - reply, "teacher_prompt": teacher - reply}
    pairs = made_up_pairs(examples, **prompts, reply=reply, vocabulary=config.vocab_size)
    return {
        "step": _compiled(
            lambda: lower_step(config, mesh, pairs, settings=settings, lora_settings=Lora(), dtype=dtype)
        ),
        "teacher": _compiled(lambda: lower_teacher(config, mesh, pairs, dtype=dtype)),
    }


def _compiled(lower) -> dict[str, Any]:
    start = time.monotonic()
    lowered = lower()
    traced, worked = time.monotonic(), time.process_time()
    memory = lowered.compile().memory_analysis()
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 3),
        "trace_seconds": round(traced - start, 1),
        "compile_seconds": round(time.monotonic() - traced, 1),
        "compile_processor_seconds": round(time.process_time() - worked, 1),
    }


@click.command()
@click.argument("topology")
@click.option("--data", default=1)
@click.option("--fsdp", default=-1)
@click.option("--tensor", default=1)
@click.option("--layers", default=QWEN25_3B.num_layers)
@click.option("--examples", default=4)
@click.option("--student", default=2048)
@click.option("--teacher", default=4096)
@click.option("--reply", default=1024)
@click.option("--remat", default="full")
def main(topology, data, fsdp, tensor, layers, examples, student, teacher, reply, remat) -> None:
    """Prints the report for Qwen2.5-3B's shape on TOPOLOGY, such as v5e:2x2 or v5p:2x2x1."""
    jax.config.update("jax_enable_compilation_cache", False)  # compiling is what is timed
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)
    config = dataclasses.replace(QWEN25_3B, num_layers=layers)
    sizes = {"examples": examples, "student": student, "teacher": teacher, "reply": reply}
    settings = Distillation(batch_size=examples, remat=remat)
    report = {"topology": topology, "mesh": dict(mesh.shape), "layers": layers, "remat": remat, "tokens": sizes}
    report |= compile_distillation(config, mesh, settings=settings, **sizes)
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
