"""A run folder, finished or not -> what the report shows of it. Writes nothing, and needs no model."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssb_jax.answering import load_rollouts
from ssb_jax.artifacts import read_jsonl, read_manifest, training_folder
from ssb_jax.compare.results import begun_cells
from ssb_jax.config import Config, SsbError, load_config
from ssb_jax.metrics import read_metrics
from ssb_jax.pipeline import funnel_of
from ssb_jax.records import Hint, Lesson, Outcome, Pair, Question, Rollout, Verdict
from ssb_jax.summaries import read_summaries

KEPT = "kept"
_LONGEST = 20_000  # characters of one text that the page shows
_TAIL = 2_000  # of which at its end, where the answer is


@dataclass(frozen=True)
class RunView:
    """What the report shows of a run.

    Attributes:
      funnel: step -> questions left, and `dropped: reason` -> questions.
      items: the reader's questions: see `_train_item` and `_eval_item`.
      sets: evaluation set -> its summary, without the rows.
      missing: what the run has not got yet, in sentences.
    """

    name: str
    folder: Path
    config: Config
    settings: str
    funnel: Mapping[str, int]
    items: Sequence[dict[str, Any]]
    sets: Mapping[str, dict]
    metrics: Sequence[Mapping[str, float]]
    missing: Sequence[str]


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders, and in the place of a study its cells that have begun, of a run of several rounds its rounds.

    Raises:
      SsbError: no cell of a study has begun.
    """
    found = []
    for folder in folders:
        cells = begun_cells(folder)
        if cells == []:
            raise SsbError(
                f"{folder} is a study or a run of rounds of which nothing has begun; run `ssb study` or `ssb run`"
            )
        found += [folder] if cells is None else cells
    return found


def read_run(folder: Path, *, name: str, questions: int) -> RunView:
    """Reads what is there.

    Args:
      questions: how many of the training questions, and how many of each evaluation set's, the reader gets.

    Raises:
      SsbError: the folder is no run folder, or a file in it is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise SsbError(
            f"{folder} is no run folder: it has no config.yaml; give the --out of an `ssb run` or of an `ssb study`"
        )
    config = load_config(folder / "config.yaml")
    sets = read_summaries(folder)
    items = _train_items(folder, questions)
    for set_name, found in sets.items():
        items += _eval_items(set_name, found.pop("rows", []), questions)
    return RunView(
        name=name,
        folder=folder,
        config=config,
        settings=(folder / "config.yaml").read_text(),
        funnel=funnel_of(folder),
        items=items,
        sets=sets,
        metrics=read_metrics(training_folder(folder, config)),
        missing=list(_missing(folder, config, sets)),
    )


def _missing(folder: Path, config: Config, sets: Mapping[str, dict]) -> Iterable[str]:
    """What an unfinished run has not got; the first gap explains the later ones."""
    stages = {folder / "questions": "no questions yet", folder / "pairs": "its training pairs are not complete"}
    if config.method in ("grpo", "on-policy"):
        del stages[folder / "pairs"]
    stages[training_folder(folder, config)] = "its adapter is not trained to the end"
    for stage, sentence in stages.items():
        if read_manifest(stage) is None:
            yield sentence
    absent = [s.name for s in config.evaluation.sets if s.name not in sets]
    if absent:
        yield f"not evaluated yet on {', '.join(absent)}"


def _train_items(folder: Path, limit: int) -> list[dict[str, Any]]:
    """The questions of complete blocks; of more than `limit`, as many of each fate as their share."""
    if read_manifest(folder / "questions") is None:
        return []
    by_id = {q.id: q for q in read_jsonl(folder / "questions" / "questions.jsonl", Question)}
    pairs = set()
    if read_manifest(folder / "pairs") is not None:
        pairs = {pair.question_id for pair in read_jsonl(folder / "pairs" / "pairs.jsonl", Pair)}
    items = []
    for block in sorted(folder.glob("blocks/*")):
        if read_manifest(block / "verification") is not None:
            items += _block_items(block, by_id, pairs)
    return _sample(items, limit)


def _block_items(block: Path, by_id: Mapping[str, Question], pairs: set[str]) -> list[dict[str, Any]]:
    verdicts = read_jsonl(block / "verification" / "verdicts.jsonl", Verdict)
    order = list(dict.fromkeys(verdict.question_id for verdict in verdicts))
    rollouts = load_rollouts(block / "rollouts", order)
    hints = _by_question(block / "hints", "hints.jsonl", Hint)
    lessons = _by_question(block / "teaching", "lessons.jsonl", Lesson)
    answers = defaultdict(list)
    for rollout, verdict in zip(rollouts, verdicts, strict=True):
        answers[rollout.question_id].append((rollout, verdict))
    return [
        _train_item(by_id[key], answers[key], hints.get(key), lessons.get(key), paired=key in pairs) for key in order
    ]


def _by_question(folder: Path, filename: str, record_type: type) -> dict[str, Any]:
    if read_manifest(folder) is None:
        return {}
    return {row.question_id: row for row in read_jsonl(folder / filename, record_type)}


def _train_item(
    question: Question,
    answers: Sequence[tuple[Rollout, Verdict]],
    hint: Hint | None,
    lesson: Lesson | None,
    *,
    paired: bool,
) -> dict[str, Any]:
    dropped = (hint and hint.dropped) or (lesson and lesson.dropped)
    shown = [_answer(f"rollout {r.sample + 1}", r.text, v.outcome, v.extracted, v.tokens, v.reason) for r, v in answers]
    if hint is not None and hint.dropped is None:
        for answer, (rollout, _) in zip(shown, answers, strict=True):
            if rollout.sample == hint.correct_sample:
                answer["role"] = "hint: correct"
            if rollout.sample == hint.incorrect_sample:
                answer["role"] = f"hint: wrong ({hint.wrong_count} of {len(answers)} gave it)"
    if lesson is not None and lesson.outcome is not None:
        shown.append(
            _answer("hinted solution", lesson.text, lesson.outcome, lesson.extracted, None, lesson.reason)
            | {"role": "what the student learns" if lesson.pair is not None else "dropped"}
        )
    fate = f"dropped: {dropped}" if dropped else KEPT if paired else "spare" if lesson is not None else "waiting"
    return _item(question.id, "training", question.question, question.answer, fate, shown)


def _eval_items(name: str, rows: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    return _sample([_eval_item(name, row) for row in rows], limit)


def _eval_item(name: str, row: dict[str, Any]) -> dict[str, Any]:
    shown, rates = [], []
    for model, answers in row["answers"].items():
        rates.append(sum(a["outcome"] == Outcome.CORRECT for a in answers) / len(answers))
        for i, a in enumerate(answers):
            label = f"{model} {i + 1}" if len(answers) > 1 else model
            shown.append(_answer(label, a["text"], a["outcome"], a["extracted"], a["tokens"], a["reason"]))
    change = "evaluated" if len(rates) < 2 else _change(rates[0], rates[-1])
    item = _item(row["id"], name, row["question"], row["answer"], change, shown)
    return item | {key: row[key] for key in ("subject", "level") if row.get(key) is not None}


def _change(before: float, after: float) -> str:
    if before == after:
        return "right before and after" if after == 1 else "as before"
    return "better" if after > before else "worse"


def _item(key: str, part: str, question: str, gold: str, fate: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": key, "set": part, "question": _cut(question), "gold": gold, "fate": fate, "answers": answers}


def _answer(
    label: str, text: str, outcome: str, extracted: str | None, tokens: int | None, reason: str
) -> dict[str, Any]:
    return {
        "label": label,
        "text": _cut(text),
        "outcome": str(outcome),
        "extracted": None if extracted is None else _cut(extracted),
        "tokens": tokens,
        "reason": reason,
    }


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    left_out = len(text) - _LONGEST
    return f"{text[: _LONGEST - _TAIL]}\n[... {left_out:,} characters left out ...]\n{text[-_TAIL:]}"


def _sample(items: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most about `limit` items in order, some of each fate: each gets its share, and one at least."""
    if len(items) <= limit:
        return items
    groups = defaultdict(list)
    for i, item in enumerate(items):
        groups[item["fate"]].append(i)
    chosen = {i for found in groups.values() for i in found[: max(1, round(limit * len(found) / len(items)))]}
    return [item for i, item in enumerate(items) if i in chosen]
