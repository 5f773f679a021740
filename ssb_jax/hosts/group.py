"""The processes of a run: joining, values that all know, and steps that process 0 takes for all.

What is agreed goes through the key-value store of JAX's coordination service, not through the devices: waiting costs
nothing, may last for hours, and a process that fails tells the others why.
"""

import atexit
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
from jax._src import clusters, distributed  # the service's client and cluster detection have no public name yet

from ssb_jax.artifacts import write_atomically
from ssb_jax.config import SsbError
from ssb_jax.hosts.rendezvous import Place, meet

T = TypeVar("T")

COORDINATOR, PROCESSES, PROCESS = "SSB_COORDINATOR", "SSB_PROCESSES", "SSB_PROCESS"
JOIN_TIMEOUT = "SSB_JOIN_TIMEOUT"
_ENDED, _LEFT = "ssb/ended", "ssb/left/"
_SLICE = 1000  # milliseconds between two looks at whether another process failed
_calls = itertools.count()


class Exchange(Protocol):
    """How processes that see no common folder show each other what they wrote (hosts/folder.py)."""

    def give(self, *, all_of_it: bool) -> dict[str, Any]:
        """Makes what this process wrote available; returns what the others are to `take`.

        Args:
          all_of_it: also what only the next start of the run looks for.
        """

    def take(self, news: Mapping[str, Any]) -> None:
        """Takes what the others gave."""


_exchanges: list[Exchange] = []  # one at most


def index() -> int:
    """The number of this process."""
    return distributed.global_state.process_id


def count() -> int:
    """How many processes there are."""
    return distributed.global_state.num_processes


def is_first() -> bool:
    return index() == 0


def share(items: Sequence[T]) -> list[T]:
    """This process's part of the work: every count-th item."""
    return list(items[index() :: count()])


@contextlib.contextmanager
def joined(identity: Mapping[str, Any]) -> Iterator[None]:
    """Takes part in the run that the environment tells of; without SSB_COORDINATOR, alone.

    SSB_COORDINATOR is `auto` (TPU VMs, GKE, Slurm and what else JAX detects) or HOST:PORT of process 0, with
    SSB_PROCESSES and SSB_PROCESS. SSB_JOIN_TIMEOUT is in seconds, 300 by default.

    Args:
      identity: what must be the same in all processes (settings, versions).

    Raises:
      SsbError: a process is missing or differs; the environment is not complete.
    """
    place = _place()
    if place is None or place.count == 1:
        yield
        return
    meet(place, identity, timeout=_join_timeout())
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from stopping.py
    jax.distributed.initialize(
        place.address,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
    )
    try:
        yield
        gather("done")
    except BaseException as error:
        _leave(error)
        raise


def gather(value: Any, *, settled: bool = False) -> list[Any]:
    """The JSON-able values that all processes gave, by process; returns when all have come here.

    Each then sees in its run folder what any of them wrote before; for `settled` see `settle`.

    Raises:
      SsbError: another process failed meanwhile, with its reason.
      SystemExit: another process was asked to stop.
    """
    if count() == 1:
        return [value]
    call, client = next(_calls), distributed.global_state.client
    news = {name: facts for exchange in _exchanges for name, facts in exchange.give(all_of_it=settled).items()}
    client.key_value_set(f"ssb/{call}/{index()}", json.dumps([value, news]))
    values = [json.loads(_wait_for(f"ssb/{call}/{process}")) for process in range(count())]
    if call > 0:  # all have come here, so nobody will read the values of the call before
        client.key_value_delete(f"ssb/{call - 1}/{index()}")
    for exchange in _exchanges:
        exchange.take({k: v for i, (_, theirs) in enumerate(values) if i != index() for k, v in theirs.items()})
    return [value for value, _ in values]


@contextlib.contextmanager
def exchanging(exchange: Exchange) -> Iterator[None]:
    """Within, every `gather` exchanges what was written."""
    _exchanges.append(exchange)
    try:
        yield
    finally:
        _exchanges.remove(exchange)


def on_first(make: Callable[[], T]) -> T:
    """What `make` returns on process 0, where alone it is called, once all have come here. JSON-able."""
    if count() == 1:
        return make()
    gather(None)
    return gather(make() if is_first() else None)[0]


def settle() -> None:
    """Returns when all have come here, and what they wrote is where a new start finds it, checkpoints too."""
    gather(None, settled=True)


def refuse_many(what: str) -> None:
    """For what is written by one process and does not know of others.

    Raises:
      SsbError: there are others.
    """
    if count() > 1:
        raise SsbError(f"{what} runs as one process, not {count()}; unset {COORDINATOR}")


def refuse_unseen(folder: Path) -> None:
    """Checks that all processes see the same folder.

    Raises:
      SsbError: naming those that do not.
    """
    if count() == 1:
        return
    path = folder / ".group"
    token = on_first(lambda: f"{time.time_ns()}")
    on_first(lambda: write_atomically(path, token))
    sees = _eventually(lambda: path.exists() and path.read_text() == token, seconds=30)
    blind = [process for process, seen in enumerate(gather(sees)) if not seen]
    on_first(lambda: path.unlink())
    if blind:
        raise SsbError(
            f"{folder} is not the same folder for all processes: {', '.join(map(str, blind))} of {count()} do not see "
            f"what process 0 writes; --out must be on a disk that all hosts share (NFS, Filestore, a mounted bucket)"
        )


def _eventually(holds: Callable[[], bool], *, seconds: float) -> bool:
    """Whether it holds within a time: shared disks show a new file a little later."""
    deadline = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _place() -> Place | None:
    address = os.environ.get(COORDINATOR)
    if not address:
        return None
    if address == "auto":
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)
        address, processes, process, devices = found
        if address is None:
            raise SsbError(
                f"{COORDINATOR} is auto, but JAX finds no cluster (TPU VM, GKE, Slurm) here; unset it to run as one "
                f"process, or set it to HOST:PORT of process 0, with {PROCESSES} and {PROCESS}"
            )
        return Place(address, processes, process, None if devices is None else tuple(devices))
    try:
        place = Place(address, int(os.environ[PROCESSES]), int(os.environ[PROCESS]))
        sound = 0 <= place.index < place.count and 0 < int(address.rsplit(":", 1)[1]) < 65536
    except (KeyError, ValueError, IndexError):
        sound = False
    if not sound:
        given = ", ".join(f"{name}={os.environ.get(name)}" for name in (COORDINATOR, PROCESSES, PROCESS))
        raise SsbError(
            f"expected {COORDINATOR}=HOST:PORT, {PROCESSES}=N and {PROCESS}=0 ... N - 1 in the environment, got {given}"
        )
    return place


def _join_timeout() -> float:
    text = os.environ.get(JOIN_TIMEOUT, "300")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise SsbError(f"{JOIN_TIMEOUT}: expected seconds, 0.1 to 86400, got {text}")
    return seconds


def _wait_for(key: str) -> str:
    client = distributed.global_state.client
    while True:
        try:
            return client.blocking_key_value_get(key, _SLICE)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        left = client.key_value_dir_get(_ENDED)
        if left:
            status, reason = json.loads(left[0][1])
            raise SsbError(reason) if reason else SystemExit(status)


def _leave(error: BaseException) -> None:
    """Tells the others why this process ends, and ends it without waiting for them at exit."""
    client = distributed.global_state.client
    stopped = isinstance(error, SystemExit)
    status, reason = (error.code, "") if stopped else (1, f"process {index()} failed: {error}")
    if not client.key_value_dir_get(_ENDED):
        client.key_value_set(f"{_ENDED}/{index()}", json.dumps([status, reason]))
    client.key_value_set(f"{_LEFT}{index()}", "")
    if is_first():  # the service ends with process 0: the others have time to read why, and to upload what they wrote
        deadline = time.monotonic() + (50 if stopped else 10)
        while len(client.key_value_dir_get(_LEFT)) < count() and time.monotonic() < deadline:
            time.sleep(0.1)
    # Registered last, so run first: JAX's own handler would wait for processes that may be in the middle of a step.
    atexit.register(_exit, status)


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
