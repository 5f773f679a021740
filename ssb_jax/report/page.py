"""Run folders -> one HTML file, through page.html, page.css and page.js."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ssb_jax import __version__
from ssb_jax.artifacts import read_manifest, write_atomically
from ssb_jax.compare import compare, read_results
from ssb_jax.compare.output import percent, point_tables, reach_tables, set_figures
from ssb_jax.config import SsbError
from ssb_jax.console import note
from ssb_jax.records import DropReason
from ssb_jax.report import charts
from ssb_jax.report.gather import RunView, read_run, run_folders
from ssb_jax.stats import Interval

_HERE = files("ssb_jax.report")
_REASONS = {
    DropReason.NO_CORRECT: "no rollout is right",
    DropReason.NO_INCORRECT: "no rollout is wrong",
    DropReason.NEITHER: "no rollout has a graded answer",
    DropReason.PROMPT_TOO_LONG: "the hinted prompt does not fit the model's context",
    DropReason.TEACHER_NOT_CORRECT: "the hinted solution is not right",
    DropReason.TEACHER_TRUNCATED: "the hinted solution is right, but cut off",
}


def write_report(folders: Sequence[Path], out: Path, *, questions: int = 120, replies: int = 24) -> None:
    """Writes the report of one or several runs, finished or not; a study stands for its cells.

    Args:
      questions: how many training questions, and how many of each evaluation set, the reader gets of each run.
      replies: of how many pairs of each run the reply's tokens are shaded.

    Raises:
      SsbError: a folder is no run folder, or a file in it is damaged.
    """
    given, folders = folders, run_folders(folders)
    runs = [
        read_run(folder, name=name, questions=questions) for folder, name in zip(folders, _names(folders), strict=True)
    ]
    reader = [{"name": run.name, "items": list(run.items)} for run in runs]
    notices = {run.name: list(run.missing) for run in runs}
    for run, entry in zip(runs, reader, strict=True):
        tokens, why_not = _tokens(run, replies)
        if why_not:
            notices[run.name].append(why_not)
        for item in entry["items"]:
            if item["set"] == "training" and item["id"] in tokens:
                item["tokens"] = tokens[item["id"]]
    write_atomically(out, _render(runs, reader, notices, _comparison(given, runs)))
    note(f"{out}: {len(runs)} run(s), {out.stat().st_size / 1e6:.1f} MB")


def _names(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder, its own where that is enough to tell them apart."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def _tokens(run: RunView, limit: int) -> tuple[dict[str, list], str | None]:
    """The shaded tokens, and why there are none."""
    needed = [run.folder / "pairs", run.folder / "targets", run.folder / "distillation"]
    if limit == 0 or any(read_manifest(stage) is None for stage in needed):
        return {}, None  # what is missing is said already, and other methods have no teacher
    from ssb_jax.report.tokens import shaded_tokens

    try:
        return shaded_tokens(run.folder, run.config, limit=limit), None
    except SsbError as error:
        return {}, f"no reply is shaded by KL: {error}"


def _render(
    runs: Sequence[RunView],
    reader: list[dict[str, Any]],
    notices: dict[str, list[str]],
    comparison: dict[str, Any] | None,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssb_jax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (_HERE.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    page = environment.get_template("page.html").render(
        version=__version__,
        runs=runs,
        few=charts.FEW,
        title=", ".join(run.name for run in runs) if len(runs) <= charts.FEW else f"{len(runs)} runs",
        notices={name: found for name, found in notices.items() if found},
        funnels=[_funnel(run) for run in runs],
        accuracy=charts.accuracy(runs),
        accuracy_rows=_accuracy_rows(runs),
        curves=charts.training_curves(runs),
        comparison=comparison,
        reader=_embedded(reader),
        style=Markup(style),
        script=Markup(script),
        style_digest=_csp_digest(style),
        script_digest=_csp_digest(script),
    )
    return page + "\n"


def _embedded(value: Any) -> Markup:
    """JSON that can stand in a script element whatever its strings hold: no `<`, `>` or `&` is left in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _csp_digest(text: str) -> str:
    """What a content security policy knows an inline script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _funnel(run: RunView) -> dict[str, Any]:
    """Steps with their share of the questions, and drop reasons with two examples each."""
    steps = {name: count for name, count in run.funnel.items() if not name.startswith("dropped")}
    if run.config.method in ("grpo", "rft", "on-policy"):  # which take fewer steps
        steps = {name: count for name, count in steps.items() if count}
    total = max(steps.get("questions", 0), 1)
    fates = Counter(item["fate"] for item in run.items)
    dropped = [
        {
            "words": _REASONS[DropReason(name.removeprefix("dropped: "))],
            "count": count,
            "examples": [item for item in run.items if item["fate"] == name][:2] if fates[name] else [],
        }
        for name, count in run.funnel.items()
        if name.startswith("dropped")
    ]
    return {
        "steps": [(name, count, round(100 * count / total, 1)) for name, count in steps.items()],
        "dropped": dropped,
    }


def _accuracy_rows(runs: Sequence[RunView]) -> dict[str, dict[str, Any]]:
    """Set -> a table of every metric of every model, and of the differences to the base."""
    tables: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, found in run.sets.items():
            metrics = list(next(iter(found["metrics"].values())))
            empty = {"header": metrics, "rows": [], "questions": found["questions"], "behind": []}
            table = tables.setdefault(name, empty)
            label = f" ({run.name})" if len(runs) > 1 else ""
            table["behind"] += [sentence + label for sentence in _behind(found)]
            for kind, values in (("", found["metrics"]), (" - base", found["differences"])):
                for model, intervals in values.items():
                    cells = [
                        percent(Interval(**intervals[m]), signed=bool(kind)) if m in intervals else ""
                        for m in table["header"]
                    ]
                    table["rows"].append((f"{model}{kind}{label}", cells))
    return tables


def _behind(found: dict[str, Any]) -> list[str]:
    """What lies behind the accuracies, as far as the results say it: paired test, format, strict grading, overlap."""
    sentences = [
        f"{model} is right more often on {t['better']} questions, less often on {t['worse']}: p = {t['p_value']:.2g} "
        "(exact sign test)"
        for model, t in found.get("paired", {}).items()
    ]
    for model, t in found.get("format", {}).items():
        lost = f"{t['never_boxed']} never boxed an answer, {t['truncated']} were cut off"
        strict = found["strict"][model]["changed"]
        sentences.append(
            f"{model}: {100 * t['boxed']:.1f} % of the replies have a boxed answer ({lost}); equality of strings would "
            f"change {strict} verdicts"
        )
    shared = found.get("shared_with_training")
    return [*sentences, *([f"{len(shared)} of these questions are training questions too"] if shared else [])]


def _comparison(given: Sequence[Path], runs: Sequence[RunView]) -> dict[str, Any] | None:
    """`ssb compare` of what is evaluated, where that is several runs."""
    evaluated = [run.folder for run in runs if run.sets]
    if len(evaluated) < 2:
        return None
    sources = [folder for folder in given if any(folder == run or folder in run.parents for run in evaluated)]
    try:
        comparison = compare(read_results(sources))
    except SsbError as error:
        return {"refused": str(error)}
    figures = {
        name: {axis: charts.data_uri(svg) for axis, svg in panels.items()}
        for name, panels in set_figures(comparison).items()
    }
    tables = point_tables(comparison) + reach_tables(comparison)
    return {"refused": None, "tables": tables, "figures": figures, "warnings": comparison.warnings}
