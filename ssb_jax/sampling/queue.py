"""Requests that wait, and prompts whose keys and values are ready: what feeds the slots.

A prompt is computed once for all its samples, and what all prompts begin with (a system message, worked turns) once
for all of them. Requests are read ahead in windows; the prompts of a window are prefilled in batches of one length
bucket, the shortest first, and staged until slots take them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ssb_jax.model.cache import KVCache
from ssb_jax.sampling.params import Request
from ssb_jax.sampling.schedule import SHORTEST_PROMPT, bucket, prefill_rows

WINDOW = 128  # requests read ahead at once, enough for whole batches of each bucket
PREFIX_STEP = 32  # a shared prefix has a multiple of this length, so that few are compiled


@dataclass
class Staged:
    """A prompt whose keys and values are row `row` of a prefill, and its samples that have no slot yet."""

    request: Request
    samples: deque[int]
    cache: KVCache
    row: int


@dataclass
class Queue:
    """What waits, in three steps: not yet read, in the window, staged."""

    incoming: Iterator[Request]
    check: Callable[[Request], None]
    prefill: Callable[[np.ndarray, np.ndarray, KVCache | None], KVCache]  # tokens (P, T), lengths (P,), prefix
    parts: int  # P is a multiple of this
    tokens: int  # P * T is at most this, if P can be
    window: deque[Request] = field(default_factory=deque)
    staged: deque[Staged] = field(default_factory=deque)
    prefix: tuple[int, ...] = ()  # with which prompts begin
    prefix_cache: KVCache | None = None
    read: int = 0  # sequences read so far
    finished: bool = False  # nothing is left to be read

    def head(self) -> Staged | None:
        """The next prompt with a sample that wants a slot; None when nothing waits any more."""
        while self.staged and not self.staged[0].samples:
            self.staged.popleft()
        if not self.staged:
            self._stage()
        return self.staged[0] if self.staged else None

    def waiting(self) -> bool:
        """Whether any sample still wants a slot."""
        return self.head() is not None

    def known(self) -> tuple[list[Request], int | None]:
        """The requests that wait, as far as they are read, and their number of sequences (None: there may be more)."""
        self._read_window()
        requests = [s.request for s in self.staged] + list(self.window)
        count = sum(len(s.samples) for s in self.staged) + sum(len(r.samples) for r in self.window)
        return requests, count if self.finished else None

    def _read_window(self) -> None:
        """The next window, if the present one is empty."""
        if self.window:
            return
        while not self.finished and len(self.window) < WINDOW:
            request = next(self.incoming, None)
            if request is None:
                self.finished = True
            else:
                self.check(request)
                self.read += len(request.samples)
                self.window.append(request)

    def _stage(self) -> None:
        """Prefills the next prompt, with those of the window that share its length bucket."""
        self._read_window()
        if not self.window:
            return
        self._order()
        self._share_prefix()
        start = len(self.prefix)
        T = self._bucket(self.window[0])
        most = prefill_rows(T, parts=self.parts, tokens=self.tokens)
        chosen, others = [], deque()
        for request in self.window:
            fits = len(chosen) < most and self._bucket(request) == T and _begins(request.prompt_ids, self.prefix)
            (chosen if fits else others).append(request)
        self.window = others
        P = max(self.parts, 1 << (len(chosen) - 1).bit_length())
        tokens, lengths = np.zeros((P, T), np.int32), np.zeros(P, np.int32)
        for row, request in enumerate(chosen):
            own = request.prompt_ids[start:]
            tokens[row, : len(own)], lengths[row] = own, len(own)
        cache = self.prefill(tokens, lengths, self.prefix_cache)
        self.staged.extend(Staged(r, deque(r.samples), cache, row) for row, r in enumerate(chosen))

    def _order(self) -> None:
        """The shortest first, of those that begin with the present prefix: sequences that run together then have like
        lengths, and the cache, which is as long as its longest, little padding. A window is emptied before the next is
        read: the long ones would else wait for the end, and fill it."""

        def turn(request: Request) -> tuple[bool, int]:
            return not _begins(request.prompt_ids, self.prefix), len(request.prompt_ids)

        self.window = deque(sorted(self.window, key=turn))

    def _share_prefix(self) -> None:
        """Finds what the next prompt and its like in the window begin with, and prefills it; keeps it while it fits."""
        head = self.window[0].prompt_ids
        if self.prefix and _begins(head, self.prefix):
            return
        family = [r.prompt_ids for r in self.window if r.prompt_ids[:PREFIX_STEP] == head[:PREFIX_STEP]]
        length = _common_length(family) // PREFIX_STEP * PREFIX_STEP if len(family) > 1 else 0
        self.prefix, self.prefix_cache = head[:length], None
        if length:
            tokens = np.tile(np.array(self.prefix, np.int32), (self.parts, 1))
            # One more than there are: a prefill leaves the last token of a prompt to decoding.
            self.prefix_cache = self.prefill(tokens, np.full(self.parts, length + 1, np.int32), None)

    def _bucket(self, request: Request) -> int:
        return bucket(len(request.prompt_ids) - len(self.prefix), SHORTEST_PROMPT)


def _begins(prompt: tuple[int, ...], prefix: tuple[int, ...]) -> bool:
    return len(prompt) > len(prefix) and prompt[: len(prefix)] == prefix


def _common_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """With how many tokens all of them begin, each keeping at least one of its own."""
    first, last = min(prompts), max(prompts)  # in dictionary order: what these two share, all share
    shortest = min(map(len, prompts)) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)
