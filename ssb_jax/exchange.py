"""The published PyTorch scripts' files, out of a run and into one.

    generated_math_teacher_data.jsonl    {"messages": [system, hinted user, assistant]}, one line a pair
    generated_math_student_data.jsonl    {"messages": [system, user]}, line by line the same questions
    teacher_logits/teacher_logits_0.npz  `logits` (R, V) float32 and `reply_ids` (R,) int32 of line 0, and so on
    teacher_logits/index.json            line -> file

The scripts match examples by line number and train on `reply_ids`; here the ids must also spell the line's reply, and
the logits must have one number for each word of the model. Their replies have no end-of-turn token.
"""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ssb_jax.artifacts import complete, digest, file_digest, read_jsonl, write_atomically, write_jsonl
from ssb_jax.chat import Chat
from ssb_jax.config import SsbError
from ssb_jax.console import note, progress
from ssb_jax.losses.chunked import decode
from ssb_jax.pipeline import Run, hints_by_id, load_pairs
from ssb_jax.records import Pair
from ssb_jax.stages.targets import whole_targets
from ssb_jax.store import TargetWriter, open_store, store_info

TEACHER, STUDENT = "generated_math_teacher_data.jsonl", "generated_math_student_data.jsonl"
LOGITS = "teacher_logits"


@dataclass(frozen=True)
class Turn:
    """A message."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A line of the scripts' JSONL files."""

    messages: list[Turn]


def write_scripts_files(run: Run, folder: Path) -> int:
    """Writes a run's pairs and the teacher's logits as the scripts' files; returns the number of pairs.

    Raises:
      SsbError: the run has no pairs, or a pair no hint; the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SsbError(f"{folder} is not an empty folder; choose another one")
    pairs, hints, workspace = load_pairs(run), hints_by_id(run), run.workspace
    model, prompts = workspace.model, workspace.prompts
    missing = [pair.question_id for pair in pairs if pair.question_id not in hints]
    if missing:
        raise SsbError(f"{len(missing)} pairs have no hint in {run.folder / 'blocks'} ({missing[0]}, ...)")
    store = open_store(run.folder / "targets")
    store.check(pairs, model)
    read, encoding = whole_targets(store, model, pairs, mesh=workspace.mesh)
    with progress("export", len(pairs)) as advance:
        for i, pair in enumerate(pairs):
            R, values = len(pair.reply_ids) - pair.teacher_stop, jnp.asarray(read(pair))
            logits = decode(values[None, :R], encoding, head=model.head_weight(), V=model.config.vocab_size)
            data = io.BytesIO()
            np.savez_compressed(
                data, logits=np.asarray(logits[0], np.float32), reply_ids=np.asarray(pair.reply_ids[:R], np.int32)
            )
            write_atomically(folder / LOGITS / _file(i), data.getvalue())
            advance()
    teachers = [
        [
            *prompts.teacher_messages(pair.question, hint.correct_text, hint.incorrect_text),
            {"role": "assistant", "content": pair.solution},
        ]
        for pair, hint in ((pair, hints[pair.question_id]) for pair in pairs)
    ]
    write_jsonl(folder / TEACHER, map(_conversation, teachers))
    write_jsonl(folder / STUDENT, (_conversation(prompts.student_messages(pair.question)) for pair in pairs))
    index = {str(i): f"{LOGITS}/{_file(i)}" for i in range(len(pairs))}
    write_atomically(folder / LOGITS / "index.json", json.dumps(index))
    cut = sum(pair.teacher_stop for pair in pairs)
    if cut:
        note(f"{cut} replies lost their end-of-turn token, which the scripts do not teach")
    return len(pairs)


def _conversation(messages: list[dict[str, str]]) -> Conversation:
    return Conversation([Turn(**message) for message in messages])


def read_scripts_files(run: Run, folder: Path) -> int:
    """Makes a run's pairs and targets (full logits) of the scripts' files; returns the number of pairs.

    The run goes on with `ssb distill`. Pairs are named by their line.

    Raises:
      SsbError: naming file and line, when something is missing, damaged, or of another model.
    """
    config, workspace = run.config, run.workspace
    pairs = scripts_pairs(folder, workspace.chat, student_prompt=config.prompts.student_prompt)
    source = {
        "scripts": {
            **{name: file_digest(folder / name) for name in (TEACHER, STUDENT)},
            LOGITS: digest([file_digest(folder / LOGITS / _file(i)) for i in range(len(pairs))]),
        },
        "model": workspace.model_identity,
    }

    def keep_pairs() -> dict[str, int]:
        write_jsonl(run.folder / "pairs" / "pairs.jsonl", pairs)
        return {"pairs": len(pairs)}

    def keep_logits() -> dict[str, int]:
        info = store_info(workspace.model, encoding="logits", dtype="float32")
        with TargetWriter(run.folder / "targets", info) as writer, progress("import", len(pairs)) as advance:
            for i, pair in enumerate(pairs):
                if not writer.has(pair):
                    writer.add(pair, _logits(folder / LOGITS / _file(i), (len(pair.reply_ids), info.width)))
                advance()
        return {"examples": len(pairs), "tokens": sum(len(pair.reply_ids) for pair in pairs)}

    made_from = {**source, "max_pairs": config.teaching.max_pairs}
    complete(run.folder / "pairs", stage="pairs", made_from=made_from, make=keep_pairs)
    complete(run.folder / "targets", stage="targets", made_from=source, make=keep_logits)
    return len(pairs)


def scripts_pairs(folder: Path, chat: Chat, *, student_prompt: str = "flat") -> list[Pair]:
    """The pairs of the scripts' JSONL files, with the reply ids of their npz files.

    Args:
      student_prompt: `flat`, as the scripts train; or `chat`.

    Raises:
      SsbError: see `read_scripts_files`.
    """
    teachers, students = (read_jsonl(folder / name, Conversation) for name in (TEACHER, STUDENT))
    if len(teachers) != len(students) or not teachers:
        raise SsbError(
            f"{folder}: {TEACHER} has {len(teachers)} lines, {STUDENT} has {len(students)}; expected as many, one a "
            "pair"
        )
    return [
        _pair(i, *([asdict(turn) for turn in x.messages] for x in (teacher, student)), folder, chat, student_prompt)
        for i, (teacher, student) in enumerate(zip(teachers, students, strict=True))
    ]


def _pair(i: int, teacher: list, student: list, folder: Path, chat: Chat, student_prompt: str) -> Pair:
    if not teacher or teacher[-1]["role"] != "assistant" or not any(m["role"] == "user" for m in student):
        raise SsbError(
            f"{folder}, line {i + 1}: expected a hinted conversation that ends with the assistant's reply in {TEACHER} "
            f"and a user message in {STUDENT}"
        )
    reply, reply_ids = teacher[-1]["content"], _reply_ids(folder / LOGITS / _file(i), len(chat.tokenizer))
    if chat.decode(reply_ids).strip() != reply.strip():
        raise SsbError(
            f"{folder / TEACHER}, line {i + 1}: the reply_ids of {_file(i)} do not spell this reply with the tokenizer "
            "of model.path; set it to the model that made them, or make the logits again"
        )
    return Pair(
        question_id=f"line-{i:06d}",
        question=[m["content"] for m in student if m["role"] == "user"][-1],
        answer="",
        solution=reply,
        teacher_prompt_ids=tuple(chat.encode_prompt(teacher[:-1])),
        student_prompt_ids=tuple((chat.encode_flat if student_prompt == "flat" else chat.encode_prompt)(student)),
        reply_ids=reply_ids,
        teacher_stop=False,
    )


def _file(i: int) -> str:
    return f"teacher_logits_{i}.npz"


def _reply_ids(path: Path, vocabulary: int) -> tuple[int, ...]:
    ids = _read(path, "reply_ids")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or ((ids < 0) | (ids >= vocabulary)).any():
        raise SsbError(
            f"{path}: expected `reply_ids` as whole numbers (R,) from 0 to below {vocabulary}, the tokenizer's size; "
            f"got {ids.dtype} {ids.shape}, {_range(ids)}; make it again with the tokenizer of model.path"
        )
    return tuple(ids.tolist())


def _logits(path: Path, shape: tuple[int, int]) -> np.ndarray:
    logits = _read(path, "logits")
    if logits.shape != shape or not np.issubdtype(logits.dtype, np.floating) or not np.isfinite(logits).all():
        raise SsbError(
            f"{path}: expected finite `logits` (R, V) = {shape}, one row for each of its reply_ids and one number for "
            f"each word of model.path; got {logits.dtype} {logits.shape}, {_range(logits)}; make it again with it"
        )
    return logits


def _range(x: np.ndarray) -> str:
    return f"from {x.min()} to {x.max()}" if x.size and np.issubdtype(x.dtype, np.number) else "no numbers"


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except FileNotFoundError:
        raise SsbError(f"{path} is missing; the scripts would go on without it, here every pair needs it") from None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SsbError(f"{path}: expected arrays `logits` and `reply_ids` ({error}); make it again") from None
