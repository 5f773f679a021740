"""A model card for an exported model: what it is, results, data, settings, and the code that made it."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from omegaconf import OmegaConf

from ssb_jax.artifacts import Manifest, read_manifest
from ssb_jax.config import Config, load_config
from ssb_jax.scores import format_failures
from ssb_jax.summaries import read_summaries

_METHODS = {
    "ssb": "Semantic Soft Bootstrapping (arXiv 2512.05105)",
    "ssb-torch": "Semantic Soft Bootstrapping (arXiv 2512.05105), by the published trainer in PyTorch",
    "sft": "cross-entropy on its own verified solutions",
    "rft": "rejection sampling: cross-entropy on its own right answers",
    "grpo": "GRPO on its own graded answers",
    "on-policy": "on-policy self-distillation: its own answers, scored by itself with hints",
}
_SECTIONS = {
    "grpo": ("prompts", "grpo", "lora"),
    "on-policy": ("prompts", "rollouts", "on_policy", "lora", "distillation"),
    "": ("prompts", "rollouts", "teaching", "targets", "lora", "distillation"),
}
_TEMPLATE = """\
---
base_model: {{ origin if merged else base }}
library_name: {{ "transformers" if merged else "peft" }}
pipeline_tag: text-generation
tags: [{{ config.method }}, self-distillation, lora]
---

# {{ origin.rstrip("/").split("/")[-1] }}, {{ config.method }}{{ ", round " ~ round if round > 1 }}\
{{ ", merged" if merged }}

{{ "The base model with its LoRA adapter merged in" if merged else "A LoRA adapter" }}, trained from `{{ base }}` \
by {{ method }}, with no labels beyond final answers.
{% if round > 1 %}
That base, `base` in the results too, is the student of round {{ round - 1 }}; the first one's base is `{{ origin }}`.
{% endif %}
{% if config.model.quantization != "none" %}
In training and evaluation the base's layers were in {{ config.model.quantization }}\
{{ "; here the adapter is merged into the whole base" if merged }}.
{% endif %}

## Results

{% for name, found in results.items() %}
{{ name }}: {{ found.questions }} questions, {{ found.num_samples }} answer(s) each, \
{{ "%.0f" | format(100 * found.confidence) }} % intervals, bootstrap over questions.
{% if found.shared_with_training %}

**{{ found.shared_with_training | length }} of these questions are training questions too.**
{% endif %}
{% for sentence in found.format_failures %}

**{{ sentence }}.**
{% endfor %}

| model | {{ found.header | join(" | ") }} |
| --- |{{ " --- |" * found.header | length }}
{% for label, cells in found.rows %}
| {{ label }} | {{ cells | join(" | ") }} |
{% endfor %}

{% else %}
Not evaluated.

{% endfor %}
## Data

Questions: `{{ config.questions.path }}`\
{{ ", " + config.questions.name if config.questions.name }}, split {{ config.questions.split }}\
{{ ", revision " + config.questions.revision if config.questions.revision }}. {{ counts }}

## Settings

Seed {{ config.seed }}. Every setting is in the run's `config.yaml`; those of the training:

```yaml
{{ settings }}```

## Made by

ssb-jax {{ versions["ssb-jax"] }}{{ " at commit " + commit if commit }}, \
{% for name, version in versions.items() if name != "ssb-jax" %}{{ name }} {{ version }}{{ ", " if not loop.last }}\
{% endfor %}.
"""


def model_card(run_folder: Path, *, config: Config, trained: Manifest, base: str, merged: bool) -> str:
    """The card of a run's adapter, or of the base with the adapter merged in, as Markdown.

    A base that is the student of an earlier round is traced to the base of the first.

    Raises:
      SsbError: the run's results are damaged.
    """
    environment = jinja2.Environment(
        autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    sections = _SECTIONS.get(config.method, _SECTIONS[""])
    origin, number = _origin(base)
    return environment.from_string(_TEMPLATE).render(
        base=base,
        origin=origin,
        round=number,
        merged=merged,
        config=config,
        method=_METHODS[config.method],
        results={name: _table(found) for name, found in read_summaries(run_folder).items()},
        counts=_counts(run_folder, trained),
        settings=OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json", include=set(sections)))),
        versions=trained.versions,
        commit=_commit(),
    )


def _origin(base: str) -> tuple[str, int]:
    """What the first round's base is, where `base` is the student of a round (rounds.py), and whose round comes now."""
    number = 1
    while (config := Path(base).parent / "config.yaml").is_file() and Path(base).parent.parent.name == "rounds":
        base, number = load_config(config).model.path, number + 1
    return base, number


def _table(found: Mapping[str, Any]) -> dict[str, Any]:
    """A set's results with the rows of its table: every model, and the differences to the first."""
    reference = next(iter(found["metrics"]))
    header = list(found["metrics"][reference])
    rows = [(name, [_percent(values[m], "") for m in header]) for name, values in found["metrics"].items()]
    for name, values in found["differences"].items():
        rows.append((f"{name} - {reference}", [_percent(values[m], "+") for m in header]))
    shared = found.get("shared_with_training", [])
    failures = format_failures({"format": found.get("format", {})})
    return {**found, "header": header, "rows": rows, "shared_with_training": shared, "format_failures": failures}


def _percent(interval: Mapping[str, float | None], sign: str) -> str:
    value, low, high = (
        None if interval[k] is None else f"{100 * interval[k]:{sign}.1f}" for k in ("value", "low", "high")
    )
    return value if low is None else f"{value} [{low}, {high}]"


def _counts(run_folder: Path, trained: Manifest) -> str:
    pairs, steps = read_manifest(run_folder / "pairs"), trained.counts.get("steps")
    made = "" if pairs is None else f"{pairs.counts['pairs']} training pairs came of them"
    parts = [part for part in (made, f"{steps} steps" if steps else "") if part]
    return f"{', '.join(parts)}." if parts else ""


def _commit() -> str | None:
    """The commit of the code, where it runs from a clone; with `+` where files differ from it."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or no git
    return described.stdout.strip()
