"""Messages to ids: the checkpoint's own tokenizer, its chat template, lossless both ways."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ssb_jax.chat import generation_defaults, load_chat
from ssb_jax.config import SsbError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level tokenizer without merges: every text is its bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": [257, 258], "top_p": 0.8}')
    return folder


@pytest.fixture(scope="module")
def chat(folder):
    return load_chat(folder)


def test_a_prompt_is_the_template_up_to_the_reply(chat):
    ids = chat.encode_prompt([{"role": "system", "content": "S"}, {"role": "user", "content": "1 + 1?"}])
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.decode(ids, keep_special=True) == expected


def test_the_flat_prompt_is_system_and_user_joined_by_a_space(chat):
    ids = chat.encode_flat([{"role": "user", "content": "Q "}, {"role": "system", "content": "S"}])
    assert chat.decode(ids, keep_special=True) == "S Q"


def test_text_survives_its_ids(chat):
    @given(text=st.text())
    def check(text):
        assume(not any(mark in text for mark in SPECIAL))
        assert chat.decode(chat.encode_text(text)) == text

    check()


def test_stop_ids_join_the_tokenizers_and_the_generation_configs(chat):
    assert (chat.end_of_turn_id, chat.stop_ids, chat.pad_id) == (257, (257, 258), 258)
    assert chat.vocabulary_size == 259


def test_special_tokens_are_left_out_of_text(chat):
    assert chat.decode([*chat.encode_text("ab"), 257]) == "ab"


@pytest.mark.parametrize(("missing", "message"), [("chat_template", "no chat template"), ("eos_token", "eos_token")])
def test_an_unusable_tokenizer_is_named(folder, tmp_path, missing, message):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    config = json.loads((broken / "tokenizer_config.json").read_text())
    del config[missing]
    (broken / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(SsbError, match=message):
        load_chat(broken)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(SsbError, match=r"expected a tokenizer\.json"):
        load_chat(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SsbError, match="cannot be read"):
        load_chat(tmp_path)
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(SsbError, match="expected JSON"):
        generation_defaults(tmp_path)


def test_the_real_qwen_tokenizer_keeps_its_template_and_stop():
    folder = os.environ.get("SSB_QWEN_TOKENIZER")
    if folder is None:
        pytest.skip("SSB_QWEN_TOKENIZER names no Qwen2.5 tokenizer folder")
    qwen = load_chat(Path(folder))
    ids = qwen.encode_prompt([{"role": "system", "content": "S"}, {"role": "user", "content": "é 12"}])
    text = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\né 12<|im_end|>\n<|im_start|>assistant\n"
    assert qwen.decode(ids, keep_special=True) == text
    assert (qwen.end_of_turn_id, qwen.pad_id) == (151645, 151643)
