"""A comparison as tables for people, CSV and JSON for programs, and figures."""

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ssb_jax.artifacts import write_atomically
from ssb_jax.compare.files import AXES
from ssb_jax.compare.points import Comparison, Point, Reach
from ssb_jax.figures import as_svg, colour_of, figure, log_axis, save_figure
from ssb_jax.stats import Interval

AXIS_NAMES = {
    "questions": "questions",
    "generated_tokens": "generated tokens",
    "flops": "FLOPs",
    "device_seconds": "device seconds",
}
_SHORT_NAMES = AXIS_NAMES | {"generated_tokens": "tokens", "device_seconds": "device s"}
_MARKERS = "os^Dv<>"
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def point_tables(comparison: Comparison) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, header, rows) of each set: every method at every number of questions."""
    tables = []
    reference = comparison.reference
    for name, points in _by_set(comparison.points).items():
        header = ["method", "seeds", "accuracy %", *_SHORT_NAMES.values()]
        compared = any(point.difference is not None for point in points)
        if compared:
            header.append(f"minus {reference}")
        rows = []
        for point in points:
            costs = ["" if point.is_base else amount(point.cost[axis], whole=axis == "questions") for axis in AXES]
            row = [point.method, str(len(point.seeds)), percent(point.accuracy), *costs]
            rows.append((*row, *([difference(point)] if compared else [])))
        share = f"{100 * comparison.confidence:.0f} %"
        title = f"{name}: accuracy with {share} intervals over questions, and over seeds where there are several"
        tables.append((title, tuple(header), rows))
    return tables


def reach_tables(comparison: Comparison) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, header, rows) of each set: what every method pays on each axis until it has the accuracy."""
    tables = []
    for name, reaches in _by_set(comparison.reaches).items():
        methods = list(dict.fromkeys(reach.method for reach in reaches))
        found = {(reach.method, reach.axis): reach for reach in reaches}
        rows = [(method, *(_reach_cell(found.get((method, axis))) for axis in AXES)) for method in methods]
        title = f"{name}: what reaching {100 * reaches[0].accuracy:.1f} % costs, and how many times the cheapest"
        tables.append((title, ("method", *_SHORT_NAMES.values()), rows))
    return tables


def percent(interval: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    value, low, high = (None if x is None else f"{100 * x:{sign}.1f}" for x in vars(interval).values())
    return value if low is None else f"{value} [{low}, {high}]"


def difference(point: Point) -> str:
    return "" if point.difference is None else percent(point.difference, signed=True)


def amount(value: float | None, *, whole: bool = False) -> str:
    """A cost in three digits with its decimal prefix; `whole` numbers in full, `?` where it is not known."""
    if value is None:
        return "?"
    if whole or value == 0:
        return f"{value:,.0f}"
    power = min(max(int(math.log10(value) // 3), 0), len(_PREFIXES) - 1)
    scaled = value / 1000**power
    if float(f"{scaled:.3g}") >= 1000 and power + 1 < len(_PREFIXES):
        scaled, power = scaled / 1000, power + 1
    return f"{scaled:.3g} {_PREFIXES[power]}".strip()


def _reach_cell(reach: Reach | None) -> str:
    if reach is None or (reach.reached and reach.cost is None):
        return "?"
    if reach.cost is None:
        return "never"
    text = ("≤ " if reach.at_most else "") + amount(reach.cost, whole=reach.axis == "questions")
    if reach.factor is None:
        return f"{text} (first)" if reach.is_first else text
    if reach.factor_is != "about":
        return f"{text} (x {'≤' if reach.factor_is == 'at most' else '≥'} {reach.factor.value:.2g})"
    return f"{text} (x {reach.factor.value:.2g} [{_bound(reach.factor.low)}, {_bound(reach.factor.high)}])"


def _bound(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.2g}"


def write_csv(comparison: Comparison, path: Path) -> None:
    """One row a point: its cost on every axis, its accuracy and the difference to the reference."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    intervals = [f"{name}{part}" for name in ("accuracy", "difference") for part in ("", "_low", "_high")]
    writer.writerow(["set", "method", "seeds", *AXES, *intervals])
    for point in comparison.points:
        numbers = [
            x for i in (point.accuracy, point.difference) for x in ([None] * 3 if i is None else vars(i).values())
        ]
        seeds = " ".join(map(str, point.seeds))
        writer.writerow([point.set, point.method, seeds, *(point.cost[axis] for axis in AXES), *numbers])
    write_atomically(path, buffer.getvalue())


def write_json(comparison: Comparison, path: Path) -> None:
    """Everything; an infinite bound is null."""
    write_atomically(path, json.dumps(_finite(asdict(comparison)), indent=1, ensure_ascii=False))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_figure(comparison: Comparison, path: Path) -> None:
    """All sets, one row of panels each, one panel for each axis that somebody knows."""
    with _drawn(comparison, list(_by_set(comparison.points)), _known_axes(comparison)) as drawn:
        save_figure(drawn, path)


def set_figures(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Set -> name of the axis -> its panel as SVG."""
    figures: dict[str, dict[str, str]] = {}
    for name in _by_set(comparison.points):
        for axis in _known_axes(comparison):
            with _drawn(comparison, [name], [axis]) as drawn:
                figures.setdefault(name, {})[AXIS_NAMES[axis]] = as_svg(drawn)
    return figures


def _known_axes(comparison: Comparison) -> list[str]:
    return [a for a in AXES if any(p.cost[a] for p in comparison.points)] or ["questions"]


@contextlib.contextmanager
def _drawn(comparison: Comparison, names: Sequence[str], axes: Sequence[str]) -> Iterator:
    """A figure with a row of panels for each set and a panel for each axis."""
    points = _by_set(comparison.points)
    with figure(columns=len(axes), rows=len(names), width=3.6, height=3.0) as (drawn, panels):
        for i, panel in enumerate(panels):
            row, column = divmod(i, len(axes))
            _draw_panel(panel, points[names[row]], axes[column], legend=i == 0)
            panel.set_title(names[row] if column == 0 else "", loc="left")
        yield drawn


def _draw_panel(panel, points: Sequence[Point], axis: str, *, legend: bool) -> None:
    methods = list(dict.fromkeys(p.method for p in points if not p.is_base))
    for point in points:
        if point.is_base:
            panel.axhline(100 * point.accuracy.value, color="#6b6b6b", linestyle=":", label=point.method)
    for i, method in enumerate(methods):
        known = sorted((p for p in points if p.method == method and p.cost[axis]), key=lambda p: p.cost[axis])
        if not known:
            continue
        values = [100 * p.accuracy.value for p in known]
        low = [v - 100 * p.accuracy.low for v, p in zip(values, known, strict=True)]
        high = [100 * p.accuracy.high - v for v, p in zip(values, known, strict=True)]
        panel.errorbar(
            [p.cost[axis] for p in known], values, yerr=(low, high), color=colour_of(i), marker=_MARKERS[i % 7],
            linestyle="--" if i % 2 else "-", markersize=5, capsize=2, label=method, markerfacecolor="none",
        )  # fmt: skip
    log_axis(panel, None if axis != "questions" else sorted({p.cost[axis] for p in points if p.cost[axis]}))
    panel.set_xlabel(AXIS_NAMES[axis])
    panel.set_ylabel("accuracy %")
    if legend:
        panel.legend(fontsize=8)


def _by_set(items: Sequence[Point] | Sequence[Reach]) -> dict[str, list]:
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(item.set, []).append(item)
    return groups
