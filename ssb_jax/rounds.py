"""Several rounds: the student of one is the base of the next (setting `rounds`).

    DIR/rounds/01/            an ordinary run folder
    DIR/rounds/01/merged/     its base with its adapter merged in: the model of rounds/02

Each round asks, hints, teaches and evaluates anew with the model it starts from, so its `base` is the round before.
"""

from pathlib import Path

from ssb_jax import hosts, pipeline
from ssb_jax.artifacts import owning
from ssb_jax.config import Config, config_from_dict
from ssb_jax.console import note
from ssb_jax.export import export
from ssb_jax.workspace import Workspace


def run_rounds(config: Config, folder: Path) -> list[dict[str, dict]]:
    """Runs `config.rounds` rounds, continuing where a cut-off call stopped; returns each one's evaluation."""
    hosts.refuse_many("a run of several rounds")
    results, model = [], config.model.model_dump()
    for number in range(1, config.rounds + 1):
        note(f"round {number} of {config.rounds}")
        place = folder / "rounds" / f"{number:02d}"
        values = config.model_dump(mode="json") | {"rounds": 1, "model": model}
        results.append(_run_round(config_from_dict(values, source=f"round {number}"), place))
        model = config.model.model_dump() | {"path": str(_merged(place)), "revision": None}
    return results


def _run_round(config: Config, place: Path) -> dict[str, dict]:
    run = pipeline.Run(place, Workspace(config))
    with owning(place), pipeline.keeping_config(run):
        return pipeline.run_all(run)


def _merged(place: Path) -> Path:
    """The round's student as a checkpoint of its own."""
    merged = place / "merged"
    if not merged.exists():
        export(place, merged=merged)
    return merged
