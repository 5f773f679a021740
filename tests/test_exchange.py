"""The published scripts' files: written from a run, read into another, and refused where they do not fit."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from ssb_jax.artifacts import complete, read_jsonl, write_jsonl
from ssb_jax.config import SsbError, config_from_dict
from ssb_jax.exchange import LOGITS, STUDENT, TEACHER, read_scripts_files, write_scripts_files
from ssb_jax.pipeline import Run, load_pairs
from ssb_jax.records import Hint, Question, Rollout, StopReason
from ssb_jax.stages import targets
from ssb_jax.stages.teaching import make_pair
from ssb_jax.store import open_store
from ssb_jax.workspace import Workspace

QUESTIONS = [
    Question(f"q{i}", f"Ben has {i} coins. Ben finds 5 more. How many coins does Ben have now?", str(i + 5))
    for i in range(3)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the embedded model with three pairs, their hints and targets."""
    folder = tmp_path_factory.mktemp("exchange") / "run"
    config = config_from_dict(
        {
            "model": {"path": "builtin:tiny"},
            "questions": {"path": "builtin:arithmetic"},
            "prompts": {"system": "tiny_tutor", "hinted": "tiny_hinted", "student_prompt": "flat"},
            "mesh": {"fsdp": 1, "data": 8},
            "targets": {"dtype": "float32"},
        }
    )
    made = Run(folder, Workspace(config))
    hints = [Hint(q.id, None, 0, 1, f"It is {q.answer}.", "It is 1.", "1", 1) for q in QUESTIONS]
    write_jsonl(folder / "blocks/0000/hints/hints.jsonl", hints)
    chat, prompts = made.workspace.chat, made.workspace.prompts
    pairs = []
    for question, hint in zip(QUESTIONS, hints, strict=True):
        text = f"{question.answer} coins. \\boxed{{{question.answer}}}"
        solution = Rollout(question.id, 0, text, tuple(chat.encode_text(text)), StopReason.END_OF_TURN, 1)
        prompt = chat.encode_prompt(prompts.teacher_messages(question.question, hint.correct_text, hint.incorrect_text))
        pairs.append(make_pair(question, solution, teacher_prompt=prompt, workspace=made.workspace))
    write = lambda: {"pairs": write_jsonl(folder / "pairs/pairs.jsonl", pairs)}  # noqa: E731
    complete(folder / "pairs", stage="pairs", made_from={}, make=write)
    fill = lambda: targets.run(pairs, config=config, folder=folder / "targets", workspace=made.workspace)  # noqa: E731
    complete(folder / "targets", stage="targets", made_from={}, make=fill)
    return made


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange") / "scripts"
    assert write_scripts_files(run, folder) == 3
    return folder


def test_what_is_written_is_what_the_scripts_read(run, files):
    """As ssb_train.py takes it: lines of messages, and arrays by line number without pickle."""
    teachers, students = (list(map(json.loads, (files / name).read_text().splitlines())) for name in (TEACHER, STUDENT))
    for i, (pair, teacher, student) in enumerate(zip(load_pairs(run), teachers, students, strict=True)):
        assert [m["role"] for m in teacher["messages"]] == ["system", "user", "assistant"]
        assert [m["role"] for m in student["messages"]] == ["system", "user"]
        assert teacher["messages"][-1]["content"] == pair.solution
        with np.load(files / LOGITS / f"teacher_logits_{i}.npz", allow_pickle=False) as arrays:
            assert arrays["reply_ids"].tolist() == list(pair.reply_ids[:-1])  # the scripts teach no end of turn
            assert (arrays["logits"].dtype, arrays["reply_ids"].dtype) == (np.float32, np.int32)
            states = open_store(run.folder / "targets").read(pair)[:-1]
            expected = states @ np.asarray(run.workspace.model.head_weight()).T
            np.testing.assert_allclose(arrays["logits"], expected, rtol=1e-4, atol=1e-4)


def test_round_trip(run, files, tmp_path):
    other = Run(tmp_path / "run", run.workspace)
    assert read_scripts_files(other, files) == 3
    store = open_store(other.folder / "targets")
    assert store.info.encoding == "logits"
    store.check(load_pairs(other), run.workspace.model)
    for i, (ours, theirs) in enumerate(zip(load_pairs(run), load_pairs(other), strict=True)):
        assert theirs.question_id == f"line-{i:06d}"
        assert theirs.reply_ids == ours.reply_ids[:-1]
        for name in ("teacher_prompt_ids", "student_prompt_ids", "solution", "question"):
            assert getattr(theirs, name) == getattr(ours, name), name
        with np.load(files / LOGITS / f"teacher_logits_{i}.npz", allow_pickle=False) as arrays:
            np.testing.assert_array_equal(store.read(theirs), arrays["logits"])


DAMAGES = ("missing", "pickled", "other ids", "a column of ids", "ids below 0", "other words", "nan", "lines")


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_do_not_fit_are_named(run, files, tmp_path, damage):
    shutil.copytree(files, tmp_path / "files")
    path = tmp_path / "files" / LOGITS / "teacher_logits_1.npz"
    with np.load(path) as arrays:
        logits, ids = arrays["logits"], arrays["reply_ids"]
    match damage:
        case "missing":
            path.unlink()
            message = "teacher_logits_1.npz is missing; the scripts would go on without it"
        case "pickled":
            np.savez(path, logits=logits, reply_ids=np.array([SimpleNamespace()], dtype=object))
            message = "teacher_logits_1.npz: expected arrays `logits` and `reply_ids`"
        case "other ids":
            np.savez(path, logits=logits, reply_ids=ids[::-1])
            message = "line 2: the reply_ids of teacher_logits_1.npz do not spell this reply"
        case "other words":
            np.savez(path, logits=logits[:, :-1], reply_ids=ids)
            message = r"teacher_logits_1.npz: expected finite `logits` \(R, V\) = .* one number for each word"
        case "a column of ids":
            np.savez(path, logits=logits, reply_ids=ids[:, None])
            message = r"teacher_logits_1.npz: expected `reply_ids` as whole numbers"
        case "ids below 0":
            np.savez(path, logits=logits, reply_ids=-1 - ids)
            message = r"teacher_logits_1.npz: expected `reply_ids` as whole numbers \(R,\) from 0"
        case "nan":
            np.savez(path, logits=logits * np.nan, reply_ids=ids)
            message = r"teacher_logits_1.npz: expected finite `logits`"
        case "lines":
            text = (tmp_path / "files" / STUDENT).read_text()
            (tmp_path / "files" / STUDENT).write_text(text[: text.index("\n") + 1])
            message = "has 3 lines, .* has 1; expected as many"
    with pytest.raises(SsbError, match=message):
        read_scripts_files(Run(tmp_path / "run", run.workspace), tmp_path / "files")
    assert not (tmp_path / "run" / "targets" / "manifest.json").exists()


def test_logits_that_changed_are_not_taken_for_the_old_ones(run, files, tmp_path):
    shutil.copytree(files, tmp_path / "files")
    other = Run(tmp_path / "run", run.workspace)
    read_scripts_files(other, tmp_path / "files")
    path = tmp_path / "files" / LOGITS / "teacher_logits_0.npz"
    with np.load(path) as arrays:
        logits, ids = arrays["logits"], arrays["reply_ids"]
    np.savez(path, logits=0 * logits, reply_ids=ids)
    with pytest.raises(SsbError, match=r"of another run: scripts\.teacher_logits"):
        read_scripts_files(other, tmp_path / "files")


def test_a_folder_in_use_is_refused(run, files):
    with pytest.raises(SsbError, match="is not an empty folder"):
        write_scripts_files(run, files)
    assert len(read_jsonl(run.folder / "blocks/0000/hints/hints.jsonl", Hint)) == 3
