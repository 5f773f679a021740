"""A folder in an object store, by fsspec: the few things that are asked of it, and its errors in one line."""

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs

from ssb_jax.config import SsbError

LAST = ".last-folder"  # object there, file here: which working folder was the last to work there


@dataclass(frozen=True)
class Store:
    """The objects below a URL; names are relative to it."""

    url: str
    files: fsspec.AbstractFileSystem
    root: str

    def describe(self) -> dict[str, str]:
        """Name -> what the store says of the object, which changes when the object does; a URL of one file has ''."""
        with explained(self.url, "listed"):
            self.files.invalidate_cache()
            found = self.files.find(self.root, detail=True)
        below = {path[len(self.root) :]: str(facts) for path, facts in found.items() if path.startswith(self.root)}
        # Not a neighbour such as run-2, nor the empty objects that stand for folders.
        return {name[1:]: facts for name, facts in below.items() if name[:1] in ("", "/") and name[-1:] != "/"}

    def read(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        with explained(f"{self.url}/{name}", "read"), contextlib.suppress(FileNotFoundError):
            return self.files.cat_file(self._path(name))

    def write(self, name: str, data: bytes) -> None:
        with explained(f"{self.url}/{name}", "written"):
            self.files.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Writes an object that is not there; whether it was not. Atomic where the store knows preconditions."""
        if self.read(name) is not None:
            return False
        with explained(f"{self.url}/{name}", "written"):
            try:
                self.files.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
        return True

    def delete(self, name: str) -> None:
        """Deletes an object; one that is gone already is no error."""
        with explained(f"{self.url}/{name}", "deleted"), contextlib.suppress(FileNotFoundError):
            self.files.rm_file(self._path(name))

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Downloads objects to files of the same names, several at once."""
        names = list(names)
        for name in names:
            if ".." in name.split("/"):
                raise SsbError(f"{self.url}/{name} would leave the folder; delete it there")
        with explained(self.url, "read"):
            self.files.invalidate_cache()  # of what other processes have written it knows nothing
            self.files.get([self._path(name) for name in names], [str(folder / name) for name in names])

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


def try_out(url: str) -> bool:
    """Writes, lists and deletes an object below a URL; whether a run is there.

    Raises:
      SsbError: one of these is refused.
    """
    store, name = open_store(url), f".probe-{uuid4().hex}"
    store.write(name, b"")
    found = store.describe()
    store.delete(name)
    refuse_strangers(url, found.keys())
    return "config.yaml" in found


def refuse_strangers(url: str, names: Collection[str]) -> None:
    """A run's place holds a run, or nothing: all that lies there would be fetched, and made what the run is.

    Raises:
      SsbError: it holds something else.
    """
    others = sorted(name for name in names if not name.startswith("."))
    if others and LAST not in names and "config.yaml" not in names:
        raise SsbError(
            f"{url} holds {len(others)} objects that are no run's, such as {others[0]}; give a place of the run's own, "
            f"such as {url.rstrip('/')}/run"
        )


def open_store(url: str) -> Store:
    """The store behind a URL; asks nothing of it yet.

    Raises:
      SsbError: nothing installed speaks this kind of URL.
    """
    # gcsfs tells of each failed try, with its stack, what it then raises and `explained` says in one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    protocol = url.partition("://")[0]
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        raise SsbError(f"{url}: {error} (for gs:// pip install 'ssb-jax[gcs]')") from None
    except ValueError:
        raise SsbError(f"{url}: expected a URL such as gs://bucket/run; fsspec knows no {protocol}://") from None
    if not root.strip("/"):
        raise SsbError(f"{url}: expected a bucket and a name in it, such as {protocol}://bucket/run")
    return Store(url.rstrip("/"), files, root.rstrip("/"))


@contextlib.contextmanager
def explained(url: str, what: str) -> Iterator[None]:
    """Turns an error of the store, after the library's own retries, into one line.

    Raises:
      SsbError: saying what cannot be done.
    """
    try:
        yield
    except Exception as error:  # each backend raises types of its own: of aiohttp, botocore, google.auth, OSError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SsbError(
            f"{url} cannot be {what} ({reason}); check that the bucket exists, and that your credentials may list, "
            "read, write and delete there"
        ) from None
