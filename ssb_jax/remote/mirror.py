"""A run's working folder on this machine and its copy in a store."""

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from uuid import uuid4

from ssb_jax.artifacts import BEGUN, MANIFEST, digest, owning, write_atomically
from ssb_jax.config import SsbError
from ssb_jax.console import note
from ssb_jax.records import parse_json
from ssb_jax.remote.lock import Guard, Lock, repeating
from ssb_jax.remote.store import LAST, Store, open_store, refuse_strangers

SCRATCH, PUSH_SECONDS = "SSB_SCRATCH", "SSB_PUSH_SECONDS"
MOST_BEAT = 10.0  # seconds between two signs of life
SEVERAL = b"several"  # in its place where each process of a run worked in a folder of its own
_PUSHED = ".pushed.json"  # file here: what of the folder is there
_GROWING = ("*.jsonl", "events.out.tfevents.*")  # appended to in place; all other files are written once or replaced
_COUNTED = re.compile(r"\.engine-\d+\.json")  # hidden in the folder's manifest, and not private
_CHECKPOINT = re.compile(r"((?:distillation|grpo|on-policy)/checkpoints)/(\d+)/")
_SEAL = re.compile(r"((?:distillation|grpo|on-policy)/)checkpoints/digests/\d+\.json")

Stamp = tuple[int, int]  # of a file: when it was written, in nanoseconds, and its bytes


@contextlib.contextmanager
def mirrored(url: str) -> Iterator[Path]:
    """The working folder of a run whose folder is a URL; what is written within gets there, at the latest at the end.

    Raises:
      SsbError: the store cannot be reached or refuses; another process has the run, or has taken it over.
    """
    with locked(url) as (mirror, lock):
        mirror.start()
        with pushing(mirror, lock, kept=f"All of the run is in {mirror.folder}: the same command here goes on"):
            yield mirror.folder


@contextlib.contextmanager
def locked(url: str) -> Iterator[tuple["Mirror", Lock]]:
    """The mirror of a run's folder, not started yet, while this process has the run; see `mirrored`."""
    store, folder = open_store(url), working_folder(url)
    seconds = min(_push_seconds(), MOST_BEAT)
    with owning(folder):
        mirror = Mirror(store, folder)
        lock = Lock(store, folder=mirror.identity, seconds=seconds)
        with lock.held():
            yield mirror, lock


@contextlib.contextmanager
def pushing(mirror: "Mirror", lock: Guard, *, kept: str) -> Iterator[None]:
    """Uploads what changes, so long as the lock is the run's; `kept`: what to say when the last upload fails."""

    def push() -> None:
        lock.beat()
        if not lock.lost:
            mirror.push()

    try:
        with repeating(push, _push_seconds()):
            yield
    finally:
        try:
            push()
        except SsbError as error:
            raise SsbError(f"{error}. {kept}") from None
        lock.refuse_if_lost()


def working_folder(url: str, process: int = 0) -> Path:
    """Where a process of a run at a URL works: below SSB_SCRATCH, by default ~/.cache/ssb-jax/runs."""
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]+", "-", url)[-60:].strip("-.") + f"-{digest(url)[:8]}"
    name += f"-{process:05d}" if process else ""
    return Path(os.environ.get(SCRATCH, "~/.cache/ssb-jax/runs")).expanduser().absolute() / name


class Mirror:
    """A folder and its copy in a store."""

    def __init__(self, store: Store, folder: Path):
        self.store, self.folder = store, folder
        self._there: dict[str, Stamp | None] = {}  # objects, with the stamp of the file that was uploaded if known
        self._news: dict[str, bool] = {}  # objects written (or deleted: False) here since `news`; no checkpoints
        self._lock = threading.Lock()  # of the two above: two threads may push
        if not (folder / LAST).exists():
            write_atomically(folder / LAST, uuid4().hex)
        self.identity = (folder / LAST).read_text()

    def start(self) -> None:
        """Makes the folder what the store holds, unless it was the last to work there: then it is as new, or newer."""
        if self.store.read(LAST) == self.identity.encode():
            names = self._names()
            self._there = dict.fromkeys(names) | {k: v for k, v in self._recorded().items() if k in names}
            return
        refuse_strangers(self.store.url, self.store.describe().keys())
        self._there = dict.fromkeys(self.fetch()) | self._there  # parts of checkpoints: deleted by the first push
        self.store.write(LAST, self.identity.encode())

    def fetch(self) -> set[str]:
        """Makes the folder what the store holds; returns the names of all objects, unsealed checkpoints included."""
        names = self._names()
        _empty(self.folder)
        wanted = sorted(name for name in names if _is_whole(name, names))
        if wanted:
            note(f"fetching {len(wanted)} files from {self.store.url} to {self.folder}")
            self.store.fetch(wanted, self.folder)
        self._there = dict(_scan(self.folder))
        return names

    def push(self, *, checkpoints: bool = True) -> bool:
        """Uploads what changed, oldest first, then deletes what is gone; whether all of that is done.

        Only what was there at the beginning, as it was: when a file that others rely on has been replaced meanwhile,
        the rest is left to the next push.
        """
        stamps, changed, gone = self._pending(checkpoints)
        try:
            gone += [begun for name in changed if (begun := self._announce(name)) is not None]
            for name in sorted(changed, key=lambda name: _due(name, stamps)):
                if not self._upload(name, stamps[name]):
                    return False
            for name in sorted(gone, key=lambda name: (not name.endswith(".json"), name)):
                self._delete(name)  # a checkpoint's seal before the checkpoint
            return True
        finally:
            with self._lock:
                write_atomically(self.folder / _PUSHED, json.dumps(self._there))

    def is_pushed(self, *, checkpoints: bool) -> bool:
        """Whether there is nothing to upload or delete."""
        _, changed, gone = self._pending(checkpoints)
        return not changed and not gone

    def news(self) -> dict[str, bool]:
        """What was uploaded (True) or deleted since this was last asked; checkpoints are left out."""
        with self._lock:
            news, self._news = self._news, {}
        return news

    def take(self, news: Mapping[str, bool]) -> None:
        """Fetches and deletes what others uploaded and deleted."""
        wanted = sorted(name for name, is_there in news.items() if is_there)
        parts = self.folder / f".fetched-{uuid4().hex}"
        if wanted:
            self.store.fetch(wanted, parts)
        with self._lock:  # or `push` would see a file that it does not know
            for name in wanted:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(parts / name, self.folder / name)
                self._there[name] = _stamp((self.folder / name).stat())
            for name in news.keys() - set(wanted):
                (self.folder / name).unlink(missing_ok=True)
                self._there.pop(name, None)
        shutil.rmtree(parts, ignore_errors=True)

    def _names(self) -> set[str]:
        return {name for name in self.store.describe() if not _is_private(name)}

    def _pending(self, checkpoints: bool) -> tuple[dict[str, Stamp], list[str], list[str]]:
        """The files that are here, those of them that changed, and what is gone."""
        with self._lock:
            stamps = _scan(self.folder)
            changed = [name for name, stamp in stamps.items() if self._there.get(name) != stamp]
            gone = [name for name in self._there if name not in stamps]
        if checkpoints:
            return stamps, changed, gone
        return stamps, [n for n in changed if not _of_checkpoints(n)], [n for n in gone if not _of_checkpoints(n)]

    def _announce(self, name: str) -> str | None:
        """Of a folder that was begun and completed since the last push, says there with which settings (artifacts.py),
        before its first file; returns the object's name, which goes once the manifest is there."""
        begun = name.removesuffix(MANIFEST) + BEGUN
        if not f"/{name}".endswith(f"/{MANIFEST}") or {name, begun} & self._there.keys():
            return None
        try:
            made_from = parse_json((self.folder / name).read_bytes())["made_from"]
        except (OSError, ValueError, LookupError, TypeError):  # `read_manifest` will say what is wrong with it
            return None
        with self._lock:
            self.store.write(begun, json.dumps(made_from, indent=1).encode())
            self._there[begun] = None
        return begun

    def _upload(self, name: str, stamp: Stamp) -> bool:
        """Whether the file is still the one of that stamp, or one that only grows; then it is uploaded."""
        with self._lock:
            if self._there.get(name) == stamp:
                return True
            try:
                with open(self.folder / name, "rb") as file:
                    if _stamp(os.fstat(file.fileno())) != stamp and not _grows(name):
                        return False
                    data = file.read()
            except FileNotFoundError:
                return False
            self.store.write(name, data)
            self._changed(name, stamp)
        return True

    def _delete(self, name: str) -> None:
        with self._lock:
            if _of_checkpoints(name) or not (self.folder / name).exists():  # `take` may have brought it
                self.store.delete(name)
                self._changed(name, None)

    def _changed(self, name: str, stamp: Stamp | None) -> None:
        if stamp is None:
            self._there.pop(name, None)
        else:
            self._there[name] = stamp
        if not _of_checkpoints(name):
            self._news[name] = stamp is not None

    def _recorded(self) -> dict[str, Stamp]:
        path = self.folder / _PUSHED
        try:
            return {k: tuple(v) for k, v in parse_json(path.read_bytes()).items() if v} if path.exists() else {}
        except ValueError:
            raise SsbError(f"{path} is not readable; delete it") from None


def _scan(folder: Path) -> dict[str, Stamp]:
    """Name -> stamp of every file that belongs in the store."""
    found = {}
    for place, _, files in os.walk(folder):
        for file in files:
            path = Path(place, file)
            name = path.relative_to(folder).as_posix()
            if not _is_private(name):
                with contextlib.suppress(FileNotFoundError):  # it was deleted or renamed just now
                    found[name] = _stamp(path.stat())
    for seal in [name for name in found if _SEAL.fullmatch(name) and not _seals_all(folder, name, found)]:
        del found[seal]
    return {name: stamp for name, stamp in found.items() if _is_whole(name, found)}


def _seals_all(folder: Path, seal: str, found: Collection[str]) -> bool:
    """Whether all files of a checkpoint are here: old ones are deleted file by file, and then their seals."""
    place = seal.removesuffix(".json").replace("checkpoints/digests/", "checkpoints/")
    try:
        return all(f"{place}/{name}" in found for name in parse_json((folder / seal).read_bytes()))
    except (OSError, ValueError, TypeError):
        return False


def _stamp(facts: os.stat_result) -> Stamp:
    return facts.st_mtime_ns, facts.st_size


def _is_private(name: str) -> bool:
    """Locks and what is still being written: hidden files and folders, and Orbax's temporary ones."""
    return any(
        (part.startswith(".") and not _COUNTED.fullmatch(part)) or ".orbax-checkpoint-tmp" in part
        for part in name.split("/")
    )


def _of_checkpoints(name: str) -> bool:
    return "checkpoints" in name.split("/")[:-1]


def _is_whole(name: str, names: Collection[str]) -> bool:
    """A checkpoint appears in one rename, which stores do not know: it counts once it is sealed (checkpoint.py)."""
    step = _CHECKPOINT.match(name)
    return step is None or f"{step[1]}/digests/{step[2]}.json" in names


def _grows(name: str) -> bool:
    return any(fnmatch(name.rpartition("/")[2], pattern) for pattern in _GROWING)


def _due(name: str, stamps: Mapping[str, Stamp]) -> tuple[int, int]:
    """The order of uploading: as written; a manifest after all of its folder, whatever the clock said; a checkpoint's
    seal after the logs beside the checkpoints, which have the rows of its steps and grow on.

    At a tie, which coarse clocks make, JSON files (indices, seals) come after the data that they speak of.
    """
    seal = _SEAL.fullmatch(name)
    if seal is not None:
        logs = (stamp[0] for other, stamp in stamps.items() if other.startswith(seal[1]) and _grows(other))
        return max(stamps[name][0], *logs, 0), 1
    folder, slash, file = name.rpartition("/")
    if file == MANIFEST:
        return max(stamp[0] for other, stamp in stamps.items() if other.startswith(folder + slash)), 2
    return stamps[name][0], int(file.endswith(".json"))


def _empty(folder: Path) -> None:
    """Deletes all but the working folder's own hidden files."""
    (folder / _PUSHED).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith("."):
            path.unlink()


def _push_seconds() -> float:
    text = os.environ.get(PUSH_SECONDS, "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise SsbError(f"{PUSH_SECONDS}: expected seconds, 0.1 to 86400, got {text}")
    return seconds
