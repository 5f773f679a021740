"""Kills one process, or all and the launcher, in every stage of a run of two hosts, and compares with an untouched run.

    python tests/hosts_faults.py --seed 0 --out FOLDER

The moments are random within each stage. After the last kill the run goes to its end: pairs, losses, evaluation and
adapter must be those of the untouched run, bit by bit. A third run changes from two hosts to one and back. Prints what
was done and found; exit status 1 when anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from ssb_jax.artifacts import read_jsonl
from ssb_jax.records import Pair, Rollout

ROOT = Path(__file__).parent.parent
SMALL = (
    *(
        "--questions.limit",
        "12",
        "--rollouts.block_size",
        "6",
        "--teaching.max_pairs",
        "8",  # more than the first block gives, so that there is a second
        "--targets.batch_size",
        "2",
    ),
    *("--engine.slots", "8", "--engine.chunk", "8", "--grading.workers", "1"),
    *("--distillation.epochs", "4", "--distillation.checkpoint_every", "1", "--distillation.tensorboard", "false"),
    "--evaluation.sets=[{name: test, data: {path: 'builtin:arithmetic', split: test, limit: 6}, "
    "sampling: {temperature: 0.8, top_k: 50, top_p: 1.0, max_new_tokens: 96}}]",
)
# Where a stage is under way: files, of which there must be so many lines (or files, for a folder).
STAGES = {
    "rollouts": ("blocks/0000/rollouts/part-*.jsonl", 24),
    "rollouts of the second block": ("blocks/0001/rollouts/part-*.jsonl", 24),
    "teaching": ("blocks/0000/teaching/part-*.jsonl", 4),
    "targets": ("targets/*", 6),
    "distillation": ("distillation/metrics.jsonl", 7),
    "evaluation of the base": ("evaluation/test/base/part-*.jsonl", 6),
    "evaluation of the student": ("evaluation/test/ssb/part-*.jsonl", 6),
}


def launch(folder: Path, processes: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "launch", "local", "--processes", str(processes), "--"]
    command += ["run", "configs/tiny.yaml", "--out", str(folder), *SMALL]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def amount(folder: Path, pattern: str) -> int:
    paths = list(folder.glob(pattern))
    return sum(path.read_bytes().count(b"\n") for path in paths) if "jsonl" in pattern else len(paths)


def reached(process: subprocess.Popen, folder: Path, stage: str, wanted: int) -> bool:
    """Whether the run came to the moment before it ended."""
    pattern, _ = STAGES[stage]
    while process.poll() is None:
        if amount(folder, pattern) >= wanted:
            return True
        time.sleep(0.005)
    return False


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def kill(process: subprocess.Popen, who: str, dice: random.Random) -> None:
    while len(children(process)) == 0 and process.poll() is None:
        time.sleep(0.005)  # the launcher is between two attempts
    if who == "one":
        os.kill(dice.choice(children(process)), signal.SIGKILL)
    else:
        for pid in (process.pid, *children(process)):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def differences(one: Path, other: Path, *, exactly: bool) -> list[str]:
    """What of two finished runs is not the same."""
    wrong = []
    for folder in sorted({path.parent.relative_to(one) for path in one.rglob("part-*.jsonl")}):
        rows = [
            sorted((row for path in (run / folder).glob("part-*.jsonl") for row in read_jsonl(path, Rollout)), key=repr)
            for run in (one, other)
        ]
        if rows[0] != rows[1]:
            wrong.append(str(folder))
    if read_jsonl(one / "pairs/pairs.jsonl", Pair) != read_jsonl(other / "pairs/pairs.jsonl", Pair):
        wrong.append("pairs")
    losses = [
        np.array([json.loads(line)["loss"] for line in (run / "distillation/metrics.jsonl").read_text().splitlines()])
        for run in (one, other)
    ]
    if losses[0].shape != losses[1].shape or not np.allclose(*losses, rtol=0, atol=0 if exactly else 1e-5):
        wrong.append("losses")
    adapters = [load_file(run / "distillation/adapter/adapter_model.safetensors") for run in (one, other)]
    if any(not np.allclose(adapters[0][k], adapters[1][k], rtol=0, atol=0 if exactly else 1e-4) for k in adapters[0]):
        wrong.append("adapter")
    results = [json.loads((run / "evaluation/results.json").read_text())["sets"] for run in (one, other)]
    return wrong + (["evaluation"] if results[0] != results[1] else [])


def killed_run(folder: Path, dice: random.Random) -> list[str]:
    """A run that loses a process, then everything, then a process, in every stage; returns what was done."""
    done, process = [], launch(folder, 2)
    for stage, (_, most) in STAGES.items():
        for third, who in enumerate(("one", "all", "one")):
            if reached(process, folder, stage, dice.randint(most * third // 3 + 1, most * (third + 1) // 3)):
                kill(process, who, dice)
                done.append(f"{who} in {stage}")
                print(f"killed {done[-1]}", file=sys.stderr, flush=True)
            if process.poll() is not None:
                process = launch(folder, 2)
    assert process.wait() == 0, Path(f"{folder}.log").read_text()[-2000:]
    return done


def changing_run(folder: Path) -> None:
    """Two hosts until the second block, one until the middle of distillation, then two."""
    for processes, stage, wanted in ((2, "rollouts of the second block", 6), (1, "distillation", 3)):
        process = launch(folder, processes)
        assert reached(process, folder, stage, wanted)
        kill(process, "all", random.Random(0))
    assert launch(folder, 2).wait() == 0, Path(f"{folder}.log").read_text()[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    straight, killed, changing = (arguments.out / name for name in ("straight", "killed", "changing"))
    assert launch(straight, 2).wait() == 0, Path(f"{straight}.log").read_text()[-2000:]
    done = killed_run(killed, random.Random(arguments.seed))
    wrong = differences(straight, killed, exactly=True)
    print(json.dumps({"kills": len(done), "done": done, "different": wrong}), flush=True)
    changing_run(changing)
    wrong_too = differences(straight, changing, exactly=False)
    print(json.dumps({"hosts": [2, 1, 2], "different": wrong_too}))
    return 1 if wrong or wrong_too else 0


if __name__ == "__main__":
    sys.exit(main())
