"""Checkpoints of a training run (Orbax): adapter, optimizer and step, and where the data order stands, as one.

A checkpoint becomes visible in one rename, so a kill leaves the ones before it. Each is sealed with the digests of its
files in `digests/`; one that has changed since (a disk that lied, a file cut off) is reported, deleted and passed over
for the one before it. One that is as it was written and cannot be read all the same is an error, and stays. Where there
are several processes all call these functions alike; process 0 alone writes, seals and judges, and all read.
Knows no training loop.
"""

import contextlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pydantic
from jax.experimental import multihost_utils

from ssb_jax import hosts
from ssb_jax.artifacts import file_digest, write_atomically
from ssb_jax.config import SsbError
from ssb_jax.console import note

_SEAL = pydantic.TypeAdapter(dict[str, str])  # file -> SHA-256


@contextlib.contextmanager
def checkpoints(folder: Path, *, keep: int) -> Iterator[ocp.CheckpointManager]:
    """Opens a folder of checkpoints that keeps the last `keep`; saving goes on in the background until it closes."""
    folder.mkdir(parents=True, exist_ok=True)
    alone = ocp.options.MultiprocessingOptions(  # each for itself: Orbax would have all of them write to one folder
        primary_host=hosts.index(), active_processes={hosts.index()}, barrier_sync_key_prefix=f"ssb-{hosts.index()}"
    )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=False,
        cleanup_tmp_directories=hosts.is_first(),
        multiprocessing_options=alone,
    )
    manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        yield manager
        _seal(manager)
        hosts.settle()
    finally:
        manager.close()


def save(manager: ocp.CheckpointManager, step: int, *, state: Any, data: dict[str, Any]) -> None:
    """Saves a tree of arrays and a JSON-able state of the data iterator under a step.

    Raises:
      SsbError: the disk refused.
    """
    state = _whole(state)
    if not hosts.is_first():
        return
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
    try:
        _seal(manager)
        _digests(manager, step).unlink(missing_ok=True)
        manager.save(step, args=items, force=True)
    except OSError as error:
        raise SsbError(f"the checkpoint of step {step} cannot be written to {manager.directory}: {error}") from None


def _whole(state: Any) -> Any:
    """A tree of arrays, of which the devices of other processes may hold parts, as process 0 can write it."""
    if hosts.count() == 1:
        return state
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), state)


def restore(manager: ocp.CheckpointManager, *, like: Any) -> tuple[Any, dict[str, Any]] | None:
    """The state and data state of the newest checkpoint that can be read; None where there is none at all.

    Args:
      like: a tree of arrays with the wanted shapes, dtypes and shardings.

    Raises:
      SsbError: there are checkpoints and none can be read; or the newest is as it was written and cannot be read.
    """
    steps = hosts.on_first(lambda: sorted(manager.all_steps(), reverse=True))
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore())
    unreadable = []
    for step in steps:
        reason = hosts.on_first(partial(_damage, manager, step))
        if reason is None:
            restored, reason = _read(manager, step, items)
            reason = next(filter(None, hosts.gather(reason)), None)
            if reason is not None and hosts.on_first(_digests(manager, step).exists):
                raise SsbError(
                    f"the checkpoint of step {step} in {manager.directory} is as it was written, and cannot be read: "
                    f"{reason}; it is kept: see to disk, memory and versions, and run the same command again"
                )
        if reason is None:
            for later in unreadable:
                _forget(manager, later)
            return restored.state, restored.data
        note(f"the checkpoint of step {step} in {manager.directory} cannot be read and is passed over: {reason}")
        unreadable.append(step)
    if steps:
        raise SsbError(
            f"none of the checkpoints in {manager.directory} (steps {', '.join(map(str, reversed(steps)))}) can be "
            f"read; delete the folder to train from the start"
        )
    return None


def _read(manager: ocp.CheckpointManager, step: int, items: ocp.args.Composite) -> tuple[Any, str | None]:
    """What a checkpoint holds, or why this process cannot read it."""
    try:
        return manager.restore(step, args=items), None
    except Exception as error:  # Orbax and TensorStore raise Exception itself for a damaged array
        return None, (str(error).splitlines() or [type(error).__name__])[0][:200]


def _forget(manager: ocp.CheckpointManager, step: int) -> None:
    if hosts.is_first():
        _digests(manager, step).unlink(missing_ok=True)
        manager.delete(step)


def _seal(manager: ocp.CheckpointManager) -> None:
    """Waits for what is being saved, and writes the digests of checkpoints that have none."""
    if not hosts.is_first():
        return
    manager.wait_until_finished()
    steps = manager.all_steps()
    for step in steps:
        if not _digests(manager, step).exists():
            write_atomically(_digests(manager, step), json.dumps(_describe(manager, step)))
    for path in _digests(manager, 0).parent.glob("*.json"):
        if path.stem not in map(str, steps):
            path.unlink()


def _damage(manager: ocp.CheckpointManager, step: int) -> str | None:
    """What is wrong with a checkpoint's files; None for sound ones, and where a kill came before the sealing."""
    path = _digests(manager, step)
    if not path.exists():
        return None
    try:
        sealed, found = _SEAL.validate_json(path.read_bytes()), _describe(manager, step)
    except ValueError:
        return f"its digests in {path} are not readable"
    changed = [name for name in sorted(sealed.keys() | found.keys()) if found.get(name) != sealed.get(name)]
    return f"{len(changed)} of its {len(sealed)} files changed, the first {changed[0]}" if changed else None


def _digests(manager: ocp.CheckpointManager, step: int) -> Path:
    return Path(manager.directory) / "digests" / f"{step}.json"


def _describe(manager: ocp.CheckpointManager, step: int) -> dict[str, str]:
    folder = Path(manager.directory) / str(step)
    return {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
