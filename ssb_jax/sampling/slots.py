"""The slots: which sequence is in each, the numbers of its row, and the cache that holds their keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from ssb_jax.model.cache import Cache, KVCache
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.lora import Lora
from ssb_jax.model.transformer import Transformer
from ssb_jax.sampling import device
from ssb_jax.sampling.filters import stack_filters
from ssb_jax.sampling.keys import sequence_keys
from ssb_jax.sampling.params import BROKEN, NOTHING, Request
from ssb_jax.sampling.queue import Staged
from ssb_jax.sampling.schedule import SHORTEST_CACHE, bucket
from ssb_jax.sampling.stats import Meter

STOP_IDS = 4  # room for stop ids in a row; widened when a request has more


@dataclass
class Sampled:
    """One sample of a request, in a slot or just out of it, and what was sampled so far."""

    request: Request
    sample: int
    limit: int
    emitted: list[int] = field(default_factory=list)

    @property
    def reach(self) -> int:
        """Tokens it may come to hold."""
        return len(self.request.prompt_ids) + self.limit


class Slots:
    """A pool of `count` slots. Its cache grows and shrinks with what the sequences need."""

    def __init__(self, count: int, *, config: ModelConfig, dtype: jnp.dtype, meter: Meter, parts: int):
        self.config, self.dtype, self.meter, self.parts = config, dtype, meter, parts
        self.sequences: list[Sampled | None] = [None] * count
        self.rows = device.empty_rows(count, STOP_IDS)
        self.cache: Cache | None = None

    @property
    def count(self) -> int:
        return len(self.sequences)

    @property
    def length(self) -> int:
        """S: tokens of cache a slot has now."""
        return 0 if self.cache is None else self.cache[0].length

    def running(self) -> list[Sampled]:
        return [s for s in self.sequences if s is not None]

    def free(self) -> list[int]:
        return [i for i, s in enumerate(self.sequences) if s is None]

    def assign(self, assignments: Mapping[int, tuple[Staged, Sampled]], *, seed: int, chunk: int) -> None:
        """Starts sequences in free slots, and makes the cache fit the next chunk."""
        names = [(new.request.id, new.sample) for _, new in assignments.values()]
        keys = sequence_keys(seed, names) if names else []
        for key, (slot, (_, new)) in zip(keys, assignments.items(), strict=True):
            self._start(slot, new, key)
        self._fit(chunk)
        by_cache: dict[int, tuple[KVCache, list[tuple[int, int]]]] = {}
        for slot, (staged, _) in assignments.items():
            by_cache.setdefault(id(staged.cache), (staged.cache, []))[1].append((slot, staged.row))
        for cache, pairs in by_cache.values():
            self._copy(cache, pairs)

    def decode(
        self, model: Transformer, lora: Lora | None, layers: list | None, *, chunk: int, leave_after: int
    ) -> list[Sampled]:
        """Decodes a chunk; returns the sequences that ended, whose slots are free now."""
        rows, history = self.rows, self._history()
        cache, self.cache = self.cache, None
        what = f"decode of {self.count} slots, {cache[0].length} tokens" + (
            ", penalised" if history is not None else ""
        )
        self.cache, out, active, steps = self.meter.timed(
            "decode",
            what,
            lambda: device.decode(model, lora, layers, cache, rows, history, np.int32(leave_after), steps=chunk),
        )
        out, active = np.asarray(out), np.asarray(active)
        new = np.sum(out != NOTHING, axis=1)
        rows.position[:] += new
        rows.count[:] += new
        rows.token[:] = np.where(new > 0, out[np.arange(self.count), new - 1], rows.token)
        self.meter.counts.update(new_tokens=int(new.sum()), steps=int(steps), slot_steps=int(steps) * self.count)
        for i in np.flatnonzero(new):
            self.sequences[i].emitted += out[i, : new[i]].tolist()
        if (out == BROKEN).any():
            cache, self.cache = self.cache, None
            broken = (out == BROKEN).any(axis=1)
            self.cache = self.meter.timed("copy", f"wipe of {self.count} slots", lambda: device.wipe(cache, broken))
        return self._release(np.flatnonzero(rows.active & ~active))

    def compact(self, count: int, *, chunk: int) -> None:
        """Goes on with fewer slots, enough for the sequences that run, and the cache that two chunks need."""
        kept = [i for i, s in enumerate(self.sequences) if s is not None]
        places = np.array(kept + [kept[0]] * (count - len(kept)), np.int32)  # the rest are idle: any content will do
        self._resize(places, self._fitting(chunk, enough=2 * chunk))
        self.rows = jax.tree.map(lambda x: x[places], self.rows)
        self.rows.active[len(kept) :] = False
        self.sequences = [self.sequences[i] for i in kept] + [None] * (count - len(kept))

    def _release(self, ended: Sequence[int]) -> list[Sampled]:
        done = [self.sequences[i] for i in ended]
        for i in ended:
            self.sequences[i] = None
            self.rows.active[i] = False
        return done

    def _start(self, slot: int, new: Sampled, key: np.ndarray) -> None:
        prompt, params = new.request.prompt_ids, new.request.params
        width = self.rows.stops.shape[1]
        if len(params.stop_ids) > width:
            room = ((0, 0), (0, len(params.stop_ids) - width))
            self.rows = replace(self.rows, stops=np.pad(self.rows.stops, room, constant_values=NOTHING))
        rows = self.rows
        self.sequences[slot] = new
        rows.token[slot], rows.position[slot] = prompt[-1], len(prompt) - 1
        rows.count[slot], rows.limit[slot], rows.active[slot] = 0, new.limit, True
        rows.key[slot] = key
        rows.stops[slot] = NOTHING
        rows.stops[slot, : len(params.stop_ids)] = params.stop_ids
        for values, value in zip(jax.tree.leaves(rows.filters), jax.tree.leaves(stack_filters([params])), strict=True):
            values[slot] = value[0]

    def _fitting(self, chunk: int, *, enough: int) -> int:
        """The length that the cache should have: its own if that will do for `enough` steps and is less than twice too
        long, else one for two chunks, by buckets: a new length costs a copy, and the first time a compilation."""
        rows = self.rows

        def needed(steps: int) -> int:
            last = rows.position + np.minimum(steps, rows.limit - rows.count)
            return bucket(int(last[rows.active].max()), SHORTEST_CACHE)

        new = needed(2 * chunk)
        return self.length if needed(enough) <= self.length < 2 * new else new

    def _fit(self, chunk: int) -> None:
        """Makes the cache long enough for the next chunk, or shorter by half or more."""
        length = self._fitting(chunk, enough=chunk)
        if self.cache is None:
            shape = {"batch": self.count, "length": length, "dtype": self.dtype, "parts": self.parts}
            self.cache = self.meter.timed(
                "copy", f"cache of {self.count} x {length}", lambda: device.empty_cache(self.config, **shape)
            )
        elif length != self.length:
            self._resize(None, length)

    def _resize(self, places: np.ndarray | None, length: int) -> None:
        """One array after the other, so that only one of them is held twice at a time."""
        what = f"resize of {self.count} x {self.length} to {self.count if places is None else len(places)} x {length}"
        arrays, shape = jax.tree.flatten(self.cache)
        self.cache = None
        for i, x in enumerate(arrays):
            arrays[i] = self.meter.timed("copy", what, lambda x=x: device.resize(x, places, length=length))
            del x
        self.cache = jax.tree.unflatten(shape, arrays)

    def _copy(self, staged: KVCache, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies rows of a prefill into slots: `pairs` are (slot, row)."""
        size = min(next(n for n in (1, 4, 16, 64, self.count) if n >= len(pairs)), self.count)  # few shapes
        slots, sources = np.full(size, self.count, np.int32), np.zeros(size, np.int32)
        slots[: len(pairs)], sources[: len(pairs)] = np.array(pairs, np.int32).T
        cache, self.cache = self.cache, None
        what = f"copy of {size} of {staged.length} tokens into {self.count} of {cache[0].length}"
        self.cache = self.meter.timed("copy", what, lambda: device.place(cache, staged, slots, sources))

    def _history(self) -> np.ndarray | None:
        """All tokens of each row, filled up with V, if any row has a repetition penalty."""
        penalised = (self.rows.filters.penalty != 1) & self.rows.active
        if not penalised.any():
            return None
        history = np.full((self.count, self.length), self.config.vocab_size, np.int32)
        for i in np.flatnonzero(penalised):
            tokens = [*self.sequences[i].request.prompt_ids, *self.sequences[i].emitted]
            history[i, : len(tokens)] = tokens
        return history
