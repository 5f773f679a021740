"""A run in a bucket: what comes back, in which order things get there, and who may have it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner
from remote_stores import BUCKET, Disturbed, emulator, forbidding

from ssb_jax import doctor, hosts
from ssb_jax.artifacts import appending, begin, complete, read_jsonl, write_atomically
from ssb_jax.cli import main
from ssb_jax.config import Data, SsbError, load_config
from ssb_jax.model.weights import resolve_model
from ssb_jax.records import Question
from ssb_jax.remote import fetched, mirrored, try_out
from ssb_jax.remote.lock import _CARD, LOCK, Lock
from ssb_jax.remote.mirror import Mirror, working_folder
from ssb_jax.remote.several import following, leading, working
from ssb_jax.remote.store import Store, open_store
from ssb_jax.stages.questions import load_questions, source_identity

TINY = Path(__file__).parent.parent / "configs/tiny.yaml"
URL = f"gs://{BUCKET}/some/run"

# gcsfs gives aiohttp more than 1 MB as bytes, which aiohttp would rather have as a file.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this a machine of its own, by name: other working folders and caches."""

    def be(name: str) -> None:
        monkeypatch.setenv("SSB_SCRATCH", str(tmp_path / name / "runs"))
        monkeypatch.setenv("SSB_INPUTS", str(tmp_path / name / "inputs"))

    monkeypatch.setenv("SSB_PUSH_SECONDS", "0.2")
    be("first")
    return be


@pytest.fixture
def bucket(machine, monkeypatch):
    """The emulated bucket, by fsspec."""
    with emulator() as environment:
        yield _connect(environment, monkeypatch)


def _connect(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    return fsspec.filesystem("gs", use_listings_cache=False)


def _row(number):
    return Question(id=f"q{number}", question="How many?", answer=str(number))


def _stage(folder, rows=3):
    """A stage of `rows` rows, as stages write."""

    def make():
        with appending(folder / "part-00000.jsonl") as append:
            for number in range(rows):
                append(_row(number))
        return {"rows": rows}

    return complete(folder, stage="test", made_from={"seed": 0}, make=make)


def _files(folder):
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".")}


def test_what_a_run_wrote_comes_back_on_another_machine(bucket, machine):
    bucket.pipe_file(f"{BUCKET}/some/run-2/config.yaml", b"a neighbour's")
    assert not try_out(URL)
    with mirrored(URL) as folder:
        write_atomically(folder / "config.yaml", "seed: 0")
        _stage(folder / "questions")
        write_atomically(folder / "targets/00000-00000.safetensors", os.urandom(6 << 20))  # more than one upload's part
        write_atomically(folder / "begun.json", "{}")
        write_atomically(folder / "nothing", "")
        first = _files(folder)
    found = doctor._output(doctor.Patient(load_config(TINY), URL))
    here = f"each host works in a folder of its own, here {working_folder(URL)}"
    assert found == (doctor.Status.OK, f"{URL} (continues what is there); {here}")
    machine("second")
    with mirrored(URL) as folder:
        assert _files(folder) == first
        assert _stage(folder / "questions")[1], "complete already"
        (folder / "begun.json").unlink()
    there = {path.removeprefix(f"{BUCKET}/some/run/") for path in bucket.find(f"{BUCKET}/some/run")}
    assert there == first.keys() - {"begun.json"} | {".last-folder"}, "what is deleted here is deleted there"


def test_rows_get_there_while_they_are_appended(bucket, machine):
    with mirrored(URL) as folder:
        path = f"{BUCKET}/some/run/rollouts/part-00000.jsonl"
        with appending(folder / "rollouts/part-00000.jsonl") as append:
            for number in range(2):
                append(_row(number))
                _eventually(lambda n=number: bucket.exists(path) and bucket.cat_file(path).count(b"\n") == n + 1)


def _eventually(holds):
    assert hosts.group._eventually(holds, seconds=10)


def test_the_folder_that_was_there_last_keeps_what_it_could_not_push(bucket, machine):
    with mirrored(URL) as folder:
        _stage(folder / "questions")
    with appending(folder / "rollouts/part-00000.jsonl") as append:  # as after a kill: written, not pushed
        append(_row(7))
    with mirrored(URL) as folder:
        assert read_jsonl(folder / "rollouts/part-00000.jsonl", Question) == [_row(7)]
    machine("second")
    with mirrored(URL) as folder:
        assert read_jsonl(folder / "rollouts/part-00000.jsonl", Question) == [_row(7)]
        write_atomically(folder / "later", "x")
    machine("first")
    with appending(working_folder(URL) / "rollouts/part-00000.jsonl") as append:  # of a past that went on elsewhere
        append(_row(8))
    with mirrored(URL) as folder:
        assert read_jsonl(folder / "rollouts/part-00000.jsonl", Question) == [_row(7)]
        assert (folder / "later").exists()


def test_after_several_processes_one_alone_starts_from_the_store(bucket, machine):
    with mirrored(URL) as folder:
        _stage(folder / "questions")
    with leading(URL) as (first, lock), following(URL, 1, lock.card.token) as (second, guard):
        with working(second, guard) as part:
            assert _files(part.folder) == _files(first.folder)
            write_atomically(part.folder / "targets/index-00001.json", "{}")
        assert not (first.folder / "targets").exists()
    with mirrored(URL) as folder:
        assert folder == first.folder
        assert (folder / "targets/index-00001.json").exists()


# ---- the order of uploads


def _mirror(files, folder):
    return Mirror(Store("memory://run", files, "/run"), folder)


def _awkward(folder):
    """A run whose clock went back before its manifest, and stood still while targets and checkpoints were written; its
    log has grown since the last checkpoint was sealed."""
    _stage(folder / "questions")
    _stage(folder / "blocks/0000/rollouts")
    os.utime(folder / "blocks/0000/rollouts/manifest.json", ns=(1, 1))
    for name in ("targets/index-00000.json", "targets/a.safetensors", "targets/z.safetensors"):
        write_atomically(folder / name, json.dumps(["a.safetensors", "z.safetensors"]))
    for step in (1, 2, 3):
        for name in ("state/manifest.ocdbt", "state/d/0", "data/metadata"):
            write_atomically(folder / f"distillation/checkpoints/{step}/{name}", "x")
        if step < 3:  # the last is not sealed yet
            write_atomically(folder / f"distillation/checkpoints/digests/{step}.json", "{}")
    for name in ("targets", "distillation"):
        for path in (folder / name).rglob("*"):
            os.utime(path, ns=(10**18, 10**18))
    write_atomically(folder / "distillation/metrics.jsonl", "{}\n" * 3)


def test_cut_off_anywhere_the_store_holds_no_promise_without_what_it_promises(tmp_path):
    _awkward(tmp_path / "run")

    def die(number, _):
        if number == cut:
            raise KeyboardInterrupt

    for cut in range(100):
        files = Disturbed(lambda *_: None)
        files.pipe_file("/run/.last-folder", b"as at its start")
        files.before, files.writes = die, 0
        try:
            _mirror(files, tmp_path / "run").push()
            break
        except KeyboardInterrupt:
            pass
        files.before = lambda *_: None
        again = tmp_path / f"cut-{cut}"
        _mirror(files, again).start()
        for stage in ("questions", "blocks/0000/rollouts"):  # completed before the first upload
            begin(again / stage, stage="test", made_from={"seed": 0})  # raises where it cannot be gone on with
        for index in again.glob("targets/index-*"):
            assert all((index.parent / shard).exists() for shard in json.loads(index.read_bytes()))
        for step in (again / "distillation/checkpoints").glob("[0-9]*"):
            assert len([path for path in step.rglob("*") if path.is_file()]) == 3
            assert (step.parent.parent / "metrics.jsonl").exists(), "it has the rows of the step"
    # Each file but those of the unsealed checkpoint, and with which settings each stage was begun.
    assert cut == len(_files(tmp_path / "run")) - 3 + 2
    assert not [name for name in files.store if name.endswith("begun.json")]


def test_an_index_replaced_during_a_push_waits_for_its_new_shard(tmp_path):
    folder = tmp_path / "run"

    def replace(number, path):
        if path.endswith("0.safetensors"):
            write_atomically(folder / "1.safetensors", "rows")
            write_atomically(folder / "index.json", '["0", "1"]')

    write_atomically(folder / "0.safetensors", "rows")
    write_atomically(folder / "index.json", '["0"]')
    files = Disturbed(replace)
    mirror = _mirror(files, folder)
    mirror.push()
    assert set(files.store) == {"/run/0.safetensors"}
    mirror.push()
    assert set(files.store) == {"/run/0.safetensors", "/run/1.safetensors", "/run/index.json"}
    assert files.cat("/run/index.json") == b'["0", "1"]'
    done = files.writes
    mirror.push()
    assert files.writes == done, "nothing changed, nothing is uploaded"


def test_what_could_not_be_pushed_is_said_and_kept(machine, monkeypatch):
    def refuse(number, path):
        if path.endswith(".jsonl"):
            raise OSError("connection reset")

    files = Disturbed(refuse)
    monkeypatch.setattr("ssb_jax.remote.mirror.open_store", lambda url: Store(url, files, "/run"))
    message = r"part-00000.jsonl cannot be written .*connection reset.* All of the run is in"
    with pytest.raises(SsbError, match=message), mirrored("memory://run") as folder:
        _stage(folder / "questions")
    files.before = lambda *_: None
    with mirrored("memory://run") as folder:
        assert _stage(folder / "questions")[1]


def test_a_name_that_would_leave_the_folder_is_refused(tmp_path):
    store = Store("memory://run", Disturbed(lambda *_: None), "/run")
    with pytest.raises(SsbError, match="would leave the folder"):
        store.fetch(["data/../../../elsewhere"], tmp_path)


# ---- the lock


def _locks(*folders, seconds=0.1):
    store = Store("memory://run", Disturbed(lambda *_: None), "/run")
    return store, *(Lock(store, folder=folder, seconds=seconds) for folder in folders)


def test_a_second_process_is_refused_with_the_owners_name():
    _, first, second = _locks("here", "there")
    refused = pytest.raises(SsbError, match=f"in use by process {os.getpid()} on ")
    with first.held(), refused, second.held():
        pass


def test_of_two_that_find_no_lock_one_gets_it():
    store, first, second = _locks("here", "there")
    assert store.create(LOCK, _CARD.dump_json(first.card))
    with pytest.raises(FileExistsError):
        store.files.pipe_file(f"/run/{LOCK}", _CARD.dump_json(second.card), mode="create")
    assert not store.create(LOCK, _CARD.dump_json(second.card))


def test_a_lock_left_behind_is_taken_after_a_while_and_by_the_same_folder_at_once(capfd):
    store, killed, restarted, elsewhere = _locks("here", "here", "there")
    assert store.create(LOCK, _CARD.dump_json(killed.card))
    with restarted.held():
        assert "waiting" not in capfd.readouterr().err
    assert store.read(LOCK) is None
    assert store.create(LOCK, _CARD.dump_json(killed.card))
    with elsewhere.held():
        assert f"in use by process {os.getpid()}" in capfd.readouterr().err
    assert store.read(LOCK) is None


def test_a_run_whose_lock_was_taken_stops_and_writes_nothing_more(bucket, machine):
    def run():
        with hosts.stopping_on_sigterm(), mirrored(URL) as folder:
            other = Lock(open_store(URL), folder="there", seconds=1)
            bucket.pipe_file(f"{BUCKET}/some/run/{LOCK}", _CARD.dump_json(other.card))
            write_atomically(folder / "late", "x")
            _eventually(lambda: False)

    with pytest.raises(SsbError, match="taken over by another process"):
        run()
    assert bucket.exists(f"{BUCKET}/some/run/{LOCK}")
    assert not bucket.exists(f"{BUCKET}/some/run/late")


# ---- errors, inputs, and what a run on a disk does without


def _one_error(*arguments):
    result = CliRunner().invoke(main, ["run", str(TINY), *arguments])
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert (result.exit_code, len(errors)) == (1, 1), result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_bucket_that_is_not_there_or_forbidden_is_one_error(bucket, machine, monkeypatch):
    assert "gs://nowhere/run/.owner cannot be written" in _one_error("--out", "gs://nowhere/run")
    assert "fsspec knows no nonsense://" in _one_error("--out", "nonsense://bucket/run")
    assert "expected a bucket and a name in it" in _one_error("--out", "gs://")
    monkeypatch.setenv("SSB_PUSH_SECONDS", "often")
    assert "SSB_PUSH_SECONDS: expected seconds" in _one_error("--out", URL)
    with forbidding() as environment:
        _connect(environment, monkeypatch)
        monkeypatch.setenv("SSB_PUSH_SECONDS", "30")
        assert "no permission for storage.objects" in _one_error("--out", URL)


def test_questions_and_models_are_read_from_a_bucket(bucket, machine):
    data = Data(path=f"gs://{BUCKET}/q.jsonl")
    bucket.pipe_file(f"{BUCKET}/q.jsonl", b'{"question": "1 + 1?", "answer": "2"}')
    assert [q.answer for q in load_questions(data)[0]] == ["2"]
    before = source_identity(data)
    bucket.pipe_file(f"{BUCKET}/q.jsonl", b'{"question": "1 + 1?", "answer": "two"}')
    assert [q.answer for q in load_questions(data)[0]] == ["two"]
    assert source_identity(data) != before
    with pytest.raises(SsbError, match="nothing is there"):
        load_questions(Data(path=f"gs://{BUCKET}/nothing.jsonl"))

    builtin = resolve_model("builtin:tiny")
    for path in builtin.iterdir():
        bucket.pipe_file(f"{BUCKET}/models/tiny/{path.name}", path.read_bytes())
    folder = resolve_model(f"gs://{BUCKET}/models/tiny")
    assert folder == fetched(f"gs://{BUCKET}/models/tiny"), "fetched once"
    assert _files(folder) == _files(builtin)


def test_a_run_on_a_disk_does_without_fsspec():
    code = "import ssb_jax.cli, sys; sys.exit(', '.join(m for m in ('fsspec', 'gcsfs') if m in sys.modules) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_what_is_no_run_is_neither_fetched_nor_deleted(tmp_path):
    """Somebody's model, with checkpoints of its own, above or beside which a run was started by mistake."""
    files = Disturbed(lambda *_: None)
    for name in ("my-llm/checkpoints/1000/params", "notes.txt"):
        files.pipe_file(f"/run/{name}", b"mine")
    before = dict(files.store)
    with pytest.raises(SsbError, match=r"memory://run holds 2 objects that are no run's, such as my-llm/checkpoints"):
        _mirror(files, tmp_path / "run").start()
    assert files.store == before
    files.pipe_file("/run/config.yaml", b"seed: 0")
    mirror = _mirror(files, tmp_path / "run")
    mirror.start()
    mirror.push()
    assert before.items() <= files.store.items(), "checkpoints that are not the run's are no concern of it"
