"""Folders that several runs of a study would make alike are made once.

Inside `sharing(FOLDER)` a stage's folder is copied from FOLDER when one made from the very same settings and inputs is
there, and put there when it was made. A copy's manifest says the seconds of the original: what the run would have
cost by itself.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from typing import Any
from uuid import uuid4

from ssb_jax.artifacts import BEGUN, MANIFEST, Manifest, digest, read_manifest

_PLACE: ContextVar[Path | None] = ContextVar("place", default=None)


@contextlib.contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """Shares finished folders through this one."""
    token = _PLACE.set(folder)
    try:
        yield
    finally:
        _PLACE.reset(token)


def take_shared(folder: Path, stage: str, made_from: dict[str, Any]) -> None:
    """Copies the shared folder made from the same, unless `folder` holds anything yet or nothing is shared."""
    place = _PLACE.get()
    if place is None or (folder.exists() and any(path.name != BEGUN for path in folder.iterdir())):
        return
    found = place / _name(stage, json.loads(json.dumps(made_from)))
    manifest = read_manifest(found)
    if manifest is not None:
        _copy(manifest, found, folder, place)


def share(folder: Path, manifest: Manifest) -> None:
    """Puts a finished folder where others find it."""
    place = _PLACE.get()
    if place is None:
        return
    there = place / _name(manifest.stage, manifest.made_from)
    if read_manifest(there) is None:
        _copy(manifest, folder, there, place)


def _name(stage: str, made_from: dict[str, Any]) -> str:
    return f"{stage}-{digest(made_from)[:24]}"


def _copy(manifest: Manifest, source: Path, target: Path, place: Path) -> None:
    """What the manifest vouches for, and the manifest; the target appears whole or not at all.

    Several processes may do so at a time: the first one's copy stays.
    """
    parts = place / f".{target.name}.{uuid4().hex[:8]}.part"
    for name in (*manifest.files, MANIFEST):
        (parts / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, parts / name)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if target.exists() and read_manifest(target) is None:
            shutil.rmtree(target)  # what begins a folder of the caller's own
        parts.rename(target)
    except OSError as error:
        if error.errno not in (ENOTEMPTY, EEXIST):
            raise
        shutil.rmtree(parts)
