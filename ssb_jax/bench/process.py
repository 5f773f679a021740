"""One side of a benchmark in a process of its own, so that its peak memory is its own.

    python -m ssb_jax.bench.process SIDE FOLDER

FOLDER holds config.yaml and pairs.jsonl; `targets` fills its targets/, from which `ours` trains in ours/; `torch` runs
its own teacher and trains in torch/. Prints one JSON object as its last line.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ssb_jax.artifacts import read_jsonl
from ssb_jax.bench.machine import peak_memory
from ssb_jax.config import Config, SsbError, load_config
from ssb_jax.metrics import METRICS, read_metrics
from ssb_jax.records import Pair
from ssb_jax.stages import distillation
from ssb_jax.stages import targets as teacher
from ssb_jax.workspace import Workspace


def targets(config: Config, pairs: list[Pair], folder: Path) -> dict[str, Any]:
    """The teacher's pass over all pairs, twice: with and without compiling."""
    workspace = Workspace(config)
    read = sum(len(pair.teacher_prompt_ids) + len(pair.reply_ids) for pair in pairs)
    seconds = []
    with tempfile.TemporaryDirectory(dir=folder) as again:
        for where in (folder / "targets", Path(again)):
            workspace.model_on(workspace.teacher_mesh)  # loading is not the pass
            start = time.monotonic()
            counts = teacher.run(pairs, config=config, folder=where, workspace=workspace)
            seconds.append(time.monotonic() - start)
    return {
        **counts,
        "tokens_read": read,
        "cold_seconds": round(seconds[0], 3),
        "seconds": round(seconds[1], 3),
        "tokens_per_second": round(read / seconds[1], 1),
        **_memory(),
    }


def ours(config: Config, pairs: list[Pair], folder: Path) -> dict[str, Any]:
    """Our trainer."""
    out = _fresh(folder / "ours")
    with _processor_clock(out) as clock:
        distillation.run(pairs, config=config, store_folder=folder / "targets", folder=out, workspace=Workspace(config))
    return {"rows": read_metrics(out), "processor_clock": clock, **_memory()}


def torch(config: Config, pairs: list[Pair], folder: Path) -> dict[str, Any]:
    """The published trainer; torch is imported in its process alone."""
    jax.config.update("jax_platforms", "cpu")  # the accelerator is torch's
    from torch import cuda

    from ssb_jax.baselines import torch_trainer

    out = _fresh(folder / "torch")
    with _processor_clock(out) as clock:
        torch_trainer.run(pairs, config=config, folder=out, workspace=Workspace(config))
    on_device = {"device_peak_bytes": cuda.max_memory_allocated()} if cuda.is_available() else {}
    return {"rows": read_metrics(out), "processor_clock": clock, "peak_bytes": peak_memory(), **on_device}


@contextlib.contextmanager
def _processor_clock(folder: Path) -> Iterator[list[float]]:
    """The processor time that this process had used, all threads together, when each row of the metrics appeared.

    On a machine that others use too, a step's processor seconds say more than its seconds.
    """
    clock: list[float] = []
    done = threading.Event()

    def watch() -> None:
        path = folder / METRICS
        while not done.wait(0.02):
            rows = path.read_bytes().count(b"\n") if path.exists() else 0
            clock.extend([time.process_time()] * (rows - len(clock)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield clock
    finally:
        done.set()
        watcher.join()


def _fresh(folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _memory() -> dict[str, int]:
    device = jax.local_devices()[0].memory_stats() or {}  # None on CPU
    on_device = {"device_peak_bytes": device["peak_bytes_in_use"]} if "peak_bytes_in_use" in device else {}
    return {"peak_bytes": peak_memory(), **on_device}


def main(side: str, folder: Path) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # what a cached program has not cost is not measured
    config = load_config(folder / "config.yaml", [])
    pairs = read_jsonl(folder / "pairs.jsonl", Pair)
    print(json.dumps({"targets": targets, "ours": ours, "torch": torch}[side](config, pairs, folder)))


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except SsbError as error:
        sys.exit(f"Error: {error}")
