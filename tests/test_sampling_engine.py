"""The engine against the simple loop, token for token, whatever its slots, chunks, order of arrival or mesh."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ssb_jax.config import Engine, Lora, SsbError
from ssb_jax.model.lora import init_lora
from ssb_jax.model.sharding import make_mesh
from ssb_jax.model.transformer import ModelConfig, Transformer, model_shardings
from ssb_jax.records import StopReason
from ssb_jax.sampling import Request, SamplingParams, generate, generate_simple, schedule
from ssb_jax.sampling.engine import EngineStats

CONFIG = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=192,
    initializer_range=0.3,
)
STOPS = tuple(range(300, 320))  # one in sixteen: about half of the sequences end by themselves
KINDS = [
    SamplingParams(temperature=0.8, top_k=50, max_new_tokens=24, stop_ids=STOPS),
    SamplingParams(temperature=0.0, max_new_tokens=9),
    SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=17, stop_ids=STOPS[:2]),
    SamplingParams(temperature=1.2, repetition_penalty=1.5, min_p=0.01, max_new_tokens=12),
]


@pytest.fixture(scope="module")
def model():
    return Transformer(CONFIG, rngs=nnx.Rngs(3))


def make_requests(count: int = 9, *, longest: int = 60) -> list[Request]:
    rng = np.random.default_rng(0)
    return [
        Request(
            id=f"q{i}",
            prompt_ids=tuple(rng.integers(0, 300, rng.integers(1, longest)).tolist()),
            params=KINDS[i % len(KINDS)],
            samples=tuple(range(1 + 2 * (i % 3))),
        )
        for i in range(count)
    ]


def by_key(completions) -> dict:
    done = list(completions)
    keyed = {(c.id, c.sample): c for c in done}
    assert len(keyed) == len(done)
    return keyed


@pytest.fixture(scope="module")
def expected(model):
    return by_key(generate_simple(model, make_requests(), seed=5))


@settings(max_examples=10, deadline=None)
@given(
    slots=st.sampled_from([2, 16]),
    chunk=st.sampled_from([1, 7]),
    order=st.permutations(range(9)),
    lazily=st.booleans(),
)
def test_tokens_depend_on_no_slot_chunk_or_order(model, expected, slots, chunk, order, lazily):
    requests = [make_requests()[i] for i in order]
    given_requests = iter(requests) if lazily else requests
    done = by_key(generate(model, given_requests, seed=5, settings=Engine(slots=slots, chunk=chunk)))
    assert done == expected


def test_missing_samples_alone_are_the_same(model, expected):
    """What a restart asks for."""
    some = [dataclasses.replace(r, samples=r.samples[-1:]) for r in make_requests()[::3]]
    done = by_key(generate(model, some, seed=5, settings=Engine(slots=3, chunk=7)))
    assert done == {key: expected[key] for key in done}
    assert len(done) == 3


def test_adapter_is_applied_unmerged(model):
    lora = init_lora(CONFIG, Lora(rank=4, alpha=16.0), key=jax.random.key(1))
    lora = dataclasses.replace(lora, b=jax.tree.map(lambda x: x + 0.2, lora.b))
    requests = make_requests(4)
    done = by_key(generate(model, requests, seed=5, lora=lora, settings=Engine(slots=3, chunk=7)))
    reference = by_key(generate_simple(model, requests, seed=5, lora=lora))
    assert done == reference
    assert reference != by_key(generate_simple(model, requests, seed=5))


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 2, "tensor": 4}])
def test_eight_devices_give_the_tokens_of_one(model, expected, shape):
    mesh = make_mesh(**shape)
    sharded = jax.device_put(model, model_shardings(model, mesh))
    done = by_key(generate(sharded, make_requests(), seed=5, settings=Engine(slots=6, chunk=7), mesh=mesh))
    assert done == expected


def test_cache_grows_shrinks_and_the_tail_is_compacted(model):
    """Long sequences first, then short ones, then few: each regime gives the simple loop's tokens."""
    long = SamplingParams(temperature=1.0, max_new_tokens=150)
    short = SamplingParams(temperature=1.0, max_new_tokens=5)
    requests = [Request(f"l{i}", (7, i), long) for i in range(3)] + [Request(f"s{i}", (i,), short) for i in range(60)]
    requests.append(Request("last", (5,), dataclasses.replace(long, max_new_tokens=60)))
    seen: list[EngineStats] = []
    done = by_key(generate(model, requests, seed=2, settings=Engine(slots=16, chunk=8), on_stats=seen.append))
    assert done == by_key(generate_simple(model, requests, seed=2))
    assert {s.cache_tokens for s in seen} == {128, 192}
    assert {s.slots for s in seen} == {16, 8}


def test_requests_are_read_as_slots_get_free(model):
    read = itertools.count()
    params = SamplingParams(temperature=1.0, max_new_tokens=2)

    def endless():
        for i in read:
            yield Request(f"q{i}", (i % 300,), params)

    done = list(itertools.islice(generate(model, endless(), seed=0, settings=Engine(slots=4, chunk=2)), 300))
    assert next(read) - len(done) < 200


def test_stats_add_up(model, expected):
    seen: list[EngineStats] = []
    requests = make_requests()
    list(generate(model, requests, seed=5, settings=Engine(slots=3, chunk=7), on_stats=seen.append))
    last = seen[-1]
    stops = [c.stop for c in expected.values()]
    assert (last.end_of_turn, last.length, last.failed) == tuple(stops.count(s) for s in StopReason)
    assert last.new_tokens == sum(len(c.token_ids) for c in expected.values()) + last.end_of_turn
    assert last.prompt_tokens == sum(len(r.prompt_ids) for r in requests)
    assert last.padded_prompt_tokens >= last.prompt_tokens
    assert last.slot_steps == 3 * last.steps
    assert 0.5 < last.occupancy <= 1
    assert last.prefill_seconds + last.decode_seconds + last.copy_seconds <= last.seconds
    assert {"tokens_per_second", "padding_share", "prefill_share", "programs"} <= last.as_dict().keys()


def poisoned(model: Transformer, token: int) -> Transformer:
    """A model whose hidden state is NaN once it has read `token`."""
    broken = jax.tree.map(lambda x: x, model)
    broken.embed[...] = broken.embed[...].at[token].set(jnp.nan)
    return broken


def untied(model: Transformer) -> Transformer:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=False)
    return Transformer(config, rngs=nnx.Rngs(3))


def test_broken_sequences_are_marked_and_harm_no_other():
    model = untied(None)
    params = SamplingParams(temperature=1.0, max_new_tokens=10)
    requests = [Request(f"q{i}", (i, 9 if i % 4 else 299), params) for i in range(1, 30)]
    good = by_key(generate_simple(model, requests, seed=0))
    done = by_key(generate(poisoned(model, 299), requests, seed=0, settings=Engine(slots=2, chunk=3, max_failed=1.0)))
    hit = {key for key, c in good.items() if 299 in c.token_ids[:-1]} | {(f"q{i}", 0) for i in range(4, 30, 4)}
    assert {key for key, c in done.items() if c.stop is StopReason.FAILED} == hit
    assert "not finite" in done["q4", 0].detail
    assert all(done[key] == good[key] for key in done.keys() - hit)


def test_too_many_failures_stop_the_run_and_lose_nothing():
    model = poisoned(untied(None), 299)
    params = SamplingParams(temperature=0.0, max_new_tokens=3)
    requests = [Request(f"q{i}", (5 if i < 8 else 299,), params) for i in range(40)]
    completions = generate(model, requests, seed=0, settings=Engine(slots=4, chunk=3))
    done = []
    with pytest.raises(SsbError, match=r"8 of 40 sequences failed, more than engine.max_failed = 0.1"):
        done.extend(completions)
    assert [c.stop for c in done].count(StopReason.LENGTH) == 8
    assert [c.stop for c in done].count(StopReason.FAILED) == 8  # the fifth exceeds a tenth; its chunk is finished


def test_bad_requests_are_refused_before_the_start(model):
    good = Request("good", (3,), SamplingParams(max_new_tokens=2))
    with pytest.raises(SsbError, match="request long: the prompt has 192 tokens and fills the context of 192"):
        generate(model, [good, Request("long", (3,) * 192, KINDS[0])], seed=0, settings=Engine())
    lazily = generate(model, iter([good, Request("none", (), KINDS[0])]), seed=0, settings=Engine())
    with pytest.raises(SsbError, match="request none: the prompt is empty"):
        next(lazily)


def test_no_requests_give_no_completions(model):
    assert list(generate(model, [], seed=0, settings=Engine())) == []


def test_buckets_waste_at_most_a_third():
    for n in range(1, 5000):
        length = schedule.bucket(n, 32)
        assert length >= n
        assert length == 32 or (length - n) / length < 1 / 3 + 1e-9
    assert sorted({schedule.bucket(n, 128) for n in range(1, 1025)}) == [128, 192, 256, 384, 512, 768, 1024]


def test_slots_are_chosen_to_fit_and_the_reason_is_given():
    budget = schedule.Budget(tokens=10_000, bytes=10_000 * 512, bytes_per_token=512)
    choose = lambda **kw: schedule.choose_slots(  # noqa: E731
        **{"wanted": None, "sequences": None, "longest": 200, "budget": budget, "mesh": None} | kw
    )
    assert choose() == (39, "0.0 GiB for the cache hold 39 sequences of 256 tokens (0.5 KiB a token)")
    assert choose(sequences=5)[0] == 8
    assert choose(wanted=20) == (20, "as set")
    with pytest.raises(SsbError, match="engine.slots: 40 slots do not fit"):
        choose(wanted=40)
    with pytest.raises(SsbError, match="1 slots do not fit"):
        choose(longest=20_000)
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    assert choose(wanted=20, mesh=mesh)[0] == 24
    assert choose(mesh=mesh)[0] == 32


def test_sequences_that_do_not_fit_together_wait_for_fewer_slots(model, monkeypatch):
    budget = schedule.Budget(tokens=4 * 128, bytes=0, bytes_per_token=1)
    monkeypatch.setattr(schedule, "cache_budget", lambda *_, **__: budget)
    short, long = SamplingParams(max_new_tokens=3), SamplingParams(max_new_tokens=140)
    requests = [Request(f"q{i}", (i,), short) for i in range(70)] + [Request("long", (5,), long)]
    seen: list[EngineStats] = []
    done = by_key(generate(model, iter(requests), seed=0, settings=Engine(chunk=7), on_stats=seen.append))
    assert [seen[0].slots, seen[-1].slots] == [4, 1]
    assert len(done) == 71
    assert done["long", 0].stop is StopReason.LENGTH
