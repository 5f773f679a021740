"""What a run of the engine did and where its time went."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

import jax

from ssb_jax.config import SsbError

X = TypeVar("X")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStats:
    """Counts and seconds since the start; the shares are derived."""

    slots: int = 0  # sequences decoded at once, now; of a run that ended, at most
    cache_tokens: int = 0  # S: the present length of the cache
    programs: int = 0  # distinct shapes run, each compiled once (or found in the compilation cache)
    end_of_turn: int = 0  # sequences by how they ended
    length: int = 0
    failed: int = 0
    prompt_tokens: int = 0  # of prompts as prefilled: once a request, not once a sample
    reused_prompt_tokens: int = 0  # beside them: taken from a prefix that prompts share
    padded_prompt_tokens: int = 0  # computed, padding included
    new_tokens: int = 0  # sampled, stop tokens included
    steps: int = 0  # decode steps
    slot_steps: int = 0  # sum over steps of the number of slots
    queued_tokens: int = 0  # new tokens and slot steps while other sequences waited: all but the tail of a run
    queued_slot_steps: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    copy_seconds: float = 0.0  # staged prompts into slots, caches of another length
    first_call_seconds: float = 0.0  # of the above: first calls of a shape, compilation included

    @property
    def sequences(self) -> int:
        return self.end_of_turn + self.length + self.failed

    @property
    def tokens_per_second(self) -> float:
        return _ratio(self.new_tokens, self.seconds)

    @property
    def occupancy(self) -> float:
        """Share of the slots' steps that sampled a token."""
        return _ratio(self.new_tokens, self.slot_steps)

    @property
    def queued_occupancy(self) -> float:
        """The same while other sequences waited for a slot."""
        return _ratio(self.queued_tokens, self.queued_slot_steps)

    @property
    def prefill_share(self) -> float:
        """Share of the time that went into prompts."""
        return _ratio(self.prefill_seconds, self.seconds)

    @property
    def padding_share(self) -> float:
        """Share of the token positions computed, in prefill and decode, that held no token of a sequence."""
        computed = self.padded_prompt_tokens + self.slot_steps
        return _ratio(computed - self.prompt_tokens - self.new_tokens, computed)

    def __add__(self, later: EngineStats) -> EngineStats:
        """Both runs together: counts and seconds add up; of slots, cache and programs the greatest."""
        join = {f.name: sum for f in fields(self)} | dict.fromkeys(("slots", "cache_tokens", "programs"), max)
        return EngineStats(**{name: how((getattr(self, name), getattr(later, name))) for name, how in join.items()})

    def as_dict(self) -> dict[str, int | float]:
        """All fields and shares, rounded, for manifests and JSON."""
        shares = ("sequences", "tokens_per_second", "occupancy", "queued_occupancy", "prefill_share", "padding_share")
        values = asdict(self) | {name: getattr(self, name) for name in shares}
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


@dataclass
class Meter:
    """Counts while a run goes on. Counts and seconds are named as the fields of EngineStats."""

    counts: Counter = field(default_factory=Counter)
    seconds: Counter = field(default_factory=Counter)
    shapes: set[tuple] = field(default_factory=set)
    started: float = field(default_factory=time.perf_counter)

    def timed(self, kind: str, what: str, call: Callable[[], X]) -> X:
        """Runs a device program to its end; `kind` names the seconds, `what` the program with its shapes.

        Raises:
          SsbError: the device failed, or has not enough memory.
        """
        start = time.perf_counter()
        try:
            result = jax.block_until_ready(call())
        except jax.errors.JaxRuntimeError as error:
            advice = "lower engine.slots" if "RESOURCE_EXHAUSTED" in str(error) else "see to the device"
            raise SsbError(
                f"the device failed in {what}: {str(error).splitlines()[0]}; what had ended is kept: {advice} and run "
                f"the same command again"
            ) from error
        took = time.perf_counter() - start
        self.seconds[f"{kind}_seconds"] += took
        if what not in self.shapes:
            self.shapes.add(what)
            self.seconds["first_call_seconds"] += took
            log.info("program %d, %s: first call %.1f s", len(self.shapes), what, took)
        return result

    def snapshot(self, *, slots: int, cache_tokens: int) -> EngineStats:
        return EngineStats(
            slots=slots,
            cache_tokens=cache_tokens,
            programs=len(self.shapes),
            seconds=time.perf_counter() - self.started,
            **self.counts,
            **self.seconds,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
