"""How fast and how lean the distillation step is, alone and against the published trainer in PyTorch.

    ssb bench distill configs/smollm2-mawps.yaml --against torch
    ssb bench distill configs/smollm2-mawps.yaml --against torch --pairs runs/smol   # real lengths, packed

Both sides train on the same pairs in the same order from the same adapter, each through its own whole loop (reading
targets, stepping, logging), each setting in a process of its own, one after the other. Seconds of a step, and
processor seconds (all threads, whatever else the machine does), are the median of all but the first; peak memory is
the most that the process has held, from its start (imports, loading and compiling included) to its end. The losses of
every step stand beside each other, so that a fast wrong step would show.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from ssb_jax.artifacts import read_jsonl, write_atomically, write_jsonl
from ssb_jax.bench.machine import machine
from ssb_jax.config import Config, SsbError, config_from_dict, dump_config
from ssb_jax.console import note
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.weights import read_json, resolve_model
from ssb_jax.records import Pair
from ssb_jax.training.lowering import made_up_pairs


def bench_distill(
    config: Config,
    *,
    against: str | None = None,
    pairs: Path | None = None,
    prompt: int = 160,
    reply: int = 256,
    steps: int = 5,
    remat: Sequence[str] = ("none", "dots", "full"),
) -> dict[str, Any]:
    """Measures the step, with each kind of rematerialisation, and with `against` the published trainer, which has two.

    Args:
      against: "torch" or None.
      pairs: a run folder whose pairs are taken. None: random tokens, `prompt` and `reply` of them.
      remat: kinds of `distillation.remat`; PyTorch has no `dots`.
      steps: optimizer steps, of `distillation.batch_size` examples each; at least 3.

    Raises:
      SsbError: the run has no pairs, a process failed.
    """
    chosen = run_pairs(pairs) if pairs is not None else made_up(config, prompt=prompt, reply=reply)
    size = config.distillation.batch_size
    chosen = chosen[: steps * size]
    epochs = math.ceil(steps / math.ceil(len(chosen) / size))
    with tempfile.TemporaryDirectory(prefix="ssb-bench-") as scratch:
        folder = Path(scratch)
        write_jsonl(folder / "pairs.jsonl", chosen)
        targets = in_process("targets", config, folder)
        measured = {}
        kinds_of = {"ours": remat, "torch": [kind for kind in remat if kind != "dots"] or ["none"] if against else []}
        for side, kinds in kinds_of.items():
            for kind in kinds:
                changed = with_settings(config, distillation={"remat": kind, "epochs": epochs, "tensorboard": False})
                measured[f"{side}, remat {kind}"] = summary = _summary(in_process(side, changed, folder), steps)
                note(f"{side}, remat {kind}: {summary['seconds']} s a step, {summary['peak_gib']} GiB")
    return {
        "bench": "distill",
        "settings": {
            "model": config.model.path,
            "pairs": str(pairs) if pairs else "random tokens",
            "examples": len(chosen),
            "batch_size": size,
            "prompt_tokens": sum(len(pair.student_prompt_ids) for pair in chosen),
            "reply_tokens": sum(len(pair.reply_ids) for pair in chosen),
            "steps": steps,
            **config.distillation.model_dump(include={"loss", "temperature", "packing", "chunk_tokens", "micro_batch"}),
            "targets": config.targets.encoding,
            "lora": config.lora.model_dump(),
        },
        "machine": machine(("jax", "flax", *(("torch", "peft", "transformers") if against else ()))),
        "targets": targets,
        **measured,
        **(_ratios(measured) if against else {}),
    }


def run_pairs(folder: Path) -> list[Pair]:
    """The pairs of a finished run."""
    path = folder / "pairs" / "pairs.jsonl"
    if not path.exists():
        raise SsbError(f"{folder} has no pairs ({path}); run `ssb teach` there, or leave --pairs out")
    return read_jsonl(path, Pair)


def made_up(config: Config, *, prompt: int, reply: int) -> list[Pair]:
    """One batch of pairs of random tokens; the hinted prompt is three times as long as the bare one."""
    folder = resolve_model(config.model.path, config.model.revision)
    shape = ModelConfig.from_json_dict(read_json(folder / "config.json", "a checkpoint needs one"))
    size, vocabulary = config.distillation.batch_size, shape.vocab_size
    return made_up_pairs(size, prompt=prompt, reply=reply, teacher_prompt=3 * prompt, vocabulary=vocabulary)


def with_settings(config: Config, **sections: dict[str, Any]) -> Config:
    """The configuration with some settings changed."""
    values = config.model_dump(mode="json")
    return config_from_dict(values | {name: values[name] | changed for name, changed in sections.items()})


def bench_targets(config: Config, *, pairs: Path | None = None, prompt: int = 160, reply: int = 256) -> dict[str, Any]:
    """Measures the teacher's pass, cold and warm: seconds, tokens read a second, bytes stored a token, peak memory."""
    chosen = run_pairs(pairs) if pairs is not None else made_up(config, prompt=prompt, reply=reply)
    with tempfile.TemporaryDirectory(prefix="ssb-bench-") as scratch:
        write_jsonl(Path(scratch) / "pairs.jsonl", chosen)
        result = in_process("targets", config, Path(scratch))
    return {
        "bench": "targets",
        "settings": {
            "model": config.model.path,
            "pairs": str(pairs) if pairs else "random tokens",
            **config.targets.model_dump(),
        },
        "machine": machine(("jax", "flax")),
        **result,
    }


def in_process(side: str, config: Config, folder: Path) -> dict[str, Any]:
    """What `bench.process` measures of one side, in a process of its own.

    Raises:
      SsbError: the process failed; its own error is on stderr.
    """
    write_atomically(folder / "config.yaml", dump_config(config))
    command = [sys.executable, "-m", "ssb_jax.bench.process", side, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SsbError(f"the process that measures {side} ended with status {done.returncode}; its error is above")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(result: dict[str, Any], steps: int) -> dict[str, Any]:
    rows, clock = result.pop("rows")[:steps], result.pop("processor_clock")[:steps]
    later = rows[1:]
    return {
        "seconds": round(median(row["seconds"] for row in later), 3),
        "processor_seconds": round(median(b - a for a, b in pairwise(clock)), 3),
        "first_seconds": round(rows[0]["seconds"], 3),
        "tokens_per_second": round(median(row["tokens_per_second"] for row in later), 1),
        "step_seconds": [round(row["seconds"], 3) for row in rows],
        "losses": [row["loss"] for row in rows],
        "grad_norms": [row["grad_norm"] for row in rows],
        **result,
        "peak_gib": round(result["peak_bytes"] / 2**30, 3),
    }


def _ratios(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many times faster we are, and which share of the memory we take; of the losses the largest difference."""
    sides = {side: [name for name in measured if name.startswith(side)] for side in ("ours", "torch")}
    return {
        "ratios": {
            ours: {theirs: _ratio(measured[ours], measured[theirs]) for theirs in sides["torch"]}
            for ours in sides["ours"]
        }
    }


def _ratio(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    return {
        "times_faster": round(theirs["seconds"] / ours["seconds"], 2),
        "times_less_processor": round(theirs["processor_seconds"] / ours["processor_seconds"], 2),
        "share_of_memory": round(ours["peak_bytes"] / theirs["peak_bytes"], 3),
        "loss_difference": max(abs(a / b - 1) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
    }
