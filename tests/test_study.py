"""A grid of runs: what its cells are, that they share what they would make alike, and that a kill costs nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ssb_jax.artifacts import complete, read_jsonl, read_manifest
from ssb_jax.cli import main
from ssb_jax.config import SsbError, config_from_dict, load_config
from ssb_jax.costs import run_cost
from ssb_jax.metrics import read_metrics
from ssb_jax.pipeline.sharing import share, sharing, take_shared
from ssb_jax.records import Pair, Trial
from ssb_jax.study import cells

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/tiny-study.yaml"


def study_config(**study):
    values = load_config(CONFIG).model_dump(mode="json")
    values["study"] = {"methods": ["ssb", "grpo"], "questions": [8, 16], **study}
    return config_from_dict(values)


def test_the_grid_has_every_method_size_and_seed_once():
    grid = cells(load_config(CONFIG))
    assert len(grid) == len({cell.name for cell in grid}) == 5 * 4 * 3
    first = grid[0].config
    assert (first.method, first.questions.limit, first.seed, first.study) == ("ssb", 32, 0, None)
    assert first.teaching.max_pairs is None


def test_losses_are_for_ssb_and_settings_for_their_method():
    grid = cells(study_config(questions=[8], losses=["ssb", "jsd"], settings={"grpo": {"grpo.learning_rate": 0.5}}))
    assert [cell.name for cell in grid] == ["ssb-8-seed0", "ssb-jsd-8-seed0", "grpo-8-seed0"]
    assert grid[1].config.distillation.loss == "jsd"
    assert grid[2].config.grpo.learning_rate == 0.5
    assert grid[0].config.grpo.learning_rate != 0.5


def test_a_bad_grid_is_refused_before_anything_runs():
    with pytest.raises(SsbError, match="section `study`"):
        cells(load_config(ROOT / "configs/tiny.yaml"))
    with pytest.raises(SsbError, match="grpo-8-seed0: unknown setting grpo.learning_rates; did you mean learning_rate"):
        cells(study_config(settings={"grpo": {"grpo.learning_rates": 0.5}}))


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"seeds": [0, 0]}, r"seeds must differ, got \[0, 0\]"),
        ({"methods": []}, "study.methods: tuple should have at least 1 item"),
        ({"questions": []}, "study.questions: tuple should have at least 1 item"),
        ({"settings": {"grpo": {"seed": 3}}}, "the grid itself sets grpo: seed"),
        ({"settings": {"grpo": {"grpo.learning_rate.x": 3}}}, "unknown setting grpo.learning_rate.x"),
        ({"settings": {"grpo": {"gpro.learning_rate": 3}}}, "unknown setting gpro.learning_rate"),
        ({"losses": ["ssb", "jds"]}, "study, ssb-jds-8-seed0: "),
        ({"losses": ["a.py:mine", "b.py:mine"]}, "study: ssb-mine-8-seed0 names two cells"),
        ({"seeds": [-1]}, "study, ssb-8-seed-1: seed"),
    ],
    ids=str,
)
def test_a_grid_that_must_fail_is_refused_as_bad_usage(study, message, tmp_path):
    with pytest.raises(SsbError, match=message):
        cells(study_config(**study))
    overrides = [f"--study.{key}={json.dumps(value)}" for key, value in study.items()]
    if "questions" not in study:
        overrides.append("--study.questions=[8]")
    result = CliRunner().invoke(main, ["study", str(CONFIG), "--out", str(tmp_path / "s"), *overrides])
    assert result.exit_code == 2, result.output
    assert not (tmp_path / "s/cells").exists()


def test_parts_share_the_grid(tmp_path):
    assert CliRunner().invoke(main, ["study", str(CONFIG), "--out", str(tmp_path), "--part", "4/3"]).exit_code == 2
    small = (*SMALL, "--study.methods", "[rft]", "--study.questions", "[4]", "--study.seeds", "[0,1,2]")
    commands = [command("study", tmp_path, *small, "--part", f"{i}/2") for i in (1, 2)]
    parts = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) for c in commands]
    told = [part.communicate()[1] for part in parts]
    assert [part.returncode for part in parts] == [0, 0], told
    rows = [
        [json.loads(x)["cell"] for x in (tmp_path / f"cells-{i}-of-2.jsonl").read_text().splitlines()] for i in (1, 2)
    ]
    assert rows == [["rft-4-seed0", "rft-4-seed2"], ["rft-4-seed1"]]
    before = times(tmp_path / "cells")
    whole = subprocess.run(command("study", tmp_path, *small), capture_output=True, text=True, env=ENVIRONMENT)
    assert whole.returncode == 0, whole.stderr
    assert times(tmp_path / "cells") == before
    shutil.rmtree(tmp_path / "cells/rft-4-seed1")
    again = subprocess.run(command("study", tmp_path, *small), capture_output=True, text=True, env=ENVIRONMENT)
    assert (again.returncode, (tmp_path / "cells/rft-4-seed1/evaluation/results.json").is_file()) == (0, True)
    assert "3" in (tmp_path / "study.csv").read_text()
    assert [path.name for path in tmp_path.glob("shared/.*")] == []


def test_a_cell_that_fails_holds_up_no_other(tmp_path):
    """With answers of one token none is right."""
    grid = ("--study.methods", "[rft]", "--study.questions", "[4]", "--study.seeds", "[0,1]")
    grid += ("--rollouts.max_new_tokens", "1")
    result = subprocess.run(command("study", tmp_path, *grid), capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 1
    assert "2 of 2 cells failed, their errors are above: rft-4-seed0, rft-4-seed1" in " ".join(result.stderr.split())
    assert result.stderr.count("was answered right") == 2
    (tmp_path / "cells.jsonl").write_text("not json\n")
    result = subprocess.run(command("study", tmp_path, *grid), capture_output=True, text=True, env=ENVIRONMENT)
    assert "a line is not one of a finished cell" in " ".join(result.stderr.split())


def test_a_finished_folder_is_shared_by_those_that_would_make_it_alike(tmp_path):
    def make(folder, amount):
        take_shared(folder, "stage", {"amount": amount})
        manifest, was_there = complete(
            folder,
            stage="stage",
            made_from={"amount": amount},
            make=lambda: {"n": (folder / "x").write_text(str(amount))},
        )
        share(folder, manifest)
        return was_there

    with sharing(tmp_path / "shared"):
        assert not make(tmp_path / "one/a", 1)
        assert make(tmp_path / "two/a", 1)
        assert not make(tmp_path / "three/a", 2)
    assert not make(tmp_path / "four/a", 1)
    assert (tmp_path / "two/a/x").read_text() == "1"
    assert read_manifest(tmp_path / "one/a") == read_manifest(tmp_path / "two/a")


SMALL = (
    *("--lora.rank", "4", "--distillation.epochs", "1", "--grpo.epochs", "2", "--grpo.checkpoint_every", "2"),
    *("--grpo.group_size", "2", "--evaluation.sets.0.data.limit", "6", "--grpo.schedule", "constant"),
)
GRID = ("--study.methods", "[rft,grpo]", "--study.questions", "[8]", "--study.seeds", "[0]")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def command(name, folder, *more):
    return [sys.executable, "-m", "ssb_jax", name, str(CONFIG), "--out", str(folder), *SMALL, *more]


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_killed_in_the_middle_no_cell_runs_twice_and_grpo_ends_as_if_never_killed(tmp_path):
    folder, straight = tmp_path / "study", tmp_path / "straight"
    process = subprocess.Popen(command("study", folder, *GRID), stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    own, reinforced = folder / "cells/rft-8-seed0", folder / "cells/grpo-8-seed0"
    while process.poll() is None and not (reinforced / "grpo/trials/step-000003.jsonl").exists():
        time.sleep(0.01)
    assert process.poll() is None, "the study ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = times(own)
    again = subprocess.run(command("study", folder, *GRID), capture_output=True, text=True, env=ENVIRONMENT)
    assert again.returncode == 0, again.stderr
    assert times(own) == before
    rows = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == ["rft-8-seed0", "grpo-8-seed0"]

    other = command("grpo", straight, "--questions.limit", "8", "--teaching.max_pairs", "null")
    assert subprocess.run(other, capture_output=True, env=ENVIRONMENT).returncode == 0
    for name in ("grpo/adapter/adapter_model.safetensors", "grpo/trials/step-000004.jsonl"):
        assert (reinforced / name).read_bytes() == (straight / name).read_bytes(), name
    assert [row["step"] for row in read_metrics(reinforced / "grpo")] == [1, 2, 3, 4]

    base = [(cell / "evaluation/test/base/manifest.json").read_bytes() for cell in (own, reinforced)]
    assert base[0] == base[1], "the base's answers were not shared"
    trials = [t for i in range(1, 5) for t in read_jsonl(reinforced / f"grpo/trials/step-{i:06d}.jsonl", Trial)]
    cost = run_cost(reinforced)
    assert (cost.questions, cost.generated_tokens) == (8, sum(len(t.token_ids) for t in trials))
    pairs = read_jsonl(own / "pairs/pairs.jsonl", Pair)
    assert all(pair.student_prompt_ids == pair.teacher_prompt_ids for pair in pairs)
    assert all(f"\\boxed{{{pair.answer}}}" in pair.solution for pair in pairs)
    assert run_cost(own).questions == 8
