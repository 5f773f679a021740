"""The filters against transformers' logits processors, and the ways to a token against each other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as reference

from ssb_jax.config import SsbError
from ssb_jax.model.sharding import make_mesh, use_mesh
from ssb_jax.sampling import filters as f
from ssb_jax.sampling.keys import gumbel, hash32, sequence_keys, token_keys
from ssb_jax.sampling.params import SamplingParams

MIXED = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=5),
    SamplingParams(temperature=1.3, top_p=0.8),
    SamplingParams(temperature=0.9, min_p=0.2),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.05),
    SamplingParams(temperature=0.6, top_k=63, top_p=0.95),
    SamplingParams(temperature=2.0, top_k=400, top_p=0.5),
    SamplingParams(temperature=1.0, top_p=1e-7),
    SamplingParams(temperature=0.5, min_p=1.0),
    SamplingParams(temperature=1.0, repetition_penalty=1.7, top_k=7),
    SamplingParams(temperature=0.8, repetition_penalty=0.8, top_p=0.7),
    SamplingParams(temperature=0.0, repetition_penalty=1.3),
]


def transformers_scores(logits: np.ndarray, params: SamplingParams, seen: list[int]) -> np.ndarray:
    """What transformers' own processors make of one row, in its order."""
    scores, ids = torch.tensor(logits)[None], torch.tensor([seen], dtype=torch.long)
    processors = []
    if params.repetition_penalty != 1:
        processors.append(reference.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature > 0:
        processors.append(reference.TemperatureLogitsWarper(float(params.temperature)))
        if params.top_k:
            processors.append(reference.TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            processors.append(reference.TopPLogitsWarper(params.top_p))
        if params.min_p > 0:
            processors.append(reference.MinPLogitsWarper(params.min_p))
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0].numpy()


@jax.jit
def our_masks(scores, filters):
    """The mask by each way, in vocabulary order."""
    ordered, ids = jax.lax.sort((scores, f._all_ids(scores)), num_keys=2)
    by_sort = (
        jnp.zeros(scores.shape, bool).at[jnp.arange(len(scores))[:, None], ids].set(f.keep_sorted(ordered, filters))
    )
    return by_sort, f.keep_by_search(scores, filters)


def probabilities(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("vocabulary", [300, 7])
@pytest.mark.parametrize("tied", [False, True])
def test_distribution_equals_transformers_processors(vocabulary, tied):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (len(MIXED), vocabulary)).astype(np.float32)
    if tied:  # few distinct values: ties at every threshold
        logits = np.round(logits / 2) * 2
    seen_ids = rng.integers(0, vocabulary, (len(MIXED), 5))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, seen_ids, True, axis=1)
    filters = f.stack_filters(MIXED)
    expected = np.stack([transformers_scores(*row) for row in zip(logits, MIXED, seen_ids.tolist(), strict=True)])
    scores = f._scaled(f.penalise(logits, seen, filters.penalty), filters)
    drawn = filters.temperature > 0
    for mask in our_masks(scores, filters):
        filtered = np.where(mask, np.asarray(scores), -np.inf)
        if tied:  # which of equal tokens leave the nucleus is open: torch's sort is not stable. How many is not
            filtered, wanted = np.sort(filtered), np.sort(expected)
        else:
            wanted = expected
        np.testing.assert_array_equal(np.isfinite(filtered)[drawn], np.isfinite(wanted)[drawn])
        np.testing.assert_allclose(probabilities(filtered)[drawn], probabilities(wanted)[drawn], atol=1e-6)
    np.testing.assert_allclose(np.asarray(scores)[~drawn], expected[~drawn], rtol=1e-6)


def nucleus_margin(scores: np.ndarray, tail: float) -> float:
    """How far the nearest cumulative probability is from the nucleus' edge: rounding decides below 1e-6."""
    cumulative = np.cumsum(np.sort(probabilities(scores)))
    return np.min(np.abs(cumulative - tail))


@settings(max_examples=150)
@given(
    values=st.lists(st.sampled_from([-3.0, -1.5, -0.0, 0.0, 0.5, 2.0, 2.25]), min_size=12, max_size=12),
    temperature=st.sampled_from([0.25, 1.0, 1.7]),
    top_k=st.integers(0, 14),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
)
def test_masks_equal_transformers_with_ties(values, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = np.array(values, np.float32)
    without_p = transformers_scores(logits, SamplingParams(temperature=temperature, top_k=top_k), [])
    if top_p < 1 and nucleus_margin(without_p, 1 - top_p) < 1e-6:
        return
    expected = np.isfinite(transformers_scores(logits, params, []))
    filters = f.stack_filters([params])
    for mask in our_masks(f._scaled(jnp.asarray(logits)[None], filters), filters):
        np.testing.assert_array_equal(np.asarray(mask)[0], expected)


@pytest.mark.parametrize(("count", "top_p"), [(4, 0.5), (10, 0.9), (10, 0.7), (8, 0.125), (5, 0.2)])
def test_ties_exactly_on_the_nucleus_edge_follow_transformers(count, top_p):
    params = SamplingParams(top_p=top_p)
    logits = np.zeros(count, np.float32)
    expected = np.isfinite(transformers_scores(logits, params, []))
    for mask in our_masks(jnp.asarray(logits)[None], f.stack_filters([params])):
        np.testing.assert_array_equal(np.asarray(mask)[0], expected)


@jax.jit
def sample(logits, keys, filters):
    return f.sample(logits, keys, filters, active=jnp.ones(len(logits), bool))


def draw(logits, params, keys):
    token, bad = sample(logits, keys, f.stack_filters(params))
    return np.asarray(token), np.asarray(bad)


def some_keys(rows: int):
    return token_keys(jnp.asarray(sequence_keys(3, [(f"q{i}", 0) for i in range(rows)])), jnp.arange(rows))


def test_token_is_the_same_by_every_way_and_in_any_batch():
    vocabulary = 512
    logits = np.random.default_rng(1).normal(0, 2, (len(MIXED), vocabulary)).astype(np.float32)
    logits[::2] = np.round(logits[::2])  # ties
    filters, keys = f.stack_filters(MIXED), some_keys(len(MIXED))
    token, bad = draw(logits, MIXED, keys)
    assert not bad.any()
    full = np.asarray(jax.jit(f._from_all)(logits, keys, filters, np.ones(len(MIXED), bool)))
    drawn = filters.temperature > 0
    np.testing.assert_array_equal(token[drawn], full[drawn])
    np.testing.assert_array_equal(token[~drawn], logits[~drawn].argmax(-1))
    for row in (1, 4, 6, 11):
        alone, _ = draw(logits[row : row + 1], MIXED[row : row + 1], keys[row : row + 1])
        assert alone[0] == token[row]
    with use_mesh(make_mesh(data=1, fsdp=4, tensor=2)):
        sharded, _ = draw(logits, MIXED, keys)
    np.testing.assert_array_equal(sharded, token)


def test_no_logits_are_gathered_where_the_vocabulary_is_split():
    rows, vocabulary = 8, 4096
    params = [MIXED[i % len(MIXED)] for i in range(rows)]
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp", "tensor"))
    logits = jax.ShapeDtypeStruct((rows, vocabulary), jnp.float32, sharding=layout)
    seen = jax.ShapeDtypeStruct((rows, vocabulary), jnp.bool_, sharding=layout)
    with use_mesh(mesh):
        step = jax.jit(lambda x, s, k, p: f.sample(x, k, p, active=jnp.ones(rows, bool), seen=s))
        text = step.lower(logits, seen, some_keys(rows), f.stack_filters(params)).compile().as_text()
    gathered = [line for line in text.splitlines() if " all-gather(" in line or " all-to-all(" in line]
    largest = max((int(np.prod(shape)) for line in gathered for shape in _shapes(line)), default=0)
    assert largest <= rows * 4 * f.CANDIDATES, gathered


def _shapes(line: str) -> list[list[int]]:
    result = line.split("=", 1)[1].split(" all-")[0]
    return [[int(n) for n in dims.split(",") if n] for dims in re.findall(r"\[([\d,]*)\]", result)]


def test_draws_follow_the_filtered_distribution():
    """20,000 draws by candidates and by search against the exact probabilities: chi-square within 5 sigma."""
    rows, vocabulary = 20_000, 300
    logits = np.random.default_rng(5).normal(0, 2, vocabulary).astype(np.float32)
    for params in (SamplingParams(temperature=0.8, top_k=12), SamplingParams(temperature=1.0, top_p=0.9)):
        token, _ = draw(np.tile(logits, (rows, 1)), [params] * rows, some_keys(rows))
        expected = probabilities(transformers_scores(logits, params, [])) * rows
        counts = np.bincount(token, minlength=vocabulary)
        assert not counts[expected == 0].any()
        enough = expected > 5
        chi2 = np.sum((counts[enough] - expected[enough]) ** 2 / expected[enough])
        degrees = enough.sum() - 1
        assert abs(chi2 - degrees) < 5 * np.sqrt(2 * degrees)


def test_noise_depends_on_key_and_id_alone():
    keys = some_keys(3)
    whole = gumbel(keys, jnp.tile(jnp.arange(500, dtype=jnp.int32), (3, 1)))
    some = jnp.array([[7, 499, 0], [3, 3, 2], [100, 5, 401]], jnp.int32)
    np.testing.assert_array_equal(gumbel(keys, some), np.take_along_axis(np.asarray(whole), np.asarray(some), 1))
    assert np.isfinite(whole).all()
    assert np.abs(np.mean(whole) - np.euler_gamma) < 0.1


@pytest.mark.parametrize("vocabulary", [300, 8192])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_rows_without_a_distribution_are_reported_and_harm_no_other(poison, vocabulary):
    logits = np.random.default_rng(2).normal(0, 2, (4, vocabulary)).astype(np.float32)
    params = [MIXED[1], MIXED[2], MIXED[11], MIXED[0]]
    clean, _ = draw(logits, params, some_keys(4))
    logits[1, 17] = poison
    logits[2, 299] = poison
    token, bad = draw(logits, params, some_keys(4))
    assert bad.tolist() == [False, True, True, False]
    assert (token[[0, 3]] == clean[[0, 3]]).all()


def test_keys_do_not_change():
    """Recorded numbers: a change here changes every rollout."""
    assert hash32("gsm8k-17") == 757087697
    assert sequence_keys(0, [("gsm8k-17", 2)]).tolist() == [[142945614, 1696100756]]


def test_params_refuse_values_out_of_range():
    with pytest.raises(SsbError, match=r"temperature must be at least 0.*top_p must be above 0"):
        SamplingParams(temperature=-1, top_p=0)
    with pytest.raises(SsbError, match="max_new_tokens must be at least 1, got 0"):
        SamplingParams(max_new_tokens=0)


@pytest.mark.parametrize("vocabulary", [49152, 8192, 4136, 4099, 300])
@pytest.mark.parametrize("digits", [0, 1, 7])
def test_greatest_by_groups_are_those_of_top_k_ties_too(vocabulary, digits):
    x = jnp.round(3 * jax.random.normal(jax.random.key(vocabulary), (5, vocabulary)), digits)
    x = x.at[4].set(0.5)  # ties alone
    values, ids = jax.jit(f.greatest, static_argnames="count")(x, count=f.CANDIDATES)
    expected = jax.lax.top_k(x, f.CANDIDATES)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
