"""A whole small run in a bucket of the storage emulator, killed with -9 again and again, each time on a new machine.

    python tests/remote_run.py --kills 6 --seed 0

After each kill the working folder is deleted, so the run goes on from what the bucket has. In the end its content must
be that of an uninterrupted run on a disk: rollouts, verdicts, pairs, targets, losses, adapter (bit by bit), results.
Prints a JSON object; exit status 1 when anything is different, or a manifest in the bucket lacked its files.
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
from pathlib import Path

from faults import check_folder, content, fork_run, wait, working_in
from remote_stores import BUCKET, emulator

from ssb_jax.artifacts import file_digest
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


def attempt(root: Path, number: int, delay: float) -> dict:
    """A run on a new machine, killed after a time if it still goes on: what it was at, and what was lost with it."""
    os.environ["SSB_SCRATCH"] = str(root / f"machine-{number}")
    pid = fork_run(root / f"try-{number}", url=URL)
    status = wait(pid, delay)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        status = wait(pid)
    folder, there = working_folder(URL), fetch_all(root / f"bucket-{number}")
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"exit status {status}:\n{Path(f'{root}/try-{number}.log').read_text()}")
    found = {
        "status": status,
        "stage": working_in(folder) if folder.exists() else "",
        "rows": rows(there),
        "rows_lost": max(0, rows(folder) - rows(there)) if folder.exists() else 0,
        "wrong": check_folder(there),
    }
    shutil.rmtree(os.environ["SSB_SCRATCH"], ignore_errors=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, root = random.Random(arguments.seed), Path(tempfile.mkdtemp(prefix="remote-run-"))
    os.environ["SSB_PUSH_SECONDS"] = str(PUSH_SECONDS)
    with emulator() as environment:
        os.environ.update(environment)
        for name in ("warm", "straight"):  # the first compiles
            started = time.monotonic()
            if wait(fork_run(root / name)) != 0:
                raise SystemExit(Path(f"{root / name}.log").read_text())
        seconds, tries = time.monotonic() - started, []
        while not tries or tries[-1]["status"] != 0:
            killing = len(tries) < arguments.kills
            # A new machine first waits for a sign of life of the one before.
            delay = 4 * PUSH_SECONDS * bool(tries) + rng.uniform(0.05, 0.6) * seconds if killing else 600.0
            tries.append(attempt(root, len(tries), delay))
            print(tries[-1], file=sys.stderr)
        remote, local = content(root / f"bucket-{len(tries) - 1}"), content(root / "straight")
        objects = len(open_store(URL).describe())
    adapters = [
        file_digest(folder / "distillation/adapter/adapter_model.safetensors")
        for folder in (root / "straight", root / f"bucket-{len(tries) - 1}")
    ]
    report = {
        "kills": sum(t["status"] != 0 for t in tries),
        "stages": [t["stage"] for t in tries if t["status"] != 0],
        "rows_lost": [t["rows_lost"] for t in tries if t["status"] != 0],
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
