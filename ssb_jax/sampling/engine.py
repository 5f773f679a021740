"""The rollout engine: continuous batching over a fixed number of slots.

    requests -> window -> prefill in batches of one length bucket -> staged prompts -> slots -> completions

Slots decode in chunks; a slot whose sequence ended is given to the next staged sample at the end of its chunk, by
copying the staged keys and values. The cache is as long as its longest sequence needs, by buckets. Which tokens come
out depends on none of this: see keys.py and filters.py.

Every decision is a function of requests and tokens, never of time, so that all processes of a pod take the same ones
and a run repeats exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from ssb_jax.config import Engine as EngineSettings
from ssb_jax.config import SsbError
from ssb_jax.console import note
from ssb_jax.model.cache import KVCache
from ssb_jax.model.lora import Lora
from ssb_jax.model.sharding import use_mesh
from ssb_jax.model.transformer import Transformer
from ssb_jax.records import StopReason
from ssb_jax.sampling import device, schedule
from ssb_jax.sampling.params import Completion, Request, check_request, completion, token_limit
from ssb_jax.sampling.queue import Queue, Staged
from ssb_jax.sampling.slots import Sampled, Slots
from ssb_jax.sampling.stats import EngineStats, Meter


def generate(
    model: Transformer,
    requests: Iterable[Request],
    *,
    seed: int,
    lora: Lora | None = None,
    settings: EngineSettings,
    mesh: jax.sharding.Mesh | None = None,
    on_stats: Callable[[EngineStats], None] | None = None,
    asked: int = 0,
) -> Iterator[Completion]:
    """Yields one completion for each (request, sample), in the order in which they end. Of the requests read ahead, a
    window of queue.WINDOW, those of the shortest prompts start first.

    A sequence (list, tuple) of requests is checked before anything starts; an iterator is read, and checked, as slots
    get free, so that memory does not grow with its length.

    Args:
      lora: an adapter, applied unmerged.
      settings: these change the speed, never the tokens.
      mesh: the mesh on which `model` lies. Slots are split over data and fsdp, heads and vocabulary over tensor.
      on_stats: is called after each chunk.
      asked: sequences of the work of which these are the rest; failures are a share of at least so many.

    Raises:
      SsbError: a request that cannot be generated; slots that do not fit the memory; failures of more than
        `settings.max_failed` of the sequences known so far (those that had ended were yielded).
    """
    total = 0
    if isinstance(requests, Sequence):
        for request in requests:
            _check(request, model)
        total = sum(len(request.samples) for request in requests)
    total = max(total, asked)
    engine = _Engine(model, lora, iter(requests), seed=seed, settings=settings, mesh=mesh, total=total)
    return _run(engine, on_stats)


def _run(engine: _Engine, on_stats: Callable[[EngineStats], None] | None) -> Iterator[Completion]:
    try:
        while True:
            with use_mesh(engine.mesh):  # not around the yield: the caller's code is not ours to put on a mesh
                if not engine.fill():
                    return
                done = engine.advance()
            if on_stats is not None:
                on_stats(engine.stats())
            yield from done
            engine.check_failures()
    finally:
        engine.release()


class _Engine:
    """A run: the queue, the slots, and the rules that bring them together."""

    def __init__(self, model, lora, requests, *, seed, settings, mesh, total):
        self.model, self.lora, self.seed, self.settings, self.mesh = model, lora, seed, settings, mesh
        self.total = total  # sequences, where known before
        self.meter = Meter()
        self.parts = schedule.cache_parts(model.config, mesh)
        self.layers = None if self.parts == 1 else model.layers_in_parts(self.parts, lora)
        self.slots = self._slots(0)
        self.cpu = schedule.on_cpu(mesh)
        self.budget = schedule.cache_budget(model, mesh=mesh)
        self.queue = Queue(
            incoming=requests,
            check=lambda request: _check(request, model),
            prefill=self._prefill,
            parts=schedule.row_parts(mesh),
            tokens=schedule.PREFILL_TOKENS_CPU if self.cpu else schedule.PREFILL_TOKENS,
        )

    def fill(self) -> bool:
        """Gives free slots to waiting samples; False when nothing is left to do."""
        running = self.slots.running()
        if not running:
            if not self.queue.waiting():
                return False
            self._open()
        assignments: dict[int, tuple[Staged, Sampled]] = {}
        longest = max((s.reach for s in running), default=0)
        for slot in self.slots.free():
            staged = self.queue.head()
            if staged is None:
                break
            new = Sampled(staged.request, staged.samples[0], token_limit(staged.request, self._context))
            longest = max(longest, new.reach)
            if self.slots.count * schedule.bucket(longest, schedule.SHORTEST_CACHE) > self.budget.tokens:
                break  # it waits for the present sequences to end, and then gets fewer and longer slots
            staged.samples.popleft()
            assignments[slot] = (staged, new)
        if self.cpu and not assignments and not self.queue.waiting():
            self._compact(len(running))
        self.slots.assign(assignments, seed=self.seed, chunk=self.settings.chunk)
        return True

    def advance(self) -> list[Completion]:
        """Decodes a chunk and returns what ended in it."""
        # While others wait, a chunk ends early once an eighth of the slots is free.
        counts, waiting = self.meter.counts, self.queue.waiting()
        enough = max(1, self.slots.count // 8) if waiting else self.slots.count + 1
        tokens, steps = counts["new_tokens"], counts["slot_steps"]
        ended = self.slots.decode(self.model, self.lora, self.layers, chunk=self.settings.chunk, leave_after=enough)
        if waiting:
            counts.update(queued_tokens=counts["new_tokens"] - tokens, queued_slot_steps=counts["slot_steps"] - steps)
        done = [completion(s.request, s.sample, s.emitted) for s in ended]
        counts.update(c.stop.value for c in done)
        return done

    def release(self) -> None:
        """Lets go of what lies on the devices: the engine's parts refer to each other, and would keep it for long."""
        self.slots.cache = self.queue.prefix_cache = self.layers = None
        self.queue.staged.clear()

    def check_failures(self) -> None:
        failed = self.meter.counts[StopReason.FAILED.value]
        asked = max(self.total, self.queue.read)
        if failed > self.settings.max_failed * asked:
            raise SsbError(
                f"{failed} of {asked} sequences failed, more than engine.max_failed = {self.settings.max_failed:g} "
                f"allows: the logits were not finite. Are the weights, or the adapter, intact? What had ended is kept"
            )

    def stats(self) -> EngineStats:
        return self.meter.snapshot(slots=self.slots.count, cache_tokens=self.slots.length)

    @property
    def _context(self) -> int:
        return self.model.config.max_position_embeddings

    def _slots(self, count: int) -> Slots:
        config = self.model.config
        return Slots(count, config=config, dtype=self.model.dtype, meter=self.meter, parts=self.parts)

    def _open(self) -> None:
        """Chooses the number of slots for what waits; none is in use."""
        requests, sequences = self.queue.known()
        count, reason = schedule.choose_slots(
            wanted=self.settings.slots,
            sequences=sequences,
            longest=max(len(r.prompt_ids) + token_limit(r, self._context) for r in requests),
            budget=self.budget,
            mesh=self.mesh,
        )
        if count != self.slots.count:
            note(f"engine: {count} slots: {reason}")
            self.slots = self._slots(count)

    def _compact(self, running: int) -> None:
        """Goes on with fewer slots when nothing waits, half of them are idle, and a compilation is worth it."""
        count = schedule.compacted(self.slots.count, running, parts=schedule.row_parts(self.mesh))
        steps = int((self.slots.rows.limit - self.slots.rows.count).max())
        saved = (self.slots.count - count) * steps * schedule.flops_per_token(self.model)
        if count < self.slots.count and saved > schedule.COMPILATION_FLOPS:
            self.slots.compact(count, chunk=self.settings.chunk)

    def _prefill(self, tokens: np.ndarray, lengths: np.ndarray, prefix: KVCache | None) -> KVCache:
        (P, T), start = tokens.shape, 0 if prefix is None else prefix.length
        computed = int(np.minimum(lengths, T).sum())
        reused = start * int(np.sum(lengths > 0))
        self.meter.counts.update(prompt_tokens=computed, reused_prompt_tokens=reused, padded_prompt_tokens=P * T)
        what = f"prefill of {P} prompts, {T} tokens" + (f" after {start}" if start else "")
        return self.meter.timed("prefill", what, lambda: device.prefill(self.model, self.lora, tokens, lengths, prefix))


def _check(request: Request, model: Transformer) -> None:
    check_request(request, vocab_size=model.config.vocab_size, context=model.config.max_position_embeddings)
