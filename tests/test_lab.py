"""The laboratory on a small run: encodings against full logits, and replayed losses against plain formulas."""

import csv
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_case import MODEL, full_logits, make_config, make_model, make_pairs, make_targets, make_workspace

from ssb_jax.artifacts import complete, write_jsonl
from ssb_jax.cli.losses import _parsed, _split
from ssb_jax.config import SsbError
from ssb_jax.lab.fidelity import measure_fidelity
from ssb_jax.lab.replay import replay
from ssb_jax.lab.tables import draw, kind_of, part_of, write_tables
from ssb_jax.losses.menu import TokenInfo, resolve_loss
from ssb_jax.model.lora import init_lora
from ssb_jax.training.step import run_keys

PAIRS = make_pairs(5, longest=8)
T = 2.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with pairs and targets."""
    folder = tmp_path_factory.mktemp("lab")

    def pairs():
        write_jsonl(folder / "pairs" / "pairs.jsonl", PAIRS)
        return {"pairs": len(PAIRS)}

    complete(folder / "pairs", stage="pairs", made_from={}, make=pairs)
    config = make_config(targets={"top_k": 10})
    make_targets(PAIRS, folder / "targets", config=config)
    workspace = make_workspace(make_model())
    workspace.config = config
    return SimpleNamespace(folder=folder, workspace=workspace, config=config, adapter_folder=folder / "adapter")


def test_fidelity_of_each_encoding(run, capsys):
    rows = {row["encoding"]: row for row in measure_fidelity(run)}
    D, V = MODEL.hidden_size, MODEL.vocab_size
    sizes = {"logits, float32": 4 * V, "logits, bfloat16": 2 * V, "hidden, float32": 4 * D, "hidden, bfloat16": 2 * D}
    sizes |= {"none": 0, "topk 10, float32": 10 * 8 + 2 * 4}
    assert {name: row["bytes_per_token"] for name, row in rows.items()} == sizes
    for name in ("logits, float32", "hidden, float32", "none"):  # the model is in float32, so nothing is lost
        assert rows[name]["kl_error"] < 1e-6
        assert rows[name]["loss_error"] < 1e-5  # must hold: `hidden` equals `logits`
        assert rows[name]["gradient_cosine"] > 1 - 1e-6
        assert abs(rows[name]["gradient_norm_ratio"] - 1) < 1e-5
    assert 1e-7 < rows["hidden, bfloat16"]["kl_error"] < rows["topk 10, float32"]["kl_error"]
    assert rows["topk 10, float32"]["loss_error"] < 1e-5  # of the loss that it allows
    assert json.loads((run.folder / "fidelity.json").read_text())["encodings"] == list(rows.values())
    assert "hidden, bfloat16" in capsys.readouterr().out


def test_replayed_losses_are_those_of_plain_formulas(run):
    """Value, norm and cosine of the hidden state's gradient, from full logits of each pair alone."""
    names = ("ssb", "reverse_kl", "jsd")
    found = replay(run, {name: resolve_loss(name) for name in names}, student="base", count=3)
    model, pairs = make_model(), PAIRS[:3]
    replies = [p.reply_ids for p in pairs]
    lora = init_lora(MODEL, run.config.lora, key=run_keys(0)[0])
    teacher = full_logits(model, [p.teacher_prompt_ids for p in pairs], replies)
    student = full_logits(model, [p.student_prompt_ids for p in pairs], replies, lora)
    ids = jnp.asarray([token for reply in replies for token in reply], jnp.int32)
    info = TokenInfo(ids, ids, ids)
    gradients = {}
    order = {(p.question_id, i): k for k, (p, i) in enumerate((p, i) for p in pairs for i in range(len(p.reply_ids)))}
    assert len(found.tokens) == len(order)
    for name in names:

        def loss(logits, name=name):
            return T**2 * resolve_loss(name)(jax.nn.log_softmax(teacher / T), jax.nn.log_softmax(logits / T), info)

        values = loss(student)
        d_logits = jax.grad(lambda x, loss=loss: jnp.sum(loss(x)))(student)
        gradients[name] = np.asarray(d_logits @ model.head_weight())
        for token in found.tokens:
            k = order[token.question_id, token.position]
            value, norm, cosine, outside = token.losses[name]
            assert token.token_id == ids[k]
            g, published = gradients[name][k], gradients["ssb"][k]
            np.testing.assert_allclose(value, values[k], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(norm, np.linalg.norm(g), rtol=1e-4)
            expected = g @ published / np.linalg.norm(g) / np.linalg.norm(published)
            np.testing.assert_allclose(cosine, expected, rtol=1e-3)
            assert outside == 0  # the vocabulary has 64 words
    assert found.gradients["ssb"][1] == pytest.approx(1)
    assert all(0 < found.gradients[name][1] < 1 for name in names[1:])


def test_tables_hold_every_token_and_shares_that_add_up(run, tmp_path):
    found = replay(run, {name: resolve_loss(name) for name in ("ssb", "clipped_kl")}, student="base", count=2)
    summary = write_tables(found, tmp_path, text_of=lambda i: str(i) if i % 2 else "wait", special=frozenset({63}))
    with open(tmp_path / "tokens.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(pair.reply_ids) for pair in PAIRS[:2])
    assert {row["kind"] for row in rows} <= {"number", "hedge", "special"}
    for by in ("all", "position", "kind"):
        parts = [row for row in summary if row["by"] == by and row["loss"] == "ssb"]
        assert sum(row["tokens"] for row in parts) == len(rows)
        assert sum(row["share_of_value"] for row in parts) == pytest.approx(1)
        assert sum(row["share_of_gradient"] for row in parts) == pytest.approx(1)
    draw(summary, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_kinds_and_parts_of_tokens():
    texts = {" 12": "number", "Wait": "hedge", " +": "symbol", "\\boxed{": "word", ",": "punctuation", "\n": "space"}
    assert {text: kind_of(text) for text in texts} == texts
    assert kind_of("<|im_end|>", special=True) == "special"
    token = SimpleNamespace(position=7, length=20)
    assert part_of(token) == "30-40 %"


def test_what_cannot_be_replayed_is_named(run):
    with pytest.raises(
        SsbError, match="--losses contrast: .* prompt 'swapped', and the targets have no further prompt"
    ):
        replay(run, {"ssb": resolve_loss("ssb"), "contrast": resolve_loss("contrast")}, student="base", count=2)
    with pytest.raises(SsbError, match="has no adapter yet"):
        replay(run, {"ssb": resolve_loss("ssb")}, student="adapter", count=2)


def test_a_replayed_loss_that_is_not_finite_names_the_example(run):
    losses = {"ssb": resolve_loss("ssb"), "mine": lambda _, student_logp, info: student_logp[:, 0] * jnp.nan}
    message = r"mine or its gradient is not finite at \d+ of \d+ reply tokens, the first of q0"
    with pytest.raises(SsbError, match=message):
        replay(run, losses, student="base", count=2)


def test_losses_are_parsed_from_a_list():
    assert _split("ssb, jsd(beta=0.1),my.py:f") == ["ssb", "jsd(beta=0.1)", "my.py:f"]
    assert _parsed("clipped_kl(tau=0.1, clip=token)") == ("clipped_kl", {"tau": 0.1, "clip": "token"})
    assert _parsed("topk_kl(k=20)") == ("topk_kl", {"k": 20})
    with pytest.raises(SsbError, match="expected option=value"):
        _parsed("jsd(0.1)")
