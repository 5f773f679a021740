"""SIGTERM, with which clouds announce that a machine goes away: stop with an exit status that says "start me again".

Where rows are appended, stopping at once loses nothing. Between training steps all processes must stop at the same
step, so there the signal is only noted, and the steps' loop asks.
"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssb_jax.console import note
from ssb_jax.hosts import group

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on where this one stopped


class _Notice:
    """Whether SIGTERM came, and whether it is to wait for a step's end."""

    came = False
    wait = False


def _stop() -> None:
    note("SIGTERM: stopped; the same command goes on from here")
    raise SystemExit(STOPPED)


def stop_if_asked() -> None:
    """Stops where SIGTERM came and its stop was lost: the interpreter drops what a signal's handler raises while it
    collects garbage."""
    if _Notice.came:
        _stop()


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM ends the process with exit status `STOPPED`, at once or at the end of a step."""

    def handle(number, frame):
        _Notice.came = True
        if not _Notice.wait:
            _stop()

    def report(lost):
        if not isinstance(lost.exc_value, SystemExit):  # of that one `stop_if_asked` knows
            reporting(lost)

    _Notice.came = False
    before, reporting = signal.signal(signal.SIGTERM, handle), sys.unraisablehook
    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = reporting
        signal.signal(signal.SIGTERM, before)
        _Notice.came = False  # it was this command's, and not that of the next in the same process


@contextlib.contextmanager
def stopping_between_steps() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM is noted; yields a function for the end of each step: whether to stop after it.

    All processes must ask equally often. All get the same answer: it goes around with the devices' other work and is
    read one step later, so that nobody waits for it.
    """
    _Notice.wait = True
    try:
        yield _ask_alone if group.count() == 1 else _asking_all()
    finally:
        _Notice.wait = False
    if _Notice.came:
        _stop()


def _ask_alone() -> bool:
    return _Notice.came


def _asking_all() -> Callable[[], bool]:
    devices = {device.process_index: device for device in reversed(jax.devices())}
    mesh = Mesh(np.array([devices[i] for i in sorted(devices)]), ("hosts",))
    by_host = NamedSharding(mesh, PartitionSpec("hosts"))
    any_of = jax.jit(lambda came: came.any(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    earlier: list[jax.Array] = []

    def ask() -> bool:
        came = np.full(1, _Notice.came)
        flags = jax.make_array_from_process_local_data(by_host, came, (len(devices),))
        with jax.set_mesh(mesh):
            earlier.append(any_of(flags))
        return len(earlier) > 1 and bool(earlier.pop(0))

    return ask
