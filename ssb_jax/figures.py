"""Drawing with matplotlib: one look for every figure, in colours that the colour-blind tell apart. Knows no run."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ssb_jax.config import SsbError

# Okabe and Ito's colours that keep a contrast of 3 : 1 to white.
COLOURS = ("#0072b2", "#c14f00", "#007a5e", "#a8508a", "#6b6b6b", "#5a3fb5", "#8a6d00")
_STYLE = {
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "svg.hashsalt": "ssb",  # the same figure is the same bytes
    "text.parse_math": False,  # names may hold dollar signs
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": "#2b3138",
    "xtick.color": "#4a525b",
    "ytick.color": "#4a525b",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
FORMATS = (".svg", ".png", ".pdf")


@contextlib.contextmanager
def figure(columns: int = 1, rows: int = 1, *, width: float = 4.6, height: float = 3.0) -> Iterator[tuple]:
    """A figure and its axes as a flat list; `width` and `height` in inches are of one of them."""
    import matplotlib as mpl  # half a second that only drawing needs
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    with mpl.rc_context(_STYLE):
        drawn = Figure(figsize=(width * columns, height * rows))
        yield drawn, list(drawn.subplots(rows, columns, squeeze=False).flat)


def as_svg(drawn) -> str:
    """The figure as the text of an SVG file."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save_figure(drawn, path: Path) -> None:
    """Writes the figure in the format that the file's name ends with.

    Raises:
      SsbError: the format is none of `FORMATS`.
    """
    if path.suffix not in FORMATS or path.is_dir():
        raise SsbError(f"{path}: expected a figure's name to end with {', '.join(FORMATS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=150)


def draw_lines(
    axis,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    label_x: str,
    label_y: str,
    smooth: int = 1,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Draws curves by name; with `smooth` above 1 the running mean of so many points, over the points themselves.

    Args:
      labels: name -> what the legend calls it; curves of one label have one colour.
    """
    import numpy as np

    labels = labels or {name: name for name in lines}
    shown = list(dict.fromkeys(labels.values()))
    for name, (x, y) in lines.items():
        colour = colour_of(shown.index(labels[name]))
        window = min(smooth, len(y))
        if window > 1:
            axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            x, y = x[window - 1 :], np.convolve(y, np.ones(window) / window, mode="valid")
        first = labels[name] not in axis.get_legend_handles_labels()[1]
        axis.plot(x, y, color=colour, linewidth=1.8, label=labels[name] if first else None)
    axis.set_xlabel(label_x)
    axis.set_ylabel(label_y)


def log_axis(axis, ticks: Sequence[float] | None = None) -> None:
    """Makes the x axis logarithmic, a decade at least, with these ticks, or 1, 2 and 5 of each decade."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    if high / low < 10:
        middle = (low * high) ** 0.5
        axis.set_xlim(middle / 10**0.5, middle * 10**0.5)
    axis.xaxis.set_minor_locator(NullLocator())
    if ticks is None:
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    else:
        axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])


def colour_of(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
