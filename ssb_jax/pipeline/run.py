"""The run folder, and what every step of the pipeline does with it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssb_jax.artifacts import Manifest, complete, read_jsonl, read_manifest, training_folder, write_atomically
from ssb_jax.config import Config, Data, Section, dump_config
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


def save_config(run: Run, *, replace: bool) -> None:
    """Writes the resolved settings to `config.yaml`; with `replace`, over those of an earlier command."""
    if replace or not (run.folder / "config.yaml").exists():
        write_atomically(run.folder / "config.yaml", dump_config(run.config))


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
    completed(folder, "questions", made_from, lambda: questions.run(data, folder), quiet=True)
    return read_jsonl(folder / "questions.jsonl", Question)


def completed(
    folder: Path, stage: str, made_from: dict[str, Any], make: Callable[[], dict], *, quiet: bool = False, **more: Any
) -> Manifest:
    take_shared(folder, stage, made_from)
    manifest, was_there = complete(folder, stage=stage, made_from=made_from, make=make, **more)
    share(folder, manifest)
    if not quiet:
        state = "complete, skipped" if was_there else f"{manifest.seconds:.1f} s"
        counts = {name: value for name, value in manifest.counts.items() if not isinstance(value, dict)}
        note(f"{stage}: {mapping(counts)} ({state})")
    return manifest


def settings_of(section: Section, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude=set(leave_out))


def prompt_identity(run: Run, *names: str) -> dict[str, str]:
    return {name: text for name, text in run.workspace.prompt_identity.items() if name in names}
