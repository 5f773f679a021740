"""Benchmarks of distillation: each side is measured in a process of its own, and both do the same work."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ssb_jax.artifacts import write_jsonl
from ssb_jax.bench.distill import _ratios, _summary
from ssb_jax.cli import main
from ssb_jax.config import config_from_dict, dump_config
from ssb_jax.records import Question
from ssb_jax.training.lowering import made_up_pairs


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """As a finished run has it: settings, questions, pairs."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "model": {"path": "builtin:tiny"},
        "questions": {"path": "builtin:arithmetic"},
        "prompts": {"system": "tiny_tutor", "question": "question", "hinted": "tiny_hinted"},
        "distillation": {"batch_size": 2, "epochs": 1, "max_length": 64, "learning_rate": 1e-3},
        "lora": {"rank": 4},
        "compilation_cache": None,
    }
    (folder / "config.yaml").write_text(dump_config(config_from_dict(config)))
    pairs = made_up_pairs(4, prompt=9, reply=7, teacher_prompt=20, vocabulary=100)
    write_jsonl(folder / "pairs" / "pairs.jsonl", pairs)
    questions = [Question(f"q{i}", f"Ben has {i} coins. Ben finds 5 more. How many?", str(i + 5)) for i in range(3)]
    write_jsonl(folder / "questions" / "questions.jsonl", questions)
    return folder


def test_parity_of_a_run(run_folder, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device in the processes
    result = CliRunner().invoke(main, ["bench", "parity", str(run_folder), "--steps", "4", "--prompts", "3"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(report["steps"]) == 4
    assert report["loss"]["last"][0] != report["loss"]["first"][0]
    assert report["loss_difference"] < 1e-4
    assert report["grad_norm_difference"] < 1e-3
    assert report["answers"]["same"] == report["answers"]["prompts"] == 3


def test_a_process_that_fails_is_one_error(run_folder):
    arguments = [
        "bench",
        "distill",
        str(run_folder / "config.yaml"),
        "--model.path",
        "nowhere",
        "--pairs",
        str(run_folder),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "the process that measures targets ended with status 1" in result.output


def test_a_peak_is_of_the_process_alone():
    code = "from ssb_jax.bench.machine import peak_memory; print(peak_memory())"
    held = bytearray(400 << 20)
    held[::4096] = b"x" * len(held[::4096])
    small = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert small < len(held)
    larger = subprocess.run([sys.executable, "-c", f"x = b'x' * {400 << 20}; {code}"], capture_output=True, check=True)
    assert small + (390 << 20) < int(larger.stdout)


def test_ratios_are_of_the_later_steps():
    def side(seconds, peak):
        rows = [
            {"seconds": s, "tokens_per_second": 1 / s, "loss": 2.0, "grad_norm": 1.0} for s in (9.0, *seconds, 99.0)
        ]
        return _summary(
            {"rows": rows, "processor_clock": [9.0, 10.0, 12.0, 15.0, 99.0], "peak_bytes": peak << 30}, steps=4
        )

    measured = {"ours, remat none": side((1.0, 2.0, 3.0), 2), "torch, remat none": side((4.0, 5.0, 7.0), 8)}
    assert measured["ours, remat none"]["seconds"] == measured["ours, remat none"]["processor_seconds"] == 2.0
    ratios = _ratios(measured)["ratios"]["ours, remat none"]["torch, remat none"]
    assert (ratios["times_faster"], ratios["share_of_memory"], ratios["loss_difference"]) == (2.5, 0.25, 0.0)
    assert ratios["times_less_processor"] == 1.0
