"""The engine against the simple loop, token for token, whatever its slots, chunks, order of arrival or mesh."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ssb_jax.answering import _generate_retrying
from ssb_jax.config import Engine, Lora, SsbError
from ssb_jax.model.lora import init_lora
from ssb_jax.model.sharding import make_mesh
from ssb_jax.model.transformer import ModelConfig, Transformer, model_shardings
from ssb_jax.records import StopReason
from ssb_jax.sampling import Request, SamplingParams, device, generate, generate_simple, queue, schedule
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
SMALL = dataclasses.replace(CONFIG, vocab_size=64)  # every token a candidate: compiles in two thirds of the time
FEW, MANY = (
    Engine(slots=2, chunk=7),
    Engine(slots=16, chunk=8),
)  # few shapes, shared by the tests: compiling is the cost
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


@pytest.fixture(scope="module")
def small():
    return Transformer(SMALL, rngs=nnx.Rngs(3))


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


@settings(max_examples=10)
@given(how=st.sampled_from([FEW, MANY]), order=st.permutations(range(9)), lazily=st.booleans())
def test_tokens_depend_on_no_slot_chunk_or_order(model, expected, how, order, lazily):
    requests = [make_requests()[i] for i in order]
    done = by_key(generate(model, iter(requests) if lazily else requests, seed=5, settings=how))
    assert done == expected


def test_missing_samples_alone_are_the_same(model, expected):
    """What a restart asks for."""
    some = [dataclasses.replace(r, samples=r.samples[-1:]) for r in make_requests()[::3]]
    done = by_key(generate(model, some, seed=5, settings=FEW))
    assert done == {key: expected[key] for key in done}
    assert len(done) == 3


def test_adapter_is_applied_unmerged(model, expected):
    lora = init_lora(CONFIG, Lora(rank=4, alpha=16.0), key=jax.random.key(1))
    lora = dataclasses.replace(lora, b=jax.tree.map(lambda x: x + 0.2, lora.b))
    requests = make_requests()[:3]
    done = by_key(generate(model, requests, seed=5, lora=lora, settings=FEW))
    assert done == by_key(generate_simple(model, requests, seed=5, lora=lora))
    assert done != {key: expected[key] for key in done}


@pytest.mark.parametrize(("shape", "kinds"), [((2, 2, 2), (0, 3)), ((1, 2, 4), (0, 1, 2))], ids=str)
def test_eight_devices_give_the_tokens_of_one(model, expected, shape, kinds):
    """On the second mesh, key/value heads are fewer than devices on the tensor axis."""
    mesh = make_mesh(**dict(zip(("data", "fsdp", "tensor"), shape, strict=True)))
    sharded = jax.device_put(model, model_shardings(model, mesh))
    requests = [r for i, r in enumerate(make_requests()) if i % len(KINDS) in kinds]
    done = by_key(generate(sharded, requests, seed=5, settings=Engine(slots=6, chunk=7), mesh=mesh))
    assert done == {key: expected[key] for key in done}
    assert len(done) == sum(len(r.samples) for r in requests)


def test_cache_grows_shrinks_and_the_tail_is_compacted(monkeypatch):
    """Long sequences first, then short ones, then few: each regime gives the simple loop's tokens."""
    monkeypatch.setattr(schedule, "COMPILATION_FLOPS", 0)
    roomy = Transformer(dataclasses.replace(SMALL, max_position_embeddings=512), rngs=nnx.Rngs(3))
    long = SamplingParams(temperature=1.0, max_new_tokens=200)
    short = SamplingParams(temperature=1.0, max_new_tokens=16)
    requests = [Request(f"l{i}", (i,), long) for i in range(3)]
    requests += [Request(f"s{i}", (7 + i // 60, i % 60), short) for i in range(280)]
    requests.append(Request("last", (5, 6, 7), dataclasses.replace(long, max_new_tokens=150)))
    seen: list[EngineStats] = []
    done = by_key(generate(roomy, requests, seed=2, settings=MANY, on_stats=seen.append))
    assert done == by_key(generate_simple(roomy, requests, seed=2))
    regimes = [key for key, _ in itertools.groupby((s.slots, s.cache_tokens) for s in seen)]
    assert regimes == [(16, 128), (16, 192), (16, 256), (16, 128), (8, 128), (8, 192)]


def test_what_prompts_begin_with_is_computed_once(small):
    """Two families of prompts, each with its own beginning. The second, whose prompts are the shortest, comes first in
    the window that has both; what is left of it comes alone in the next."""
    params = SamplingParams(temperature=1.0, max_new_tokens=4)
    beginnings = [tuple(range(10, 59)) * 2, tuple(range(60, 30, -1)) * 3]
    requests = [
        Request(f"f{family}-{i}", (*beginning, i % 60, *range(i % 40)), params, (0, 1))
        for family, beginning in enumerate(beginnings)
        for i in range(66)
    ]
    seen: list[EngineStats] = []
    done = by_key(generate(small, requests, seed=1, settings=MANY, on_stats=seen.append))
    assert done == by_key(generate_simple(small, requests, seed=1))
    total = sum(len(r.prompt_ids) for r in requests)
    assert seen[-1].reused_prompt_tokens > 0.5 * total
    once = 64 + 96 + 64  # each beginning, in steps of 32, for each window's family
    assert seen[-1].prompt_tokens + seen[-1].reused_prompt_tokens <= total + once


def test_the_shortest_prompts_start_first_and_those_of_one_beginning_together(small):
    beginnings = {"a": tuple(range(48)), "b": tuple(range(60, 10, -1))}
    lengths = [("b", 30), ("a", 9), ("b", 2), ("a", 1), ("a", 50), ("b", 20)]
    one = SamplingParams(max_new_tokens=1)
    requests = [Request(f"{family}{n}", (*beginnings[family], *[7] * n), one) for family, n in lengths]
    done = list(generate(small, requests, seed=0, settings=Engine(slots=1, chunk=8)))
    assert [c.id for c in done] == ["a1", "a9", "a50", "b2", "b20", "b30"]


def test_a_long_prompt_waits_for_its_window_alone(small):
    one, read = SamplingParams(max_new_tokens=1), itertools.count()
    incoming = (Request(f"q{i}", (i % 60,) * (90 if i == 0 else 2), one) for i in read)
    done = list(
        itertools.islice(generate(small, incoming, seed=0, settings=Engine(slots=1, chunk=8)), queue.WINDOW + 9)
    )
    assert 0 < [c.id for c in done].index("q0") < len(done)


def test_a_length_of_the_cache_is_given_for_two_chunks(small):
    requests = [Request("q", tuple(range(50)) * 2, SamplingParams(max_new_tokens=60))]
    seen: list[EngineStats] = []
    done = by_key(generate(small, requests, seed=0, settings=Engine(slots=1, chunk=20), on_stats=seen.append))
    assert done == by_key(generate_simple(small, requests, seed=0))
    assert [s.cache_tokens for s in seen] == [192, 192, 192]  # the first chunk alone would do with 128


def test_requests_are_read_as_slots_get_free(small):
    read = itertools.count()
    params = SamplingParams(temperature=1.0, max_new_tokens=2)

    def endless():
        for i in read:
            yield Request(f"q{i}", (i % 60,), params)

    done = list(itertools.islice(generate(small, endless(), seed=0, settings=MANY), 300))
    assert next(read) - len(done) < 200


def test_stats_add_up(model, expected):
    seen: list[EngineStats] = []
    requests = make_requests()
    list(generate(model, requests, seed=5, settings=FEW, on_stats=seen.append))
    last = seen[-1]
    stops = [c.stop for c in expected.values()]
    assert (last.end_of_turn, last.length, last.failed) == tuple(stops.count(s) for s in StopReason)
    assert last.new_tokens == sum(len(c.token_ids) for c in expected.values()) + last.end_of_turn
    assert last.prompt_tokens == sum(len(r.prompt_ids) for r in requests)
    assert last.padded_prompt_tokens >= last.prompt_tokens
    assert last.slot_steps == 2 * last.steps
    assert 0.5 < last.occupancy <= last.queued_occupancy <= 1
    assert last.queued_slot_steps < last.slot_steps
    assert last.prefill_seconds + last.decode_seconds + last.copy_seconds <= last.seconds
    assert {"tokens_per_second", "padding_share", "prefill_share", "programs"} <= last.as_dict().keys()


def poisoned(model: Transformer, token: int) -> Transformer:
    """A model whose hidden state is NaN once it has read `token`."""
    broken = jax.tree.map(lambda x: x, model)
    broken.embed[...] = broken.embed[...].at[token].set(jnp.nan)
    return broken


@pytest.fixture(scope="module")
def untied() -> Transformer:
    """Its embedding can be poisoned without its head."""
    return Transformer(dataclasses.replace(SMALL, tie_word_embeddings=False), rngs=nnx.Rngs(3))


def test_broken_sequences_are_marked_and_harm_no_other(untied):
    params = SamplingParams(temperature=1.0, max_new_tokens=5)
    requests = [Request(f"q{i}", (i, 9 if i % 4 else 62), params) for i in range(1, 30)]
    good = by_key(generate_simple(untied, requests, seed=0))
    how = Engine(slots=2, chunk=7, max_failed=1.0)
    done = by_key(generate(poisoned(untied, 62), requests, seed=0, settings=how))
    hit = {key for key, c in good.items() if 62 in c.token_ids[:-1]} | {(f"q{i}", 0) for i in range(4, 30, 4)}
    assert {key for key, c in done.items() if c.stop is StopReason.FAILED} == hit
    assert "not finite" in done["q4", 0].detail
    assert all(done[key] == good[key] for key in done.keys() - hit)


def test_too_many_failures_stop_the_run_and_lose_nothing(untied):
    params = SamplingParams(temperature=0.0, max_new_tokens=3)
    requests = [Request(f"q{i}", (5 if i < 8 else 62,), params) for i in range(40)]
    completions = generate(poisoned(untied, 62), requests, seed=0, settings=FEW)
    done = []
    with pytest.raises(SsbError, match=r"6 of 40 sequences failed, more than engine.max_failed = 0.1"):
        done.extend(completions)
    assert [c.stop for c in done].count(StopReason.LENGTH) == 8
    assert [c.stop for c in done].count(StopReason.FAILED) == 6


@pytest.mark.parametrize("left", [40, 8])
def test_failures_are_a_share_of_all_that_was_asked(untied, left):
    """Not of what is tried again, nor of the rest that a killed run had left: two of 40 are few."""
    params = SamplingParams(temperature=0.0, max_new_tokens=3)
    requests = [Request(f"q{i}", (5 if i < 38 else 62,), params) for i in range(40 - left, 40)]
    workspace = SimpleNamespace(model=poisoned(untied, 62), mesh=None, config=SimpleNamespace(engine=FEW))
    done = list(_generate_retrying(requests, attempts=2, seed=0, lora=None, workspace=workspace, asked=40))
    assert len(done) == left
    assert sorted(c.id for c in done if c.stop is StopReason.FAILED) == ["q38", "q39"]


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
    memory = "; 0.0 GiB for the cache hold 39 sequences of 256 tokens (0.5 KiB a token)"
    assert choose() == (39, "no more fit" + memory)
    assert choose(sequences=5) == (8, "5 sequences to decode" + memory)
    assert choose(wanted=20) == (20, "as set" + memory)
    with pytest.raises(SsbError, match="engine.slots: 40 slots do not fit"):
        choose(wanted=40)
    with pytest.raises(SsbError, match="1 slots do not fit"):
        choose(longest=20_000)
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    assert choose(wanted=20, mesh=mesh)[0] == 24
    assert choose(mesh=mesh)[0] == 32


def test_more_slots_than_memory_are_refused_and_what_is_chosen_is_said(small, monkeypatch, capsys):
    params = SamplingParams(max_new_tokens=3)
    requests = [Request(f"q{i}", (i,), params) for i in range(9)]
    list(generate(small, requests, seed=0, settings=MANY))
    assert "engine: 16 slots: as set; " in capsys.readouterr().err
    monkeypatch.setattr(
        schedule, "cache_budget", lambda *_, **__: schedule.Budget(tokens=999, bytes=9, bytes_per_token=1)
    )
    with pytest.raises(SsbError, match="engine.slots: 16 slots do not fit: .* hold 7 sequences of 128 tokens"):
        next(generate(small, requests, seed=0, settings=MANY))


def test_a_device_that_fails_is_one_error_and_what_had_ended_is_kept(small, monkeypatch):
    """The third chunk fails as a lost device does."""
    chunks, decode = itertools.count(), device.decode

    def failing(*arguments, **kwargs):
        if next(chunks) == 2:
            raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone\nlong story")
        return decode(*arguments, **kwargs)

    monkeypatch.setattr(device, "decode", failing)
    requests = [Request(f"q{i}", (i,), SamplingParams(max_new_tokens=5)) for i in range(9)]
    done = []
    with pytest.raises(
        SsbError, match="the device failed in decode of 2 slots, 128 tokens: INTERNAL: the device is gone;"
    ):
        done.extend(generate(small, requests, seed=0, settings=FEW))
    assert len(done) == 4


def test_a_prefill_may_be_longer_than_the_cache():
    """After a shared prefix of 96 tokens, the bucket of 150 more is 192: together more than the cache's 256."""
    roomy = Transformer(dataclasses.replace(SMALL, max_position_embeddings=512), rngs=nnx.Rngs(3))
    beginning, params = tuple(range(8)) * 12, SamplingParams(max_new_tokens=4)
    requests = [Request(f"q{i}", beginning + (9 + i,) * 150, params) for i in range(2)]
    seen: list[EngineStats] = []
    done = by_key(generate(roomy, requests, seed=0, settings=FEW, on_stats=seen.append))
    assert done == by_key(generate_simple(roomy, requests, seed=0))
    assert seen[-1].reused_prompt_tokens == 2 * 96
    assert seen[-1].cache_tokens == 256


def test_sequences_that_do_not_fit_together_wait_for_fewer_slots(small, monkeypatch):
    budget = schedule.Budget(tokens=2 * 128, bytes=0, bytes_per_token=1)
    monkeypatch.setattr(schedule, "cache_budget", lambda *_, **__: budget)
    short, long = SamplingParams(max_new_tokens=3), SamplingParams(max_new_tokens=140)
    requests = [Request(f"q{i}", (i % 60,), short) for i in range(200)] + [Request("long", (5,), long)]
    seen: list[EngineStats] = []
    done = by_key(generate(small, iter(requests), seed=0, settings=Engine(chunk=7), on_stats=seen.append))
    assert [seen[0].slots, seen[-1].slots] == [2, 1]
    assert len(done) == 201
    assert done["long", 0].stop is StopReason.LENGTH
