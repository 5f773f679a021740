"""`ssb run`, and one command for each stage."""

from pathlib import Path

import click

from ssb_jax.cli.group import LocalPath, in_run_folder, opened
from ssb_jax.config import SsbError
from ssb_jax.console import note, table


@in_run_folder
def run(config: Path, out: Path | str, overrides: tuple[str, ...]) -> None:
    """All stages; those that are complete are skipped."""
    run_whole(config, out, overrides)


def run_whole(config: Path, out: Path | str, overrides: tuple[str, ...]) -> None:
    """From questions to results, in as many rounds as the settings ask for."""
    with opened(config, out, overrides, rounds=True) as (pipeline, current):
        try:
            pipeline.check_settings(current.config)
        except SsbError as error:
            raise click.UsageError(str(error)) from None
        if current.config.rounds > 1:
            from ssb_jax.rounds import run_rounds

            if not isinstance(out, Path):
                raise SsbError(f"--out {out}: expected a folder on a disk; a run of several rounds has no mirror")
            for number, results in enumerate(run_rounds(current.config, current.folder), 1):
                note(f"round {number}")
                print_results(results)
            return
        results = pipeline.run_all(current)
        _print_funnel(pipeline.survey(current))
        print_results(results)


@in_run_folder
def rollout(config: Path, out: Path | str, overrides: tuple[str, ...]) -> None:
    """Rollouts, their verification and the hints, until as many questions are mixed as pairs are wanted."""
    with opened(config, out, overrides) as (pipeline, current):
        waiting = pipeline.roll_out(current)
        note(f"{waiting} questions wait for the teacher")
        _print_funnel(pipeline.funnel(current))


@in_run_folder
def teach(config: Path, out: Path | str, overrides: tuple[str, ...]) -> None:
    """Hinted solutions of every mixed question so far; verified ones become training pairs."""
    with opened(config, out, overrides) as (pipeline, current):
        pipeline.confirm(current)
        complete = pipeline.teach(current)
        _print_funnel(pipeline.funnel(current))
        if not complete:
            note("fewer pairs than teaching.max_pairs and questions left: run `ssb rollout` and `ssb teach` again")


@in_run_folder
@click.option("--fidelity", is_flag=True, help="Measure what each encoding costs and loses instead of storing targets.")
def targets(config: Path, out: Path | str, overrides: tuple[str, ...], fidelity: bool) -> None:
    """The teacher's distributions on the pairs' replies."""
    with opened(config, out, overrides) as (pipeline, current):
        pipeline.confirm(current)
        if fidelity:
            from ssb_jax.lab.fidelity import measure_fidelity

            measure_fidelity(current)
        else:
            pipeline.make_targets(current)


@in_run_folder
def distill(config: Path, out: Path | str, overrides: tuple[str, ...]) -> None:
    """Train the LoRA student."""
    with opened(config, out, overrides) as (pipeline, current):
        pipeline.confirm(current)
        pipeline.distil(current)


@in_run_folder
@click.option("--adapter", type=LocalPath(), help="A PEFT adapter trained elsewhere, evaluated too.")
@click.option("--answers", type=LocalPath(), help="JSONL of answers from elsewhere; samples nothing.")
def eval(
    config: Path, out: Path | str, overrides: tuple[str, ...], adapter: Path | None = None, answers: Path | None = None
) -> None:
    """Evaluate the base and, when there is one, the adapter."""
    with opened(config, out, overrides) as (pipeline, current):
        if not current.config.evaluation.sets:
            raise SsbError("expected at least one set in evaluation.sets, found none")
        pipeline.confirm(current)
        print_results(pipeline.evaluate(current, adapter=adapter, answers=answers))


def _print_funnel(counts: dict[str, int]) -> None:
    table("From questions to pairs", ("step", "questions"), list(counts.items()))


def print_results(results: dict[str, dict]) -> None:
    for name, result in results.items():
        header = ("model", *next(iter(result["metrics"].values())), "mean tokens")
        rows = [
            (model, *(_percent(metrics[m]) for m in header[1:-1]), _tokens(result["mean_tokens"][model]))
            for model, metrics in result["metrics"].items()
        ]
        for model, differences in result["differences"].items():
            p_value = f"p {result['paired'][model]['p_value']:.2g}"
            reference = next(iter(result["metrics"]))
            rows.append(
                (f"{model} - {reference}", *(_percent(differences[m], signed=True) for m in header[1:-1]), p_value)
            )
        confidence = f"{100 * result['confidence']:.0f} % intervals"
        table(f"{name}: {result['questions']} questions, {result['num_samples']} sample(s), {confidence}", header, rows)


def _tokens(mean: float | None) -> str:
    return "" if mean is None else f"{mean:.0f}"


def _percent(interval: dict, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if interval["low"] is None:
        return f"{100 * interval['value']:{sign}.1f}"
    return (
        f"{100 * interval['value']:{sign}.1f} [{100 * interval['low']:{sign}.1f}, {100 * interval['high']:{sign}.1f}]"
    )
