"""What a person sees while a run goes on: progress bars and notes on stderr, tables on stdout."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_STDERR = Console(stderr=True, soft_wrap=True, highlight=False)


def be_quiet() -> None:
    """From now on notes, progress and tables are left to another process; errors are still printed."""
    _STDERR.quiet = True


def note(text: str) -> None:
    """One line on stderr."""
    _STDERR.print(text, markup=False)


class _Bar(Progress):
    """With what is shown on a line of its own, where the narrowest terminal has room for it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(f"  {task.fields['shown']}") for task in self.tasks if task.fields["shown"])


@contextlib.contextmanager
def progress(description: str, total: int | None, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; yields `advance(n=1, **fields)`, whose fields are shown under the bar.

    Where stderr is not a terminal the bar is printed once, when it ends.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with _Bar(*columns, console=_STDERR) as bar:
        task = bar.add_task(description, total=total, completed=done, shown="")

        def advance(n: int = 1, **fields: object) -> None:
            shown = "  ".join(f"{key} {_format(value)}" for key, value in fields.items())
            if shown:
                bar.update(task, advance=n, shown=shown)
            else:
                bar.update(task, advance=n)

        yield advance


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; the first column is text, the others are aligned to the right."""
    grid = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        grid.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(_format(cell) for cell in row))
    console = Console(highlight=False, markup=False, quiet=_STDERR.quiet)  # what is in brackets is text
    if not sys.stdout.isatty():  # a file has room for every column
        console.width = max(120, Measurement.get(console, console.options.update(max_width=10_000), grid).maximum)
    console.print(grid)


def mapping(values: Mapping[str, object]) -> str:
    """`{"a": 1, "b": 2}` -> `a 1, b 2`."""
    return ", ".join(f"{key} {_format(value)}" for key, value in values.items())


def _format(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
