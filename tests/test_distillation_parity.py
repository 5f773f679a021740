"""Our trainer against the published one in torch + transformers + peft (ssb_jax/baselines/torch_trainer.py)."""

import numpy as np
import pytest
import torch
import transformers
from distillation_case import make_config, make_pairs, make_targets, make_workspace
from safetensors.numpy import load_file

from ssb_jax.baselines import torch_trainer
from ssb_jax.config import SsbError
from ssb_jax.metrics import read_metrics
from ssb_jax.model.adapters import load_adapter
from ssb_jax.model.weights import load_model
from ssb_jax.stages import distillation

# peft 0.21 asks transformers 5.23 by a name that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PAIRS = make_pairs(10, longest=14)
SETTINGS = {
    "seed": 3,
    "lora": {"rank": 4, "alpha": 8.0},
    "distillation": {"batch_size": 4, "epochs": 4, "learning_rate": 2e-2, "max_length": 14, "max_grad_norm": 0.5},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random untied Qwen2 checkpoint with grouped heads, in transformers' own format."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kl_weight", [1.0, 0.7])
def test_every_step_is_that_of_the_published_trainer(checkpoint, tmp_path, kl_weight):
    config = make_config(**{**SETTINGS, "distillation": {**SETTINGS["distillation"], "kl_weight": kl_weight}})
    workspace = make_workspace(load_model(checkpoint, dtype=np.dtype("float32")))
    workspace.model_folder = checkpoint
    make_targets(PAIRS, tmp_path / "targets", config=config, model=workspace.model)
    ours = distillation.run(
        PAIRS,
        config=config,
        store_folder=tmp_path / "targets",
        folder=tmp_path / "distillation",
        workspace=workspace,
    )
    theirs = torch_trainer.run(PAIRS, config=config, folder=tmp_path / "torch", workspace=workspace)
    rows, expected = read_metrics(tmp_path / "distillation"), read_metrics(tmp_path / "torch")
    counts = {name: value for name, value in theirs.items() if isinstance(value, int)}
    assert {name: ours[name] for name in counts} == counts
    assert ours["steps"] == len(rows) == 12
    assert ours["cut_prompts"] > ours["cut_replies"] > 0
    assert expected[-1]["loss"] < 0.85 * expected[0]["loss"]  # it learns, so the comparison means something
    for name, rtol in (("loss", 1e-5), ("grad_norm", 1e-4), ("learning_rate", 1e-6), ("reply_tokens", 0)):
        np.testing.assert_allclose([r[name] for r in rows], [r[name] for r in expected], rtol=rtol, err_msg=name)
    assert_same_adapter(tmp_path / "distillation" / "adapter", tmp_path / "torch" / "adapter")
    load_adapter(tmp_path / "torch" / "adapter", workspace.model.config)


def test_the_published_trainer_learns_from_our_targets(checkpoint, tmp_path):
    """From stored hidden states as from its own logits, with recomputation as without."""
    workspace = make_workspace(load_model(checkpoint, dtype=np.dtype("float32")))
    workspace.model_folder = checkpoint
    make_targets(PAIRS, tmp_path / "targets", model=workspace.model)
    for name, store, remat in (("own", None, "none"), ("stored", tmp_path / "targets", "full")):
        config = make_config(**{**SETTINGS, "distillation": {**SETTINGS["distillation"], "epochs": 1, "remat": remat}})
        torch_trainer.run(PAIRS, config=config, folder=tmp_path / name, workspace=workspace, store_folder=store)
    own, stored = ([row["loss"] for row in read_metrics(tmp_path / name)] for name in ("own", "stored"))
    np.testing.assert_allclose(stored, own, rtol=1e-5)


def test_settings_that_the_published_trainer_has_not_are_refused(tmp_path):
    config = make_config(distillation={"loss": "jsd", "skip_first": 2})
    with pytest.raises(SsbError, match="loss='jsd', skip_first=2"):
        torch_trainer.run(PAIRS, config=config, folder=tmp_path, workspace=None)


def assert_same_adapter(ours, theirs):
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=2e-2, atol=2e-4, err_msg=name)
