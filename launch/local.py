"""N processes on this machine, each with devices of its own: for trying out what runs on many hosts.

One of them gone, the others are ended and all are started again, as on a pod; so long as they end with a status that
asks for it. Nothing outlives this process.
"""

import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

STOPPED = 75  # of `ssb`: stopped, start me again
_PR_SET_PDEATHSIG = 1


def plan(
    arguments: Sequence[str], *, processes: int, devices: int, port: int
) -> list[tuple[dict[str, str], list[str]]]:
    """Environment and command of each process."""
    command = [sys.executable, "-m", "ssb_jax", *arguments]
    return [
        (
            {
                "SSB_COORDINATOR": f"localhost:{port}",
                "SSB_PROCESSES": str(processes),
                "SSB_PROCESS": str(process),
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(devices),
            },
            command,
        )
        for process in range(processes)
    ]


def show(planned: Sequence[tuple[Mapping[str, str], Sequence[str]]]) -> str:
    """The plan as shell commands."""
    lines = [
        " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(command), "&"])
        for environment, command in planned
    ]
    return "\n".join([*lines, "wait", ""])


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def run(arguments: Sequence[str], *, processes: int, devices: int, port: int | None, restarts: int) -> int:
    """Runs until all processes succeed or one fails for good; returns the exit status.

    A process that was killed, or ended with `STOPPED`, is a host that was lost: all start again, `restarts` times at
    most. SIGTERM is passed on, and ends in `STOPPED`.
    """
    asked: list[int] = []
    with _handling(lambda number: asked.append(number)):
        for attempt in range(restarts + 1):
            status = _attempt(plan(arguments, processes=processes, devices=devices, port=port or free_port()), asked)
            if asked:
                return STOPPED
            if status == 0 or not _lost(status):
                return status
            _say(f"{_describe(status)}; " + ("starting again" if attempt < restarts else "no restarts are left"))
    return STOPPED


def _attempt(planned: Sequence[tuple[Mapping[str, str], Sequence[str]]], asked: list[int]) -> int:
    """The status of the first process that fails, after the others were ended; 0 when all succeed."""
    children: list[subprocess.Popen] = []
    try:
        for environment, command in planned:
            children.append(subprocess.Popen(command, env=os.environ | environment, preexec_fn=_die_with_parent))
        while True:
            statuses = [child.poll() for child in children]
            failed = [status for status in statuses if status]
            if failed:
                # An error says more than the deaths that follow from it.
                return next((status for status in failed if not _lost(status)), failed[0])
            if all(status == 0 for status in statuses):
                return 0
            if asked:
                return _pass_on(children)
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def _pass_on(children: Sequence[subprocess.Popen]) -> int:
    """Lets the processes save what they have; those that take longer than a spot machine's notice are killed."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + 30
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    return STOPPED


@contextlib.contextmanager
def _handling(handle) -> Iterator[None]:
    before = {number: signal.signal(number, lambda n, _: handle(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """In the child: Linux kills it when this process is gone, however that came."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _lost(status: int) -> bool:
    return status == STOPPED or status < 0


def _describe(status: int) -> str:
    return "a process was stopped" if status == STOPPED else f"a process died of {signal.Signals(-status).name}"


def _say(text: str) -> None:
    print(f"launch: {text}", file=sys.stderr, flush=True)
