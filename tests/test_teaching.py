"""Solutions that the token limit cut off: kept as published, or dropped and counted. Stage, files and grader are real.

The solutions lie where an interrupted stage would have left them, so that nothing is sampled.
"""

import pytest

from ssb_jax.artifacts import complete, read_jsonl, read_manifest, write_jsonl
from ssb_jax.config import config_from_dict
from ssb_jax.pipeline import Run, funnel, load_pairs, pairs, teach
from ssb_jax.records import DropReason, Hint, Lesson, Rollout, StopReason
from ssb_jax.report import page
from ssb_jax.workspace import Workspace

WHOLE, CUT = StopReason.END_OF_TURN, StopReason.LENGTH
RIGHT, WRONG, NONE = "It is \\boxed{7}.", "It is \\boxed{8}.", "It is"
SOLUTIONS = {  # question -> what its two attempts said, and how they ended
    "whole": ((RIGHT, WHOLE), (RIGHT, CUT)),
    "cut": ((RIGHT, CUT), (RIGHT, CUT)),
    "cut, then whole": ((RIGHT + " So it", CUT), (RIGHT, WHOLE)),
    "no box, then cut": ((NONE, CUT), (RIGHT, CUT)),
    "wrong": ((WRONG, WHOLE), (WRONG, CUT)),
}


def taught(folder, truncated, monkeypatch):
    """A run that has rolled out and been answered, taught."""
    questions = [{"id": key, "question": f"What is 3 + 4 ({key})?", "answer": "7"} for key in SOLUTIONS]
    write_jsonl(folder / "questions.jsonl", questions)
    config = config_from_dict(
        {
            "model": {"path": "builtin:tiny"},
            "questions": {"path": str(folder / "questions.jsonl"), "id_column": "id"},
            "prompts": {"system": "tiny_tutor", "hinted": "tiny_hinted"},
            "teaching": {"attempts": 2, "truncated": truncated},
            "grading": {"workers": 1},
        }
    )
    run = Run(folder / "run", Workspace(config))
    hints = [Hint(key, None, 0, 1, RIGHT, WRONG, "8", 1) for key in SOLUTIONS]
    at = run.block_folder(0, "hints")
    write_hints = lambda: {"questions": len(hints), "mixed": write_jsonl(at / "hints.jsonl", hints)}  # noqa: E731
    complete(at, stage="hints", made_from={}, make=write_hints)
    encode = run.workspace.chat.encode_text
    rows = [
        Rollout(key, sample, text, tuple(encode(text)), stop, 9)
        for key, attempts in SOLUTIONS.items()
        for sample, (text, stop) in enumerate(attempts)
    ]

    def interrupted(*arguments, **settings):
        write_jsonl(run.block_folder(0, "teaching") / "part-00000.jsonl", rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pairs.teaching, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            teach(run)
    assert teach(run)
    return run, {x.question_id: x for x in read_jsonl(run.block_folder(0, "teaching") / "lessons.jsonl", Lesson)}


def test_kept_as_published(tmp_path, monkeypatch):
    run, lessons = taught(tmp_path, "keep", monkeypatch)
    assert {key: x.dropped for key, x in lessons.items() if x.dropped} == {"wrong": DropReason.TEACHER_NOT_CORRECT}
    assert {p.question_id: p.teacher_stop for p in load_pairs(run)} == {
        "whole": True,
        "cut": False,
        "cut, then whole": False,
        "no box, then cut": False,
    }
    assert lessons["cut, then whole"].text == RIGHT + " So it"  # the first right one, however it ended
    # What was taught before there was a choice is taken up.
    assert "truncated" not in read_manifest(run.block_folder(0, "teaching")).made_from


def test_dropped_and_counted(tmp_path, monkeypatch):
    run, lessons = taught(tmp_path, "drop", monkeypatch)
    assert {key: x.dropped for key, x in lessons.items() if x.dropped} == {
        "cut": DropReason.TEACHER_TRUNCATED,
        "no box, then cut": DropReason.TEACHER_TRUNCATED,
        "wrong": DropReason.TEACHER_NOT_CORRECT,
    }
    assert read_manifest(run.block_folder(0, "teaching")).made_from["truncated"] == "drop"
    assert lessons["cut, then whole"].text == RIGHT  # another attempt stands in
    assert [(p.question_id, p.teacher_stop) for p in load_pairs(run)] == [("whole", True), ("cut, then whole", True)]
    counts = funnel(run)
    assert (counts["verified"], counts["kept"]) == (2, 2)
    assert {name: n for name, n in counts.items() if name.startswith("dropped")} == {
        "dropped: teacher_not_correct": 1,
        "dropped: teacher_truncated": 2,
    }


def test_the_report_has_words_for_every_reason():
    assert set(page._REASONS) == set(DropReason)
