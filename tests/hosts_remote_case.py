"""What test_hosts_remote.py compares: a run of two processes on a disk, and one in a bucket that was killed.

    python tests/hosts_remote_case.py FOLDER

The command is `ssb run` itself, with a script in the place of the engine (soak.py), which answers slowly enough to be
killed. Leaves `straight`, the run on the disk, and `bucket`, what a new machine would fetch from the store; prints what
was done as a JSON object.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import soak
from faults import compile_everything_once
from remote_run import URL, Group, fetch_all
from remote_stores import emulator

from ssb_jax import answering
from ssb_jax.chat import load_chat
from ssb_jax.model.weights import resolve_model
from ssb_jax.records import StopReason
from ssb_jax.remote.store import open_store

ANSWER_SECONDS = 0.03


def settings(questions: Path) -> list[str]:
    sets = [{"name": "test", "num_samples": 2, "data": {"path": str(questions), "id_column": "id", "limit": 4}}]
    return [
        *(f"--questions.path={questions}", "--questions.id_column=id", "--questions.answer_column=answer"),
        *("--questions.limit=12", "--rollouts.block_size=12", "--teaching.max_pairs=4", "--grading.workers=1"),
        *("--targets.batch_size=2", "--lora.target_modules=[q_proj]", "--distillation.epochs=12"),
        *("--distillation.batch_size=2", "--distillation.checkpoint_every=1", "--distillation.keep_checkpoints=4"),
        "--distillation.tensorboard=false",
        f"--evaluation.sets={json.dumps(sets)}",
    ]


def answer_slowly() -> None:
    """The scripted engine in the place of the real one, here and in every process that is forked."""
    reply = soak.reply

    def slowly(seed: int, question: int, sample: int) -> tuple[str, StopReason]:
        time.sleep(ANSWER_SECONDS)
        return reply(seed, question, sample)

    soak.reply = slowly
    answering.generate = soak.scripted_engine(load_chat(resolve_model("builtin:tiny")))


def rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def sealed() -> list[int]:
    """The steps of whole checkpoints in the store."""
    return sorted(int(Path(name).stem) for name in open_store(URL).describe() if "checkpoints/digests/" in name)


def damage_newest_checkpoint() -> list[int]:
    """Changes an object of it; returns the steps of the one before, which is whole, and of this one."""
    store, (*_, before, step) = open_store(URL), sealed()
    arrays = max(name for name in store.describe() if f"checkpoints/{step}/state/d/" in name)
    store.write(arrays, store.read(arrays)[:-1] + b"?")
    return [before, step]


def kill_at(group: Group, name: str, whom: tuple[int, ...], moment: Callable[[], bool]) -> list[int]:
    """Starts the run and kills some of its processes; returns the statuses of all."""
    pids, deadline = group.start(name, url=URL), time.monotonic() + 120
    while not moment() and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in whom:
        os.kill(pids[process], signal.SIGKILL)
    return group.finish(name, pids)


def main(root: Path) -> None:
    soak.write_questions(root / "questions.jsonl", 12)
    os.environ["SSB_PUSH_SECONDS"] = "0.2"
    compile_everything_once(root)
    answer_slowly()
    group = Group(root, 2, settings(root / "questions.jsonl"))
    with emulator() as environment:
        os.environ.update(environment)
        done: dict = {"straight": group.finish("straight", group.start("straight"))}
        part = group.folder(1) / "blocks/0000/rollouts/part-00001.jsonl"
        done["rollouts"] = kill_at(group, "rollouts", (1,), lambda: rows(part) >= 12)
        done["rows"] = rows(part)
        group.forget(0)
        group.forget(1)
        done["training"] = kill_at(group, "training", (1, 0), lambda: len(sealed()) > 2)
        done["damaged"] = damage_newest_checkpoint()
        done["end"] = group.finish("end", group.start("end", url=URL))
        fetch_all(root / "bucket")
    print(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
