"""Broken rows, manifests, logs and target stores: one SsbError that names the file, never a wrong result.

`SSB_FUZZ=20` tries twenty times as much.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import broken_bytes, broken_json, broken_json_bytes, fuzz, refused

from ssb_jax.answers import verify_file
from ssb_jax.artifacts import (
    appending,
    complete,
    iterate_jsonl,
    read_jsonl,
    read_manifest,
    to_line,
    write_jsonl,
)
from ssb_jax.config import Data, SsbError
from ssb_jax.metrics import read_metrics
from ssb_jax.records import (
    DropReason,
    Hint,
    Lesson,
    Outcome,
    Pair,
    Question,
    Rollout,
    StopReason,
    Verdict,
)
from ssb_jax.stages.questions import load_questions
from ssb_jax.store import StoreInfo, TargetWriter, open_store

PAIR = Pair("q1", "What is 1 + 1?", "2", "It is \\boxed{2}.", (1, 2, 3), (1, 2), (4, 5), True)
RECORDS = [
    Question("q1", "What is 1 + 1?", "2", "algebra", None),
    Rollout("q1", 3, "It is é \\boxed{2}.", (4, 5, 6), StopReason.LENGTH, 17, ""),
    Verdict("q1", 3, Outcome.CORRECT, "2", "exact string", True, 12),
    Hint("q1", None, 0, 1, "right", "wrong", "3", 2),
    Hint("q2", DropReason.NO_CORRECT),
    PAIR,
    Lesson("q1", "text", Outcome.CORRECT, "2", "exact string", None, PAIR),
]


def accepts(path: Path, record_type: type) -> list | None:
    """The records of a file, None when it is refused as it should be: by file and line."""
    named = "^" + re.escape(str(path)) + r", line \d+: expected a JSON object for a "
    return refused(lambda: read_jsonl(path, record_type), named)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
@given(st.data())
@fuzz(40)
def test_rows_are_refused_by_line_or_mean_what_they_say(record, tmp_path, data):
    """What is read from a broken line holds exactly the values that are written in it: nothing is bent into shape."""
    good = to_line(record)
    middle = data.draw(
        st.one_of(broken_bytes(good), broken_json(json.loads(good)).map(lambda x: json.dumps(x).encode() + b"\n"))
    )
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good + middle + good)
    found = accepts(path, type(record))
    if found is None:
        return
    for (_, row), line in zip(
        iterate_jsonl(path, type(record)), filter(bytes.strip, path.read_bytes().split(b"\n")), strict=True
    ):
        said, read = json.loads(line), json.loads(to_line(row))
        assert {name: read[name] for name in said} == said


@given(st.binary(max_size=300))
@fuzz(60)
def test_any_bytes_as_rows(tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(content)
    accepts(tmp_path / "rows.jsonl", Rollout)


@given(st.integers(0, 400))
@fuzz(40)
def test_a_cut_off_file_loses_the_cut_row_alone(tmp_path, cut):
    """What a power cut leaves: the rows before the cut stay, the next opening drops the rest."""
    rows = [Rollout(f"q{i}", i, "text" * i, (1, i), StopReason.END_OF_TURN, 3) for i in range(4)]
    whole = b"".join(map(to_line, rows))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(whole[: len(whole) - min(cut, len(whole))])
    kept = path.read_bytes().count(b"\n")
    with appending(path) as append:
        append(rows[3])
    assert read_jsonl(path, Rollout) == [*rows[:kept], rows[3]]


MADE_FROM = {"seed": 0, "names": ["a", "b"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with its manifest."""
    folder = tmp_path_factory.mktemp("finished")

    def make() -> dict:
        write_jsonl(folder / "rows.jsonl", RECORDS[:1])
        return {"rows": 1}

    complete(folder, stage="questions", made_from=MADE_FROM, make=make)
    return folder


def copy(source: Path, target: Path) -> Path:
    """A fresh copy: what the example before did to it is gone."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(source, target)


@given(st.data())
@fuzz(120)
def test_a_broken_manifest_is_refused_or_says_the_same(finished, tmp_path, data):
    folder = copy(finished, tmp_path / "folder")
    path = folder / "manifest.json"
    path.write_bytes(data.draw(broken_json_bytes(json.loads(path.read_bytes()))))
    found = refused(lambda: read_manifest(folder), re.escape(str(folder)))
    assert found is None or found == read_manifest(finished)


@given(st.data())
@fuzz(40)
def test_changed_data_under_a_manifest_is_noticed(finished, tmp_path, data):
    """Every change of a file that a manifest vouches for, also one that leaves its size as it was."""
    folder = copy(finished, tmp_path / "folder")
    path = folder / "rows.jsonl"
    good = path.read_bytes()
    path.write_bytes(data.draw(broken_bytes(good).filter(lambda x: x != good)))
    with pytest.raises(SsbError, match=re.escape(str(path))):
        read_manifest(folder)


@given(st.data())
@fuzz(60)
def test_a_broken_begun_file_binds_or_is_refused(tmp_path, data):
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(to_line(RECORDS[0]))
    (folder / "begun.json").write_bytes(data.draw(broken_json_bytes(MADE_FROM)))
    made = refused(
        lambda: complete(folder, stage="questions", made_from=MADE_FROM, make=lambda: {"rows": 1}),
        re.escape(str(folder)),
    )
    assert made is None or read_manifest(folder).made_from == MADE_FROM


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff"], ids=["deep", "cut off", "not UTF-8"])
def test_a_begun_file_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / "begun.json").write_bytes(content)
    (tmp_path / "rows.jsonl").write_bytes(to_line(RECORDS[0]))
    with pytest.raises(SsbError, match="begun.json is not JSON"):
        complete(tmp_path, stage="questions", made_from=MADE_FROM, make=dict)


@given(st.data())
@fuzz(60)
def test_a_broken_log_of_steps_is_named_by_line(tmp_path, data):
    rows = [{"step": n, "loss": 0.5 / n, "seconds": 1} for n in range(1, 4)]
    good = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(data.draw(broken_bytes(good)))
    found = refused(lambda: read_metrics(tmp_path), "^" + re.escape(str(path)) + r", line \d+")
    if found is not None:
        assert [row["step"] for row in found] == list(range(1, len(found) + 1))


@given(st.data())
@fuzz(80)
def test_broken_question_files_are_named_by_line(tmp_path, data):
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1), "level": i} for i in range(3)]
    good = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / "questions.jsonl"
    changed = broken_json(rows).filter(lambda x: isinstance(x, list))
    path.write_bytes(
        data.draw(st.one_of(broken_bytes(good), changed.map(lambda x: "\n".join(map(json.dumps, x)).encode())))
    )
    found = refused(lambda: load_questions(Data(path=str(path))), re.escape(str(path)))
    if found is not None:
        write_jsonl(tmp_path / "again.jsonl", found[0])
        assert read_jsonl(tmp_path / "again.jsonl", Question) == found[0]


@given(st.data())
@fuzz(25)
def test_verify_refuses_broken_files_by_line_or_grades_every_row(tmp_path, data):
    rows = [{"gold": "2", "response": "\\boxed{2}", "id": i} for i in range(3)]
    good = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(data.draw(broken_bytes(good)))
    counts = refused(lambda: verify_file(path, out, workers=1), re.escape(str(path)))
    if counts is not None:
        assert counts["rows"] == sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
        assert out.read_bytes().count(b"\n") == counts["rows"]


# ---- the target store

INFO = StoreInfo("hidden", "float32", 4, "head", "model")
PAIRS = [Pair(f"q{i}", "", "", "", (i, 1, 2), (i,), tuple(range(3 + i)), False) for i in range(3)]
VALUES = {pair.question_id: np.random.default_rng(0).normal(size=(len(pair.reply_ids), 4)) for pair in PAIRS}


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    with TargetWriter(folder, INFO, shard_bytes=150) as writer:
        for pair in PAIRS:
            writer.add(pair, VALUES[pair.question_id].astype(np.float32))
    return folder


@pytest.mark.parametrize("name", ["store.json", "index-00000.json"])
@given(st.data())
@fuzz(80)
def test_a_broken_store_is_refused_or_names_the_example(name, store_folder, tmp_path, data):
    """What it gives has the right size, whatever stands in its index; that it is unchanged its manifest shows."""
    folder = copy(store_folder, tmp_path / "store")
    (folder / name).write_bytes(data.draw(broken_json_bytes(json.loads((folder / name).read_bytes()))))

    def read() -> None:
        store = open_store(folder)
        for pair in PAIRS:
            assert store.read(pair).shape == (len(pair.reply_ids), store.info.width)

    refused(read, re.escape(str(folder)) + "|targets of q[012]")


@given(st.data())
@fuzz(80)
def test_a_broken_shard_names_the_example(store_folder, tmp_path, data):
    folder = copy(store_folder, tmp_path / "store")
    path = folder / open_store(folder).entries["q1"].shard
    path.write_bytes(data.draw(broken_bytes(path.read_bytes())))
    found = refused(lambda: open_store(folder).read(PAIRS[1]), "q1")
    if found is not None:
        assert found.shape == VALUES["q1"].shape
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
