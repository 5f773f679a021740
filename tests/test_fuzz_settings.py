"""Broken settings and prompts: one SsbError that names the file, in bounded time. `SSB_FUZZ=20` tries more."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import broken_bytes, broken_json, fuzz, refused
from omegaconf import OmegaConf

from ssb_jax.config import Config, Prompts, SsbError, dump_config, load_config
from ssb_jax.prompts import load_prompts

ROOT = Path(__file__).parent.parent
TINY = (ROOT / "configs/tiny.yaml").read_bytes()
VALUES = OmegaConf.to_container(OmegaConf.load(ROOT / "configs/tiny.yaml"))
TURNS = (ROOT / "ssb_jax/prompts/worked_turns.yaml").read_bytes()
HINTED = (ROOT / "ssb_jax/prompts/hinted.txt").read_bytes()


def as_yaml(value) -> bytes:
    """(PyYAML writes what OmegaConf refuses to hold, too.)"""
    import yaml

    return yaml.safe_dump(value).encode()


@given(st.one_of(broken_bytes(TINY), broken_json(VALUES).map(as_yaml)))
@fuzz(40)
def test_broken_settings_are_one_error_or_sound_settings(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    found = refused(lambda: load_config(path), re.escape(str(path)))
    if found is not None:
        assert isinstance(found, Config)
        path.write_text(dump_config(found))
        assert load_config(path) == found


@given(st.lists(st.text(max_size=20).map(lambda x: f"--{x}") | st.text(max_size=10), max_size=3))
@fuzz(20)
def test_any_overrides_are_one_error_or_settings(overrides):
    found = refused(lambda: load_config(ROOT / "configs/tiny.yaml", overrides), "")
    assert found is None or isinstance(found, Config)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]),
        "a: &a [*a, *a]",
        "[" * 20_000,
        "a: " * 20_000,
        "x: '" + "y" * 300_000 + "'",
        "!!python/object/apply:os.system ['true']",
        "a: ${a}",
        "a: ${b}\nb: ${a}",
        "model: {path: '${oc.decode:x}'}",
    ],
    ids=["aliases", "endless", "deep", "colons", "long", "python", "itself", "circle", "resolver"],
)
def test_a_bomb_of_settings_is_refused_in_a_second(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(SsbError, match=re.escape(str(tmp_path / "config.yaml"))):
        load_config(tmp_path / "config.yaml")
    assert time.monotonic() - started < 5


def test_a_token_among_the_settings_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with pytest.raises(SsbError, match="holds the value of the environment variable WANDB_API_KEY") as error:
        load_config(ROOT / "configs/tiny.yaml", ["--distillation.wandb_project", "${oc.env:WANDB_API_KEY}"])
    assert "0123456789abcdef" not in str(error.value)


@given(st.one_of(broken_bytes(HINTED), st.text(alphabet="{}%#|() questionabc123.\n", max_size=60).map(str.encode)))
@fuzz(80)
def test_broken_templates_are_one_error_or_prompts(tmp_path, content):
    (tmp_path / "hinted.txt").write_bytes(content)
    prompts = refused(lambda: load_prompts(Prompts(hinted=str(tmp_path / "hinted.txt"))), "prompts.hinted")
    if prompts is not None:
        said = prompts.teacher_messages("QUESTION", "CORRECT", "INCORRECT")[-1]["content"]
        assert {"QUESTION", "CORRECT", "INCORRECT"} <= set(re.findall("[A-Z]{7,}", said))


@pytest.mark.parametrize(
    "text",
    [
        "{{ question.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}{{ question }}",
        "{{ question }}{% for i in range(10**9) %}{% endfor %}",
        "{{ question }}{% include 'x' %}",
        "{{ question / 2 }}",
    ],
)
def test_a_template_is_no_program(tmp_path, text):
    (tmp_path / "question.txt").write_text(text)
    with pytest.raises(SsbError, match=r"prompts.question .* does not work"):
        load_prompts(Prompts(question=str(tmp_path / "question.txt")))


@given(broken_bytes(TURNS))
@fuzz(40)
def test_broken_worked_turns_are_one_error_or_turns(tmp_path, content):
    (tmp_path / "turns.yaml").write_bytes(content)
    prompts = refused(lambda: load_prompts(Prompts(examples=str(tmp_path / "turns.yaml"))), "prompts.examples")
    if prompts is not None:
        assert all(turn.question is not None and turn.solution is not None for turn in prompts.examples)
