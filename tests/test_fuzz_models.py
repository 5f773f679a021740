"""Broken model folders, adapters, tokenizers and checkpoints: refused by file or tensor, never read as something else.

`SSB_FUZZ=20` tries twenty times as much.
"""

import json
import re
import shutil
import struct
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_helpers import CONFIG, make_lora, make_model
from mutations import broken_bytes, broken_json, broken_json_bytes, fuzz, refused
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ssb_jax.chat import load_chat
from ssb_jax.checkpoint import checkpoints, restore, save
from ssb_jax.config import SsbError
from ssb_jax.model.adapters import load_adapter, save_adapter
from ssb_jax.model.config import ModelConfig
from ssb_jax.model.weights import load_model, read_config, save_model

SMALL = replace(CONFIG, num_layers=1, hidden_size=8, intermediate_size=8, head_dim=2, vocab_size=8)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(make_model(SMALL), folder)
    return folder


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(make_lora(SMALL, rank=2), folder, base="some/base")
    return folder


def broken_header(data: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file whose header lies: other offsets, shapes, dtypes, names, or another length."""
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]

    def written(value: object) -> bytes:
        text = json.dumps(value).encode()
        return struct.pack("<Q", len(text)) + text + body

    lengths = st.sampled_from((0, 1, size - 1, size + 1, len(data), 2**31, 2**63, 2**64 - 1))
    moved = st.tuples(st.sampled_from([name for name in header if name != "__metadata__"]), st.integers(-9, 9)).map(
        lambda change: written(_moved(header, *change))
    )
    return st.one_of(
        lengths.map(lambda n: struct.pack("<Q", n) + data[8:]),
        broken_json(header).map(written),
        st.sampled_from(("F64", "I32", "U8", "F8_E4M3", "BOOL", "X")).map(lambda t: written(_retyped(header, t))),
        moved,
        broken_bytes(data),
    )


def _moved(header: dict, name: str, by: int) -> dict:
    start, end = header[name]["data_offsets"]
    return header | {name: header[name] | {"data_offsets": [start + 4 * by, end + 4 * by]}}


def _retyped(header: dict, dtype: str) -> dict:
    name = next(name for name in header if name != "__metadata__")
    return header | {name: header[name] | {"dtype": dtype}}


def same_or_refused(folder, good, data, load, name, strategy):
    """Puts a broken file in the place of a good one; what loads then has the shapes of the model asked for."""
    content = good.read_bytes()
    good.write_bytes(data.draw(strategy))
    try:
        return refused(load, f"{re.escape(str(folder))}|{name}")
    finally:
        good.write_bytes(content)


@given(st.data())
@fuzz(25)
def test_a_safetensors_file_that_lies_is_refused_by_name(model_folder, data):
    path = model_folder / "model.safetensors"
    loaded = same_or_refused(
        model_folder, path, data, lambda: load_model(model_folder), path.name, broken_header(path.read_bytes())
    )
    if loaded is not None:  # numbers changed in place: there is no digest to compare with in the hub's format
        assert [x.shape for x in jax.tree.leaves(loaded)] == [x.shape for x in jax.tree.leaves(make_model(SMALL))]


@given(st.data())
@fuzz(150)
def test_a_broken_model_configuration_is_refused_or_another_sound_one(model_folder, data):
    path = model_folder / "config.json"
    good = json.loads(path.read_text())
    found = same_or_refused(
        model_folder, path, data, lambda: read_config(model_folder), "config", broken_json_bytes(good)
    )
    if found is not None:
        assert ModelConfig.from_json_dict(found.to_json_dict()) == found


@given(st.data())
@fuzz(25)
def test_a_broken_index_of_shards_is_refused(model_folder, data):
    index = model_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors"}}))
    good = json.loads(index.read_text())
    try:
        same_or_refused(model_folder, index, data, lambda: load_model(model_folder), "model", broken_json_bytes(good))
    finally:
        index.unlink()


@given(st.data())
@fuzz(100)
def test_a_broken_adapter_configuration_is_refused(adapter_folder, data):
    path = adapter_folder / "adapter_config.json"
    good = json.loads(path.read_text())
    found = same_or_refused(
        adapter_folder, path, data, lambda: load_adapter(adapter_folder, SMALL), "adapter", broken_json_bytes(good)
    )
    if found is not None:
        assert np.isfinite([found.alpha, found.dropout]).all()
        assert [x.shape for x in jax.tree.leaves(found)] == [x.shape for x in jax.tree.leaves(make_lora(SMALL, rank=2))]


@given(st.data())
@fuzz(60)
def test_an_adapter_file_that_lies_is_refused_by_name(adapter_folder, data):
    path = adapter_folder / "adapter_model.safetensors"
    found = same_or_refused(
        adapter_folder, path, data, lambda: load_adapter(adapter_folder, SMALL), path.name,
        broken_header(path.read_bytes()),
    )  # fmt: skip
    if found is not None:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_an_adapter_with_a_number_that_is_not_finite_is_refused_by_tensor(adapter_folder):
    path = adapter_folder / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(SsbError, match=r"not finite: base_model.*lora_[AB].weight"):
        load_adapter(adapter_folder, SMALL)
    path.write_bytes(content)


# ---- tokenizers


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "chat_template": template})
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 7], "top_p": 0.8, "temperature": 0.7}')
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@given(st.data())
@fuzz(40)
def test_a_broken_tokenizer_is_refused_or_still_encodes(name, tokenizer_folder, data):
    path = tokenizer_folder / name
    good = json.loads(path.read_text())
    chat = same_or_refused(
        tokenizer_folder, path, data, lambda: load_chat(tokenizer_folder), name, broken_json_bytes(good)
    )
    if chat is not None:
        ids = chat.encode_prompt([{"role": "user", "content": "1 + 1"}])
        assert all(0 <= i < chat.vocabulary_size for i in ids)
        assert all(type(i) is int for i in chat.stop_ids)


@pytest.mark.parametrize("template", ["{% for m in %}", "{{ 1 / 0 }}", "{{ messages.nothing() }}", "{{ m.content }}{{"])
def test_a_chat_template_that_does_not_work_is_said_at_once(template, tokenizer_folder, tmp_path):
    shutil.copytree(tokenizer_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    with pytest.raises(SsbError, match="the chat template does not work"):
        load_chat(tmp_path)


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "good"
    with checkpoints(folder, keep=2) as manager:
        for step in (1, 2):
            save(manager, step, state={"x": np.full(4, step, np.float32)}, data={"next_index": step})
    return folder


@given(st.data())
@fuzz(8)
def test_a_broken_checkpoint_is_passed_over_never_misread(checkpoint_folder, tmp_path, data):
    """A file of the newest one is changed: either the one before it comes back, or the newest as it was."""
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint_folder, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / "1"))
    path = data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(broken_bytes(path.read_bytes())))

    def read() -> tuple:
        with checkpoints(folder, keep=2) as manager:
            return restore(manager, like={"x": jax.numpy.zeros(4)})

    found = refused(read, re.escape(str(folder)))
    if found is not None:
        state, position = found
        assert position["next_index"] in (1, 2)
        np.testing.assert_array_equal(state["x"], np.full(4, position["next_index"], np.float32))
