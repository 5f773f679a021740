"""How fast the rollout engine is, alone and against a peer on the same requests in the same run.

    ssb bench rollout configs/smollm2-mawps.yaml --against transformers --questions.limit 64

The requests are those of the rollouts stage: the questions of `questions`, K samples each, settings of `rollouts`.
Tokens are counted alike on both sides: sampled ids up to and with the first stop token.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version

import jax

from ssb_jax.bench import peers
from ssb_jax.config import Config, SsbError
from ssb_jax.console import note
from ssb_jax.sampling import EngineStats, Request, generate
from ssb_jax.stages.questions import load_questions
from ssb_jax.workspace import Workspace

PEERS = {"transformers": peers.transformers, "tunix": peers.tunix}
PACKAGES = {"transformers": ("transformers", "torch"), "tunix": ("google-tunix",)}


def bench_rollout(
    config: Config,
    *,
    against: str | None = None,
    batch_size: int = 32,
    singles: int = 4,
    forced: bool = False,
    once: bool = False,
) -> dict:
    """Samples the rollouts of a configuration twice, cold and warm, and with a peer once.

    Args:
      against: "transformers" or "tunix"; None = no peer.
      batch_size: sequences in a batch of the peer, in the order of the requests.
      singles: how many sequences the peer also answers one at a time; 0 = none.
      forced: no stop tokens, so that every sequence has `rollouts.max_new_tokens` tokens.
      once: without the warm run; compilations, or their loading from the compilation cache, are part of the figures.

    Raises:
      SsbError: the peer is not known or not installed; what the engine refuses.
    """
    if against is not None and against not in PEERS:
        raise SsbError(f"--against: expected one of {', '.join(PEERS)}; got {against!r}")
    workspace = Workspace(config)
    requests = rollout_requests(workspace, forced=forced)
    peer = None if against is None else PEERS[against](workspace)  # a peer that is not installed: before the work
    note(f"{len(requests)} requests, {sum(len(r.samples) for r in requests)} sequences")
    runs = {name: _run_engine(workspace, requests) for name in (("cold",) if once else ("cold", "warm"))}
    result = {
        "bench": "rollout",
        "settings": _settings(config, requests, forced=forced),
        "machine": _machine(workspace, ("jax", "flax", *PACKAGES.get(against, ()))),
        **{name: stats.as_dict() for name, stats in runs.items()},
    }
    if peer is None:
        return result
    rows = [row for request in requests for row in peers.rows_of(request)]
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    if against == "tunix":
        peer(batches[0])  # it compiles for each shape
    measured = {"name": against, "batch_size": batch_size, "batched": _run_peer(peer, batches)}
    if singles:
        measured["one_at_a_time"] = _run_peer(peer, [[row] for row in rows[:: max(1, len(rows) // singles)][:singles]])
    rates = {name: measured[name]["tokens_per_second"] for name in ("batched", "one_at_a_time") if name in measured}
    ratios = {
        f"{run}_ratio_to_{name}": round(stats.tokens_per_second / rate, 2)
        for run, stats in runs.items()
        for name, rate in rates.items()
    }
    return result | {"against": measured} | ratios


def rollout_requests(workspace: Workspace, *, forced: bool = False) -> list[Request]:
    """The requests of the rollouts stage."""
    config = workspace.config
    params = workspace.sampling_params(config.rollouts)
    if forced:
        params = peers.without_stops(params)
    questions, _ = load_questions(config.questions)
    return [
        Request(
            id=question.id,
            prompt_ids=tuple(workspace.chat.encode_prompt(workspace.prompts.student_messages(question.question))),
            params=params,
            samples=tuple(range(config.rollouts.num_samples)),
        )
        for question in questions
    ]


def _run_engine(workspace: Workspace, requests: Sequence[Request]) -> EngineStats:
    last = EngineStats()

    def keep(stats: EngineStats) -> None:
        nonlocal last
        last = stats

    config = workspace.config
    model, mesh = workspace.model, workspace.mesh
    for _ in generate(model, requests, seed=config.seed, settings=config.engine, mesh=mesh, on_stats=keep):
        pass
    note(f"engine: {last.new_tokens:,} tokens in {last.seconds:.1f} s, {last.tokens_per_second:.1f} tokens/s")
    return last


def _run_peer(peer: peers.Peer, batches: Sequence[Sequence[peers.Row]]) -> dict:
    start, tokens = time.perf_counter(), 0
    for number, batch in enumerate(batches, 1):
        tokens += sum(peer(batch))
        rate = tokens / (time.perf_counter() - start)
        note(f"peer: batch {number} of {len(batches)} ({len(batch)} sequences), {rate:.1f} tokens/s")
    seconds = time.perf_counter() - start
    return {
        "sequences": sum(map(len, batches)),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 3),
    }


def _settings(config: Config, requests: Sequence[Request], *, forced: bool) -> dict:
    params = requests[0].params
    return {
        "model": config.model.path,
        "questions": config.questions.path,
        "requests": len(requests),
        "samples": config.rollouts.num_samples,
        "prompt_tokens": sum(len(r.prompt_ids) for r in requests),
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "max_new_tokens": params.max_new_tokens,
        "forced_length": forced,
        "engine": config.engine.model_dump(),
        "seed": config.seed,
    }


def _machine(workspace: Workspace, packages: Sequence[str]) -> dict:
    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "mesh": dict(workspace.mesh.shape),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "dtype": workspace.dtype.name,
        "versions": {package: version(package) for package in packages},
        "date": datetime.date.today().isoformat(),
    }
