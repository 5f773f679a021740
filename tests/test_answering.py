"""What is done behind the devices' work: order, errors, and nothing lost."""

import signal
import threading
import weakref

import pytest

from ssb_jax import hosts
from ssb_jax.answering import behind


def test_calls_run_in_order_on_another_thread_and_all_are_done_at_the_end():
    seen = []
    with behind(most=3) as later:
        for i in range(50):
            later(lambda i=i: seen.append((i, threading.current_thread() is threading.main_thread())))
    assert seen == [(i, False) for i in range(50)]


def test_no_call_runs_after_one_that_failed():
    """A row after a half-written one would make the file unreadable."""
    seen = []

    def call(i):
        if i == 3:
            raise OSError("the disk is full")
        seen.append(i)

    with pytest.raises(OSError, match="the disk is full"):
        give(call, most=2)
    assert seen == [0, 1, 2]


def test_an_error_elsewhere_keeps_what_was_given():
    seen = []

    def broken():
        yield from range(5)
        raise ValueError("the engine failed")

    with pytest.raises(ValueError, match="the engine failed"):
        give(seen.append, broken())
    assert seen == list(range(5))


def test_a_failed_call_is_told_although_the_caller_was_stopped():
    """Exit status 75 would say that all is well."""

    def call(_):
        raise OSError("the disk is full")

    def stopped():
        yield 0
        raise SystemExit(hosts.STOPPED)

    with pytest.raises(OSError, match="the disk is full"):
        give(call, stopped())


def give(call, items=range(50), **settings):
    with behind(**settings) as later:
        for item in items:
            later(lambda item=item: call(item))


def test_a_stop_that_came_while_garbage_was_collected_is_not_lost(capsys):
    """What a signal's handler raises inside a weak reference's callback, Python drops."""

    class Garbage:
        pass

    def collected(_):
        signal.raise_signal(signal.SIGTERM)

    with hosts.stopping_on_sigterm():
        garbage = Garbage()
        watched = weakref.ref(garbage, collected)
        del garbage
        assert watched() is None
        with pytest.raises(SystemExit) as stopped:
            hosts.stop_if_asked()
    assert stopped.value.code == hosts.STOPPED
    assert "Traceback" not in capsys.readouterr().err
    with hosts.stopping_on_sigterm():
        hosts.stop_if_asked()  # of the next command nobody asked it
