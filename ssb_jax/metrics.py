"""Numbers of a training run by step: metrics.jsonl, TensorBoard, and Weights & Biases where asked for.

metrics.jsonl has one row a step, none lost or doubled: opening it for a run that continues after step n drops the
rows beyond n, which will be written again. Knows no model.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
from tensorboardX import SummaryWriter

from ssb_jax.artifacts import write_atomically
from ssb_jax.config import SsbError

METRICS = "metrics.jsonl"
_ROW = pydantic.TypeAdapter(dict[str, int | float])


class MetricsLog:
    """Takes the numbers of one step after the other. Made by `open_metrics`."""

    def __init__(self, file, sinks: list[Callable[[int, Mapping[str, float]], None]]):
        self._file, self._sinks = file, sinks

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the row of a step; a kill afterwards does not lose it."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        for sink in self._sinks:
            sink(step, values)

    def sync(self) -> None:
        """Waits until all rows are on disk, as they must be before a checkpoint says that their steps are done."""
        if self._file is not None:
            os.fsync(self._file.fileno())


@contextlib.contextmanager
def open_metrics(
    folder: Path,
    *,
    done: int = 0,
    tensorboard: bool = True,
    wandb_project: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Iterator[MetricsLog]:
    """Opens the log of a run of which `done` steps are done; rows of later steps are dropped.

    Raises:
      SsbError: Weights & Biases is asked for and not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / METRICS
    kept = [row for row in read_metrics(folder) if row["step"] <= done]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
    with contextlib.ExitStack() as stack:
        sinks = []
        if tensorboard:
            sinks.append(stack.enter_context(_tensorboard(folder / "tensorboard", done)))
        if wandb_project is not None:
            sinks.append(stack.enter_context(_wandb(folder, wandb_project, config)))
        yield MetricsLog(stack.enter_context(open(path, "a", encoding="utf-8")), sinks)


def no_metrics() -> MetricsLog:
    """A log that keeps nothing, for processes that leave it to another one."""
    return MetricsLog(None, [])


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl in order; a last line that a kill cut off is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    data, rows = path.read_bytes(), []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            rows.append(_ROW.validate_json(line))
            sound = rows[-1].get("step") == len(rows)
        except pydantic.ValidationError:
            sound = False
        if not sound:
            raise SsbError(
                f"{path}, line {number}: expected the numbers of step {number}; delete {folder} to train again"
            )
    return rows


@contextlib.contextmanager
def _tensorboard(folder: Path, done: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None, filename_suffix=f".{done}")

    def sink(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"train/{name}", value, step)

    try:
        yield sink
    finally:
        writer.close()


@contextlib.contextmanager
def _wandb(
    folder: Path, project: str, config: Mapping[str, Any] | None
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    try:
        import wandb  # an extra: only those who ask for it need it
    except ImportError:
        raise SsbError(
            f"distillation.wandb_project is {project}, but wandb is not installed; "
            "pip install 'ssb-jax[wandb]', or leave it null"
        ) from None
    identity = folder / "wandb_id"
    if not identity.exists():
        write_atomically(identity, wandb.util.generate_id())
    run = wandb.init(
        project=project, id=identity.read_text(), resume="allow", dir=str(folder), config=dict(config or {})
    )

    def sink(step: int, values: Mapping[str, float]) -> None:
        run.log(dict(values), step=step)

    try:
        yield sink
    finally:
        run.finish()
