"""What the engine's programs need on a TPU, compiled ahead of time on any machine that has libtpu.

python -m ssb_jax.bench.ahead v5e:2x2 --tensor 4
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from ssb_jax.model.cache import cache_shardings, init_cache
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.sharding import make_mesh, use_mesh
from ssb_jax.model.transformer import abstract_model, model_shardings
from ssb_jax.sampling import device
from ssb_jax.training.lowering import placed

QWEN25_3B = ModelConfig(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_layers=36,
    num_heads=16,
    num_kv_heads=2,
    head_dim=128,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=32768,
)


def compile_engine(
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    *,
    slots: int = 64,
    length: int = 2048,
    steps: int = 16,
    prompts: int = 16,
    prompt_length: int = 512,
    dtype: jnp.dtype = jnp.bfloat16,
) -> dict[str, Any]:
    """Compiles one decode chunk and one prefill for the mesh's devices; nothing is executed.

    Returns bytes a chip for each: arguments, cache, temporaries; and the arrays that are gathered between chips.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    model = abstract_model(config, dtype)
    model = placed(model, model_shardings(model, mesh))
    cache = jax.eval_shape(lambda: init_cache(config, slots, length, dtype))
    cache = (placed(cache, cache_shardings(cache, mesh)),)
    rows = device.empty_rows(slots, 4)
    rows = placed(rows, jax.tree.map(lambda _: replicated, rows))
    enough = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    tokens = jax.ShapeDtypeStruct((prompts, prompt_length), jnp.int32, sharding=replicated)
    lengths = jax.ShapeDtypeStruct((prompts,), jnp.int32, sharding=replicated)
    with use_mesh(mesh):
        decode = _report(device.decode.lower(model, None, None, cache, rows, None, enough, steps=steps), config)
        prefill = _report(device.prefill.lower(model, None, tokens, lengths, None), config)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(cache))
    share = round(decode["temporary_bytes"] / held, 4)
    return {"decode": decode | {"cache_bytes": held, "temporaries_of_cache": share}, "prefill": prefill}


def _report(lowered: jax.stages.Lowered, config: ModelConfig) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:  # not every TPU program can be printed once it is compiled
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (text,) = (path.read_text() for path in Path(folder).glob("*.after_optimizations.txt"))
    memory = compiled.memory_analysis()
    results = " ".join(re.findall(r"= (\S+|\(.*?\)) all-gather(?:-start)?\(", text))
    gathered = sorted({f"{kind}[{shape}]" for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", results)})
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "aliased_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "gathers": gathered,
        "gathers_of_logits": [shape for shape in gathered if shape.endswith(f",{config.vocab_size}]")],
    }


@click.command()
@click.argument("topology")
@click.option("--data", default=1)
@click.option("--fsdp", default=1)
@click.option("--tensor", default=-1)
@click.option("--slots", default=64)
@click.option("--length", default=2048)
def main(topology: str, data: int, fsdp: int, tensor: int, slots: int, length: int) -> None:
    """Prints the report for Qwen2.5-3B on TOPOLOGY, such as v5e:2x2 or v5p:2x2x1."""
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)
    report = {"topology": topology, "mesh": dict(mesh.shape), "slots": slots, "length": length}
    report |= compile_engine(QWEN25_3B, mesh, slots=slots, length=length)
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
