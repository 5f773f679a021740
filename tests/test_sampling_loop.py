"""The simple loop against transformers' generate, token for token."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ssb_jax.config import SsbError
from ssb_jax.model.weights import load_model
from ssb_jax.records import StopReason
from ssb_jax.sampling import Request, SamplingParams, generate_simple

VOCABULARY = 320
torch.set_num_threads(1)  # threads wait for each other longer than these small products take


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small random checkpoint with grouped heads, saved by transformers."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    path = tmp_path_factory.mktemp("qwen2")
    Qwen2ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, dtype=jnp.float32)


def prompts(count: int, vocabulary: int, *, longest: int = 40) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(7)
    return [tuple(rng.integers(3, vocabulary, rng.integers(1, longest)).tolist()) for _ in range(count)]


def greedy_requests(count, vocabulary, **kwargs):
    params = SamplingParams(temperature=0.0, max_new_tokens=64, **kwargs)
    return [Request(f"q{i}", ids, params) for i, ids in enumerate(prompts(count, vocabulary))]


def load_peer(folder) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def transformers_greedy(peer, request) -> list[int]:
    ids = torch.tensor([request.prompt_ids])
    stop = list(request.params.stop_ids) or [-1]
    out = peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=request.params.max_new_tokens,
        repetition_penalty=request.params.repetition_penalty,
        eos_token_id=stop,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    return out[:-1] if out[-1] in stop else out


@pytest.mark.parametrize(("penalty", "stop_ids"), [(1.0, (5, 9, 77)), (1.3, ())])
def test_greedy_equals_transformers(folder, model, penalty, stop_ids):
    requests = greedy_requests(20, VOCABULARY, repetition_penalty=penalty, stop_ids=stop_ids)
    ours = generate_simple(model, requests, seed=0)
    assert [c.id for c in ours] == [r.id for r in requests]
    peer = load_peer(folder)
    for request, completion in zip(requests, ours, strict=True):
        expected = transformers_greedy(peer, request)
        assert list(completion.token_ids) == expected
        assert completion.stop is (StopReason.LENGTH if len(expected) == 64 else StopReason.END_OF_TURN)
    assert len({c.token_ids for c in ours}) > 10


@pytest.mark.skipif("SSB_SMOLLM2" not in os.environ, reason="SSB_SMOLLM2 names a folder of SmolLM2 in Qwen2 format")
def test_greedy_equals_transformers_on_smollm2():
    folder = Path(os.environ["SSB_SMOLLM2"])
    requests = greedy_requests(20, 49152)
    ours = generate_simple(load_model(folder, dtype=jnp.float32), requests, seed=0)
    peer = load_peer(folder)
    assert [list(c.token_ids) for c in ours] == [transformers_greedy(peer, r) for r in requests]


def test_samples_differ_and_repeat(model):
    params = SamplingParams(temperature=1.0, max_new_tokens=12)
    together = generate_simple(model, [Request("a", (4, 5), params, (0, 1, 2)), Request("b", (4, 5), params)], seed=1)
    assert len({c.token_ids for c in together}) == 4
    others = [Request("c", (4, 5), params, (2, 3, 4)), Request("a", (4, 5), params, (2,))]
    assert generate_simple(model, others, seed=1)[3] == together[2]
    assert generate_simple(model, others, seed=2)[3].token_ids != together[2].token_ids


def test_length_is_capped_at_the_context(model):
    done = generate_simple(model, [Request("a", tuple(range(3, 253)), SamplingParams(temperature=0.0))], seed=0)
    assert (len(done[0].token_ids), done[0].stop) == (6, StopReason.LENGTH)


@pytest.mark.parametrize(
    ("prompt", "kwargs", "message"),
    [
        ((), {}, "request x: the prompt is empty"),
        ((3,) * 256, {}, "request x: the prompt has 256 tokens and fills the context of 256"),
        ((3, 320), {}, "request x: prompt id 320 is outside the vocabulary of 320"),
        ((3,), {"stop_ids": (2, 999)}, "request x: stop id 999 is outside the vocabulary"),
    ],
)
def test_bad_requests_are_refused(model, prompt, kwargs, message):
    with pytest.raises(SsbError, match=message):
        generate_simple(model, [Request("x", prompt, SamplingParams(**kwargs))], seed=0)
