"""The report's figures as SVG in data URIs: isolated from the page, and nothing to fetch."""

import base64
from collections.abc import Mapping, Sequence

from ssb_jax.compare.files import BASE
from ssb_jax.figures import COLOURS, as_svg, colour_of, draw_lines, figure
from ssb_jax.pipeline.identity import method_label
from ssb_jax.report.gather import RunView

# metrics.jsonl's name -> what the figure says; the first three are the paper's curves.
CURVES = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "reply_length": "reply length, tokens",
    "kl": "KL, nats a token",
    "reward": "mean reward",
    "agreement": "same likeliest token, share",
    "student_entropy": "student's entropy, nats",
}


FEW = len(COLOURS)  # runs that are named and coloured one by one


def data_uri(svg: str) -> str:
    """An SVG file as the address of an image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def training_curves(runs: Sequence[RunView]) -> dict[str, str]:
    """Title -> figure of every curve that a run has, all runs in one, with a running mean of 10 steps.

    Of many runs those of a method have one colour.
    """
    labels = {run.name: run.name if len(runs) <= FEW else method_label(run.config) for run in runs}
    curves = {}
    for key, title in CURVES.items():
        lines = {}
        for run in runs:
            rows = [row for row in run.metrics if key in row]
            if rows:
                lines[run.name] = ([row["step"] for row in rows], [row[key] for row in rows])
        if lines:
            with figure(width=4.4, height=2.7) as (drawn, [axis]):
                draw_lines(axis, lines, label_x="step", label_y="", smooth=10, labels=labels)
                axis.set_title(title, loc="left", fontsize=11)
                axis.set_ylim(bottom=0 if key != "agreement" else None)
                if len(runs) > 1:
                    axis.legend(fontsize=8)
                curves[title] = data_uri(as_svg(drawn))
    return curves


def accuracy(runs: Sequence[RunView]) -> dict[str, str]:
    """Set -> figure of pass@1 of every model of every run, with its interval."""
    names = dict.fromkeys(name for run in runs for name in run.sets)
    return {name: _accuracy(name, [run for run in runs if name in run.sets]) for name in names}


def _accuracy(name: str, runs: Sequence[RunView]) -> str:
    bars = [
        (f"{model} ({run.name})" if len(runs) > 1 else model, metrics["pass@1"], 4 if model == BASE else i)
        for i, run in enumerate(runs)
        for model, metrics in run.sets[name]["metrics"].items()
    ]
    with figure(width=4.4, height=0.75 + 0.42 * len(bars)) as (drawn, [axis]):
        for row, (_, interval, colour) in enumerate(reversed(bars)):
            _draw_interval(axis, row, interval, colour_of(colour))
        axis.set_yticks(range(len(bars)), [label for label, _, _ in reversed(bars)])
        axis.set_ylim(-0.6, len(bars) - 0.4)
        axis.set_xlabel("pass@1 in %, with its interval")
        axis.grid(visible=False, axis="y")
        return data_uri(as_svg(drawn))


def _draw_interval(axis, row: int, interval: Mapping[str, float | None], colour: str) -> None:
    value = 100 * interval["value"]
    if interval["low"] is not None:
        axis.plot([100 * interval["low"], 100 * interval["high"]], [row, row], color=colour, linewidth=5, alpha=0.35)
    axis.plot([value], [row], "o", color=colour, markersize=7)
    axis.annotate(f"{value:.1f}", (value, row), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
