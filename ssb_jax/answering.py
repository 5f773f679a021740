"""Ask the model, keep what it says, grade it: what rollouts, teaching and evaluation have in common.

Answers are appended to a file as they finish, so that a call that was cut off goes on with what is missing. Each
process of a run answers a share of what is missing, on its own devices and into a file of its own; an answer depends on
neither, so a run may go on with more or fewer processes.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import BoundedSemaphore

from ssb_jax import hosts
from ssb_jax.answers import Grade, GraderPool, strict_equal
from ssb_jax.artifacts import appending, drop_partial_line, read_jsonl, write_atomically
from ssb_jax.config import Grading, SsbError
from ssb_jax.console import note, progress
from ssb_jax.model.lora import Lora
from ssb_jax.model.weights import read_config
from ssb_jax.records import Outcome, Question, Rollout, StopReason, Verdict, parse_json
from ssb_jax.sampling import Completion, EngineStats, Request, SamplingParams, generate
from ssb_jax.workspace import Workspace

PARTS = "part-*.jsonl"
ENGINES = ".engine-*.json"  # hidden: how long it took is not part of what a folder holds


def answer(
    prompts: Mapping[str, Sequence[int]],
    *,
    num_samples: int,
    params: SamplingParams,
    folder: Path,
    workspace: Workspace,
    seed: int,
    description: str,
    lora: Lora | None = None,
    attempts: int = 1,
) -> dict:
    """Samples `num_samples` answers to each prompt into `folder`, continuing what is there.

    Args:
      prompts: question id -> prompt token ids.
      seed: with question id and sample index it determines the answer.
      attempts: how often a failed generation is tried before it is recorded as failed.

    Returns:
      Counts: rows, tokens, by stop reason; and under `engine` what the engine did, over all calls for this folder.
    """
    log = EngineLog(folder / f".engine-{hosts.index():05d}.json")
    _check_lengths(prompts, workspace)
    hosts.on_first(lambda: _mend(folder, prompts, num_samples))
    done = {(row.question_id, row.sample) for row in _read_parts(folder)}
    hosts.gather(None)  # nobody writes before all have read
    requests = hosts.share(
        [
            Request(id=key, prompt_ids=tuple(ids), params=params, samples=missing)
            for key, ids in prompts.items()
            if (missing := tuple(s for s in range(num_samples) if (key, s) not in done))
        ]
    )
    if requests:
        total = sum(len(request.samples) for request in requests)
        with (
            appending(folder / f"part-{hosts.index():05d}.jsonl") as append,
            progress(description, total + len(done), done=len(done)) as advance,
            behind() as later,
        ):
            for completion in _generate_retrying(
                requests,
                attempts=attempts,
                seed=seed,
                lora=lora,
                workspace=workspace,
                log=log,
                asked=len(prompts) * num_samples // hosts.count(),
            ):
                hosts.stop_if_asked()
                later(lambda completion=completion: append(_rollout(completion, prompts, workspace)))
                advance(**log.shown())
    return hosts.on_first(lambda: _counts(folder) if prompts else {"rows": 0})


@contextlib.contextmanager
def behind(*, most: int = 1024) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs calls in order on another thread, so that devices do not wait for text and disks; all are done at the end.

    `most` calls may wait. After one that raises none is run, and its error is raised by the next that is given, or at
    the end.
    """
    room, errors = BoundedSemaphore(most), []

    def run(call: Callable[[], None]) -> None:
        try:
            if not errors:
                call()
        except BaseException as error:  # raised where the caller sees it
            errors.append(error)
        finally:
            room.release()

    def check() -> None:
        if errors:
            raise errors[0]

    def later(call: Callable[[], None]) -> None:
        check()
        room.acquire()
        thread.submit(run, call)

    try:
        with ThreadPoolExecutor(max_workers=1) as thread:
            yield later
    finally:
        check()  # also where the caller failed or was stopped: its rows may not be on the disk


def _counts(folder: Path) -> dict:
    """Of all processes together."""
    engines = [_read_stats(path) for path in sorted(folder.glob(ENGINES))]
    return count_rollouts(_read_parts(folder)) | {"engine": sum(engines, EngineStats()).as_dict()}


def _read_stats(path: Path) -> EngineStats:
    try:
        return EngineStats(**parse_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise SsbError(f"{path} is not readable ({error}); delete it: only the engine's own counts are in it") from None


class EngineLog:
    """What the engine did for a folder, kept beside the rows, so that a stage that was cut off counts all its calls."""

    def __init__(self, path: Path):
        self.path = path
        self.earlier = _read_stats(path) if path.exists() else EngineStats()
        self.now = EngineStats()
        self.saved = time.monotonic()

    @property
    def total(self) -> EngineStats:
        return self.earlier + self.now

    def update(self, stats: EngineStats) -> None:
        """Takes the counts of the call that is under way; a kill loses those of the last seconds."""
        self.now = replace(stats, slots=max(stats.slots, self.now.slots))  # a run's tail goes on with fewer
        if time.monotonic() - self.saved > 5:
            self._save()

    def end_call(self) -> None:
        self.earlier, self.now = self.total, EngineStats()
        self._save()

    def shown(self) -> dict[str, object]:
        """What the progress bar says."""
        stats = self.total
        return {
            "tokens/s": round(stats.tokens_per_second),
            **{name: f"{100 * getattr(stats, f'{name}_share'):.0f} %" for name in ("prefill", "padding")},
            "occupancy": f"{100 * stats.occupancy:.0f} %",
            "cut off": stats.length,
            **({"failed": stats.failed} if stats.failed else {}),
        }

    def _save(self) -> None:
        write_atomically(self.path, json.dumps(asdict(self.total)))
        self.saved = time.monotonic()


def sample(
    prompts: Mapping[str, Sequence[int]],
    *,
    num_samples: int,
    params: SamplingParams,
    workspace: Workspace,
    seed: int,
    lora: Lora | None = None,
    attempts: int = 1,
) -> list[Rollout]:
    """As `answer`, and nothing is kept on disk: the answers in the order of the prompts and by sample."""
    _check_lengths(prompts, workspace)
    requests = [Request(key, tuple(ids), params, tuple(range(num_samples))) for key, ids in prompts.items()]
    completions = _generate_retrying(requests, attempts=attempts, seed=seed, lora=lora, workspace=workspace)
    rank = {key: i for i, key in enumerate(prompts)}
    rows = [_rollout(completion, prompts, workspace) for completion in completions]
    return sorted(rows, key=lambda row: (rank[row.question_id], row.sample))


def check_questions(questions: Sequence[Question], workspace: Workspace) -> None:
    """Whether the bare questions leave the model room for an answer, before anything is computed.

    Raises:
      SsbError: naming the first that does not.
    """
    messages = workspace.prompts.student_messages
    texts = {question.id: question.question for question in questions}
    _check_lengths({key: workspace.chat.encode_prompt(messages(text)) for key, text in texts.items()}, workspace, texts)


def _check_lengths(
    prompts: Mapping[str, Sequence[int]], workspace: Workspace, texts: Mapping[str, str] | None = None
) -> None:
    context = read_config(workspace.model_folder).max_position_embeddings
    long = [key for key, ids in prompts.items() if len(ids) >= context]
    if long:
        others = f", and so do those of {len(long) - 1} others" if len(long) > 1 else ""
        raise SsbError(
            f"question {long[0]}{'' if texts is None else f' ({texts[long[0]][:60]!r}...)'}: its prompt of "
            f"{len(prompts[long[0]]):,} tokens fills the model's context of {context:,}{others}; leave it out of the "
            f"questions or shorten it"
        )


def _mend(folder: Path, prompts: Mapping[str, Sequence[int]], num_samples: int) -> None:
    """Drops lines that a kill cut off, and refuses rows that were not asked for."""
    for path in folder.glob(PARTS):
        drop_partial_line(path)
    keys = [(row.question_id, row.sample) for row in _read_parts(folder)]
    strange = [key for key in keys if key[0] not in prompts or key[1] >= num_samples]
    if strange or len(set(keys)) < len(keys):
        what = f"a row for {strange[0]}" if strange else "a row twice"
        raise SsbError(f"{folder} has {what}, which this run does not ask for; delete {folder} to make it again")


def _read_parts(folder: Path) -> list[Rollout]:
    return [row for path in sorted(folder.glob(PARTS)) for row in read_jsonl(path, Rollout)]


def _generate_retrying(
    requests: list[Request],
    *,
    attempts: int,
    seed: int,
    lora: Lora | None,
    workspace: Workspace,
    log: EngineLog | None = None,
    asked: int = 0,
) -> Iterator[Completion]:
    """Yields one completion a sample; failed ones are tried again, with other random numbers, before they count.

    Too many failures stop the work: as a share of what was `asked` in all, not of what an attempt, or a start after a
    kill, has left to do.
    """
    asked = max(asked, sum(len(request.samples) for request in requests))
    by_id = {request.id: request for request in requests}
    for attempt in range(attempts):
        failed: dict[str, list[int]] = {}
        for completion in generate(
            workspace.model,
            requests,
            seed=seed + attempt * 1_000_003,
            lora=lora,
            settings=workspace.config.engine,
            mesh=workspace.mesh,
            on_stats=None if log is None else log.update,
            asked=asked,
        ):
            if completion.stop is StopReason.FAILED and attempt + 1 < attempts:
                failed.setdefault(completion.id, []).append(completion.sample)
            else:
                yield completion
        if log is not None:
            log.end_call()
        requests = [replace(by_id[key], samples=tuple(sorted(samples))) for key, samples in failed.items()]
        if not requests:
            return
        note(f"{sum(len(r.samples) for r in requests)} failed generations are tried again")


def _rollout(completion: Completion, prompts: Mapping[str, Sequence[int]], workspace: Workspace) -> Rollout:
    return Rollout(
        question_id=completion.id,
        sample=completion.sample,
        text=workspace.chat.decode(completion.token_ids),
        token_ids=tuple(completion.token_ids),
        stop=completion.stop,
        prompt_tokens=len(prompts[completion.id]),
        detail=completion.detail,
    )


def load_rollouts(folder: Path, order: Sequence[str]) -> list[Rollout]:
    """The answers in a folder, in question order and by sample."""
    rank = {key: i for i, key in enumerate(order)}
    return sorted(_read_parts(folder), key=lambda row: (rank[row.question_id], row.sample))


def count_rollouts(rows: Sequence[Rollout]) -> dict:
    """Rows, sampled tokens, and rows by stop reason."""
    stops = {reason.value: sum(row.stop is reason for row in rows) for reason in StopReason}
    return {"rows": len(rows), "tokens": sum(len(row.token_ids) for row in rows), **stops}


def grade_rollouts(
    rollouts: Sequence[Rollout], gold: Mapping[str, str], *, settings: Grading, description: str
) -> list[Verdict]:
    """Grades answers against the gold answers, in order; a failed generation is failed, whatever its text."""
    verdicts = []
    with (
        GraderPool(workers=settings.workers, time_limit=settings.time_limit) as pool,
        progress(description, len(rollouts)) as advance,
    ):
        for verdict in graded(rollouts, gold, pool=pool):
            verdicts.append(verdict)
            advance()
    return verdicts


def graded(rollouts: Sequence[Rollout], gold: Mapping[str, str], *, pool: GraderPool) -> Iterator[Verdict]:
    """The verdicts in order, as they are known."""
    items = ((i, row.text, gold[row.question_id], row.stop is StopReason.LENGTH) for i, row in enumerate(rollouts))
    for i, grade in pool.grade_many(items):
        yield _verdict(rollouts[i], grade, gold[rollouts[i].question_id])


def _verdict(rollout: Rollout, grade: Grade, gold: str) -> Verdict:
    failed = rollout.stop is StopReason.FAILED
    return Verdict(
        question_id=rollout.question_id,
        sample=rollout.sample,
        outcome=Outcome.FAILED if failed else grade.outcome,
        extracted=grade.extracted,
        reason=rollout.detail if failed else grade.reason,
        strict=not failed and grade.extracted is not None and strict_equal(grade.extracted, gold),
        tokens=len(rollout.token_ids),
    )
