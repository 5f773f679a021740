"""Where examples lie: every one once, in room enough, in few shapes; cut, ordered and weighted as published."""

import dataclasses

import numpy as np
import pytest
from distillation_case import MODEL, STOP, make_config, make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from ssb_jax.config import SsbError
from ssb_jax.training.batches import Weighting, cut, data_order
from ssb_jax.training.layout import MAX_SHAPES, Grid, Shape, bucket, choose_shapes, fitting, place
from ssb_jax.training.plan import make_plan

GRIDS = st.builds(
    lambda groups, fsdp, **rest: Grid(groups=groups, row_multiple=groups * fsdp, **rest),
    groups=st.integers(1, 3),
    fsdp=st.integers(1, 3),
    chunk=st.sampled_from([16, 48]),
    packing=st.booleans(),
    micro_batch=st.sampled_from([None, 1, 3]),
    attention_length=st.sampled_from([100.0, 3000.0]),
)
LENGTHS = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 200)), min_size=1, max_size=12)


@given(LENGTHS, GRIDS)
@settings(max_examples=150)
def test_every_example_lies_once_in_room_enough(lengths, grid):
    totals, replies = [p + r for p, r in lengths], [r for _, r in lengths]
    placement, shape = place(totals, replies, grid)
    assert sorted(i for micro in placement for group in micro for row in group for i in row) == list(range(len(totals)))
    assert len(placement) == shape.micros
    assert shape.rows % grid.row_multiple == 0
    assert shape.replies % grid.chunk == 0
    for micro in placement:
        assert len(micro) == grid.groups
        assert sum(len(row) for group in micro for row in group) <= (grid.micro_batch or len(totals))
        for group in micro:
            assert len(group) <= shape.rows // grid.groups
            assert sum(replies[i] for row in group for i in row) <= shape.replies
            assert all(sum(totals[i] for i in row) <= shape.length for row in group)
            assert grid.packing or all(len(row) == 1 for row in group)


@given(st.lists(LENGTHS, min_size=1, max_size=12), GRIDS)
@settings(max_examples=50)
def test_few_shapes_cover_every_batch(batches, grid):
    needs = [place([p + r for p, r in lengths], [r for _, r in lengths], grid)[1] for lengths in batches]
    shapes = choose_shapes(needs, grid)
    assert len(shapes) <= MAX_SHAPES
    assert all(fitting(shapes, need, grid).covers(need) for need in needs)


def test_a_shape_is_compiled_only_where_it_saves_something():
    rare, common = (Shape(1, 4, length, 64) for length in (1024, 256))
    close = Shape(1, 4, 1000, 64)
    assert choose_shapes([rare, common, common], Grid()) == (rare, common)
    assert choose_shapes([rare, close, close], Grid()) == (rare,)


@given(st.integers(1, 100_000))
def test_buckets_waste_at_most_an_eighth(n):
    assert n <= bucket(n) <= max(16, 1.125 * n)


def test_packing_saves_padding():
    totals = [300, 100, 100, 90]
    padded, packed = (place(totals, [10] * 4, Grid(packing=packing))[1] for packing in (False, True))
    assert (padded.rows, padded.length) == (4, 320)
    assert packed.rows * packed.length <= 640


def test_cut_as_published():
    pair = dataclasses.replace(make_pairs(1)[0], student_prompt_ids=tuple(range(10)), reply_ids=tuple(range(20, 30)))
    whole, shorter, shortest = (cut(pair, n) for n in (20, 15, 8))
    assert (whole.prompt, whole.reply) == (pair.student_prompt_ids, pair.reply_ids)
    assert (shorter.prompt, shorter.reply) == ((5, 6, 7, 8, 9), pair.reply_ids)  # the prompt, on the left
    assert (shortest.prompt, shortest.reply) == ((9,), tuple(range(20, 27)))  # then the reply, on the right
    with pytest.raises(SsbError, match="pair q0: the reply has no tokens"):
        cut(dataclasses.replace(pair, reply_ids=()), 20)


def test_cuts_are_counted_and_the_context_is_a_limit(capsys):
    pairs = make_pairs(4)
    pairs[0] = dataclasses.replace(pairs[0], student_prompt_ids=tuple([1] * 150))
    pairs[1] = dataclasses.replace(pairs[1], reply_ids=tuple([1] * 150))
    settings = make_config().distillation
    plan = make_plan(MODEL, pairs, settings=settings, seed=0)
    assert (plan.cut_prompts, plan.cut_replies) == (2, 1)
    assert max(example.tokens for example in plan.examples) == MODEL.max_position_embeddings
    assert "cut to 128 tokens: 2 prompts (on the left), 1 replies" in capsys.readouterr().err
    with pytest.raises(SsbError, match="there are no pairs"):
        make_plan(MODEL, [], settings=settings, seed=0)


def test_order_is_new_in_each_epoch_and_ends_with_what_is_left():
    order = data_order(10, batch_size=4, epochs=3, seed=1)
    steps = [order[i] for i in range(len(order))]
    assert [len(step) for step in steps] == [4, 4, 2] * 3
    epochs = [[i for step in steps[k : k + 3] for i in step] for k in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = data_order(10, batch_size=4, epochs=3, seed=1)
    assert [again[i] for i in range(9)] == steps


def test_weights_add_up_to_one_whatever_counts():
    examples = [cut(pair, 100) for pair in make_pairs(3)]
    lengths = np.array([len(e.reply) for e in examples])
    token = Weighting()(examples)
    np.testing.assert_allclose(np.concatenate(token), 1 / lengths.sum())
    sequence = Weighting(reduction="sequence")(examples)
    np.testing.assert_allclose([w.sum() for w in sequence], [1 / 3] * 3, rtol=1e-6)
    heavy = Weighting(stop_weight=3.0)(examples)
    for w in heavy:
        np.testing.assert_allclose(w[-1], 3 * w[0], rtol=1e-6)
    skipped = Weighting(skip_first=2, ignored_ids=frozenset({examples[0].reply[3]}))(examples)
    assert not any(w[:2].any() for w in skipped)
    assert skipped[0][3] == 0
    rising = Weighting(last_weight=3.0)(examples)
    for w in rising:
        np.testing.assert_allclose(w / w[0], np.linspace(1, 3, len(w)), rtol=1e-5)
    sigmoid = Weighting(rise=(0.25, 0.3, 0.1))(examples)
    for w in sigmoid:
        x = (np.arange(len(w)) + 0.5) / len(w)
        expected = 0.25 + 0.75 / (1 + np.exp(-(x - 0.3) / 0.1))
        np.testing.assert_allclose(w / w[0], expected / expected[0], rtol=1e-5)
    for weights in (token, sequence, heavy, skipped, rising, sigmoid):
        np.testing.assert_allclose(sum(w.sum() for w in weights), 1, rtol=1e-6)


def test_a_stop_that_was_cut_off_is_not_weighted():
    (pair,) = make_pairs(1)
    assert pair.reply_ids[-1] == STOP
    short = cut(pair, len(pair.reply_ids))  # cuts the stop
    np.testing.assert_allclose(Weighting(stop_weight=5.0)([short])[0], 1 / len(short.reply), rtol=1e-6)


def test_a_batch_in_which_nothing_counts_is_refused():
    with pytest.raises(SsbError, match="no reply token of the batch with q0 counts .* lower distillation.skip_first"):
        Weighting(skip_first=1000)([cut(make_pairs(1)[0], 100)])
