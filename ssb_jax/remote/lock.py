"""One run at a time in a store's folder: an object that says who is there, and shows a sign of life.

A run that was killed leaves its lock behind. Who comes later waits for a sign of life, and takes the lock if there is
none; no clocks are compared. One that was only asleep finds another's name in its lock, and stops.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated
from uuid import uuid4

import pydantic
from pydantic import Field

from ssb_jax.config import SsbError
from ssb_jax.console import note
from ssb_jax.remote.store import Store

LOCK = ".owner"
PATIENCE = 4  # signs of life that may be missed


@dataclass(frozen=True)
class Card:
    """What the object says: whose the lock is, and a number that grows with every sign of life.

    Attributes:
      folder: identifies the owner's working folder. That has a lock of its own (`artifacts.owning`), so who holds it
        knows that what the same folder left in the store is of a process that has ended.
      seconds: between two signs of life.
    """

    who: str
    token: str
    folder: str
    seconds: Annotated[float, Field(gt=0, le=600)]
    beats: int = 0


_CARD = pydantic.TypeAdapter(Card)


class Guard:
    """Watches that a lock is still that of this process's run, by its token."""

    def __init__(self, store: Store, token: str):
        self.lost = False
        self._store, self._token = store, token

    def watch(self) -> None:
        """Where the lock is another's by now, stops this process as SIGTERM does."""
        if not self.lost and not self._is_mine():
            self.lost = True
            os.kill(os.getpid(), signal.SIGTERM)

    def beat(self) -> None:
        """What is to be done every now and then."""
        self.watch()

    def refuse_if_lost(self) -> None:
        """Says who has the run now.

        Raises:
          SsbError: not this one.
        """
        if self.lost:
            raise SsbError(f"{self._store.url} was taken over by another process, which found no sign of life here")

    def _is_mine(self) -> bool:
        owner = self._owner()
        return owner is not None and owner.token == self._token

    def _owner(self) -> Card | None:
        text = self._store.read(LOCK)
        try:
            return None if text is None else _CARD.validate_json(text)
        except pydantic.ValidationError:
            raise SsbError(f"{self._store.url}/{LOCK} is not a lock of ssb; delete it") from None


class Lock(Guard):
    """The lock of one process; for the arguments see `Card`."""

    def __init__(self, store: Store, *, folder: str, seconds: float):
        self.card = Card(f"process {os.getpid()} on {socket.gethostname()}", uuid4().hex, folder, seconds)
        super().__init__(store, self.card.token)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock and shows signs of life; takes one that was left behind after some time without them.

        Raises:
          SsbError: another process holds it, with its name.
        """
        while not self._store.create(LOCK, _CARD.dump_json(self.card)):
            owner = self._owner()
            if owner is not None and owner.folder != self.card.folder:
                self._watch(owner)
            if owner is not None and self._owner() == owner:
                self._store.delete(LOCK)
        try:
            with repeating(self.beat, self.card.seconds):
                yield
        finally:
            with contextlib.suppress(SsbError):  # out of reach: it shows no sign of life any more, and is taken
                if self._is_mine():
                    self._store.delete(LOCK)

    def beat(self) -> None:
        """A sign of life, if the lock is still this process's."""
        self.watch()
        if not self.lost:
            self.card = replace(self.card, beats=self.card.beats + 1)
            self._store.write(LOCK, _CARD.dump_json(self.card))

    def _watch(self, owner: Card) -> None:
        """Returns when the owner let go of the lock, or showed no sign of life for long enough."""
        url, limit = self._store.url, PATIENCE * owner.seconds
        note(f"{url} is in use by {owner.who}, or was when that was killed: waiting {limit:g} s for a sign of life")
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            time.sleep(owner.seconds / 4)
            now = self._owner()
            if now is None:
                return
            if now != owner:
                raise SsbError(f"{url} is in use by {now.who}; wait for it to end, or use another --out")


@contextlib.contextmanager
def repeating(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Calls `act` every so many seconds in the background; what fails is said, and tried again."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            try:
                act()
            except (SsbError, OSError) as error:
                note(f"{error}; tried again in {seconds:g} s")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
