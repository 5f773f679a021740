"""Distillation against an independent trainer in torch + transformers + peft that follows the published scripts:
right-padded batches, dense teacher logits, kl_div(batchmean) * T^2 on reply positions, AdamW, linear decay, clipping.
"""

import numpy as np
import peft
import pytest
import torch
import transformers
from distillation_case import make_config, make_pairs, make_targets, make_workspace
from safetensors.torch import load_file

from ssb_jax.metrics import read_metrics
from ssb_jax.model.adapters import save_adapter
from ssb_jax.model.lora import init_lora
from ssb_jax.model.weights import load_model
from ssb_jax.stages import distillation
from ssb_jax.training.batches import data_order
from ssb_jax.training.step import run_keys

# peft 0.21 asks transformers 5.23 by a name that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SEED, T = 3, 2.0
PAIRS = make_pairs(10, longest=14)
CONFIG = make_config(
    seed=SEED,
    lora={"rank": 4, "alpha": 8.0},
    distillation={"batch_size": 4, "epochs": 4, "learning_rate": 2e-2, "max_length": 14, "max_grad_norm": 0.5},
)


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


def collate(examples):
    """(tokens, labels, attention mask), padded on the right; labels are -100 outside of the reply."""
    longest = max(len(p) + len(r) for p, r in examples)
    tokens, mask = torch.zeros(len(examples), longest, dtype=torch.long), torch.zeros(len(examples), longest)
    reply = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, (p, r) in enumerate(examples):
        tokens[row, : len(p) + len(r)] = torch.tensor(p + r)
        mask[row, : len(p) + len(r)] = 1
        reply[row, len(p) - 1 : len(p) + len(r) - 1] = True
    return tokens, mask, reply


def reference(checkpoint, adapter):
    """[(loss, gradient norm)] of every step, and the adapter's tensors at the end."""
    base = transformers.Qwen2ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    cut = []
    for pair in PAIRS:
        reply = pair.reply_ids[: CONFIG.distillation.max_length - 1]
        cut.append((pair.student_prompt_ids[-(CONFIG.distillation.max_length - len(reply)) :], reply))
    teacher_logits = []
    for pair, (_, reply) in zip(PAIRS, cut, strict=True):
        with torch.no_grad():
            logits = base(torch.tensor([pair.teacher_prompt_ids + pair.reply_ids])).logits[0]
        start = len(pair.teacher_prompt_ids) - 1
        teacher_logits.append(logits[start : start + len(reply)])
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings = CONFIG.distillation
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=0.0)
    order = data_order(len(PAIRS), batch_size=4, epochs=4, seed=SEED)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, len(order))
    numbers = []
    for step in range(len(order)):
        tokens, mask, reply = collate([cut[i] for i in order[step]])
        student = model(input_ids=tokens, attention_mask=mask).logits[reply]
        teacher = torch.cat([teacher_logits[i] for i in order[step]])
        log_p, q = torch.log_softmax(student / T, -1), torch.softmax(teacher / T, -1)
        loss = torch.nn.functional.kl_div(log_p, q, reduction="batchmean") * T * T
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        numbers.append((loss.item(), norm.item()))
    return numbers, peft.get_peft_model_state_dict(model)


def test_every_step_is_that_of_the_published_trainer(checkpoint, tmp_path):
    model = load_model(checkpoint, dtype=np.dtype("float32"))
    save_adapter(init_lora(model.config, CONFIG.lora, key=run_keys(SEED)[0]), tmp_path / "start", base=str(checkpoint))
    expected, expected_adapter = reference(checkpoint, tmp_path / "start")

    make_targets(PAIRS, tmp_path / "targets", config=CONFIG, model=model)
    summary = distillation.run(
        PAIRS,
        config=CONFIG,
        store_folder=tmp_path / "targets",
        folder=tmp_path / "distillation",
        workspace=make_workspace(model),
    )
    rows = read_metrics(tmp_path / "distillation")
    assert len(rows) == len(expected) == 12
    assert summary["cut_prompts"] > summary["cut_replies"] > 0
    assert expected[-1][0] < 0.85 * expected[0][0]  # it learns, so the comparison means something
    np.testing.assert_allclose([row["loss"] for row in rows], [loss for loss, _ in expected], rtol=1e-5)
    np.testing.assert_allclose([row["grad_norm"] for row in rows], [norm for _, norm in expected], rtol=1e-4)
    adapter = load_file(tmp_path / "distillation" / "adapter" / "adapter_model.safetensors")
    assert adapter.keys() == expected_adapter.keys()
    for name, tensor in expected_adapter.items():
        np.testing.assert_allclose(adapter[name], tensor.detach(), rtol=2e-2, atol=2e-4, err_msg=name)
