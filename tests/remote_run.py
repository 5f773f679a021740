"""A whole small run in a bucket of the storage emulator, stopped again and again.

    python tests/remote_run.py --stops 12 --seed 0 --processes 2 --changing

It is stopped with SIGKILL or SIGTERM at random times; then its working folder is deleted, as on a new machine, which
has but the bucket, or kept. Of several processes, each with a folder of its own, one or all are stopped; where one was
killed, the others are too, as launchers do. In the end its content must be that of an uninterrupted run of as many
processes on a disk: rollouts, verdicts, pairs, targets, losses, adapter (bit by bit), results. With --changing each try
is of one process or of all, and losses and adapter are compared to 1e-5 and 1e-4. Prints a JSON object; exit status 1
when anything is different, a manifest in the bucket lacked its files, or SIGTERM to all lost a row.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from faults import SMALL, compile_everything_once, fork_run, wait, working_in
from hosts_faults import differences
from jax._src import compiler
from remote_stores import BUCKET, emulator
from run_content import check_folder, content

from ssb_jax.artifacts import file_digest
from ssb_jax.hosts import STOPPED
from ssb_jax.remote.mirror import LAST, Mirror, working_folder
from ssb_jax.remote.store import open_store

URL = f"gs://{BUCKET}/tiny"
PUSH_SECONDS = 1.0


@dataclass(frozen=True)
class Group:
    """The processes of a run, each on what it takes for a machine of its own."""

    root: Path
    processes: int
    settings: Sequence[str] = SMALL

    def machine(self, process: int) -> Path:
        return self.root / f"machine-{process}"

    def folder(self, process: int) -> Path:
        """Where a process works."""
        os.environ["SSB_SCRATCH"] = str(self.machine(process))
        return working_folder(URL, process)

    def forget(self, process: int) -> None:
        """Puts a new machine in the place of this one."""
        shutil.rmtree(self.machine(process), ignore_errors=True)

    def start(self, name: str, *, url: str | None = None) -> list[int]:
        """Process ids; what they say is in NAME-0.log and so on. Without a URL the run is on the disk, in NAME."""
        port = free_port()
        return [self._start(process, name, port, url) for process in range(self.processes)]

    def _start(self, process: int, name: str, port: int, url: str | None) -> int:
        def prepare() -> None:
            os.environ["SSB_SCRATCH"] = str(self.machine(process))
            if self.processes > 1:
                os.environ["SSB_COORDINATOR"] = f"localhost:{port}"
                os.environ |= {"SSB_PROCESSES": str(self.processes), "SSB_PROCESS": str(process)}
                keep_what_is_compiled()

        out = url or str(self.root / name)
        return fork_run(self.root / f"{name}-{process}", prepare, url=out, settings=self.settings)

    def log(self, name: str) -> str:
        return "\n".join(Path(f"{self.root / name}-{process}.log").read_text() for process in range(self.processes))

    def finish(self, name: str, pids: list[int]) -> list[int]:
        """The exit statuses; once a process ended without success, the others have a second, and are killed."""
        statuses: dict[int, int | None] = dict.fromkeys(pids)
        deadline = None
        while None in statuses.values():
            for pid in [pid for pid, status in statuses.items() if status is None]:
                statuses[pid] = wait(pid, 0.01)
            if deadline is None and any(statuses.values()):
                deadline = time.monotonic() + 30 * all(s in (None, STOPPED) for s in statuses.values())
            if deadline is not None and time.monotonic() > deadline:
                for pid in [pid for pid, status in statuses.items() if status is None]:
                    os.kill(pid, signal.SIGKILL)
        return list(statuses.values())


def keep_what_is_compiled() -> None:
    """JAX keeps what process 0 compiles; here what any does, or each start would compile for minutes."""
    compiler.distributed = SimpleNamespace(global_state=SimpleNamespace(process_id=0, client=None))


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def fetch_all(folder: Path) -> Path:
    """What a new machine would fetch."""
    store = open_store(URL)
    last = store.read(LAST)
    Mirror(store, folder).start()
    store.write(LAST, last or b"")  # only looked at
    return folder


def lines(folder: Path) -> Counter:
    return Counter({str(path.relative_to(folder)): path.read_bytes().count(b"\n") for path in folder.rglob("*.jsonl")})


@dataclass(frozen=True)
class Stop:
    """What befalls a try: the signal, the processes that get it, and those whose machine is new afterwards."""

    delay: float
    signal: signal.Signals
    whom: tuple[int, ...]
    new: tuple[int, ...]


def attempt(group: Group, number: int, stop: Stop) -> dict:
    """A run, stopped after a time if it still goes on: what it was at, and what was lost with the machine."""
    name = f"try-{number}"
    pids = group.start(name, url=URL)
    first = wait(pids[0], stop.delay)
    if first is None:
        for process in stop.whom:
            os.kill(pids[process], stop.signal)
        statuses = group.finish(name, pids)
    else:
        statuses = [first, *group.finish(name, pids[1:])]
    there = fetch_all(group.root / f"bucket-{number}")
    allowed = (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT, STOPPED)
    if not set(statuses) <= set(allowed):
        raise SystemExit(f"exit statuses {statuses}:\n{group.log(name)}")
    folders = [group.folder(process) for process in range(group.processes)]
    found = {
        "statuses": statuses,
        "signal": stop.signal.name,
        "whom": stop.whom,
        "stage": working_in(folders[0]) if folders[0].exists() else "",
        "new_machines": stop.new,
        "rows_lost": sum((sum((lines(f) - lines(there)).values()) for f in folders if f.exists()), 0),
        "wrong": check_folder(there),
    }
    if set(statuses) == {STOPPED} and len(stop.whom) == group.processes and found["rows_lost"]:
        found["wrong"].append(f"SIGTERM lost {found['rows_lost']} rows")
    for process in stop.new:
        group.forget(process)
    return found


def run(group: Group, *, stops: int, seed: int, changing: bool) -> dict:
    """A run on the disk, one in the bucket that is stopped so many times, and how they compare."""
    rng, tries, hosts = random.Random(seed), [], []
    for name in ("warm", "straight"):  # the first compiles
        started = time.monotonic()
        statuses = group.finish(name, group.start(name))
        if any(statuses):
            raise SystemExit(group.log(name))
    seconds = time.monotonic() - started
    while not tries or any(tries[-1]["statuses"]):
        # A new machine first waits for a sign of life of the one before.
        waits = 4 * PUSH_SECONDS if tries and 0 in tries[-1]["new_machines"] else 0.0
        trying = replace(group, processes=rng.choice((1, group.processes)) if changing else group.processes)
        everyone = tuple(range(trying.processes))
        hosts.append(trying.processes)
        stop = Stop(
            delay=waits + rng.uniform(0.03, 0.3) * seconds if len(tries) < stops else 600.0,
            signal=rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)),
            whom=rng.choice((everyone, (rng.choice(everyone),))),
            new=rng.choice(((), everyone, (rng.choice(everyone),))),
        )
        tries.append(attempt(trying, len(tries), stop))
        print(tries[-1], file=sys.stderr)
    last = group.root / f"bucket-{len(tries) - 1}"
    straight = group.root / "straight"
    remote, local = content(last), content(straight)
    different = [name for name in remote.keys() | local.keys() if remote.get(name) != local.get(name)]
    stopped = [t for t in tries if any(t["statuses"])]
    return {
        "processes": hosts if changing else group.processes,
        "killed": sum(t["signal"] == "SIGKILL" for t in stopped),
        "terminated": sum(t["signal"] == "SIGTERM" for t in stopped),
        "whom": Counter(str(t["whom"]) for t in stopped),
        "new_machines": Counter(len(t["new_machines"]) for t in stopped),
        "stages": Counter(t["stage"] for t in stopped),
        "rows_lost": [t["rows_lost"] for t in stopped],
        "objects": len(open_store(URL).describe()),
        "compared": len(local),
        "different": differences(straight, last, exactly=False) if changing else sorted(different),
        "wrong": [problem for t in tries for problem in t["wrong"]],
        "adapter": [
            file_digest(folder / "distillation/adapter/adapter_model.safetensors") for folder in (straight, last)
        ],
        "seconds_on_a_disk": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--changing", action="store_true")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="remote-run-"))
    os.environ["SSB_PUSH_SECONDS"] = str(PUSH_SECONDS)
    compile_everything_once(root)
    with emulator() as environment:
        os.environ.update(environment)
        options = {"stops": arguments.stops, "seed": arguments.seed, "changing": arguments.changing}
        report = run(Group(root, arguments.processes), **options)
    print(json.dumps(report, indent=1))
    shutil.rmtree(root)
    sys.exit(bool(report["different"] or report["wrong"]))


if __name__ == "__main__":
    main()
