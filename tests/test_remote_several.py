"""Several processes in one store: what each sees of the others, and what it may upload."""

import pytest
from remote_stores import Disturbed
from test_remote import URL, _awkward, _files, _mirror

from ssb_jax import hosts
from ssb_jax.artifacts import write_atomically
from ssb_jax.config import SsbError
from ssb_jax.remote.lock import _CARD, LOCK, Guard, Lock
from ssb_jax.remote.mirror import working_folder
from ssb_jax.remote.several import Part, working


def _parts(files, *folders):
    """Processes of one run, each with a folder of its own."""
    mirrors = [_mirror(files, folder) for folder in folders]
    lock = Lock(mirrors[0].store, folder="here", seconds=1)
    assert mirrors[0].store.create(LOCK, _CARD.dump_json(lock.card))
    return [Part(mirror, Guard(mirror.store, lock.card.token)) for mirror in mirrors]


def _meet(parts):
    """What `hosts.gather` does with the parts of all processes."""
    given = [part.give(all_of_it=False) for part in parts]
    for i, part in enumerate(parts):
        part.take({name: there for j, news in enumerate(given) if j != i for name, there in news.items()})


def test_where_processes_meet_each_sees_what_the_others_wrote(tmp_path):
    files = Disturbed(lambda *_: None)
    first, second = _parts(files, tmp_path / "first", tmp_path / "second")
    write_atomically(first.folder / "begun.json", "{}")
    for number, part in enumerate((first, second)):
        write_atomically(part.folder / "store.json", "the same")
        write_atomically(part.folder / f"rollouts/part-0000{number}.jsonl", "row\n" * (number + 1))
        write_atomically(part.folder / f"rollouts/.engine-0000{number}.json", "{}")
    _meet((first, second))
    assert _files(first.folder) == _files(second.folder)
    assert (first.folder / "rollouts/part-00001.jsonl").read_text() == "row\nrow\n"
    assert (first.folder / "rollouts/.engine-00001.json").exists()
    done = files.writes
    _meet((first, second))
    assert files.writes == done, "what was fetched is not uploaded"
    write_atomically(first.folder / "rollouts/part-00001.jsonl", "row\n")  # process 0 mends another's rows
    (first.folder / "begun.json").unlink()
    first.mirror.push()  # as every SSB_PUSH_SECONDS
    _meet((first, second))
    assert (second.folder / "rollouts/part-00001.jsonl").read_text() == "row\n"
    assert not (second.folder / "begun.json").exists()


def test_checkpoints_are_not_exchanged_and_get_there(tmp_path):
    files = Disturbed(lambda *_: None)
    first, second = _parts(files, tmp_path / "first", tmp_path / "second")
    _awkward(first.folder)
    _meet((first, second))
    assert not (second.folder / "distillation/checkpoints").exists()
    assert not [name for name in files.store if "checkpoints" in name]
    first.give(all_of_it=True)
    assert len([name for name in files.store if "checkpoints" in name]) == 2 * 4
    again = _mirror(files, tmp_path / "third")
    again.fetch()
    written = _files(first.folder / "distillation").items()
    sealed = {name: data for name, data in written if not name.startswith("checkpoints/3")}
    assert _files(again.folder / "distillation") == sealed


def test_a_checkpoint_that_is_being_deleted_does_not_get_there(tmp_path):
    files = Disturbed(lambda *_: None)
    (part,) = _parts(files, tmp_path / "run")
    _awkward(part.folder)
    write_atomically(part.folder / "distillation/checkpoints/digests/1.json", '{"state/d/0": "", "state/d/1": ""}')
    part.give(all_of_it=True)
    there = {name.split("/")[4] for name in files.store if "/checkpoints/" in name}
    assert there == {"2", "digests"}
    assert "/run/distillation/checkpoints/digests/1.json" not in files.store


def test_a_process_whose_run_was_taken_over_uploads_nothing(tmp_path):
    files = Disturbed(lambda *_: None)
    (part,) = _parts(files, tmp_path / "run")
    part.mirror.store.write(LOCK, _CARD.dump_json(Lock(part.mirror.store, folder="there", seconds=1).card))
    write_atomically(part.folder / "late", "x")
    with hosts.stopping_on_sigterm(), pytest.raises((SsbError, SystemExit)):
        part.give(all_of_it=False)
    assert "/run/late" not in files.store


def test_an_error_names_the_place_in_the_store(tmp_path):
    (part,) = _parts(Disturbed(lambda *_: None), tmp_path / "run")
    with pytest.raises(SsbError) as caught, working(part.mirror, part.lock):
        raise SsbError(f"delete {part.folder}/distillation and run again")
    assert str(caught.value) == f"delete {part.mirror.store.url}/distillation and run again"


def test_processes_on_one_machine_work_in_folders_of_their_own():
    assert len({working_folder(URL, process) for process in range(3)} | {working_folder(f"{URL}-00001")}) == 4
