"""The target store: what is read is what was written, for exactly these tokens and this model, or an error."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssb_jax.artifacts import complete
from ssb_jax.config import SsbError
from ssb_jax.model.sharding import make_mesh
from ssb_jax.model.transformer import ModelConfig, Transformer, model_shardings
from ssb_jax.records import Pair
from ssb_jax.store import (
    StoreInfo,
    TargetWriter,
    head_fingerprint,
    model_fingerprint,
    open_store,
    pair_digest,
    store_info,
)

INFO = StoreInfo(encoding="hidden", dtype="float32", width=4, head="h", model="m")
CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=128,
)


def make_pair(name: str, reply: int = 5) -> Pair:
    return Pair(name, "q", "1", "s", (1, 2, 3), (1, 2), tuple(range(reply)), True)


def make_values(pair: Pair, seed: int = 0, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(pair.reply_ids), width)).astype(np.float32)


PAIRS = [make_pair(f"q{i}", reply=3 + i) for i in range(7)]


def write(folder, pairs=PAIRS, info=INFO, **kwargs):
    with TargetWriter(folder, info, **kwargs) as writer:
        for i, pair in enumerate(pairs):
            writer.add(pair, make_values(pair, i, info.width))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [1, 300, 1 << 20])
def test_what_is_read_is_what_was_written(tmp_path, dtype, shard_bytes):
    write(tmp_path, info=dataclasses.replace(INFO, dtype=dtype), shard_bytes=shard_bytes)
    store = open_store(tmp_path)
    for i in (5, 0, 6, 3):  # any order
        expected = make_values(PAIRS[i], i).astype(jnp.dtype(dtype))
        np.testing.assert_array_equal(store.read(PAIRS[i]), expected)


def test_bytes_a_token_are_two_a_number_plus_less_than_one_percent(tmp_path):
    pairs = [make_pair(f"question-{i}", reply=200) for i in range(8)]
    write(tmp_path, pairs, StoreInfo("hidden", "bfloat16", 2048, "h", "m"), shard_bytes=3_000_000)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 2 * 2048 <= size / 1600 < 2 * 2048 * 1.01


TOPK = StoreInfo("topk", "float32", 3, "h", "m", temperatures=(1.0, 2.0))


def topk_values(pair: Pair, seed: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, 64, (len(pair.reply_ids), 3)).astype(np.int32)
    return {"targets": make_values(pair, seed, 3), "ids": ids, "tail": make_values(pair, seed + 100, 2)}


def test_topk_rows_are_columns_of_several_kinds(tmp_path):
    with TargetWriter(tmp_path, TOPK, shard_bytes=100) as writer:
        for i, pair in enumerate(PAIRS):
            writer.add(pair, topk_values(pair, i))
    store = open_store(tmp_path)
    assert store.info == TOPK
    for i in (4, 0, 6):
        rows, expected = store.read(PAIRS[i]), topk_values(PAIRS[i], i)
        assert {name: x.dtype for name, x in rows.items()} == {name: x.dtype for name, x in expected.items()}
        for name in expected:
            np.testing.assert_array_equal(rows[name], expected[name])
    assert TOPK.bytes_per_token == 3 * 4 + 3 * 4 + 2 * 4
    with pytest.raises(SsbError, match="another model or setting .*temperatures: stored"):
        TargetWriter(tmp_path, dataclasses.replace(TOPK, temperatures=(1.0, 3.0)))
    broken = topk_values(PAIRS[0], 0)
    broken["tail"][1, 1] = np.nan
    with pytest.raises(SsbError, match="targets of q0 are not finite at 1 of 3 reply tokens, the first at 1"):
        TargetWriter(tmp_path, TOPK).add(PAIRS[0], broken)


def test_more_words_than_the_vocabulary_has_are_refused():
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    for top_k in (0, 64):
        with pytest.raises(
            SsbError, match=f"top_k is {top_k}, the vocabulary has 64 words; expected a number from 1 to"
        ):
            store_info(model, encoding="topk", dtype="float32", top_k=top_k, temperatures=(1.0,))


def test_a_writer_that_was_cut_off_continues(tmp_path):
    writer = TargetWriter(tmp_path, INFO, shard_bytes=1)
    for i in range(3):
        writer.add(PAIRS[i], make_values(PAIRS[i], i))
    (tmp_path / "00000-00003.safetensors").write_bytes(b"a shard whose index was never written")
    again = TargetWriter(tmp_path, INFO, shard_bytes=1)
    assert [again.has(pair) for pair in PAIRS] == [True] * 3 + [False] * 4
    for i in range(3, 7):
        again.add(PAIRS[i], make_values(PAIRS[i], i))
    store = open_store(tmp_path)
    for i, pair in enumerate(PAIRS):
        np.testing.assert_array_equal(store.read(pair), make_values(pair, i))


def test_an_error_inside_the_writer_is_not_hidden_and_writes_no_half(tmp_path):
    good, bad = (PAIRS[0], make_values(PAIRS[0])), (PAIRS[1], make_values(PAIRS[0]))
    with pytest.raises(SsbError, match="targets of q1"), TargetWriter(tmp_path, INFO) as writer:
        [writer.add(*example) for example in (good, bad)]
    assert open_store(tmp_path).entries == {}


def test_each_writer_has_its_own_shards(tmp_path):
    write(tmp_path, PAIRS[:4], writer=0)
    write(tmp_path, PAIRS[4:], writer=1)
    store = open_store(tmp_path)
    assert {pair.question_id for pair in PAIRS} == set(store.entries)
    np.testing.assert_array_equal(store.read(PAIRS[5]), make_values(PAIRS[5], 1))


def test_missing_and_changed_examples_are_named(tmp_path):
    write(tmp_path)
    store = open_store(tmp_path)
    with pytest.raises(SsbError, match="no targets for q99 .* run `ssb targets` again"):
        store.read(make_pair("q99"))
    changed = dataclasses.replace(PAIRS[2], teacher_prompt_ids=(1, 2, 4))
    with pytest.raises(SsbError, match="targets of q2 were made for other tokens"):
        store.read(changed)
    with pytest.raises(SsbError, match="targets of q2 were made for other tokens"):
        TargetWriter(tmp_path, INFO).has(changed)


def test_numbers_that_are_not_finite_are_refused_on_the_way_in_and_out(tmp_path):
    values = make_values(PAIRS[1])
    values[2, 3] = np.nan
    with pytest.raises(SsbError, match="targets of q1 are not finite at 1 of 4 reply tokens, the first at 2"):
        TargetWriter(tmp_path, INFO).add(PAIRS[1], values)
    write(tmp_path)
    shard = next(tmp_path.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-4:] = np.float32(np.inf).tobytes()  # the last number of q6
    shard.write_bytes(data)
    store = open_store(tmp_path)
    store.read(PAIRS[5])
    with pytest.raises(SsbError, match="targets of q6 are not finite .* delete the targets folder"):
        store.read(PAIRS[6])


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(SsbError, match="run `ssb targets` first"):
        open_store(tmp_path)
    write(tmp_path)
    shard = next(tmp_path.glob("*.safetensors"))
    whole = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(whole[:-10]), shard.unlink):
        damage()
        with pytest.raises(SsbError, match="targets of q0: .* cannot be read"):
            open_store(tmp_path).read(PAIRS[0])
    (tmp_path / "index-00000.json").write_text("{")
    with pytest.raises(SsbError, match=r"index-00000\.json cannot be read"):
        open_store(tmp_path)


def test_wrong_shape_and_other_model_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(SsbError, match=r"targets of q0: expected shape \(3, 4\), got \(4, 4\)"):
        TargetWriter(tmp_path, INFO).add(PAIRS[0], np.zeros((4, 4), np.float32))
    with pytest.raises(SsbError, match="holds targets of another model or setting .*model: stored m, now n"):
        TargetWriter(tmp_path, dataclasses.replace(INFO, model="n"))


def test_check_wants_every_pair_and_this_very_model(tmp_path):
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    write(tmp_path, info=store_info(model, encoding="hidden", dtype="float32"))
    store = open_store(tmp_path)
    store.check(PAIRS, model)
    with pytest.raises(SsbError, match=r"1 of 8 pairs have no targets .* \(q99\)"):
        store.check([*PAIRS, make_pair("q99")], model)
    with pytest.raises(SsbError, match="targets of another model"):
        store.check(PAIRS, Transformer(CONFIG, rngs=nnx.Rngs(1)))


def test_fingerprints_see_every_bit_and_no_mesh():
    model = Transformer(CONFIG, rngs=nnx.Rngs(0))
    head, whole = head_fingerprint(model), model_fingerprint(model)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = jax.device_put(model, model_shardings(model, mesh))
    assert (head_fingerprint(sharded), model_fingerprint(sharded)) == (head, whole)
    norm = model.layers["input_norm"]
    norm[...] = norm[...].at[1, 3].set(jnp.nextafter(jnp.float32(1), jnp.float32(2)))
    assert head_fingerprint(model) == head
    assert model_fingerprint(model) != whole
    swapped = model.embed[...][::-1]
    model.embed[...] = swapped
    assert head_fingerprint(model) != head


def test_digests_tell_prompt_from_reply():
    one = Pair("q", "", "", "", (1, 2), (), (3,), False)
    other = Pair("q", "", "", "", (1,), (), (2, 3), False)
    assert pair_digest(one) != pair_digest(other)


def test_a_complete_store_whose_numbers_were_changed_is_refused(tmp_path):
    def make():
        with TargetWriter(tmp_path, INFO) as writer:
            for pair in PAIRS:
                writer.add(pair, make_values(pair))
        return {"examples": len(PAIRS)}

    complete(tmp_path, stage="targets", made_from={}, make=make)
    np.testing.assert_array_equal(open_store(tmp_path).read(PAIRS[0]), make_values(PAIRS[0]))
    (shard,) = tmp_path.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SsbError, match="is not what its manifest vouches for"):
        open_store(tmp_path)
