"""Requests that wait, and prompts whose keys and values are ready: what feeds the slots.

A prompt is computed once for all its samples. Prompts are prefilled in batches of one length bucket, found in a
window of requests read ahead, and staged until slots take them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ssb_jax.model.cache import KVCache
from ssb_jax.sampling.params import Request
from ssb_jax.sampling.schedule import SHORTEST_PROMPT, bucket

WINDOW = 64  # requests read ahead


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
    prefill: Callable[[np.ndarray, np.ndarray], KVCache]  # tokens (P, T), lengths (P,)
    parts: int  # P is a multiple of this
    tokens: int  # P * T is at most this, if P can be
    window: deque[Request]
    staged: deque[Staged]
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
        """The requests that wait as far as they are read, and how many sequences they are (None: there may be more)."""
        requests = [s.request for s in self.staged] + list(self.window)
        count = sum(len(s.samples) for s in self.staged) + sum(len(r.samples) for r in self.window)
        return requests, count if self.finished else None

    def _read_ahead(self) -> None:
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
        self._read_ahead()
        if not self.window:
            return
        T = _prompt_bucket(self.window[0])
        most = self.parts << max(0, (self.tokens // (T * self.parts)).bit_length() - 1)
        chosen, others = [], deque()
        for request in self.window:
            fits = len(chosen) < most and _prompt_bucket(request) == T
            (chosen if fits else others).append(request)
        self.window = others
        P = max(self.parts, 1 << (len(chosen) - 1).bit_length())
        tokens, lengths = np.zeros((P, T), np.int32), np.zeros(P, np.int32)
        for row, request in enumerate(chosen):
            tokens[row, : len(request.prompt_ids)] = request.prompt_ids
            lengths[row] = len(request.prompt_ids)
        cache = self.prefill(tokens, lengths)
        self.staged.extend(Staged(r, deque(r.samples), cache, row) for row, r in enumerate(chosen))


def _prompt_bucket(request: Request) -> int:
    return bucket(len(request.prompt_ids), SHORTEST_PROMPT)
