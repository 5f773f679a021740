"""Run folders: rows survive kills, manifests come last, other runs are refused."""

import json
import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssb_jax import artifacts
from ssb_jax.config import SsbError
from ssb_jax.records import Question, Rollout, StopReason

ROWS = [Question(id=str(i), question=f"frage {i} é\n", answer="1") for i in range(5)]


@given(text=st.text(), ids=st.lists(st.integers(0, 2**31 - 1)))
def test_records_survive_json(text, ids):
    rollout = Rollout(question_id=text, sample=1, text=text, token_ids=ids, stop=StopReason.LENGTH, prompt_tokens=3)
    line = artifacts.to_line(rollout)
    assert line.count(b"\n") == 1
    assert artifacts._adapter(Rollout).validate_json(line) == rollout


def test_append_continues_and_drops_what_a_kill_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    with artifacts.appending(path) as append:
        append(ROWS[0])
        append(ROWS[1])
    path.write_bytes(path.read_bytes() + b'{"id": "2", "que')
    with artifacts.appending(path) as append:
        append(ROWS[2])
    assert artifacts.read_jsonl(path, Question) == ROWS[:3]


@pytest.mark.parametrize("content", [b"", b"abc", b"abc\n", b"a\nb", b"x" * 200_000, b"a\n" + b"x" * 200_000])
def test_drop_partial_line_keeps_whole_lines_only(tmp_path, content):
    path = tmp_path / "f"
    path.write_bytes(content)
    dropped = artifacts.drop_partial_line(path)
    expected = content[: content.rfind(b"\n") + 1]
    assert path.read_bytes() == expected
    assert dropped == len(content) - len(expected)


@pytest.mark.parametrize(
    "line", [b"[]\n", b"{\n", b'{"id": 1}\n', b'{"id":"a","question":"q","answer":"1","x":2}\n', b"\xff\n"]
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line):
    path = tmp_path / "q.jsonl"
    path.write_bytes(artifacts.to_line(ROWS[0]) + line)
    with pytest.raises(SsbError, match=r"q\.jsonl, line 2"):
        artifacts.read_jsonl(path, Question)


def test_complete_makes_once_skips_then_refuses_other_settings(tmp_path):
    calls = []

    def make():
        calls.append(1)
        artifacts.write_jsonl(tmp_path / "rows.jsonl", ROWS)
        return {"rows": len(ROWS)}

    arguments = {"stage": "rollouts", "make": make}
    first, was_there = artifacts.complete(tmp_path, made_from={"k": 4}, **arguments)
    again, was_there_again = artifacts.complete(tmp_path, made_from={"k": 4}, **arguments)
    assert (len(calls), was_there, was_there_again) == (1, False, True)
    assert first == again
    assert first.counts == {"rows": 5}
    with pytest.raises(SsbError, match="holds the rollouts of another run: k was 4, now 8"):
        artifacts.complete(tmp_path, made_from={"k": 8}, **arguments)
    assert artifacts.read_jsonl(tmp_path / "rows.jsonl", Question) == ROWS


def test_an_interrupted_folder_is_continued_only_with_the_same_settings(tmp_path):
    def interrupted():
        with artifacts.appending(tmp_path / "rows.jsonl") as append:
            append(ROWS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifacts.complete(tmp_path, stage="rollouts", made_from={"k": 4}, make=interrupted)
    assert artifacts.read_manifest(tmp_path) is None
    with pytest.raises(SsbError, match="another run"):
        artifacts.complete(tmp_path, stage="rollouts", made_from={"k": 5}, make=dict)
    artifacts.complete(tmp_path, stage="rollouts", made_from={"k": 4}, make=dict)
    assert artifacts.read_jsonl(tmp_path / "rows.jsonl", Question) == ROWS[:1]


@pytest.mark.parametrize("damage", ["shorter", "gone", "manifest"])
def test_a_complete_folder_without_its_data_is_an_error(tmp_path, damage):
    artifacts.complete(
        tmp_path, stage="s", made_from={}, make=lambda: {"n": artifacts.write_jsonl(tmp_path / "rows.jsonl", ROWS)}
    )
    if damage == "shorter":
        (tmp_path / "rows.jsonl").write_bytes(b"")
    elif damage == "gone":
        (tmp_path / "rows.jsonl").unlink()
    else:
        (tmp_path / artifacts.MANIFEST).write_text('{"stage"')
    with pytest.raises(SsbError, match=r"delete .* to make it again"):
        artifacts.complete(tmp_path, stage="s", made_from={}, make=dict)


def test_digest_of_a_folder_follows_its_content(tmp_path):
    def made(name, rows):
        folder = tmp_path / name
        manifest, _ = artifacts.complete(
            folder, stage="s", made_from={}, make=lambda: {"n": artifacts.write_jsonl(folder / "r.jsonl", rows)}
        )
        return manifest.digest

    assert made("a", ROWS) == made("b", ROWS) != made("c", ROWS[:4])


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.json"
    artifacts.write_atomically(path, "old")
    with pytest.raises(TypeError):
        artifacts.write_atomically(path, 3)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def _hold(folder, ready, release):
    with artifacts.owning(folder):
        ready.set()
        release.wait(20)


def test_a_second_process_is_refused_with_the_owners_name(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, release))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(SsbError, match=f"in use by process {holder.pid} on "), artifacts.owning(tmp_path):
            pass
    finally:
        release.set()
        holder.join(20)
    with artifacts.owning(tmp_path):
        pass


def test_manifest_is_plain_json(tmp_path):
    artifacts.complete(tmp_path, stage="s", made_from={"t": (1, 2)}, make=dict)
    manifest = json.loads((tmp_path / artifacts.MANIFEST).read_text())
    assert manifest["made_from"] == {"t": [1, 2]}
    assert "jax" in manifest["versions"]


def test_what_failed_before_its_first_row_binds_nobody_to_its_settings(tmp_path):
    def fail():
        raise SsbError("no question file")

    with pytest.raises(SsbError, match="no question file"):
        artifacts.complete(tmp_path, stage="questions", made_from={"file": None}, make=fail)
    manifest, was_there = artifacts.complete(tmp_path, stage="questions", made_from={"file": "x"}, make=dict)
    assert (manifest.made_from, was_there) == ({"file": "x"}, False)


def test_an_empty_file_binds_nobody_and_files_of_unknown_settings_are_refused(tmp_path):
    artifacts.begin(tmp_path, stage="rollouts", made_from={"seed": 0})
    (tmp_path / "part-00000.jsonl").touch()
    assert artifacts.begin(tmp_path, stage="rollouts", made_from={"seed": 1}) is None
    (tmp_path / "part-00000.jsonl").write_text("{}\n")
    (tmp_path / "begun.json").unlink()
    with pytest.raises(SsbError, match="holds files, and nothing says with which settings; delete"):
        artifacts.begin(tmp_path, stage="rollouts", made_from={"seed": 1})


def test_a_manifest_vouches_for_subfolders_it_is_told_of(tmp_path):
    def make():
        artifacts.write_atomically(tmp_path / "adapter" / "weights", "w")
        artifacts.write_atomically(tmp_path / "scratch" / "x", "x")
        return {}

    arguments = {"stage": "s", "made_from": {}, "patterns": ("*", "adapter/*")}
    manifest, _ = artifacts.complete(tmp_path, make=make, **arguments)
    assert list(manifest.files) == ["adapter/weights"]
    (tmp_path / "adapter" / "weights").unlink()
    with pytest.raises(SsbError, match="adapter/weights is missing"):
        artifacts.complete(tmp_path, make=make, **arguments)


def test_differing_lists_are_told_by_their_first_difference(tmp_path):
    artifacts.complete(tmp_path, stage="s", made_from={"ids": ["a", "b"]}, make=dict)
    with pytest.raises(SsbError, match='ids.1 was "b", now "c"'):
        artifacts.complete(tmp_path, stage="s", made_from={"ids": ["a", "c"]}, make=dict)
    with pytest.raises(SsbError, match="ids had 2 entries, now 1"):
        artifacts.complete(tmp_path, stage="s", made_from={"ids": ["a"]}, make=dict)
