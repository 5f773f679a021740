"""Grades many responses under hard limits, in order, while a run goes on.

Cheap answers (strings, exact numbers) are decided here. The others go to graders (see `worker`): processes without
secrets that are killed and replaced when they pass the wall clock limit, die, or run out of memory. A response whose
grader was killed has its own outcome; the run goes on. Nothing here needs JAX, and no JAX process is forked.

    with GraderPool() as pool:
        for key, grade in pool.grade_many((i, response, gold, truncated) for ...):
            ...
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ssb_jax.answers.grading import Grade, grade_cheaply
from ssb_jax.answers.worker import SETUP_FAILED
from ssb_jax.config import SsbError
from ssb_jax.records import Outcome

Key = TypeVar("Key", bound=Hashable)

TIME_LIMIT = 1.5  # seconds; with the replacement of a grader a verdict comes back within 2
MEMORY_LIMIT = 1 << 30  # bytes of address space; sympy needs about 150 MB
_MAX_DEFAULT_WORKERS = 16
_LOOK_AHEAD = 64  # responses a worker
_NURSERY = "from ssb_jax.answers.worker import main; raise SystemExit(main())"
_GRACE = 0.02  # seconds after which an answer whose grader its own timer did not end is given up from here
_MOST_STARTS = 3
_START_LIMIT = 120.0  # seconds for importing sympy on a machine under load


@dataclass
class _Entry:
    """A response on its way through the pool."""

    key: Hashable
    extracted: str
    gold: str
    grade: Grade | None = None
    attempts: int = 0  # that ended in a grader's death
    sent: float | None = None  # when it was first given to a grader


@dataclass
class _Slot:
    """One grader, seen from here."""

    channel: socket.socket
    pid: int | None = None  # None until the first grader is ready
    entry: _Entry | None = None
    deadline: float = 0.0
    received: bytes = b""
    killed: bool = False


@dataclass
class PoolFacts:
    """What a pool went through, for reports and tests."""

    cheap: int = 0
    full: int = 0
    deaths: int = 0
    slowest: float = 0.0  # seconds from sending an answer to its verdict
    nursery_starts: int = field(default=0)


class GraderPool:
    """Worker processes that grade; see the module's docstring. Use it as a context manager.

    Args:
      workers: processes; by default one a core, at most 16.
      time_limit: seconds of wall clock a response.
      memory_limit: bytes of address space of a worker.
    """

    def __init__(
        self, *, workers: int | None = None, time_limit: float = TIME_LIMIT, memory_limit: int = MEMORY_LIMIT
    ) -> None:
        self._workers = workers or min(os.cpu_count() or 1, _MAX_DEFAULT_WORKERS)
        self._time_limit = time_limit
        self._memory_limit = memory_limit
        self._slots: list[_Slot] = []
        self._nursery: subprocess.Popen | None = None
        self._selector = selectors.DefaultSelector()
        self._again: deque[_Entry] = deque()  # whose grader died, through no fault of theirs as far as one can tell
        self.facts = PoolFacts()

    def __enter__(self) -> "GraderPool":
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._selector.close()

    def grade_many(self, items: Iterable[tuple[Key, str, str, bool]]) -> Iterator[tuple[Key, Grade]]:
        """Grades (key, response, gold, truncated) items; yields (key, grade) in the same order, as they are known.

        Reads ahead a bounded number of items, so `items` may be endless.
        """
        source = iter(items)
        window: deque[_Entry] = deque()
        waiting: deque[_Entry] = deque()
        exhausted = False
        while not exhausted or window:
            room = not exhausted and len(window) < _LOOK_AHEAD * self._workers
            if room:
                item = next(source, None)
                exhausted = item is None
                if item is not None:
                    window.append(self._admit(*item))
                    if window[-1].grade is None:
                        waiting.append(window[-1])
            self._dispatch(waiting)
            while window and window[0].grade is not None:
                done = window.popleft()
                yield done.key, done.grade
            if window:
                self._attend(waiting, block=not room)

    def grade(self, response: str, gold: str, *, truncated: bool = False) -> Grade:
        """Grades one response."""
        [(_, grade)] = self.grade_many([(0, response, gold, truncated)])
        return grade

    def _admit(self, key: Hashable, response: str, gold: str, truncated: bool) -> _Entry:
        cheap = grade_cheaply(response, gold, truncated=truncated)
        if isinstance(cheap, Grade):
            self.facts.cheap += 1
            return _Entry(key, "", gold, cheap)
        self.facts.full += 1
        return _Entry(key, cheap, gold)

    def _dispatch(self, waiting: deque[_Entry]) -> None:
        for slot in self._slots:
            source = self._again or waiting
            if source and slot.entry is None and slot.pid is not None and not slot.killed:
                self._give(slot, source.popleft())

    def _give(self, slot: _Slot, entry: _Entry) -> None:
        slot.entry, entry.sent = entry, time.monotonic() if entry.sent is None else entry.sent
        slot.deadline = entry.sent + self._time_limit + _GRACE
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then the end of the channel is read
            slot.channel.sendall(json.dumps({"answer": entry.extracted, "gold": entry.gold}).encode() + b"\n")

    def _attend(self, waiting: deque[_Entry], *, block: bool) -> None:
        """Takes in messages, waiting for one if `block`; a grader past its deadline is killed."""
        deadlines = [slot.deadline for slot in self._slots if slot.entry is not None]
        patience = max(0.0, min(deadlines, default=time.monotonic() + 1.0) - time.monotonic())
        if not self._read_messages(patience if block else 0.0):
            self._restart(waiting)
            return
        now = time.monotonic()
        for slot in self._slots:
            if slot.entry is not None and now > slot.deadline:
                self._give_up(slot)

    def _read_messages(self, seconds: float) -> bool:
        """Takes in what graders say within some seconds; False when a channel was closed."""
        for chosen, _ in self._selector.select(seconds):
            slot = chosen.data
            try:
                chunk = slot.channel.recv(65536)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return False
            slot.received += chunk
            while b"\n" in slot.received:
                line, slot.received = slot.received.split(b"\n", 1)
                self._receive(slot, line)
        return True

    def _receive(self, slot: _Slot, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return  # blank, or cut off by the death that the next line tells
        if "ready" in message:
            slot.pid, slot.killed = message["ready"], False
            return
        entry, slot.entry = slot.entry, None
        if "died" in message:
            self.facts.deaths += 1
        if entry is None:
            return
        if "died" in message and _by_accident(message["died"]) and entry.attempts == 0:
            entry.attempts = 1
            self._again.append(entry)
            return
        self.facts.slowest = max(self.facts.slowest, time.monotonic() - entry.sent)
        if "died" in message:
            entry.grade = self._after_death(entry, message["died"])
        else:
            entry.grade = Grade(Outcome(message["outcome"]), entry.extracted, message["reason"])

    def _after_death(self, entry: _Entry, signal_number: int) -> Grade:
        if _by_accident(signal_number):
            name = signal.Signals(signal_number).name
            return Grade(
                Outcome.FAILED, entry.extracted, f"the grader was killed twice, by {name} (memory limit, or a crash)"
            )
        if signal_number > 0:
            return self._timed_out(entry)
        return Grade(Outcome.FAILED, entry.extracted, f"the grader broke down (exit status {-signal_number})")

    def _give_up(self, slot: _Slot) -> None:
        """Time is up: the verdict does not wait for the grader's death, which the nursery tells and makes good."""
        entry, slot.entry, slot.killed = slot.entry, None, True
        entry.grade = self._timed_out(entry)
        self.facts.slowest = max(self.facts.slowest, time.monotonic() - entry.sent)
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.pid, signal.SIGKILL)

    def _timed_out(self, entry: _Entry) -> Grade:
        return Grade(Outcome.TIMEOUT, entry.extracted, f"time limit {self._time_limit:g} s")

    def _open(self) -> None:
        """Starts the graders; again, where somebody kills them meanwhile."""
        for _ in range(_MOST_STARTS):
            self._start()
            if self._await_graders():
                return
        raise SsbError(f"the graders were killed {_MOST_STARTS} times while they started; is there enough memory?")

    def _start(self) -> None:
        pairs = [socket.socketpair() for _ in range(self._workers)]
        settings = {
            "descriptors": [theirs.fileno() for _, theirs in pairs],
            "time_limit": self._time_limit,
            "memory_limit": self._memory_limit,
        }
        root = str(Path(__file__).resolve().parents[2])
        environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LC_ALL": "C.UTF-8"}
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([root, *filter(None, sys.path)]))
        self._nursery = subprocess.Popen(
            [sys.executable, "-P", "-c", _NURSERY, json.dumps(settings)],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=settings["descriptors"],
            start_new_session=True,  # an interrupt from the keyboard is for the run, which then closes the pool
        )
        self._slots = [_Slot(ours) for ours, _ in pairs]
        for slot, (ours, theirs) in zip(self._slots, pairs, strict=True):
            theirs.close()
            self._selector.register(ours, selectors.EVENT_READ, slot)
        self.facts.nursery_starts += 1

    def _await_graders(self) -> bool:
        """Waits until graders are ready, so that the first verdict comes back as fast as the others.

        Returns whether they are; not when their nursery was killed.
        """
        deadline = time.monotonic() + _START_LIMIT
        while any(slot.pid is None for slot in self._slots):
            if self._nursery.poll() is not None or time.monotonic() > deadline:
                self._stop()
                if self._nursery.returncode == -signal.SIGKILL and time.monotonic() < deadline:
                    return False
                cause = "memory_limit is too small" if self._nursery.returncode == SETUP_FAILED else "see above"
                raise RuntimeError(f"the graders do not start (exit status {self._nursery.returncode}): {cause}")
            self._read_messages(0.1)
        return True

    def _stop(self) -> None:
        for slot in self._slots:
            self._selector.unregister(slot.channel)
            slot.channel.close()
        self._slots = []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._nursery.pid, signal.SIGKILL)
        self._nursery.wait()

    def _restart(self, waiting: deque[_Entry]) -> None:
        """The nursery is gone: starts another, and gives what was under way to it, once."""
        under_way = [slot.entry for slot in self._slots if slot.entry is not None]
        self._stop()
        for entry in reversed(under_way):
            entry.attempts += 1
            sent, entry.sent = entry.sent, None
            if time.monotonic() - sent >= self._time_limit:
                entry.grade = self._timed_out(entry)
            elif entry.attempts > 1:
                entry.grade = Grade(Outcome.FAILED, entry.extracted, "the grading process died twice on this answer")
            else:
                waiting.appendleft(entry)
        self._open()


def _by_accident(signal_number: int) -> bool:
    """Whether a grader died by a signal that is not its time limit's: an answer gets a second grader then."""
    return signal_number > 0 and signal_number not in (signal.SIGALRM, signal.SIGXCPU)
