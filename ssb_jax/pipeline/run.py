"""The run folder, and what every step of the pipeline does with it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssb_jax import hosts
from ssb_jax.artifacts import (
    Manifest,
    begin,
    digest,
    finish,
    read_jsonl,
    read_manifest,
    training_folder,
    write_atomically,
)
from ssb_jax.config import Config, Data, Section, SsbError, dump_config, load_config
from ssb_jax.console import mapping, note
from ssb_jax.pipeline.sharing import share, take_shared
from ssb_jax.records import Question
from ssb_jax.stages import questions
from ssb_jax.workspace import Workspace


@dataclass(frozen=True)
class Run:
    """A run folder and the settings it is made with."""

    folder: Path
    workspace: Workspace

    @property
    def config(self) -> Config:
        return self.workspace.config

    def block_folder(self, block: int, stage: str) -> Path:
        return self.folder / "blocks" / f"{block:04d}" / stage

    @property
    def training_folder(self) -> Path:
        return training_folder(self.folder, self.config)

    @property
    def adapter_folder(self) -> Path:
        return self.training_folder / "adapter"


@contextlib.contextmanager
def keeping_config(run: Run) -> Iterator[None]:
    """Writes the resolved settings to `config.yaml`: where there are none at once, over those of an earlier command at
    the end, when every stage has accepted them."""
    path = run.folder / "config.yaml"

    def save() -> None:
        if hosts.is_first():
            write_atomically(path, dump_config(run.config))

    if not _has_settings(path):
        save()
    yield
    save()


def _has_settings(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        load_config(path)
    except SsbError as error:
        note(f"{error}; it is written anew")
        return False
    return True


def load_questions(run: Run) -> list[Question]:
    """The run's questions, loaded once and kept."""
    return kept_questions(run, run.config.questions, run.folder / "questions")


def blocks(run: Run) -> Iterator[tuple[int, list[Question]]]:
    members = load_questions(run)
    size = run.config.rollouts.block_size or len(members)
    for block, start in enumerate(range(0, len(members), size)):
        yield block, members[start : start + size]


def kept_questions(run: Run, data: Data, folder: Path) -> list[Question]:
    earlier = read_manifest(folder)
    file = questions.source_identity(data)
    if file is None and earlier is not None:
        file = earlier.made_from["file"]  # questions once read do not need their file any more
    made_from = {**settings_of(data), "file": file}
    completed(folder, "questions", made_from, lambda: questions.run(data, folder), alone=True, quiet=True)
    return read_jsonl(folder / "questions.jsonl", Question)


def completed(
    folder: Path,
    stage: str,
    made_from: dict[str, Any],
    make: Callable[[], dict],
    *,
    alone: bool = False,
    quiet: bool = False,
    patterns: tuple[str, ...] = ("*",),
) -> Manifest:
    """Makes a folder's content unless it is there already (see artifacts.py), with all processes of the run.

    Args:
      make: writes the content and returns the counts; all processes call it, or with `alone` only the first.

    Raises:
      SsbError: the folder is another run's; the processes would not make it from the same.
    """
    hosts.stop_if_asked()
    _refuse_unlike(stage, made_from)
    was_there = hosts.on_first(lambda: _begin(folder, stage, made_from))
    if not was_there:
        started = time.monotonic()
        counts = hosts.on_first(make) if alone else make()
        facts = {"stage": stage, "counts": counts, "seconds": time.monotonic() - started, "patterns": patterns}
        hosts.on_first(lambda: share(folder, finish(folder, **facts)))
    manifest = _visible_manifest(folder)
    if not quiet:
        state = "complete, skipped" if was_there else f"{manifest.seconds:.1f} s"
        counts = {name: value for name, value in manifest.counts.items() if not isinstance(value, dict)}
        note(f"{stage}: {mapping(counts)} ({state})")
    return manifest


def _begin(folder: Path, stage: str, made_from: dict[str, Any]) -> bool:
    """Whether the folder is complete, perhaps with what another run of a study made from the same."""
    take_shared(folder, stage, made_from)
    manifest = begin(folder, stage=stage, made_from=made_from)
    if manifest is not None:
        share(folder, manifest)
    return manifest is not None


def _refuse_unlike(stage: str, made_from: dict[str, Any]) -> None:
    """Settings were compared when the processes met; files that they name (weights, prompts) are compared here."""
    by_process = hosts.gather({name: digest(value) for name, value in made_from.items()})
    unlike = [(i, name) for i, other in enumerate(by_process) for name in other if other[name] != by_process[0][name]]
    if unlike:
        raise SsbError(
            f"{stage}: process {unlike[0][0]} has another {unlike[0][1]} than process 0; give all hosts the same files"
        )


def _visible_manifest(folder: Path) -> Manifest:
    """The manifest that process 0 wrote, once this host's view of the disk has it and its files."""
    deadline = time.monotonic() + (0 if hosts.is_first() else 60)
    while True:
        try:
            manifest = read_manifest(folder)
        except SsbError:
            if time.monotonic() > deadline:
                raise
            manifest = None
        if manifest is not None:
            return manifest
        if time.monotonic() > deadline:
            raise SsbError(f"{folder} was completed by process 0 but process {hosts.index()} does not see it")
        time.sleep(0.1)


def settings_of(section: Section, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude=set(leave_out))


def prompt_identity(run: Run, *names: str) -> dict[str, str]:
    return {name: text for name, text in run.workspace.prompt_identity.items() if name in names}
