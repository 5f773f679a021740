"""A long run of the stages that have no network: 20,000 questions, 80,000 rollouts, a model that is a script.

    python tests/soak.py --questions 20000

The pipeline is the real one (questions, rollouts, verification, hints, teaching, pairs), files, tokenizer and graders
too; in the place of the engine stands a function that answers by a hash of (seed, question, sample): right, wrong, in
LaTeX, unanswered, cut off, or hostile. Memory, open files and throughput are taken block by block; then parts of the
run are deleted and made again, which must take time in proportion. Prints a JSON object; exit status 1 when memory
grows by more than 5 % after the first quarter, files stay open, or the throughput falls by more than a quarter.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssb_jax import answering, pipeline
from ssb_jax.answers.pool import TIME_LIMIT
from ssb_jax.artifacts import iterate_jsonl
from ssb_jax.chat import Chat
from ssb_jax.config import config_from_dict
from ssb_jax.records import Lesson, Pair, Rollout, StopReason, Verdict
from ssb_jax.sampling import Completion, Request
from ssb_jax.workspace import Workspace

HOSTILE = r"\boxed{((((7!)!)!)!)^{(9^{99})}}"


def write_questions(path: Path, count: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            a, b = 2 + i // 97, 3 + i % 97
            text = f"Anna has {a} coins. Anna finds {b} more. How many coins does Anna have now?"
            file.write(json.dumps({"question": text, "answer": str(a + b), "id": f"q{i}"}) + "\n")


def reply(seed: int, question: int, sample: int) -> tuple[str, StopReason]:
    """What the scripted model says: by a hash, so that it does not depend on when it is asked."""
    draw = int.from_bytes(hashlib.sha256(f"{seed} {question} {sample}".encode()).digest()[:4]) / 2**32
    right = 5 + question // 97 + question % 97
    say = f"There are {2 + question // 97} and {3 + question % 97}. Together they are".__add__
    if draw < 0.0001:
        return say(f" many: {HOSTILE}"), StopReason.END_OF_TURN
    if draw < 0.02:
        return say(" hard to count."), StopReason.END_OF_TURN
    if draw < 0.04:
        return say(" " * 40), StopReason.LENGTH
    if draw < 0.07:
        return say(rf" \boxed{{\frac{{{3 * right}}}{{3}} + \sqrt{{4}} - 2}}."), StopReason.END_OF_TURN
    value = right if draw < 0.6 else right + 1 + int(draw * 100) % 3
    return say(rf" {value}. The answer is \boxed{{{value}}}."), StopReason.END_OF_TURN


def scripted_engine(chat: Chat):
    """In the place of `ssb_jax.sampling.generate`: the same arguments, completions in the order of the requests."""

    def generate(model: object, requests: Sequence[Request], *, seed: int, **_: object) -> Iterator[Completion]:
        for request in requests:
            for sample in request.samples:
                text, stop = reply(seed, int(request.id.removeprefix("q")), sample)
                yield Completion(request.id, sample, tuple(chat.encode_text(text)), stop)

    return generate


class Watch:
    """Looks at this process ten times a second, and remembers the most that it saw since it was last asked."""

    def __init__(self) -> None:
        self._peak = self._files = 0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._peak = max(self._peak, pages * os.sysconf("SC_PAGE_SIZE"))
            self._files = max(self._files, len(os.listdir("/proc/self/fd")))
            time.sleep(0.1)

    def take(self) -> dict[str, float]:
        peak, files, self._peak, self._files = self._peak, self._files, 0, 0
        return {"megabytes": round(peak / 1e6, 1), "files": files, "files_after": len(os.listdir("/proc/self/fd"))}


def make_run(folder: Path, questions: Path, block_size: int) -> pipeline.Run:
    config = config_from_dict(
        {
            "model": {"path": "builtin:tiny"},
            "questions": {"path": str(questions), "id_column": "id"},
            "prompts": {"system": "tiny_tutor", "hinted": "tiny_hinted"},
            "rollouts": {"block_size": block_size, "max_new_tokens": 96},
            "teaching": {"max_pairs": None, "max_new_tokens": 96},
            "grading": {"workers": 1},
        }
    )
    run = pipeline.Run(folder, Workspace(config))
    answering.generate = scripted_engine(run.workspace.chat)
    return run


def go(run: pipeline.Run, watch: Watch) -> tuple[float, list[dict]]:
    """The whole run, timed, with what each block took for its rollouts and for its teaching."""
    blocks: list[dict] = []
    real = pipeline.pairs.completed
    began = last = time.monotonic()

    def completed(folder: Path, stage: str, *rest, **more):
        nonlocal last
        manifest = real(folder, stage, *rest, **more)
        if stage in ("hints", "teaching"):
            now = time.monotonic()
            blocks.append({"stage": stage, "seconds": round(now - last, 2), **watch.take()})
            last = now
        return manifest

    pipeline.pairs.completed = completed
    try:
        pipeline.roll_out(run)
        pipeline.teach(run)
    finally:
        pipeline.pairs.completed = real
    return time.monotonic() - began, blocks


def growth(values: Sequence[float]) -> float:
    """By what share the last quarter's mean exceeds the second quarter's: what comes after the warm-up."""
    quarter = max(1, len(values) // 4)
    early, late = values[quarter : 2 * quarter], values[-quarter:]
    return sum(late) / len(late) / (sum(early) / len(early)) - 1


def check_rows(folder: Path, questions: int) -> dict[str, int]:
    """Every question has its rows, once."""
    keys = [
        (r.question_id, r.sample)
        for path in folder.rglob("rollouts/part-*.jsonl")
        for _, r in iterate_jsonl(path, Rollout)
    ]
    verdicts = [
        v.outcome.value for path in sorted(folder.rglob("verdicts.jsonl")) for _, v in iterate_jsonl(path, Verdict)
    ]
    lessons = [x.question_id for path in folder.rglob("lessons.jsonl") for _, x in iterate_jsonl(path, Lesson)]
    pairs = [p.question_id for _, p in iterate_jsonl(folder / "pairs/pairs.jsonl", Pair)]
    lost = 4 * questions - len(set(keys))
    doubled = len(keys) - len(set(keys)) + len(lessons) - len(set(lessons)) + len(pairs) - len(set(pairs))
    outcomes = {outcome: verdicts.count(outcome) for outcome in sorted(set(verdicts))}
    return {"rollouts": len(keys), "pairs": len(pairs), "lost": lost, "doubled": doubled, **outcomes}


def soak(root: Path, *, questions: int, blocks: int) -> dict:
    """The whole soak; returns its figures."""
    write_questions(root / "questions.jsonl", questions)
    watch, size = Watch(), -(-questions // blocks)

    def fresh_run() -> pipeline.Run:
        return make_run(root / "run", root / "questions.jsonl", size)

    seconds, taken = go(fresh_run(), watch)
    report: dict = {"questions": questions, "seconds": round(seconds, 1), "grader_limit": TIME_LIMIT}
    for stage in ("hints", "teaching"):
        rows = [row for row in taken if row["stage"] == stage]
        report["rollouts to hints" if stage == "hints" else stage] = {
            "questions_a_second": [round(size / row["seconds"], 1) for row in rows],
            "megabytes": [row["megabytes"] for row in rows],
            "files": [row["files"] for row in rows],
            "memory_growth": round(growth([row["megabytes"] for row in rows]), 4),
            "slower": round(growth([row["seconds"] for row in rows]), 4),
            "files_left": rows[-1]["files_after"] - rows[len(rows) // 4]["files_after"],
        }
    report["rows"] = check_rows(root / "run", questions)
    report["resume"] = {"all": round(seconds, 1)}
    for name, missing in (("nothing", 0), ("a tenth", blocks // 10), ("half", blocks // 2)):
        shutil.rmtree(root / "run/pairs")
        for block in range(blocks - missing, blocks):
            shutil.rmtree(root / f"run/blocks/{block:04d}")
        report["resume"][name] = round(go(fresh_run(), watch)[0], 1)
    report["rows_after"] = check_rows(root / "run", questions)
    return report


def verdict(report: dict) -> bool:
    """Whether everything is flat and no row lost or doubled."""
    stages = [report["rollouts to hints"], report["teaching"]]
    flat = all(s["memory_growth"] < 0.05 and s["files_left"] == 0 and s["slower"] < 0.33 for s in stages)
    rows = [report["rows"], report["rows_after"]]
    return flat and rows[0] == rows[1] and rows[0]["lost"] == rows[0]["doubled"] == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--blocks", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        figures = soak(Path(temporary), questions=arguments.questions, blocks=arguments.blocks)
    print(json.dumps(figures, indent=1))
    sys.exit(not verdict(figures))
