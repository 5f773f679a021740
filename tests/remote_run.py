"""A whole small run in a bucket of the storage emulator, stopped again and again.

    python tests/remote_run.py --stops 12 --seed 0

It is stopped with SIGKILL or SIGTERM at random times; then its working folder is deleted, as on a new machine, which
has but the bucket, or kept. In the end its content must be that of an uninterrupted run on a disk: rollouts, verdicts,
pairs, targets, losses, adapter (bit by bit), results. Prints a JSON object; exit status 1 when anything is different,
a manifest in the bucket lacked its files, or SIGTERM lost a row.
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
from collections import Counter
from pathlib import Path

from faults import check_folder, content, fork_run, wait, working_in
from remote_stores import BUCKET, emulator

from ssb_jax.artifacts import file_digest
from ssb_jax.hosts import STOPPED
from ssb_jax.remote.mirror import Mirror, working_folder
from ssb_jax.remote.store import open_store

URL = f"gs://{BUCKET}/tiny"
PUSH_SECONDS = 1.0


def fetch_all(folder: Path) -> Path:
    """What a new machine would fetch."""
    store = open_store(URL)
    last = store.read(".last-folder")
    Mirror(store, folder).start()
    store.write(".last-folder", last or b"")  # only looked at
    return folder


def rows(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.jsonl"))


def attempt(root: Path, number: int, delay: float, stop: signal.Signals, new_machine: bool) -> dict:
    """A run, stopped after a time if it still goes on: what it was at, and what was lost with the machine."""
    pid = fork_run(root / f"try-{number}", url=URL)
    status = wait(pid, delay)
    if status is None:
        os.kill(pid, stop)
        status = wait(pid)
    folder, there = working_folder(URL), fetch_all(root / f"bucket-{number}")
    if status not in (0, -signal.SIGKILL, -signal.SIGTERM, STOPPED):
        raise SystemExit(f"exit status {status}:\n{Path(f'{root}/try-{number}.log').read_text()}")
    found = {
        "status": status,
        "stage": working_in(folder) if folder.exists() else "",
        "new_machine": new_machine,
        "rows_lost": max(0, rows(folder) - rows(there)) if folder.exists() else 0,
        "wrong": check_folder(there),
    }
    if status == STOPPED and found["rows_lost"]:
        found["wrong"].append(f"SIGTERM lost {found['rows_lost']} rows")
    if new_machine:
        shutil.rmtree(os.environ["SSB_SCRATCH"], ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stops", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, root = random.Random(arguments.seed), Path(tempfile.mkdtemp(prefix="remote-run-"))
    os.environ |= {"SSB_PUSH_SECONDS": str(PUSH_SECONDS), "SSB_SCRATCH": str(root / "machine")}
    with emulator() as environment:
        os.environ.update(environment)
        for name in ("warm", "straight"):  # the first compiles
            started = time.monotonic()
            if wait(fork_run(root / name)) != 0:
                raise SystemExit(Path(f"{root / name}.log").read_text())
        seconds, tries = time.monotonic() - started, []
        while not tries or tries[-1]["status"] != 0:
            # A new machine first waits for a sign of life of the one before.
            waits = 4 * PUSH_SECONDS if tries and tries[-1]["new_machine"] else 0.0
            delay = waits + rng.uniform(0.03, 0.4) * seconds if len(tries) < arguments.stops else 600.0
            stop = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            tries.append(attempt(root, len(tries), delay, stop, rng.random() < 0.6))
            print(tries[-1], file=sys.stderr)
        remote, local = content(root / f"bucket-{len(tries) - 1}"), content(root / "straight")
        objects = len(open_store(URL).describe())
    adapters = [
        file_digest(folder / "distillation/adapter/adapter_model.safetensors")
        for folder in (root / "straight", root / f"bucket-{len(tries) - 1}")
    ]
    kills = [t for t in tries if t["status"] == -signal.SIGKILL]
    report = {
        "killed": len(kills),
        "terminated": sum(t["status"] in (STOPPED, -signal.SIGTERM) for t in tries),
        "new_machines": sum(t["new_machine"] for t in tries[:-1]),
        "stages": Counter(t["stage"] for t in tries[:-1]),
        "rows_lost_with_new_machines": [t["rows_lost"] for t in kills if t["new_machine"]],
        "objects": objects,
        "compared": len(local),
        "different": sorted(name for name in remote.keys() | local.keys() if remote.get(name) != local.get(name)),
        "wrong": [problem for t in tries for problem in t["wrong"]],
        "adapter": adapters,
        "seconds_on_a_disk": round(seconds, 1),
    }
    print(json.dumps(report, indent=1))
    shutil.rmtree(root)
    sys.exit(bool(report["different"] or report["wrong"]))


if __name__ == "__main__":
    main()
