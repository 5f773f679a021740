"""What a bad disk and a bad clock do to the files of a run: nothing lost, nothing vouched for that is not there.

Kills at random moments over whole runs: `python tests/faults.py --kills 100`.
"""

import os
import time
from errno import EIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_disk import small_disk

from ssb_jax import artifacts
from ssb_jax.artifacts import appending, complete, read_jsonl, read_manifest, write_jsonl
from ssb_jax.cli import main
from ssb_jax.records import Question

ROOT = Path(__file__).parent.parent
ROWS = [Question(f"q{i}", f"What is {i} + 1?", str(i + 1)) for i in range(6)]


def make_stage(folder: Path) -> None:
    """A stage that appends rows, continuing what is there, and then writes a table of them."""

    def make() -> dict:
        path = folder / "part-00000.jsonl"
        artifacts.drop_partial_line(path)
        done = {row.id for row in read_jsonl(path, Question)} if path.exists() else set()
        with appending(path, sync_seconds=-1.0) as append:
            for row in ROWS:
                if row.id not in done:
                    append(row)
        write_jsonl(folder / "table.jsonl", read_jsonl(path, Question))
        return {"rows": len(ROWS)}

    complete(folder, stage="rows", made_from={"seed": 0}, make=make)


def failing(monkeypatch, name: str, number: int) -> list[int]:
    """Lets the number-th call of an `os` function fail as a broken disk does; returns a list of the calls made."""
    real, calls = getattr(os, name), []

    def call(*arguments, **more):
        calls.append(len(calls) + 1)
        if len(calls) == number:
            raise OSError(EIO, os.strerror(EIO))
        return real(*arguments, **more)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_disk_that_fails_at_any_moment_loses_and_doubles_nothing(name, tmp_path, monkeypatch):
    number, failed = 0, True
    while failed:
        number += 1
        folder = tmp_path / f"{name}-{number}"
        with monkeypatch.context() as patch:
            failing(patch, name, number)
            try:
                make_stage(folder)
                failed = False
            except OSError:
                pass
        read_manifest(folder)  # raises where it vouches for what is not there
        assert not list(folder.glob(".*"))  # no temporary file is left
        make_stage(folder)
        assert read_jsonl(folder / "part-00000.jsonl", Question) == ROWS
        assert read_jsonl(folder / "table.jsonl", Question) == ROWS
        assert read_manifest(folder).counts == {"rows": 6}
    assert number > 3


def test_a_disk_that_fails_is_one_line(tmp_path, monkeypatch):
    failing(monkeypatch, "fsync", 1)
    result = CliRunner().invoke(main, ["rollout", str(ROOT / "configs/tiny.yaml"), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert result.output.count("Error: ") == 1
    assert "Input/output error" in result.output


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, monkeypatch):
    now = [time.time()]

    def jumping() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    make_stage(tmp_path)
    assert read_jsonl(tmp_path / "table.jsonl", Question) == ROWS
    assert read_manifest(tmp_path).seconds >= 0


@pytest.fixture
def read_only(tmp_path):
    """A file system that holds a finished stage and can no more be written."""
    disk = tmp_path / "disk"
    with small_disk(disk, size="1m") as remount:
        make_stage(disk / "run")
        remount("ro")
        yield disk


def test_output_that_cannot_be_written_is_one_line_and_stays_as_it_is(read_only):
    for out in ("run", "new"):
        result = CliRunner().invoke(main, ["run", str(ROOT / "configs/tiny.yaml"), "--out", str(read_only / out)])
        assert result.exit_code == 1
        assert result.output.count("Error: ") == 1
        assert "Read-only file system" in result.output
    assert read_manifest(read_only / "run").counts == {"rows": 6}
