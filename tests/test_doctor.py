"""`ssb doctor`: a sound run passes, and each defect is found by the check that looks for it."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ssb_jax import doctor
from ssb_jax.cli import main
from ssb_jax.config import load_config
from ssb_jax.doctor import Status
from ssb_jax.model.weights import resolve_model

TINY = Path(__file__).parent.parent / "configs" / "tiny.yaml"
FEW = ("--questions.limit", "20", "--mesh.fsdp", "1", "--mesh.data", "-1")


def examine(tmp_path, *overrides, out=None):
    findings = doctor.examine(load_config(TINY, [*FEW, *map(str, overrides)]), out=out or tmp_path / "run")
    return {f.check: f for f in findings}


@pytest.fixture
def model(tmp_path):
    """A copy of the shipped model without its weights, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in resolve_model("builtin:tiny").glob("*.json"):
        shutil.copy(file, folder)
    return folder


def edit(file, **changes):
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(values))


def test_the_embedded_run_is_sound(tmp_path):
    found = examine(tmp_path)
    assert list(found) == list(doctor.CHECKS)
    assert {f.status for f in found.values()} == {Status.OK}, found
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_a_model_that_embeds_fewer_ids(tmp_path, model):
    edit(model / "config.json", vocab_size=100)
    found = examine(tmp_path, "--model.path", model)["tokenizer"]
    assert found.status is Status.FAIL
    assert "the model embeds 100" in found.detail


def test_a_template_that_ends_turns_with_another_token(tmp_path, model):
    file = model / "tokenizer_config.json"
    template = json.loads(file.read_text())["chat_template"]
    edit(file, chat_template=template.replace("<|im_end|>", "<|endoftext|>"))
    found = examine(tmp_path, "--model.path", model)["end of turn"]
    assert found.status is Status.FAIL
    assert "eos_token" in found.detail


def test_a_template_that_loses_the_system_message(tmp_path, model):
    edit(model / "tokenizer_config.json", chat_template="{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}")
    assert examine(tmp_path, "--model.path", model)["chat template"].status is Status.FAIL


@pytest.mark.parametrize(
    ("check", "status", "overrides"),
    [
        ("devices", Status.FAIL, ("--mesh.data", "3")),
        ("devices", Status.FAIL, ("--mesh.tensor", "8")),  # 4 heads
        ("end of turn", Status.WARN, ("--prompts.teach_stop", "false")),
        ("questions", Status.FAIL, ("--questions.path", "nowhere.jsonl")),
        ("questions", Status.WARN, ("--questions.split", "test")),
        ("truncation", Status.WARN, ("--rollouts.max_new_tokens", "1000")),
        ("truncation", Status.WARN, ("--distillation.max_length", "50")),
        ("model", Status.FAIL, ("--model.path", "/nowhere")),
        ("disk", Status.FAIL, ("--targets.encoding", "logits", "--teaching.max_pairs", str(10**10))),
    ],
    ids=str,
)
def test_each_defect_is_found(check, status, overrides, tmp_path):
    assert examine(tmp_path, *overrides)[check].status is status


def test_what_needs_a_failed_check_says_so(tmp_path):
    found = examine(tmp_path, "--questions.path", "nowhere.jsonl")
    assert found["truncation"].detail == "not checked, because of questions"
    assert found["chat template"].status is Status.OK


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert examine(tmp_path, out=tmp_path / "file" / "run")["output"].status is Status.FAIL


def test_the_command_prints_and_exits(tmp_path):
    arguments = ["doctor", str(TINY), "--out", str(tmp_path / "run"), *FEW]
    good = CliRunner().invoke(main, arguments)
    assert good.exit_code == 0, good.output
    assert good.output.startswith("ok    versions")
    bad = CliRunner().invoke(main, [*arguments, "--questions.path", "nowhere.jsonl", "--json"])
    assert bad.exit_code == 1
    assert {row["check"]: row["status"] for row in json.loads(bad.output)}["questions"] == "fail"
