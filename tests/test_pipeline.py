"""The whole pipeline on the embedded model: killed in every stage and started again, it ends as if never killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_disk import small_disk

from ssb_jax.artifacts import read_jsonl, read_manifest
from ssb_jax.config import load_config
from ssb_jax.pipeline import Run, hints_by_id, keeping_config, load_pairs, view_pairs
from ssb_jax.records import Hint, Lesson, Pair, Rollout
from ssb_jax.workspace import Workspace

ROOT = Path(__file__).parent.parent
SMALL = (
    *("--questions.limit", "40", "--rollouts.block_size", "20", "--teaching.max_pairs", "24"),
    *("--distillation.epochs", "2", "--distillation.checkpoint_every", "2", "--distillation.tensorboard", "false"),
    *("--engine.slots", "16", "--engine.chunk", "4"),
    "--evaluation.sets=[{name: test, num_samples: 2, data: {path: 'builtin:arithmetic', split: test, limit: 30}, "
    "sampling: {temperature: 0.8, top_k: 50, top_p: 1.0, max_new_tokens: 96}}]",
)


def command(folder, *more, stage="run"):
    return [
        sys.executable,
        "-m",
        "ssb_jax",
        stage,
        str(ROOT / "configs/tiny.yaml"),
        "--out",
        str(folder),
        *SMALL,
        *more,
    ]


# One device: the tests' own process has eight virtual ones, and threads of eight on two cores crawl.
# The tokens are what nothing may write down.
TOKENS = {
    "HF_TOKEN": "hf_notatokenbutlookslikeone0123456789",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "not/a/secret+but+looks+like+one+0123456789",
}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | TOKENS


def run(folder, *more, stage="run"):
    return subprocess.run(command(folder, *more, stage=stage), capture_output=True, text=True, env=ENVIRONMENT)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


# Where a run is killed: a file, and how many lines of it are there by then.
MOMENTS = [
    ("blocks/0000/rollouts/part-00000.jsonl", 20),
    ("blocks/0001/rollouts/part-00000.jsonl", 10),
    ("blocks/0001/teaching/part-00000.jsonl", 1),
    ("targets", 1),
    ("distillation/metrics.jsonl", 5),
    ("evaluation/test/base/part-00000.jsonl", 10),
    ("evaluation/test/ssb/part-00000.jsonl", 10),
]


def kill_when(folder, moment, amount):
    """Starts a run and kills it -9 when a file of it has grown; returns whether it was still running then."""
    path = folder / moment
    process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while process.poll() is None:
        if path.is_dir() or (path.suffix == ".jsonl" and lines(path) >= amount):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.005)
    return False


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    result = run(folder)
    assert result.returncode == 0, result.stderr
    (folder.parent / "output.txt").write_text(result.stdout + result.stderr)
    return folder, result.stdout


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed") / "run"
    struck = [moment for moment, amount in MOMENTS if kill_when(folder, moment, amount)]
    result = run(folder)
    assert result.returncode == 0, result.stderr
    return folder, struck


def test_a_killed_run_ends_like_an_uninterrupted_one(straight, killed):
    (whole, _), (pieces, struck) = straight, killed
    assert len(struck) >= 4, f"only {struck} were reached before their stage ended"
    for name in ("blocks/0000/rollouts", "blocks/0001/rollouts", "blocks/0000/teaching", "blocks/0001/teaching"):
        one, other = (sorted(read_jsonl(f / name / "part-00000.jsonl", Rollout), key=repr) for f in (whole, pieces))
        assert one == other, name
    assert read_jsonl(whole / "pairs/pairs.jsonl", Pair) == read_jsonl(pieces / "pairs/pairs.jsonl", Pair)
    losses = [
        [
            (row["step"], row["loss"])
            for row in map(json.loads, (f / "distillation/metrics.jsonl").read_text().splitlines())
        ]
        for f in (whole, pieces)
    ]
    assert losses[0] == losses[1]
    one, other = (load_file(f / "distillation/adapter/adapter_model.safetensors") for f in (whole, pieces))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    one, other = (json.loads((f / "evaluation/results.json").read_text())["sets"] for f in (whole, pieces))
    assert one == other


def test_what_a_run_leaves_keeps_the_stages_promises(straight):
    folder, stdout = straight
    questions = [json.loads(line) for line in (folder / "questions/questions.jsonl").read_text().splitlines()]
    ids = [q["id"] for q in questions]
    assert len(ids) == len(set(ids)) == 40
    hints, lessons = [], []
    for block in sorted((folder / "blocks").iterdir()):
        rollouts = read_jsonl(block / "rollouts/part-00000.jsonl", Rollout)
        verdicts = read_manifest(block / "verification").counts
        assert len({(r.question_id, r.sample) for r in rollouts}) == len(rollouts) == verdicts["verdicts"]
        hints += read_jsonl(block / "hints/hints.jsonl", Hint)
        lessons += read_jsonl(block / "teaching/lessons.jsonl", Lesson)
    assert [h.question_id for h in hints] == ids[: len(hints)]
    assert [lesson.question_id for lesson in lessons] == [h.question_id for h in hints if h.dropped is None]
    pairs = read_jsonl(folder / "pairs/pairs.jsonl", Pair)
    assert pairs == [lesson.pair for lesson in lessons if lesson.pair is not None][:24]
    by_id = {h.question_id: h for h in hints}
    for pair in pairs:
        hint = by_id[pair.question_id]
        assert f"\\boxed{{{pair.answer}}}" in pair.solution
        assert hint.correct_text not in pair.question
        assert len(pair.student_prompt_ids) < len(pair.teacher_prompt_ids)
    for word in ("From questions to pairs", "mixed", "kept", "pass@1", "ssb - base"):
        assert word in stdout


def test_manifests_say_what_the_engine_did(straight):
    for name in ("blocks/0000/rollouts", "blocks/0000/teaching", "evaluation/test/base", "evaluation/test/ssb"):
        engine = read_manifest(straight[0] / name).counts["engine"]
        rows = read_jsonl(straight[0] / name / "part-00000.jsonl", Rollout)
        assert (engine["sequences"], engine["failed"]) == (len(rows), 0)
        assert engine["new_tokens"] == sum(len(row.token_ids) for row in rows) + engine["end_of_turn"]
        assert 0 < engine["occupancy"] <= 1
        assert engine["tokens_per_second"] > 0


def test_no_token_of_the_environment_is_written_anywhere(straight):
    """Not in settings, logs, manifests, checkpoints or results, not on the screen."""
    files = [path for path in straight[0].parent.rglob("*") if path.is_file()]
    assert len(files) > 40
    for path in files:
        content = path.read_bytes().lower()
        for name, token in TOKENS.items():
            assert token.lower().encode() not in content, f"{name} is in {path}"


def test_results_hold_every_row(straight):
    result = json.loads((straight[0] / "evaluation/results.json").read_text())["sets"]["test"]
    assert len(result["rows"]) == 30
    assert {len(row["answers"][name]) for row in result["rows"] for name in ("base", "ssb")} == {2}
    right = [a["outcome"] == "correct" for row in result["rows"] for a in row["answers"]["ssb"]]
    assert result["metrics"]["ssb"]["pass@1"]["value"] == pytest.approx(np.mean(right))
    difference = result["differences"]["ssb"]["pass@1"]["value"]
    base = result["metrics"]["base"]["pass@1"]["value"]
    assert difference == pytest.approx(np.mean(right) - base)


def test_a_complete_run_is_skipped_and_other_settings_are_refused(straight):
    folder, stdout = straight
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")}
    again = run(folder)
    assert (again.returncode, again.stdout) == (0, stdout)
    assert again.stderr.count("complete, skipped") >= 8
    assert "loading" not in again.stderr
    other = run(folder, "--rollouts.temperature", "0.7")
    assert other.returncode == 1
    assert "rollouts of another run: temperature was 0.8, now 0.7" in other.stderr
    longer = run(folder, "--distillation.epochs", "3")
    assert longer.returncode == 1
    assert "distillation of another run: epochs was 2, now 3" in longer.stderr
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.jsonl")}


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("teach", ("--rollouts.num_samples", "9"), "rollouts of another run: num_samples was 4, now 9"),
        ("targets", ("--prompts.teach_stop", "false"), "teach_stop was true, now false"),
        ("distill", ("--targets.encoding", "logits"), 'targets of another run: encoding was "hidden", now "logits"'),
        ("eval", ("--distillation.loss", "jsd"), 'distillation of another run: loss was "ssb", now "jsd"'),
    ],
)
def test_a_stage_refuses_settings_that_what_came_before_it_was_not_made_with(straight, stage, change, message):
    folder, _ = straight
    settings = (folder / "config.yaml").read_text()
    other = run(folder, *change, stage=stage)
    assert other.returncode == 1, other.stdout
    assert message in other.stderr
    assert (folder / "config.yaml").read_text() == settings


def test_no_mixed_question_says_so_with_the_counts(tmp_path):
    result = run(tmp_path / "run", "--rollouts.max_new_tokens", "2", "--questions.limit", "8")
    assert result.returncode == 1
    assert "no training pair" in result.stderr
    assert "rollouts.max_new_tokens" in result.stderr
    assert "questions 8" in result.stderr


def test_a_full_disk_is_one_error_and_with_room_the_run_goes_on(tmp_path, straight):
    disk = tmp_path / "disk"
    with small_disk(disk, size="100k") as remount:
        for size in ("400k", "2m", "64m"):
            full = run(disk / "run")
            errors = [line for line in full.stderr.splitlines() if line.startswith("Error: ")]
            assert full.returncode == 1
            assert len(errors) == 1, full.stderr
            assert "No space left on device" in errors[0]
            remount(f"size={size}")  # (Orbax's writing thread may print what befell it too.)
        assert run(disk / "run").returncode == 0
        assert read_jsonl(disk / "run/pairs/pairs.jsonl", Pair) == read_jsonl(straight[0] / "pairs/pairs.jsonl", Pair)


def test_views_are_the_hinted_prompts_exchanged_and_without_the_question(straight):
    folder, _ = straight
    config = load_config(folder / "config.yaml", ["--targets.views=[bare, swapped, hint_only]"])
    current = Run(folder, Workspace(config))
    pairs, hints, chat = load_pairs(current), hints_by_id(current), current.workspace.chat
    views = view_pairs(current, pairs)
    for i, pair in enumerate(pairs):
        right, wrong = hints[pair.question_id].correct_text, hints[pair.question_id].incorrect_text
        hinted, swapped, alone = (
            chat.decode(x.teacher_prompt_ids) for x in (pair, views["swapped"][i], views["hint_only"][i])
        )
        assert hinted.index(right) < hinted.index(wrong)
        assert pair.question in hinted
        assert swapped == hinted.replace(right, "\0").replace(wrong, right).replace("\0", wrong)
        assert pair.question not in alone
        assert right in alone
        assert views["bare"][i].teacher_prompt_ids == pair.student_prompt_ids


def test_settings_that_cannot_be_read_any_more_are_written_anew(tmp_path, capsys):
    config = load_config(ROOT / "configs" / "tiny.yaml")
    (tmp_path / "config.yaml").write_text("seed: [")
    with keeping_config(Run(tmp_path, Workspace(config))):
        assert load_config(tmp_path / "config.yaml") == config
    assert "config.yaml cannot be read as YAML" in capsys.readouterr().err
