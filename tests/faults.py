"""Kills a small run of the whole pipeline at random moments, continues it, and compares it with an uninterrupted run.

    python tests/faults.py --kills 100 --seed 0

One process imports everything and forks a run a try, so that a start costs no imports; what is forked is the command
`ssb run` itself. Each try meets one fault (see FAULTS); when a run has come to its end, its content is compared and a
new one begins, until there were enough kills. After every fault each manifest must vouch for files that are there,
to the byte, and no row may be there twice. Prints a JSON object; exit status 1 when anything was lost, doubled or
different.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from errno import EIO
from pathlib import Path

import jax
from run_content import check_folder, content

from ssb_jax import hosts, pipeline  # noqa: F401  (imported here, once, for every run that is forked)
from ssb_jax.cli import group, main
from ssb_jax.workspace import Workspace  # noqa: F401

ROOT = Path(__file__).parent.parent
SMALL = (
    *("--questions.limit", "16", "--rollouts.block_size", "8", "--teaching.max_pairs", "6", "--grading.workers", "1"),
    *("--distillation.epochs", "2", "--distillation.batch_size", "2", "--distillation.checkpoint_every", "1"),
    *("--engine.slots", "8", "--engine.chunk", "8", "--targets.batch_size", "2"),
    "--evaluation.sets=[{name: test, num_samples: 2, data: {path: 'builtin:arithmetic', split: test, limit: 8}, "
    "sampling: {temperature: 0.8, top_k: 50, top_p: 1.0, max_new_tokens: 64}}]",
)
# What befalls a try, and how often: SIGKILL or SIGTERM at a random time; SIGKILL just before a random file operation of
# a random stage; SIGKILL, and the last line of what was written is cut off as by a power cut; a failing fsync; a clock
# that jumps back an hour, then SIGKILL; a grader or its nursery killed; a second run on the same folder, then SIGKILL.
FAULTS = {"kill": 30, "term": 10, "operation": 35, "cut": 6, "fsync": 8, "clock": 5, "grader": 3, "second": 3}
KILLING = {"kill", "term", "operation", "cut", "clock", "second"}
STAGES = ("rollouts", "verification", "hints", "teaching", "pairs", "targets", "distillation", "evaluation")


@dataclass
class Tally:
    """What was done and what was found."""

    kills: int = 0
    faults: Counter = field(default_factory=Counter)
    stages: Counter = field(default_factory=Counter)
    runs: int = 0
    wrong: list[str] = field(default_factory=list)


# ---- one try: a forked `ssb run`


def fork_run(
    folder: Path,
    prepare: Callable[[], None] = lambda: None,
    *,
    url: str | None = None,
    settings: Sequence[str] = SMALL,
) -> int:
    """Starts `ssb run` in a process of its own, after `prepare` there; returns its id. `url` runs there instead."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        prepare()
        main(["run", str(ROOT / "configs/tiny.yaml"), "--out", url or str(folder), *settings], prog_name="ssb")
    except SystemExit as end:
        code = end.code or 0
        if code == 0 and hosts.count() > 1:
            jax.distributed.shutdown()  # as at the exit of a process that was not forked
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int, seconds: float = 300.0) -> int | None:
    """The exit status of a process (negative: the signal), None when it is still running after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def stage_of(path: str) -> str:
    """The stage that a file of a run folder belongs to; empty for the folder's own files."""
    return next((part for part in Path(path).parts if part in STAGES), "")


def watch_files(folder: Path, act: Callable[[str, str], None]) -> None:
    """Calls `act(what, stage)` before each file operation of this process in a run folder, and before each fsync.

    `what` is an audit event, `fsync`, or `manifest` for the rename that completes a folder.
    """
    inside, latest = str(folder), [""]

    def hook(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.rmdir"):
            return
        path = os.fspath(arguments[0]) if isinstance(arguments[0], str | os.PathLike) else ""
        writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if isinstance(path, str) and path.startswith(inside) and writes:
            latest[0] = stage_of(path[len(inside) :])
            completes = event == "os.rename" and Path(path).name.startswith(".manifest.json")
            act("manifest" if completes else event, latest[0])

    real = os.fsync

    def fsync(descriptor: int) -> None:
        act("fsync", latest[0])
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)


def count_operations(folder: Path) -> Callable[[], None]:
    """Writes the stage of each file operation of the run to FOLDER.operations."""

    def prepare() -> None:
        log = open(f"{folder}.operations", "a", buffering=1)  # noqa: SIM115  (open until the process ends)
        watch_files(folder, lambda what, stage: log.write(f"{what} {stage}\n") and None)

    return prepare


def at_operation(folder: Path, number: int, stage: str, what: str | None, act: Callable[[], None]):
    """`act` before the number-th file operation of a stage, or at the last one, which completes it."""

    def prepare() -> None:
        seen = [0]

        def count(event: str, here: str) -> None:
            seen[0] += here == stage and what in (None, event)
            last = here == stage and event == "manifest" and what is None
            if seen[0] == number or (last and seen[0] < number):
                seen[0] = number + 1
                act()

        watch_files(folder, count)

    return prepare


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise OSError(EIO, os.strerror(EIO))


def clock_jumps(after: int) -> Callable[[], None]:
    """The wall clock goes back an hour after so many looks at it, and again every hundred looks."""

    def prepare() -> None:
        real, looks = time.time, [0]

        def jumping() -> float:
            looks[0] += 1
            return real() - 3600.0 * max(0, 1 + (looks[0] - after) // 100)

        time.time = jumping

    return prepare


# ---- how far a run is, and what is done to it


def open_stages(folder: Path) -> list[str]:
    """The stages of a run that are not complete yet."""
    stages = {stage_of(str(path)) for path in folder.rglob("manifest.json")}
    blocks = [path for path in (folder / "blocks").glob("*/rollouts") if (path / "manifest.json").exists()]
    taught = [path for path in (folder / "blocks").glob("*/teaching") if (path / "manifest.json").exists()]
    done = stages if len(blocks) == len(taught) and "pairs" in stages else stages - set(STAGES[:4])
    return [stage for stage in STAGES if stage not in done or stage == "evaluation"]


def working_in(folder: Path) -> str:
    """The stage that a run was in when it was stopped."""
    begun = sorted(folder.rglob("begun.json"), key=lambda path: path.stat().st_mtime_ns)
    return stage_of(str(begun[-1].relative_to(folder))) if begun else "between stages"


def cut_last_line(folder: Path, rng: random.Random) -> None:
    """Takes some bytes off the end of the rows that a stage was writing, as a power cut may."""
    for path in folder.rglob("part-*.jsonl"):
        data = path.read_bytes()
        if data and not (path.parent / "manifest.json").exists():
            last = len(data) - (data[:-1].rfind(b"\n") + 1)
            os.truncate(path, len(data) - rng.randint(1, last))


def kill_a_grader(pid: int, rng: random.Random) -> bool:
    """Waits until a run has graders and kills one of them, or the process that forks them."""
    while wait(pid, 0.002) is None:
        nursery = _children(pid)
        family = nursery + [grandchild for child in nursery for grandchild in _children(child)]
        if len(family) > 1:
            os.kill(rng.choice(family), signal.SIGKILL)
            return True
    return False


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


class Harness:
    """Tries runs under faults until there were enough kills."""

    def __init__(self, root: Path, seed: int):
        self.root, self.rng, self.tally = root, random.Random(seed), Tally()
        self.operations: Counter = Counter()
        self.straight: dict[str, str] = {}
        self.seconds = 0.0

    def measure(self) -> None:
        """The uninterrupted run: what it leaves, how long it takes, and how many file operations each stage has."""
        for name in ("warm", "straight"):  # the first compiles
            folder, started = self.root / name, time.monotonic()
            status = wait(fork_run(folder, count_operations(folder) if name == "straight" else lambda: None))
            self.seconds = time.monotonic() - started
            if status != 0:
                raise SystemExit(f"the uninterrupted run failed:\n{Path(f'{folder}.log').read_text()}")
        operations = Path(f"{self.root / 'straight'}.operations").read_text()
        self.operations = Counter(tuple(line.split(" ")) for line in operations.splitlines())
        self.straight = content(self.root / "straight")

    def attempt(self, folder: Path, fault: str) -> bool:
        """One try under a fault; whether the run came to its end."""
        rng, delay = self.rng, self.rng.uniform(0.05, 0.6) ** 1.5 * self.seconds
        prepare: Callable[[], None] = lambda: None  # noqa: E731
        if fault in ("operation", "fsync"):
            what = "fsync" if fault == "fsync" else None
            stage = min(open_stages(folder), key=lambda stage: (self.tally.stages[stage], rng.random()))
            count = sum(n for (event, here), n in self.operations.items() if here == stage and what in (None, event))
            act = fail if fault == "fsync" else die
            prepare = at_operation(folder, rng.randint(1, max(1, count)), stage, what, act)
            delay = 300.0
        elif fault == "none":
            delay = 300.0
        elif fault == "clock":
            prepare = clock_jumps(rng.randint(1, 200))
        pid = fork_run(folder, prepare)
        if fault == "grader":
            self.tally.faults[fault] += kill_a_grader(pid, rng)
            delay = 300.0
        status = wait(pid, delay)
        if status is None:
            if fault == "second":
                self._second(folder)
            os.kill(pid, signal.SIGTERM if fault == "term" else signal.SIGKILL)
            status = wait(pid)
        self._judge(folder, fault, status)
        return status == 0

    def _second(self, folder: Path) -> None:
        """Another run on the same folder must be refused, with the owner's name."""
        other = self.root / f"{folder.name}-second"
        if not (folder / ".owner").exists():
            return  # the first has not come as far as its lock
        other.unlink(missing_ok=True)
        other.symlink_to(folder)
        status, log = wait(fork_run(other)), Path(f"{other}.log").read_text()
        if status != 1 or "is in use by process" not in log:
            self.tally.wrong.append(f"{folder}: a second run was not refused (status {status}): {log[-300:]}")

    def _judge(self, folder: Path, fault: str, status: int | None) -> None:
        tally, log = self.tally, Path(f"{folder}.log").read_text()
        expected = {0, -signal.SIGKILL, -signal.SIGTERM, 75} | ({1} if fault == "fsync" else set())
        if status not in expected or "Traceback" in log or (status == 1 and log.count("Error: ") != 1):
            first = log.find("Traceback")
            shown = log[max(0, first - 200) : first + 1500] if first >= 0 else log[-600:]
            tally.wrong.append(f"{folder}: {fault}: exit status {status}: {shown}")
        if fault == "none" and status != 0:
            raise SystemExit(f"{folder}: a run that nothing befell ended with status {status}: {log}")
        if status != 0:
            stage = working_in(folder)
            tally.faults[fault] += 1
            tally.kills += fault in KILLING
            tally.stages[stage] += 1
            if fault == "cut":
                cut_last_line(folder, self.rng)
        tally.wrong += [f"after {fault}: {problem}" for problem in check_folder(folder)]

    def run(self, kills: int, minutes: float) -> Tally:
        """Goes on until there were so many kills or minutes, and the last run is complete."""
        self.measure()
        end = time.monotonic() + 60 * minutes

        def enough() -> bool:
            return self.tally.kills >= kills or len(self.tally.wrong) >= 10 or time.monotonic() > end

        while not enough():
            folder, done = self.root / f"run-{self.tally.runs:03d}", False
            while not done:
                befalls = self.rng.choices(list(FAULTS), list(FAULTS.values()))[0]
                done = self.attempt(folder, "none" if enough() else befalls)
            self.tally.runs += 1
            found = content(folder)
            different = [n for n in self.straight.keys() | found.keys() if found.get(n) != self.straight.get(n)]
            self.tally.wrong += [f"{folder}: {name} differs from the uninterrupted run" for name in sorted(different)]
            print(f"run {self.tally.runs}: {self.tally.kills} kills", file=sys.stderr)
            if not different:
                shutil.rmtree(folder)
        return self.tally


def compile_everything_once(root: Path) -> None:
    """Runs keep even the smallest compiled function, so that a start takes no compiler."""
    import jax

    def cached(config) -> None:
        jax.config.update("jax_compilation_cache_dir", str(root / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    group.use_compilation_cache = cached


def run_faults(root: Path, *, kills: int, minutes: float, seed: int) -> dict:
    """The whole scripted run; returns its figures."""
    started = time.monotonic()
    compile_everything_once(root)
    harness = Harness(root, seed)
    tally = harness.run(kills, minutes)
    return {
        "kills": tally.kills,
        "faults": dict(tally.faults),
        "by_stage": dict(tally.stages),
        "runs_compared": tally.runs,
        "things_compared_each": len(harness.straight),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_uninterrupted": round(harness.seconds, 2),
        "wrong": tally.wrong,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report = run_faults(Path(temporary), **vars(arguments))
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["wrong"]))
