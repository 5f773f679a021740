"""A declared grid of runs: every method with every number of questions and every seed (`Study` in config/tree.py).

    DIR/cells/NAME/        an ordinary run folder each
    DIR/shared/            folders that several cells would make alike (rollouts, pairs, the base's answers), made once
    DIR/cells.jsonl        one row for each finished cell, and how long it took here; cells-1-of-3.jsonl of a part

A cell's cost is what it would have cost by itself: what it took from others counts in full. Started again, a study goes
on with the cell that was cut off, where it was cut off. Hosts that see one folder can each run a part of it.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic

from ssb_jax import hosts, pipeline
from ssb_jax.artifacts import digest, drop_partial_line, owning, write_atomically
from ssb_jax.config import Config, SsbError, config_from_dict, dump_config
from ssb_jax.console import note
from ssb_jax.pipeline.sharing import sharing
from ssb_jax.workspace import Workspace


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    name: str
    config: Config


class _Finished(pydantic.BaseModel):
    cell: str
    config: str


_ROW = pydantic.TypeAdapter(_Finished)


@dataclass(frozen=True)
class Part:
    """Cell `number`, `number + count` and so on of the grid; by default all of it."""

    number: int = 1
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.number}-of-{self.count}"

    @property
    def log(self) -> str:
        return f"cells-{self.name}.jsonl" if self.count > 1 else "cells.jsonl"


def cells(config: Config) -> list[Cell]:
    """The grid in the order in which it is run: all of the first seed before the second, small ones first.

    Raises:
      SsbError: there is no `study` section, a setting of a method is not valid or is the grid's own, two cells have one
        name, a loss does not exist or asks for other targets, or there is nothing to compare by.
    """
    study = config.study
    if study is None:
        raise SsbError("expected a section `study` with methods, questions and seeds; see configs/tiny-study.yaml")
    if not config.evaluation.sets:
        raise SsbError("a study compares by accuracy: expected at least one set in evaluation.sets, found none")
    grid = [
        _cell(config, method=method, loss=loss, questions=questions, seed=seed)
        for seed in study.seeds
        for questions in study.questions
        for method in study.methods
        for loss in ((study.losses if method == "ssb" else ()) or (None,))
    ]
    doubled = [name for name, count in Counter(cell.name for cell in grid).items() if count > 1]
    if doubled:
        raise SsbError(f"study: {doubled[0]} names two cells; expected losses with different names after the `:`")
    for cell in grid[: len(grid) // len(study.seeds)]:  # seeds differ in nothing else
        try:
            pipeline.check_settings(cell.config)
        except SsbError as error:
            raise SsbError(f"study, {cell.name}: {error}") from None
    return grid


def _cell(config: Config, *, method: str, loss: str | None, questions: int, seed: int) -> Cell:
    values = config.model_dump(mode="json", exclude={"study"})
    values["questions"]["limit"] = questions
    values["teaching"]["max_pairs"] = None  # a method may use all the questions it is given
    values |= {"seed": seed, "method": method}
    if loss is not None:
        values["distillation"]["loss"] = loss
    for key, value in config.study.settings.get(method, {}).items():
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise SsbError(f"study.settings.{method}: unknown setting {key}; expected section.key: value")
        place[last] = value
    loss_part = "" if loss in (None, "ssb") else f"-{loss.rpartition(':')[2]}"
    name = f"{method}{loss_part}-{questions}-seed{seed}"
    cell = Cell(name, config_from_dict(values, source=f"study, {name}"))
    if cell.config.rounds > 1:
        raise SsbError(f"study, {name}: expected one round, got rounds {cell.config.rounds}")
    return cell


def run_study(config: Config, grid: Sequence[Cell], folder: Path, *, part: Part = Part()) -> list[Path]:
    """Runs every cell of the part that is not finished; returns the folders of the whole grid's finished cells.

    Args:
      grid: the `cells` of the settings.
    """
    hosts.refuse_many("a study")
    with owning(folder / "parts" / part.name if part.count > 1 else folder):
        if not (folder / "config.yaml").exists():
            write_atomically(folder / "config.yaml", dump_config(config))
        drop_partial_line(folder / part.log)
        failed = _run_cells(grid, folder, part)
        write_atomically(folder / "config.yaml", dump_config(config))  # one that its cells refuse is not theirs
    if failed:
        raise SsbError(f"{len(failed)} of {len(grid)} cells failed, their errors are above: {', '.join(failed)}")
    finished = _finished(folder)
    there = [folder / "cells" / cell.name for cell in grid if finished.get(cell.name) == _identity(cell)]
    if len(there) < len(grid):
        note(f"study: {len(there)} of {len(grid)} cells are finished; the others are other parts'")
    return there


def _run_cells(grid: Sequence[Cell], folder: Path, part: Part) -> list[str]:
    """Runs the part's cells that are not finished; returns those that failed, which hold up no other."""
    finished, failed = _finished(folder), []
    for number, cell in enumerate(grid):
        if number % part.count != part.number - 1 or finished.get(cell.name) == _identity(cell):
            continue
        note(f"study: {cell.name} ({number + 1} of {len(grid)})")
        started = time.monotonic()
        try:
            _run_cell(cell, folder)
        except SsbError as error:
            note(f"study: {cell.name} failed: {error}")
            failed.append(cell.name)
            continue
        row = {"cell": cell.name, "seconds": round(time.monotonic() - started, 2), "config": _identity(cell)}
        with open(folder / part.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return failed


def _identity(cell: Cell) -> str:
    return digest(cell.config.model_dump(mode="json"))


def _run_cell(cell: Cell, folder: Path) -> None:
    place = folder / "cells" / cell.name
    run = pipeline.Run(place, Workspace(cell.config))
    with owning(place), pipeline.keeping_config(run), sharing(folder / "shared"):
        pipeline.run_all(run)


def _finished(folder: Path) -> dict[str, str]:
    """Cell -> digest of the settings it was finished with, as all parts know it, of those whose results are there."""
    rows = [row for path in sorted(folder.glob("cells*.jsonl")) for row in _logged(path)]
    there = folder / "cells"
    return {row.cell: row.config for row in rows if (there / row.cell / "evaluation" / "results.json").is_file()}


def _logged(path: Path) -> list[_Finished]:
    """The rows of a log but for one that another part is writing just now."""
    ended = path.read_bytes().rpartition(b"\n")[0]
    try:
        return [_ROW.validate_json(line) for line in ended.splitlines()]
    except pydantic.ValidationError as error:
        raise SsbError(
            f"{path}: a line is not one of a finished cell ({error.errors()[0]['msg']}); delete it"
        ) from None
