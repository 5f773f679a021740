"""Settings: read, override, refuse, save."""

from pathlib import Path

import pytest

from ssb_jax.config import Config, SsbError, dump_config, load_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
MINIMAL = "model: {path: 'builtin:tiny'}\nquestions: {path: a.jsonl}\n"


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_loads_and_survives_saving(path, tmp_path):
    config = load_config(path)
    (tmp_path / "saved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "saved.yaml") == config


def test_the_published_config_holds_the_published_settings():
    config = load_config(next(p for p in CONFIGS if p.name == "qwen2.5-3b-gsm8k.yaml"))
    assert (config.rollouts.num_samples, config.rollouts.temperature, config.rollouts.top_k) == (4, 0.8, 50)
    assert (config.rollouts.max_new_tokens, config.teaching.temperature, config.teaching.max_pairs) == (8192, 0.4, 256)
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout, len(config.lora.target_modules)) == (32, 32, 0, 7)
    d = config.distillation
    assert (d.temperature, d.kl_weight, d.learning_rate, d.schedule, d.warmup_steps) == (2.0, 1.0, 2e-4, "linear", 0)
    assert (d.betas, d.eps, d.weight_decay, d.max_grad_norm) == ((0.9, 0.999), 1e-8, 0.0, 1.0)
    assert (d.batch_size, d.epochs, d.max_length) == (4, 3, 8192)
    assert [s.name for s in config.evaluation.sets] == ["math500", "aime2024", "gsm8k"]
    # What the paper leaves to the model's generation_config.json stays open here too.
    assert config.rollouts.top_p is None
    assert config.rollouts.repetition_penalty is None


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_floats_without_a_point_are_floats(minimal, text):
    for overrides in (["--distillation.learning_rate", text], [f"--distillation.learning_rate={text}"]):
        assert load_config(minimal, overrides).distillation.learning_rate == 1e-4
    minimal.write_text(MINIMAL + f"distillation: {{learning_rate: {text}}}\n")
    assert load_config(minimal).distillation.learning_rate == 1e-4


def test_overrides_win_over_the_file_and_hyphens_are_underscores(minimal):
    config = load_config(minimal, ["--lora.rank", "8", "--evaluation.pass-at", "[1, 4]", "--teaching.max_pairs=null"])
    assert (config.lora.rank, config.evaluation.pass_at, config.teaching.max_pairs) == (8, (1, 4), None)


@pytest.mark.parametrize("text", ["#### *(.+)", "rows #2.jsonl", "#x", "a#b"])
def test_in_an_override_a_hash_begins_no_comment(minimal, text):
    assert load_config(minimal, ["--questions.path", text]).questions.path == text


def test_overrides_reach_into_lists():
    tiny = next(p for p in CONFIGS if p.name == "tiny.yaml")
    config = load_config(tiny, ["--evaluation.sets.1.num_samples", "7", "--evaluation.sets.0.name=first"])
    assert [(s.name, s.num_samples) for s in config.evaluation.sets] == [("first", 1), ("test-sampled", 7)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--lora.rnak", "8"], "unknown setting lora.rnak; did you mean rank"),
        (["--distilation.epochs", "8"], "unknown setting distilation; did you mean distillation"),
        (["--rollouts.temperature", "-0.5"], "rollouts.temperature.*greater than or equal to 0.*-0.5"),
        (["--rollouts.num_samples", "1"], "rollouts.num_samples.*greater than or equal to 2.*got 1"),
        (["--rollouts.top_p", "0"], "rollouts.top_p"),
        (["--questions.answer_pattern", "("], r"answer_pattern: expected a regular expression.*got '\('"),
        (["--questions.answer_pattern", "####"], "answer_pattern: expected one group.*got '####'"),
        (["--distillation.learning_rate", "nan"], "learning_rate"),
        (["--seed", "-1"], "seed: .*greater than or equal to 0.*got -1"),
        (["--seed", str(2**32)], "seed: .*less than 4294967296"),
        (["--lora.target_modules", "[]"], "lora.target_modules.*at least 1 item"),
        (["--lora.target_modules", "[lm_head]"], "target_modules.*lm_head"),
        (["--lora.rank"], "--lora.rank has no value"),
        (["lora.rank=3"], "expected an override"),
        (["--model", "tiny"], "model"),
        (["--rollouts=[1]"], "rollouts"),
        (["--lora.rank.deep", "1"], "lora.rank.*valid integer"),
        (["--lora.rank", "[1"], r"--lora.rank: '\[1' cannot be read as YAML .* put it in quotes of its own"),
        (["--questions.answer_pattern", "answer: (.+)"], "answer_pattern.*got `key: value`; put text .* in quotes"),
        (["--seed", "true"], "seed: expected no true here"),
        (["--lora.dropout", "no"], "lora.dropout: expected no false here"),
        (["--evaluation.sets", "[MATH500, MATH500]"], r"must differ, got \['MATH500', 'MATH500'\]"),
    ],
)
def test_bad_settings_are_one_clear_error(minimal, overrides, message):
    with pytest.raises(SsbError, match=message):
        load_config(minimal, overrides)


def test_all_mistakes_are_listed_at_once(minimal):
    with pytest.raises(SsbError, match=r"(?s)lora\.rank.*seeed"):
        load_config(minimal, ["--seeed", "1", "--lora.rank", "0"])


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [1\n", "model: {path: x}\n", "a: ${nowhere}\n"])
def test_broken_files_are_errors(minimal, text):
    minimal.write_text(text)
    with pytest.raises(SsbError):
        load_config(minimal)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SsbError, match="no configuration file"):
        load_config(tmp_path / "nowhere.yaml")


def test_settings_are_frozen_and_documented():
    config = Config(model={"path": "m"}, questions={"path": "q"})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2
    assert Config.model_fields["compilation_cache"].description


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_an_adapter_on_the_head_is_refused_with_the_reason(minimal, name):
    with pytest.raises(SsbError, match=f"(?i)lora on {name} is not possible: .* stored hidden states become logits"):
        load_config(minimal, [f"--lora.target_modules=[q_proj, {name}]"])
