"""Files of a run: JSON lines of records, folders completed by a manifest, one owner at a time.

A folder is complete when it has `manifest.json`, which is written last. `begun.json`, written first, holds what the
folder is being made from, so that a later run with other settings is refused instead of mixed in. Rows are appended
and synced as they come; a line cut off by a kill is dropped on the next opening. Knows no stage and no JAX.
"""

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import filelock
import pydantic
from typing_extensions import TypedDict

from ssb_jax.config import Config, SsbError
from ssb_jax.records import parse_json

Record = TypeVar("Record")

MANIFEST = "manifest.json"
BEGUN = "begun.json"


@cache
def _adapter(record_type: type) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(record_type)


def to_line(record: Any) -> bytes:
    """A record as one line of JSON, newline included."""
    return _adapter(type(record)).dump_json(record) + b"\n"


def read_jsonl(path: Path, record_type: type[Record]) -> list[Record]:
    """Reads every row of a JSONL file; blank lines are skipped.

    Raises:
      SsbError: naming file and line, when the file is missing or a row is not a valid record.
    """
    return [record for _, record in iterate_jsonl(path, record_type)]


def iterate_jsonl(path: Path, record_type: type[Record]) -> Iterator[tuple[int, Record]]:
    """(line number, record) of each row; see `read_jsonl`."""
    adapter = _adapter(record_type)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, adapter.validate_json(line, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise SsbError(f"{path}, line {number}: expected a JSON object for a {_name(record_type)}; {what}") from None
    except OSError as error:
        raise SsbError(f"{path} cannot be read: {error.strerror}") from None


def _name(record_type: Any) -> str:
    return getattr(record_type, "__name__", str(record_type))


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes through a temporary file in the same folder: after a crash the file is the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Writes all records atomically; returns their number."""
    lines = [to_line(record) for record in records]
    write_atomically(path, b"".join(lines))
    return len(lines)


@contextlib.contextmanager
def appending(path: Path, *, sync_seconds: float = 1.0) -> Iterator[Callable[[Any], None]]:
    """Opens a JSONL file to append records; synced to disk at most `sync_seconds` after a row, and at the end.

    A last line without its newline is what a kill leaves behind: it is cut off first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_partial_line(path)
    last_sync = time.monotonic()
    with open(path, "ab") as file:

        def append(record: Any) -> None:
            nonlocal last_sync
            file.write(to_line(record))
            file.flush()
            if time.monotonic() - last_sync > sync_seconds:
                os.fsync(file.fileno())
                last_sync = time.monotonic()

        try:
            yield append
        finally:
            file.flush()
            os.fsync(file.fileno())


def drop_partial_line(path: Path) -> int:
    """Cuts off what follows the last newline of a file; returns the number of bytes dropped."""
    if not path.exists():
        return 0
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        file.truncate(keep)
    return end - keep


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileFacts(TypedDict):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Says that a folder is complete, what it was made from and what is in it.

    Attributes:
      made_from: settings and input digests; a folder is reused only for an equal one.
      counts: what the stage reports (rows by outcome, tokens, ...).
      files: file name -> size in bytes and SHA-256.
      seal: digest of all the others, so that a manifest that was changed is noticed.
    """

    stage: str
    made_from: dict[str, Any]
    counts: dict[str, Any]
    files: dict[str, FileFacts]
    seconds: float
    versions: dict[str, str]
    seal: str

    @classmethod
    def sealed(cls, **facts: Any) -> "Manifest":
        """A manifest of all its other fields."""
        unsealed = cls(**facts, seal="")
        return replace(unsealed, seal=unsealed.own_digest())

    def own_digest(self) -> str:
        """What the seal must be."""
        return digest({name: value for name, value in asdict(self).items() if name != "seal"})

    @property
    def digest(self) -> str:
        """Identifies the folder's content; what is made from it records this."""
        return digest({"made_from": self.made_from, "files": self.files})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete folder, None of an incomplete one.

    Raises:
      SsbError: the manifest is not readable, or a file it lists is missing or is not what was written.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = _adapter(Manifest).validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        what = error.errors(include_url=False)[0]["msg"]
        raise SsbError(f"{path} is not a readable manifest ({what}); delete {folder} to make it again") from None
    except OSError as error:
        raise SsbError(f"{path} cannot be read: {error.strerror}") from None
    if manifest.seal != manifest.own_digest():
        raise SsbError(f"{path} is not what was written; delete {folder} to make it again")
    for name, facts in manifest.files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != facts["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise SsbError(
                f"{file} {found}, its manifest says {facts['bytes']} bytes; delete {folder} to make it again"
            )
        if _digest_once(file, file.stat().st_mtime_ns) != facts["sha256"]:
            raise SsbError(f"{file} is not what its manifest vouches for; delete {folder} to make it again")
    return manifest


def training_folder(run_folder: Path, config: Config) -> Path:
    """Where the adapter of a run is trained, and then is."""
    return run_folder / (config.method if config.method in ("grpo", "on-policy") else "distillation")


@lru_cache(maxsize=1 << 16)
def _digest_once(file: Path, mtime_ns: int) -> str:
    """A file's digest, computed once a process while the file is not touched."""
    return file_digest(file)


def complete(
    folder: Path,
    *,
    stage: str,
    made_from: Mapping[str, Any],
    make: Callable[[], dict[str, Any]],
    patterns: Sequence[str] = ("*",),
) -> tuple[Manifest, bool]:
    """Makes a folder's content unless it is there already; writes the manifest last.

    Args:
      made_from: everything the content depends on.
      make: writes the content, continuing what an interrupted call left, and returns the counts.
      patterns: which files the manifest vouches for.

    Returns:
      The manifest, and whether it was there already.

    Raises:
      SsbError: the folder holds (part of) something made from other settings or inputs.
    """
    manifest = begin(folder, stage=stage, made_from=made_from)
    if manifest is not None:
        return manifest, True
    started = time.monotonic()
    counts = make()
    return finish(folder, stage=stage, counts=counts, seconds=time.monotonic() - started, patterns=patterns), False


def begin(folder: Path, *, stage: str, made_from: Mapping[str, Any]) -> Manifest | None:
    """Opens a folder to be made; returns the manifest of one that is complete. For the errors see `complete`."""
    made_from = json.loads(json.dumps(made_from))
    manifest = read_manifest(folder)
    if manifest is not None:
        _refuse_other(folder, stage, manifest.made_from, made_from)
        return manifest
    begun = folder / BEGUN
    if not _has_content(folder):
        write_atomically(begun, json.dumps(made_from, indent=1))
        return None
    if not begun.exists():
        raise SsbError(f"{folder} holds files, and nothing says with which settings; delete {folder} to make it again")
    try:
        earlier = parse_json(begun.read_bytes())
    except ValueError:
        raise SsbError(f"{begun} is not JSON; delete {folder} to make it again") from None
    _refuse_other(folder, stage, earlier, made_from)
    return None


def finish(
    folder: Path, *, stage: str, counts: dict[str, Any], seconds: float, patterns: Sequence[str] = ("*",)
) -> Manifest:
    """Completes a folder that `begin` opened and whose content is there; see `complete`."""
    made_from = json.loads((folder / BEGUN).read_bytes())
    manifest = Manifest.sealed(
        stage=stage,
        made_from=made_from,
        counts=counts,
        files=_list_files(folder, patterns),
        seconds=seconds,
        versions=versions(),
    )
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
    (folder / BEGUN).unlink()
    return manifest


def _has_content(folder: Path) -> bool:
    """Whether there is anything of a stage: what failed before its first row binds nobody to its settings."""
    if not folder.exists():
        return False
    paths = [path for path in folder.iterdir() if path.name != BEGUN and not path.name.startswith(".")]
    return any(path.is_dir() or path.stat().st_size for path in paths)


def _refuse_other(folder: Path, stage: str, earlier: dict, now: dict) -> None:
    different = list(differences(earlier, now))
    if different:
        raise SsbError(
            f"{folder} holds the {stage} of another run: " + "; ".join(different[:8]) + ". "
            f"Use another --out, or delete {folder} to make it again"
        )


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two JSON-able values differ, in words."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif isinstance(a, list) and isinstance(b, list) and a != b:
        first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if first is None:
            yield f"{path} had {len(a)} entries, now {len(b)}"
        else:
            yield from differences(a[first], b[first], f"{path}.{first}")
    elif a != b:
        yield f"{path} was {_short(a)}, now {_short(b)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _list_files(folder: Path, patterns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size and digest of the files that match."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern)})
        if path.is_file() and path.name not in (BEGUN, MANIFEST) and not path.name.startswith(".")
    }


@cache
def versions() -> dict[str, str]:
    """Of this package and of those that a run's numbers depend on."""
    packages = ("ssb-jax", "jax", "flax", "optax", "orbax-checkpoint", "transformers", "math-verify", "sympy")
    return {name: version(name) for name in packages}


def code_digest() -> str:
    """Of this package's source files: two copies of one version may differ."""
    root = Path(__file__).parent
    return digest({path.relative_to(root).as_posix(): file_digest(path) for path in sorted(root.rglob("*.py"))})[:16]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Holds a run folder: a second process that wants it is refused with the owner's name.

    Raises:
      SsbError: another process holds it, or the folder cannot be written.
    """
    owner = folder / ".owner"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        who = owner.read_text(errors="replace") if owner.exists() else "another process"
        raise SsbError(f"{folder} is in use by {who}; wait for it to end, or use another --out") from None
    except OSError as error:
        raise SsbError(f"{folder} cannot be written: {error.strerror}; choose another --out") from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
