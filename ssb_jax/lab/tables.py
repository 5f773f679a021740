"""What a replay says, as files: every token (tokens.csv), sums by loss, position and kind of token (summary.csv), and a
picture of them (losses.png)."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ssb_jax.artifacts import write_atomically
from ssb_jax.lab.replay import Replayed, Token

FIELDS = ("value", "gradient_norm", "cosine", "outside_top100")
KINDS = ("number", "symbol", "word", "hedge", "punctuation", "space", "special")
_HEDGES = {"wait", "hmm", "maybe", "perhaps", "actually", "alternatively", "however", "check"}


def kind_of(text: str, *, special: bool = False) -> str:
    """The kind of a token by its text: one of `KINDS`."""
    word = text.strip()
    if special:
        return "special"
    if not word:
        return "space"
    if re.search(r"\d", word):
        return "number"
    if word.lower() in _HEDGES:
        return "hedge"
    if re.fullmatch(r"[-+*/=<>^_\\{}()\[\]$%|×÷≤≥≠√π]+", word):
        return "symbol"
    return "word" if re.search(r"\w", word) else "punctuation"


def part_of(token: Token) -> str:
    """The tenth of its reply in which a token lies."""
    tenth = 10 * token.position // token.length
    return f"{10 * tenth}-{10 * tenth + 10} %"


def write_tables(
    replayed: Replayed, folder: Path, *, text_of: Callable[[int], str], special: frozenset[int]
) -> list[dict[str, object]]:
    """Writes both CSV files; returns the rows of the summary."""
    kinds = {
        token.token_id: kind_of(text_of(token.token_id), special=token.token_id in special) for token in replayed.tokens
    }
    names = list(replayed.gradients)
    header = [
        "question_id",
        "position",
        "length",
        "token_id",
        "text",
        "kind",
        "teacher_entropy",
        "student_entropy",
        "kl",
    ]
    rows = (
        [t.question_id, t.position, t.length, t.token_id, text_of(t.token_id), kinds[t.token_id]]
        + [t.teacher_entropy, t.student_entropy, t.kl]
        + [number for name in names for number in t.losses[name]]
        for t in replayed.tokens
    )
    _write(folder / "tokens.csv", header + [f"{name}:{field}" for name in names for field in FIELDS], rows)
    groups = {
        "all": lambda token: "all",
        "position": part_of,
        "kind": lambda token: kinds[token.token_id],
    }
    summary = [row for name in names for by, key in groups.items() for row in _sums(replayed, name, by, key)]
    _write(folder / "summary.csv", list(summary[0]), (row.values() for row in summary))
    return summary


def _sums(replayed: Replayed, name: str, by: str, key: Callable[[Token], str]) -> list[dict[str, object]]:
    """Of one loss, by one grouping of the tokens; the shares are of the loss's sum and of its gradients' norms."""
    members: dict[str, list[Token]] = {}
    for token in replayed.tokens:
        members.setdefault(key(token), []).append(token)
    table = {group: np.array([token.losses[name] for token in tokens]) for group, tokens in members.items()}
    total = sum(values[:, 0].sum() for values in table.values())
    size = sum(values[:, 1].sum() for values in table.values())
    order = (lambda group: KINDS.index(group)) if by == "kind" else (lambda group: int(re.match(r"\d*", group)[0] or 0))
    norm, cosine = replayed.gradients[name]
    return [
        {
            "loss": name,
            "by": by,
            "group": group,
            "tokens": len(values),
            "mean_value": values[:, 0].mean(),
            "share_of_value": values[:, 0].sum() / total if total else 0.0,
            "share_of_gradient": values[:, 1].sum() / max(size, 1e-30),
            "token_cosine": values[:, 2].mean(),
            "outside_top100": np.average(values[:, 3], weights=values[:, 1] + 1e-30),
            "adapter_gradient_norm": norm if by == "all" else "",
            "adapter_gradient_cosine": cosine if by == "all" else "",
        }
        for group, values in sorted(table.items(), key=lambda item: order(item[0]))
    ]


def _write(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{x:.7g}" if isinstance(x, float) else x for x in row] for row in rows)
    write_atomically(path, text.getvalue())


def draw(summary: Sequence[Mapping[str, object]], path: Path) -> None:
    """A picture of the summary: how far each loss is from the published one, and where its gradient comes from."""
    names = list(dict.fromkeys(row["loss"] for row in summary))
    figure = Figure(figsize=(13, 8), layout="constrained")
    ((cosines, outside), (positions, kinds)) = figure.subplots(2, 2)
    totals = {row["loss"]: row for row in summary if row["by"] == "all"}
    for axes, field, title in (
        (cosines, "adapter_gradient_cosine", "cosine of the adapter's gradient with the published loss's"),
        (outside, "outside_top100", "share of the gradient outside the teacher's top 100"),
    ):
        axes.barh(names, [totals[name][field] for name in names])
        axes.invert_yaxis()
        axes.set_title(title)
    for axes, by, title in (
        (positions, "position", "share of the gradient by position in the reply"),
        (kinds, "kind", "share of the gradient by kind of token"),
    ):
        for name in names:
            rows = [row for row in summary if row["loss"] == name and row["by"] == by]
            axes.plot([row["group"] for row in rows], [row["share_of_gradient"] for row in rows], "o-", label=name)
        axes.set_title(title)
        axes.tick_params(axis="x", rotation=30)
    positions.legend(fontsize="small")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_atomically(path, image.getvalue())
