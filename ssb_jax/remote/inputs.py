"""Inputs that lie in an object store: a file of questions, the folder of a model."""

import os
import shutil
from pathlib import Path
from uuid import uuid4

from ssb_jax.artifacts import digest
from ssb_jax.config import SsbError
from ssb_jax.console import note
from ssb_jax.remote.store import open_store

INPUTS = "SSB_INPUTS"


def fetched(url: str) -> Path:
    """The file or folder behind a URL, in this machine's cache; fetched anew when it has changed there.

    Raises:
      SsbError: it cannot be read, or nothing is there.
    """
    store = open_store(url)
    listing = store.describe()
    if not listing:
        raise SsbError(f"{url}: nothing is there; expected a file, or a folder with files")
    place = Path(os.environ.get(INPUTS, "~/.cache/ssb-jax/inputs")).expanduser() / digest([url, listing])[:24]
    name = url.rstrip("/").rpartition("/")[2]
    if not place.exists():
        part = place.with_name(f".{place.name}.{uuid4().hex}")
        note(f"fetching {len(listing)} files from {url} to {place}")
        store.fetch(listing, part / name)
        try:
            part.rename(place)
        except OSError:  # another process was faster
            if not place.exists():
                raise
            shutil.rmtree(part)
    return place / name
