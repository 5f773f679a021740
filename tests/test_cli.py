"""The command line: exit statuses, one clear error, results on stdout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ssb_jax.cli import main

TINY = Path(__file__).parent.parent / "configs" / "tiny.yaml"


def ssb(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def one_error(result, status):
    """The error line of a failed command: exactly one, no traceback."""
    assert result.exit_code == status, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.output
    assert "Traceback" not in result.output
    return errors[0]


def test_help_names_every_stage():
    result = ssb("--help")
    assert result.exit_code == 0
    for command in ("run", "rollout", "teach", "targets", "distill", "eval", "verify", "pretrain-tiny"):
        assert command in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", TINY),
        ("nonsense",),
        ("run", TINY, "--out", "OUT", "--lora.rnak", "8"),
        ("run", TINY, "--out", "OUT", "--lora.rank"),
        ("run", TINY, "--out", "OUT", "--rollouts.temperature", "-1"),
        ("run", TINY, "--out", "OUT", "--rollouts.num_samples", "1"),
        ("run", "nowhere.yaml", "--out", "OUT"),
        ("run", TINY, "--out", "gs:/bucket/run"),
        ("run", TINY, "--out", ""),
        ("run", "n" * 300, "--out", "OUT"),
        ("pretrain-tiny", "--out", "OUT", "--steps", "0"),
        ("pretrain-tiny", "--out", TINY.parent),
        ("bench", "distill", TINY, "--remat", "some"),
        ("study", TINY, "--out", "gs://bucket/study"),
        ("verify",),
        ("verify", TINY, "--out", TINY),
        ("verify", TINY, "--out", "OUT", "--time-limit", "-1"),
        ("export", TINY.parent),
    ],
    ids=str,
)
def test_bad_usage_is_status_2_and_makes_no_folder(arguments, tmp_path):
    out = tmp_path / "out"
    one_error(ssb(*[out if a == "OUT" else a for a in arguments]), 2)
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "gs://bucket/x", "--out", "OUT"),
        ("verify", TINY, "--out", "gs://bucket/x"),
        ("report", TINY.parent, "--out", "gs://bucket/x"),
    ],
    ids=str,
)
def test_a_url_where_a_path_belongs_is_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "expected a path on this machine, got the URL gs://bucket/x" in one_error(ssb(*arguments), 2)
    assert not list(tmp_path.iterdir())


def test_a_misspelt_setting_is_told_its_neighbour(tmp_path):
    assert "did you mean rank" in one_error(ssb("run", TINY, "--out", tmp_path / "o", "--lora.rnak", "8"), 2)


def test_a_file_that_is_no_yaml_is_one_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: {path: builtin:tiny\nseed: [1\n")
    result = ssb("run", path, "--out", tmp_path / "o")
    message = one_error(result, 2)
    assert "line 2" in message
    assert result.output.splitlines()[-1] == message


def test_teaching_before_rollouts_says_so(tmp_path):
    assert "run `ssb rollout` first" in one_error(ssb("teach", TINY, "--out", tmp_path / "o"), 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--questions.path", "nowhere.jsonl"], "no question file"),
        (["--prompts.hinted", "nowhere.txt"], "prompts.hinted"),
        (["--model.path", "/nowhere/model"], "model"),
        (["--questions.path", "n" * 300 + ".jsonl"], "no question file"),
        (["--prompts.system", "You are a tutor. " * 30], "prompts.system: expected one of"),
        (["--prompts.examples", "n" * 300], "prompts.examples"),
        (["--model.path", "n" * 300], "no such folder"),
        (["--rollouts.temperature", "0"], "rollouts.temperature is 0: all samples of a question would be the same"),
    ],
)
def test_bad_input_is_status_1_with_one_error(overrides, message, tmp_path):
    assert message in one_error(ssb("run", TINY, "--out", tmp_path / "o", *overrides), 1)


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "o").write_text("mine")
    assert "cannot be written" in one_error(ssb("run", TINY, "--out", tmp_path / "o"), 1)
    assert (tmp_path / "o").read_text() == "mine"


def test_stages_out_of_order_say_what_to_run_first(tmp_path):
    assert "ssb rollout" in one_error(ssb("targets", TINY, "--out", tmp_path / "o"), 1)
    assert "ssb targets" in one_error(ssb("distill", TINY, "--out", tmp_path / "o"), 1)


def test_a_question_too_long_for_the_model_is_found_before_the_first_answer(tmp_path):
    questions = tmp_path / "q.jsonl"
    rows = [{"question": f"Ben has {i} coins.", "answer": str(i)} for i in range(4)]
    rows[-1]["question"] = "Ben has 7 coins. " * 200
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = f"--evaluation.sets=[{{name: long, data: {{path: {questions}}}}}]"
    for name, overrides in (("a", ("--questions.path", questions, "--rollouts.block_size", 2)), ("b", (sets,))):
        out = tmp_path / name
        message = one_error(ssb("run", TINY, "--out", out, *overrides), 1)
        assert "('Ben has 7 coins. Ben has 7" in message
        assert "fills the model's context of 1,024" in message
        assert not list(out.rglob("part-*.jsonl"))


def test_bad_input_that_is_mended_is_taken_in_the_same_folder(tmp_path):
    questions, out = tmp_path / "q.jsonl", tmp_path / "o"
    arguments = ("distill", TINY, "--out", out, "--questions.path", questions)
    rollout = ("rollout", TINY, "--out", out, "--questions.path", questions, "--model.path", tmp_path / "none")
    assert "no question file" in one_error(ssb(*rollout), 1)
    questions.write_text('{"question": "q"}\n')
    assert "line 1" in one_error(ssb(*rollout), 1)
    questions.write_text('{"question": "q", "answer": "1"}\n')
    assert "none" in one_error(ssb(*rollout), 1)
    assert "ssb targets" in one_error(ssb(*arguments), 1)
    assert (out / "questions" / "manifest.json").exists()


def test_a_refused_command_leaves_the_settings_of_the_run(tmp_path):
    out = tmp_path / "o"
    assert ssb("distill", TINY, "--out", out).exit_code == 1
    before = (out / "config.yaml").read_text()
    assert ssb("distill", TINY, "--out", out, "--seed", "1").exit_code == 1
    assert (out / "config.yaml").read_text() == before


def test_evaluating_wants_no_training_questions(tmp_path):
    overrides = ("--questions.path", tmp_path / "nowhere.jsonl", "--model.path", tmp_path / "no-model")
    assert "no such folder" in one_error(ssb("eval", TINY, "--out", tmp_path / "o", *overrides), 1)
    assert not (tmp_path / "o" / "questions").exists()


def test_eval_without_sets_says_so(tmp_path):
    assert "evaluation.sets" in one_error(ssb("eval", TINY, "--out", tmp_path / "o", "--evaluation.sets", "[]"), 1)


def test_verify_adds_the_promised_keys(tmp_path):
    rows = [
        {"gold": "1000", "response": "so \\boxed{1,000}", "id": 7},
        {"gold": "3", "response": "\\boxed{4}"},
        {"gold": "3", "response": "three"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = ssb("verify", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 0, result.output
    graded = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in graded] == [True, False, False]
    assert [row["extracted"] for row in graded] == ["1,000", "4", None]
    assert all(row["reason"] for row in graded)
    assert graded[0]["id"] == 7


def test_progress_goes_to_stderr_and_results_to_stdout(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"gold": "3", "response": "\\\\boxed{3}"}\n')
    result = subprocess.run(
        [sys.executable, "-m", "ssb_jax", "verify", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout)["correct"] == 1


def test_bench_of_a_peer_that_nobody_knows():
    assert "transformers" in one_error(ssb("bench", "rollout", TINY, "--against", "vllm"), 2)
