"""`ssb verify`: files and single pairs."""

import json

import pytest
from click.testing import CliRunner

from ssb_jax.answers import explain, verify_file
from ssb_jax.cli import main
from ssb_jax.config import SsbError

ROWS = [
    {"id": "a", "gold": "18", "response": "The answer is \\boxed{18}."},
    {"id": "b", "gold": "1000", "response": "\\boxed{1,000}", "extra": {"kept": [1, "é"]}},
    {"id": "c", "gold": 2.5, "response": "\\boxed{\\frac{5}{2}}"},
    {"id": "d", "gold": "5", "response": "no box", "truncated": True},
    {"id": "e", "gold": "\\sqrt{2}", "response": "\\boxed{1.414}"},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_keep_their_keys_and_gain_a_verdict(tmp_path):
    counts = verify_file(write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl", workers=1)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in ROWS[i]} for i, row in enumerate(rows)] == ROWS
    assert [row["correct"] for row in rows] == [True, True, True, False, False]
    assert [row["outcome"] for row in rows] == ["correct", "correct", "correct", "truncated", "incorrect"]
    assert [row["extracted"] for row in rows] == ["18", "1,000", "\\frac{5}{2}", None, "1.414"]
    assert [row["strict"] for row in rows] == [True, False, False, False, False]
    assert all(row["reason"] for row in rows)
    assert counts["rows"] == 5
    assert counts["correct"] == 3
    assert counts["strict"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_the_same_input_gives_the_same_bytes(tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS)
    for name in ("one", "two"):
        verify_file(source, tmp_path / name, workers=2)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object with 'gold' and 'response', got a list"),
        ('{"gold": "1"}', "line 2: the key 'response' is missing"),
        ('{"response": "1"}', "line 2: the key 'gold' is missing"),
        ('{"gold": null, "response": "1"}', "line 2: 'gold' is a string or a number, got null"),
        ('{"gold": true, "response": "1"}', "line 2: 'gold' is a string or a number, got true"),
        ('{"gold": " ", "response": "1"}', "line 2: 'gold' is empty"),
        ('{"gold": "1", "response": 1}', "line 2: 'response' is a string, got 1"),
        ('{"gold": "1", "response": "1", "truncated": "no"}', "line 2: 'truncated' is true or false"),
        ("\xff", "line 2: expected a JSON object"),
        ("[" * 100_000, "line 2: expected a JSON object"),
        ('{"gold": "1", "response": "\\ud800"', "line 2: expected a JSON object"),
    ],
)
def test_a_malformed_row_is_named_before_anything_is_graded(tmp_path, line, message):
    source = tmp_path / "in.jsonl"
    source.write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(SsbError) as caught:
        verify_file(source, tmp_path / "out.jsonl")
    assert str(source) in str(caught.value)
    assert message in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_or_empty_file_is_said(tmp_path):
    with pytest.raises(SsbError, match="cannot be read"):
        verify_file(tmp_path / "missing.jsonl", tmp_path / "out.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(SsbError, match="has no rows"):
        verify_file(tmp_path / "empty.jsonl", tmp_path / "out.jsonl")


def test_an_output_that_cannot_be_written_is_said_and_the_old_one_stays(tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS[:1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("x")
    with pytest.raises(SsbError, match="cannot be written"):
        verify_file(source, tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "kept").read_text() == "x"


def test_lone_surrogates_pass_through(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"gold": "5", "response": "\\ud800 \\\\boxed{5}"}\n')
    verify_file(source, tmp_path / "out.jsonl", workers=1)
    assert json.loads((tmp_path / "out.jsonl").read_text())["correct"] is True


@pytest.mark.parametrize("gold", ["9007199254740993.0", "2.50", "1e-3", "12345678901234567890"])
def test_a_gold_number_keeps_its_text(tmp_path, gold):
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"id": 0.10, "gold": {gold}, "response": "\\\\boxed{{{gold}}}"}}\n')
    verify_file(source, tmp_path / "out.jsonl", workers=1)
    written = (tmp_path / "out.jsonl").read_text()
    assert written.startswith(f'{{"id": 0.10, "gold": {gold}, "response"')
    assert json.loads(written)["strict"] is True


@pytest.mark.parametrize("arguments", [["nope.jsonl"], ["--out", "x"], ["nope.jsonl", "--out", "x"]])
def test_explain_takes_no_file(arguments):
    result = CliRunner().invoke(main, ["verify", *arguments, "--explain", "5", "5"])
    assert result.exit_code == 2
    assert "--explain grades one pair" in result.output


def test_explain_keeps_the_time_limit():
    hard = r"\int_0^1 \sin(\cos(x^{x})) e^{x^{x}} dx"
    result = CliRunner().invoke(main, ["verify", "--explain", hard, "5", "--time-limit", "0.01"])
    assert "verdict   timeout" in result.output


def test_explain_shows_how_both_sides_are_read():
    text = explain("so \\boxed{x \\in [1, 2]}", "1 \\le x \\le 2")
    assert "answer    x \\in [1, 2]" in text
    assert "kind    relation" in text
    assert "algebra system" in text
    assert text.splitlines()[-1].startswith("verdict   correct")
    assert "strings and exact numbers" in explain("0.5", "1/2")
    assert "no box" in explain("0.5", "1/2")
    assert "unanswered" in explain("\\boxed{}", "1")
    assert "refused" in explain("9" * 2000, "1")
