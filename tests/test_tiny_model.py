"""The shipped checkpoint and the script that made it."""

import inspect
import json
import re
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoModelForCausalLM

from ssb_jax.chat import load_chat
from ssb_jax.model.transformer import count_parameters
from ssb_jax.model.weights import load_model, resolve_model
from ssb_jax.prompts import load_prompts
from ssb_jax.tiny.corpus import PROMPTS, draw_dialogues, read_solution
from ssb_jax.tiny.pretrain import next_token_loss, pack_dialogues, pretrain_tiny
from ssb_jax.tiny.problems import load_split

FOLDER = resolve_model("builtin:tiny")


@pytest.fixture(scope="module")
def chat():
    return load_chat(FOLDER)


@pytest.fixture(scope="module")
def model():
    return load_model(FOLDER, dtype=jnp.float32)


@pytest.fixture(scope="module")
def reference():
    loaded, info = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return loaded.eval()


def test_logits_equal_those_of_transformers(chat, model, reference):
    prompts = load_prompts(PROMPTS)
    for question in load_split("test", 5):
        ids = np.array([chat.encode_prompt(prompts.student_messages(question.question))], np.int32)
        hidden, _ = model(ids, positions=np.arange(ids.shape[1], dtype=np.int32)[None])
        with torch.no_grad():
            expected = reference(torch.tensor(ids, dtype=torch.long)).logits.numpy()
        np.testing.assert_allclose(model.logits(hidden), expected, atol=1e-4)


def test_it_writes_solutions_and_ends_them(chat, reference):
    """Greedily, in transformers: ChatML in; steps, one boxed answer and the end-of-turn token out."""
    prompts = load_prompts(PROMPTS)
    right = 0
    for question in load_split("test", 20):
        ids = chat.encode_prompt(prompts.student_messages(question.question))
        out = reference.generate(torch.tensor([ids]), max_new_tokens=96, do_sample=False)[0, len(ids) :].tolist()
        assert out[-1] == chat.end_of_turn_id
        text = chat.decode(out)
        assert len(re.findall(r"\\boxed\{\d+\}", text)) == 1
        right += read_solution(text)[1] == int(question.answer)
    assert 2 <= right <= 18, "right sometimes, but not always"


def test_the_card_says_how_it_was_made(chat, model):
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["parameters"] == count_parameters(nnx.state(model))
    defaults = inspect.signature(pretrain_tiny).parameters
    settings = {name: card[name] for name in defaults if name in card}
    assert {"steps", "schedule_steps", "seed", "slip_rate", "hinted_share", "batch_size"} <= set(settings)
    assert settings == {name: defaults[name].default for name in settings}
    assert chat.vocabulary_size == model.config.vocab_size


def test_packed_loss_equals_loss_of_single_dialogues(chat, model):
    dialogues = list(islice(draw_dialogues(seed=3), 60))
    packed = next(pack_dialogues(iter(dialogues), chat, batch_size=2, row_length=512))
    count = int(packed.segment_ids.max(axis=1).sum())
    assert count > 4
    total = tokens = 0.0
    for dialogue in dialogues[:count]:
        single = next(pack_dialogues(iter([dialogue, *dialogues]), chat, batch_size=1, row_length=300))
        learnt = np.where(single.segment_ids == 1, single.learnt, False)
        single = type(single)(single.tokens, single.positions, single.segment_ids, learnt)
        total += float(jax.jit(next_token_loss)(model, single)) * learnt.sum()
        tokens += learnt.sum()
    assert tokens == packed.learnt.sum()
    assert float(next_token_loss(model, packed)) == pytest.approx(total / tokens, rel=1e-5)


def test_only_replies_and_their_ends_are_learnt(chat):
    dialogues = list(islice(draw_dialogues(seed=3), 12))
    batch = next(pack_dialogues(iter(dialogues), chat, batch_size=1, row_length=512))
    for segment in range(1, int(batch.segment_ids.max()) + 1):
        learnt = batch.tokens[batch.learnt & (batch.segment_ids == segment)].tolist()
        assert learnt[-1] == chat.end_of_turn_id
        assert chat.decode(learnt[:-1]) == dialogues[segment - 1].reply


def test_pretraining_learns_and_writes_a_loadable_checkpoint(tmp_path):
    settings = {
        "steps": 6,
        "schedule_steps": 6,
        "batch_size": 2,
        "row_length": 288,
        "width": 64,
        "num_layers": 1,
        "warmup_steps": 1,
    }
    losses = pretrain_tiny(tmp_path / "a", **settings)
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.1
    assert pretrain_tiny(tmp_path / "b", **settings) == losses
    ours = load_model(tmp_path / "a", dtype=jnp.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32).eval()
    ids = np.arange(10, dtype=np.int32)[None]
    hidden, _ = ours(ids, positions=ids)
    with torch.no_grad():
        np.testing.assert_allclose(ours.logits(hidden), theirs(torch.tensor(ids.astype(int))).logits, atol=1e-4)
