"""`ssb export`: what it writes is what transformers and peft load, with a card, whole or not at all."""

import json
import shutil
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from model_helpers import make_lora

from ssb_jax import export as exporting
from ssb_jax.artifacts import Manifest, complete, write_atomically
from ssb_jax.cli import main
from ssb_jax.config import config_from_dict, dump_config, load_config
from ssb_jax.config.tree import Method
from ssb_jax.model.adapters import save_adapter
from ssb_jax.model.weights import load_model, read_config, resolve_model
from ssb_jax.model_card import model_card
from ssb_jax.workspace import Workspace

TOKENS = np.arange(5, 45)[None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a trained adapter, and the logits of base and adapter."""
    folder = tmp_path_factory.mktemp("run")
    write_atomically(folder / "config.yaml", "model: {path: builtin:tiny}\nquestions: {path: openai/gsm8k}\n")
    workspace = Workspace(load_config(folder / "config.yaml"))
    base = resolve_model("builtin:tiny")
    lora = make_lora(read_config(base))

    def make():
        save_adapter(lora, folder / "distillation" / "adapter", base="builtin:tiny")
        return {"steps": 12}

    made_from = {"model": workspace.model_identity}
    complete(folder / "distillation", stage="distillation", made_from=made_from, make=make, patterns=("adapter/*",))
    interval = {"pass@1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    found = {
        "questions": 600, "num_samples": 1, "confidence": 0.95, "metrics": {"base": interval, "ssb": interval},
        "differences": {"ssb": interval}, "shared_with_training": ["q1"],
    }  # fmt: skip
    write_atomically(folder / "evaluation/results.json", json.dumps({"sets": {"MATH500": found}}))
    model = load_model(base)
    hidden, _ = model(TOKENS, positions=jnp.arange(TOKENS.shape[1])[None], lora=lora)
    return folder, np.asarray(model.logits(hidden))


def export(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_and_transformers_load_what_is_exported(run, tmp_path):
    import peft

    folder, expected = run
    result = export(folder, "--peft", tmp_path / "peft", "--merged", tmp_path / "new" / "merged")
    assert result.exit_code == 0, result.output
    base = transformers.Qwen2ForCausalLM.from_pretrained(resolve_model("builtin:tiny"), dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    assert np.abs(logits_of(adapted) - expected).max() < 1e-4
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "merged", dtype=torch.float32)
    assert np.abs(logits_of(merged.eval()) - expected).max() < 1e-4
    for card in (tmp_path / "peft" / "README.md", tmp_path / "new" / "merged" / "README.md"):
        text = card.read_text()
        for part in ("base_model: builtin:tiny", "| ssb | 50.0 [40.0, 60.0] |", "openai/gsm8k", "rank: 32", "12 steps"):
            assert part in text, card
        assert "**1 of these questions are training questions too.**" in text
        assert "ssb-jax 0." in text
    assert "library_name: peft" in (tmp_path / "peft" / "README.md").read_text()


@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_has_a_card(method, tmp_path):
    values = {"method": method, "model": {"path": "builtin:tiny"}, "questions": {"path": "q.jsonl"}}
    trained = Manifest.sealed(
        stage=method, made_from={}, counts={}, files={}, seconds=1.0, versions={"ssb-jax": "0.1.0"}
    )
    card = model_card(tmp_path, config=config_from_dict(values), trained=trained, base="builtin:tiny", merged=True)
    assert "Not evaluated." in card
    assert f"tags: [{method}, " in card


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def no_space(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "model_card", no_space)
    assert export(run[0], "--peft", tmp_path / "peft").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = export(run[0], "--peft", tmp_path)
    assert result.exit_code == 1
    assert "not an empty folder" in result.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_of_several_rounds_the_last_is_exported(run, tmp_path):
    folder = tmp_path / "run"
    settings = (run[0] / "config.yaml").read_text()
    write_atomically(folder / "config.yaml", settings + "rounds: 2\n")
    result = export(folder, "--peft", tmp_path / "peft")
    assert (result.exit_code, "has not begun its last round" in result.stderr) == (1, True)
    shutil.copytree(run[0], folder / "rounds/02")
    result = export(folder, "--peft", tmp_path / "peft")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "peft/adapter_model.safetensors").is_file()


def test_the_card_of_a_later_round_names_the_first_base(tmp_path):
    values = {"method": "ssb", "model": {"path": "builtin:tiny"}, "questions": {"path": "q.jsonl"}}
    config = config_from_dict(values)
    write_atomically(tmp_path / "rounds/01/config.yaml", dump_config(config))
    trained = Manifest.sealed(stage="ssb", made_from={}, counts={}, files={}, seconds=1.0, versions={"ssb-jax": "0"})
    base = str(tmp_path / "rounds/01/merged")
    for merged, named in ((False, base), (True, "builtin:tiny")):
        card = model_card(tmp_path / "rounds/02", config=config, trained=trained, base=base, merged=merged)
        assert f"base_model: {named}\n" in card
        assert "# builtin:tiny, ssb, round 2" in card
        assert "is the student of round 1; the first one's base is `builtin:tiny`" in card


def test_folders_within_each_other_are_refused(run, tmp_path):
    result = export(run[0], "--peft", tmp_path / "out/sub", "--merged", tmp_path / "out")
    assert (result.exit_code, "two folders beside each other" in result.stderr) == (1, True)


def test_commands_of_one_stage_refuse_several_rounds(tmp_path):
    result = CliRunner().invoke(main, ["eval", "configs/tiny.yaml", "--out", str(tmp_path / "run"), "--rounds", "2"])
    assert result.exit_code == 2
    assert "rounds/01/config.yaml" in result.stderr
