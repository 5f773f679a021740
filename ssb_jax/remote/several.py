"""A run in a store by several processes, each in a working folder of its own.

    start   process 0 takes the lock; every folder becomes what the store holds
    run     each uploads what it writes, as one process does (mirror.py), if the lock is still the run's; where they
            wait for each other (`hosts.gather`) each gives what it wrote and takes what the others did
    end     each uploads once more; when all have, process 0 lets go of the lock

What a killed process had not uploaded is made again. Checkpoints are uploaded, and not exchanged: only the next start
reads them.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ssb_jax.artifacts import owning
from ssb_jax.config import SsbError
from ssb_jax.remote.lock import Guard, Lock
from ssb_jax.remote.mirror import LAST, SEVERAL, Mirror, locked, pushing, working_folder
from ssb_jax.remote.store import open_store

_KEPT = "What this process wrote since its last upload is made again by the same command"


@dataclass(frozen=True)
class Part:
    """What a process has of the run: see `hosts.folder` for who calls what when."""

    mirror: Mirror
    lock: Guard

    @property
    def folder(self) -> Path:
        return self.mirror.folder

    def give(self, *, all_of_it: bool) -> dict[str, bool]:
        """Uploads what changed, with `all_of_it` checkpoints too; returns what was uploaded (True) or deleted (False)
        since the last call, without them.

        Raises:
          SsbError: the store refuses, or another run has it by now.
        """
        if not self.mirror.is_pushed(checkpoints=all_of_it):
            self.lock.watch()
            self.lock.refuse_if_lost()
            while not self.mirror.push(checkpoints=all_of_it):
                pass
        return self.mirror.news()

    def take(self, news: Mapping[str, bool]) -> None:
        """Makes the folder have what others gave."""
        if news:
            self.mirror.take(news)


@contextlib.contextmanager
def leading(url: str) -> Iterator[tuple[Mirror, Lock]]:
    """For process 0: holds the lock, and has the store ready for the others.

    Raises:
      SsbError: another run has it, or the store refuses.
    """
    with locked(url) as (mirror, lock):
        mirror.start()
        mirror.push()
        mirror.news()
        mirror.store.write(LAST, SEVERAL)
        yield mirror, lock


@contextlib.contextmanager
def following(url: str, process: int, token: str) -> Iterator[tuple[Mirror, Guard]]:
    """For any other process, once process 0 leads: a folder with what the store holds; `token` is of the lock."""
    store, folder = open_store(url), working_folder(url, process)
    with owning(folder):
        mirror = Mirror(store, folder)
        mirror.fetch()
        yield mirror, Guard(store, token)


@contextlib.contextmanager
def working(mirror: Mirror, lock: Guard) -> Iterator[Part]:
    """What is written within gets to the store, at the latest at the end.

    Raises:
      SsbError: raised within, naming the place in the store, from which the next start makes the folder anew.
    """
    with pushing(mirror, lock, kept=_KEPT):
        try:
            yield Part(mirror, lock)
        except SsbError as error:
            error.args = (str(error).replace(str(mirror.folder), mirror.store.url),)
            raise
