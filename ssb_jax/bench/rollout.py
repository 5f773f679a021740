"""How fast the rollout engine is, alone and against a peer on the same requests in the same run.

    ssb bench rollout configs/smollm2-mawps.yaml --against transformers --questions.limit 64

The requests are those of the rollouts stage: the questions of `questions`, K samples each, settings of `rollouts`.
Tokens are counted alike on both sides: sampled ids up to and with the first stop token. Beside the clock's seconds
stand the processor's: on a machine that does other things too they are the ones to compare.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import jax

from ssb_jax.bench import peers
from ssb_jax.config import Config, SsbError
from ssb_jax.console import mapping, note
from ssb_jax.sampling import EngineStats, Request, generate
from ssb_jax.stages.questions import load_questions
from ssb_jax.workspace import Workspace

PEERS = {"transformers": peers.transformers, "tunix": peers.tunix}
RATES = ("tokens_per_second", "tokens_per_processor_second")
PACKAGES = {"transformers": ("transformers", "torch"), "tunix": ("google-tunix",)}


def bench_rollout(
    config: Config,
    *,
    against: str | None = None,
    batch_size: int = 32,
    batches: int | None = None,
    singles: int = 4,
    forced: bool = False,
    once: bool = False,
) -> dict:
    """Samples the rollouts of a configuration twice, cold and warm, and with a peer once.

    Args:
      against: "transformers" or "tunix"; None = no peer.
      batch_size: sequences in a batch of the peer, in the order of the requests.
      batches: how many of these the peer answers, evenly spaced over the requests; None = all.
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
        **runs,
    }
    if peer is None:
        return result
    rows = [row for request in requests for row in peers.rows_of(request)]
    groups = _spread([rows[i : i + batch_size] for i in range(0, len(rows), batch_size)], batches)
    if against == "tunix":
        peer(groups[0])  # it compiles for each shape
    measured = {"one_at_a_time": _run_peer(peer, [[row] for row in _spread(rows, singles)])} if singles else {}
    measured["batched"] = _run_peer(peer, groups)
    ratios = {
        f"{run}_ratio_to_{name}": {unit: round(engine[unit] / other[unit], 2) for unit in RATES}
        for run, engine in runs.items()
        for name, other in measured.items()
    }
    return result | {"against": {"name": against, "batch_size": batch_size, **measured}} | ratios


def _spread(items: list, count: int | None) -> list:
    """`count` of them, evenly spaced; all for None."""
    return items if count is None else items[:: max(1, len(items) // count)][:count]


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


def _run_engine(workspace: Workspace, requests: Sequence[Request]) -> dict:
    last = EngineStats()

    def keep(stats: EngineStats) -> None:
        nonlocal last
        last = replace(stats, slots=max(stats.slots, last.slots))  # the tail goes on with fewer

    config = workspace.config
    model, mesh = workspace.model, workspace.mesh
    start = time.process_time()
    for _ in generate(model, requests, seed=config.seed, settings=config.engine, mesh=mesh, on_stats=keep):
        pass
    return last.as_dict() | _rates("engine", last.new_tokens, last.seconds, time.process_time() - start)


def _run_peer(peer: peers.Peer, batches: Sequence[Sequence[peers.Row]]) -> dict:
    start, processor, tokens = time.perf_counter(), time.process_time(), 0
    for number, batch in enumerate(batches, 1):
        tokens += sum(peer(batch))
        what = f"peer: {number} of {len(batches)} batches of {len(batch)}"
        rates = _rates(what, tokens, time.perf_counter() - start, time.process_time() - processor)
    return {"sequences": sum(map(len, batches)), "tokens": tokens, **rates}


def _rates(what: str, tokens: int, seconds: float, processor_seconds: float) -> dict:
    values = (seconds, processor_seconds, tokens / seconds, tokens / processor_seconds)
    rates = {name: round(v, 3) for name, v in zip(("seconds", "processor_seconds", *RATES), values, strict=True)}
    note(f"{what}: {tokens:,} tokens, {mapping(rates)}")
    return rates


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
