"""What is reported of a set, and answers and adapters that come from elsewhere."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ssb_jax.cli import main
from ssb_jax.compare import read_results
from ssb_jax.config import Evaluation, EvaluationSet, SsbError
from ssb_jax.given import given_rollouts, read_given
from ssb_jax.model.adapters import BASE_FILE, check_base, write_base
from ssb_jax.records import Outcome, Question, Rollout, StopReason, Verdict
from ssb_jax.scores import Answers, format_failures, summarise
from ssb_jax.stats import sign_test

TINY = Path(__file__).parent.parent / "configs" / "tiny.yaml"
QUESTIONS = [Question(f"q{i}", f"What is {i}?", str(i), subject="odd" if i % 2 else "even") for i in range(8)]


def answers(*outcomes, strict=None):
    """One answer a question with these outcomes; by the string rule right where they are, or as `strict` says."""
    rollouts, verdicts = [], []
    for i, outcome in enumerate(outcomes):
        boxed = outcome in (Outcome.CORRECT, Outcome.INCORRECT)
        equal = outcome is Outcome.CORRECT if strict is None else strict[i]
        rollouts.append(Rollout(f"q{i}", 0, "text", (1, 2), StopReason.END_OF_TURN, 5))
        verdicts.append(Verdict(f"q{i}", 0, outcome, f"{i}.0" if boxed else None, "reason", equal, 2))
    return Answers(rollouts, verdicts)


def summary(**models):
    return summarise(QUESTIONS, models, num_samples=1, settings=Evaluation(bootstrap=200))


RIGHT, WRONG, NO_BOX, CUT = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNANSWERED, Outcome.TRUNCATED


def test_format_failures_are_told_apart_from_wrong_answers():
    found = summary(base=answers(*[NO_BOX] * 5, CUT, CUT, CUT), ssb=answers(*[RIGHT] * 3, *[WRONG] * 3, NO_BOX, CUT))
    assert found["format"]["ssb"] == {
        "boxed": 0.75, "never_boxed": 1, "truncated": 1, "wrong": 3, "correct_of_boxed": 0.5,
    }  # fmt: skip
    assert found["format"]["base"]["correct_of_boxed"] is None
    [sentence] = format_failures(found)
    assert sentence.startswith("base put 0.0 % of its answers in \\boxed{} (5 have no box, 3 were cut off")


def test_strict_grading_stands_beside_with_examples():
    found = summary(base=answers(*[RIGHT] * 8, strict=[True] * 6 + [False] * 2))
    assert (found["metrics"]["base"]["pass@1"]["value"], found["metrics"]["base"]["strict pass@1"]["value"]) == (
        1,
        0.75,
    )
    assert (found["strict"]["base"]["changed"], found["strict"]["base"]["answers"]) == (2, 8)
    assert found["strict"]["base"]["examples"][0] == {
        "question": "q6", "gold": "6", "extracted": "6.0", "outcome": "correct", "reason": "reason",
    }  # fmt: skip


def test_results_by_subject():
    found = summary(base=answers(*[RIGHT, WRONG] * 4))
    assert set(found["groups"]) == {"subject"}
    groups = found["groups"]["subject"]
    assert {name: (g["questions"], g["pass@1"]["base"]["value"]) for name, g in groups.items()} == {
        "even": (4, 1.0),
        "odd": (4, 0.0),
    }


def test_the_paired_test_is_mcnemars_exact_one():
    first, second = [0] * 9 + [1] * 3 + [1] * 20, [1] * 9 + [0] * 3 + [1] * 20
    paired = sign_test(first, second)
    assert (paired.better, paired.worse, paired.equal) == (9, 3, 20)
    # 2 * P(X <= 3) of 12 fair coins = 2 * (1 + 12 + 66 + 220) / 4096
    assert paired.p_value == pytest.approx(2 * 299 / 4096)
    assert sign_test(first, first).p_value == 1.0


def test_a_benchmark_is_named_and_its_questions_can_come_from_a_file():
    taken = EvaluationSet.model_validate("MATH500")
    assert (taken.data.path, taken.data.question_column) == ("HuggingFaceH4/MATH-500", "problem")
    assert (taken.sampling.temperature, taken.sampling.max_new_tokens) == (0.0, 8192)
    own = EvaluationSet.model_validate({"name": "MATH500", "data": {"path": "my.jsonl"}, "num_samples": 4})
    assert (own.data.path, own.data.question_column, own.num_samples) == ("my.jsonl", "question", 4)
    with pytest.raises(ValueError, match="data"):
        EvaluationSet.model_validate("MATH5000")


def given(tmp_path, *rows):
    path = tmp_path / "vllm.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_given_answers_are_found_by_id_or_text(tmp_path):
    rows = [{"id": f"q{i}", "response": f"by id {i}", "usage": 7} for i in range(4)]
    rows += [{"question": f"  what is {i}? ", "response": "by text", "finish_reason": "length"} for i in range(4, 8)]
    rows += [{"id": "q0", "set": "other", "response": "not here"}]
    path = given(tmp_path, *reversed(rows))
    rollouts = given_rollouts(read_given(path), QUESTIONS, set_name="test", num_samples=1, source=path)
    assert [r.question_id for r in rollouts] == [q.id for q in QUESTIONS]
    assert rollouts[0].text == "by id 0"
    assert [r.stop for r in rollouts] == [StopReason.END_OF_TURN] * 4 + [StopReason.LENGTH] * 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "q0", "response": "a"}], "7 questions have too few, 0 too many, the first is q1 with 0"),
        ([{"id": f"q{i // 2}", "response": "a"} for i in range(16)], "0 questions have too few, 8 too many"),
        ([{"id": "q0", "question": "What is 1?", "response": "a"}], "the id q0 and the text of question q1"),
        ([{"id": "q0", "question": "Who?", "response": "a"}], "the id q0 and another text than that question of test"),
        ([{"response": "a"}], "1 of 1 rows have neither id nor question"),
        ([{"id": "q0"}], "line 1: expected a JSON object for a GivenAnswer; response"),
        ([], "found none"),
    ],
    ids=str,
)
def test_given_answers_that_do_not_fit_are_refused(rows, message, tmp_path):
    path = given(tmp_path, *rows)
    with pytest.raises(SsbError, match=message):
        given_rollouts(read_given(path), QUESTIONS, set_name="test", num_samples=1, source=path)


def test_an_adapter_of_another_base_is_refused(tmp_path, capsys):
    def adapter(base):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        return tmp_path

    ours = tmp_path / "tiny"
    (ours / "copy").mkdir(parents=True)
    for folder in (ours, ours / "copy"):
        (folder / "model.safetensors").write_bytes(b"weights")
    check_base(adapter("Qwen/Qwen2.5-3B-Instruct"), "models/qwen2.5-3b-instruct", ours)
    check_base(adapter(str(ours / "copy")), "builtin:tiny", ours)
    with pytest.raises(SsbError, match=r"trained on Qwen/Qwen2\.5-3B, not on this run's Qwen/Qwen2\.5-3B-Instruct"):
        check_base(adapter("Qwen/Qwen2.5-3B"), "Qwen/Qwen2.5-3B-Instruct", ours)
    check_base(adapter("/nowhere/tiny"), "builtin:tiny", ours)
    assert "only the names were compared" in " ".join(capsys.readouterr().err.split())
    write_base(tmp_path, ours)
    check_base(adapter("/nowhere/anything"), "builtin:tiny", ours)
    (ours / "model.safetensors").write_bytes(b"merged otherwise")
    with pytest.raises(SsbError, match="was trained on /nowhere/tiny"):
        check_base(adapter("/nowhere/tiny"), "builtin:tiny", ours)
    (tmp_path / BASE_FILE).unlink()
    (ours / "model.safetensors").write_bytes(b"weights")
    (ours / "copy" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(SsbError, match="was trained on"):
        check_base(adapter(str(ours / "copy")), "builtin:tiny", ours)


def test_eval_of_answers_from_elsewhere_needs_no_model_and_finds_training_questions(tmp_path):
    """Format failures, the overlap and the table, through the command; the model does not exist."""
    rows = [{"question": f"What is {i} + 0 ?", "answer": str(i)} for i in range(6)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "what is 3 + 0?", "answer": "3"}) + "\n")
    path = given(
        tmp_path, *({"question": row["question"], "response": f"\\boxed{{{row['answer']}.0}}"} for row in rows)
    )
    out = tmp_path / "run"
    common = ("--out", out, "--questions.path", tmp_path / "train.jsonl", "--model.path", tmp_path / "no-model")
    sets = f"--evaluation.sets=[{{name: test, data: {{path: '{tmp_path / 'test.jsonl'}'}}}}]"
    result = CliRunner().invoke(main, [str(a) for a in ("eval", TINY, *common, sets, "--answers", path)])
    assert result.exit_code == 0, result.output
    assert "100.0 [" in result.stdout
    assert "1 of the 6 questions of test are training questions too" in " ".join(result.stderr.split())
    found = json.loads((out / "evaluation/results.json").read_text())["sets"]["test"]
    assert found["strict"]["vllm"]["changed"] == 6
    assert len(found["shared_with_training"]) == 1
    assert json.loads((out / "evaluation/results.json").read_text())["method"] is None
    assert [r.method for r in read_results([out])] == ["vllm"]

    path.write_text(path.read_text() + '{"id": 77, "response": "a"}\n')
    result = CliRunner().invoke(main, [str(a) for a in ("eval", TINY, *common, sets, "--answers", path)])
    assert f"1 of the 7 rows of {path} belong to no question of test, such as '77'" in " ".join(result.stderr.split())

    other = tmp_path / "sglang.jsonl"
    other.write_text("".join(json.dumps({"question": row["question"], "response": "?"}) + "\n" for row in rows))
    result = CliRunner().invoke(main, [str(a) for a in ("eval", TINY, *common, sets, "--answers", other)])
    assert result.exit_code == 0, result.output
    assert [r.method for r in read_results([out])] == ["sglang", "vllm"], "what was evaluated before stays"

    path.write_text('{"id": "nobody", "response": "a"}\n')
    result = CliRunner().invoke(main, [str(a) for a in ("eval", TINY, *common, sets, "--answers", path)])
    assert result.exit_code == 1
    assert "no row belongs to a question of test" in result.stderr
