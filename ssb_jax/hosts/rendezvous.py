"""How the processes of a run meet, before JAX knows of them: who is missing, and who is not like the others.

Process 0 listens at the address where JAX's coordination service will listen a moment later; the others connect and
say who they are. JAX itself would end the process without a name when one never joins.
"""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ssb_jax.artifacts import differences
from ssb_jax.config import SsbError
from ssb_jax.console import note
from ssb_jax.records import parse_json

MOST_SKEW = 60.0  # seconds between two hosts' clocks, above which it is said


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run.

    Attributes:
      address: host:port of process 0.
      devices: numbers of the devices that are its own; None: all that it sees.
    """

    address: str
    count: int
    index: int
    devices: tuple[int, ...] | None = None


class NotAllThere(SsbError):
    """A process did not come in time. It may be a machine that is still being started: the same command may go on."""

    exit_status = 75  # EX_TEMPFAIL, on which launchers start again


@dataclass(frozen=True)
class _Card:
    """What a process says of itself; `identity` must be the same everywhere."""

    index: int
    count: int
    host: str
    clock: float
    identity: dict[str, Any]

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


def meet(place: Place, identity: Mapping[str, Any], *, timeout: float) -> None:
    """Returns when all processes are there and all have the same identity.

    Raises:
      SsbError: on all that are there, naming who did not come within `timeout` seconds, or who differs and in what.
    """
    card = _Card(place.index, place.count, socket.gethostname(), time.time(), json.loads(json.dumps(identity)))
    deadline = time.monotonic() + timeout
    if place.index == 0:
        _receive(place, card, deadline, timeout)
    else:
        _introduce(place, card, deadline, timeout)


def _receive(place: Place, own: _Card, deadline: float, timeout: float) -> None:
    connections: dict[int, socket.socket] = {}
    cards = {0: own}
    try:
        with socket.create_server(("", _port(place)), backlog=place.count) as server:
            while len(cards) < place.count and _agree(cards) and time.monotonic() < deadline:
                _accept(server, deadline, connections, cards)
        problem = _problem(place, cards, timeout)
        late = problem is not None and _agree(cards) and len(cards) < place.count
        for connection in connections.values():
            connection.sendall(json.dumps({"problem": problem, "late": late}).encode() + b"\n")
    except OSError as error:
        raise SsbError(
            f"process 0 cannot listen at {place.address}: {error.strerror}; is another run using the port?"
        ) from None
    finally:
        for connection in connections.values():
            connection.close()
    if problem is not None:
        raise (NotAllThere if late else SsbError)(problem)
    for card in cards.values():
        if abs(card.clock - own.clock) > timeout + MOST_SKEW:
            note(f"the clock of {card} differs from that of {own} by about {card.clock - own.clock:+.0f} s")


def _agree(cards: Mapping[int, _Card]) -> bool:
    return len({card.count for card in cards.values()}) == 1


def _accept(
    server: socket.socket, deadline: float, connections: dict[int, socket.socket], cards: dict[int, _Card]
) -> None:
    """Takes one more process in; what does not speak as one is let go."""
    server.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return
    connection.settimeout(10)
    try:
        card = _Card(**parse_json(_line(connection)))
    except (OSError, ValueError, TypeError):
        connection.close()
        return
    if card.index in cards:
        problem = f"{card} and {cards[card.index]} have the same number; give each process its own"
        connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
        connection.close()
        raise SsbError(problem)
    connections[card.index], cards[card.index] = connection, card


def _problem(place: Place, cards: Mapping[int, _Card], timeout: float) -> str | None:
    for card in cards.values():
        if card.count != place.count:
            return f"{card} was told of {card.count} processes, {cards[0]} of {place.count}; tell all the same number"
    missing = [i for i in range(place.count) if i not in cards]
    if missing:
        there = ", ".join(str(card) for _, card in sorted(cards.items()))
        return (
            f"{_processes(missing)} of {place.count} did not join within {timeout:g} s at {place.address} "
            f"(there: {there}); look at the log of those that are missing, or start with fewer processes"
        )
    for _, card in sorted(cards.items()):
        different = list(differences(cards[0].identity, card.identity))
        if different:
            return (
                f"{card} does not run the same as {cards[0]}: {'; '.join(different[:5])} "
                f"(was: process 0, now: process {card.index}); give all the same version and settings"
            )
    return None


def _introduce(place: Place, card: _Card, deadline: float, timeout: float) -> None:
    host, reason = place.address.rsplit(":", 1)[0], "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, _port(place)), timeout=5) as connection:
                connection.sendall(json.dumps(asdict(card)).encode() + b"\n")
                connection.settimeout(timeout + 10)
                answer = parse_json(_line(connection))
                problem = answer["problem"]
        except (OSError, ValueError, TypeError, KeyError) as error:  # not up yet, or still ending an earlier run
            reason = str(error)
            time.sleep(0.2)
            continue
        if problem is not None:
            raise (NotAllThere if answer.get("late") else SsbError)(problem)
        return
    raise NotAllThere(
        f"process 0 of {place.count} did not answer {card} within {timeout:g} s at {place.address} ({reason}); "
        f"look at its log, and check that the address can be reached"
    )


def _line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        return file.readline(16 << 20)


def _port(place: Place) -> int:
    return int(place.address.rsplit(":", 1)[1])


def _processes(numbers: list[int]) -> str:
    return ("process " if len(numbers) == 1 else "processes ") + ", ".join(map(str, numbers))
