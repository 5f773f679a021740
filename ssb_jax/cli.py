"""The command `ssb`: one subcommand a stage, `run` for all of them.

Results go to files and stdout, progress to stderr. Exit status: 0 success, 1 an error with its one-line reason, 2 bad
usage.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path

import click
from safetensors import SafetensorError

from ssb_jax import __version__
from ssb_jax.artifacts import owning
from ssb_jax.config import Config, SsbError, load_config
from ssb_jax.console import note, table


class _Cli(click.Group):
    """Turns errors that a user can act on into one line and exit status 1."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except SsbError as error:
            raise click.ClickException(str(error)) from None
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            trouble = _disk_trouble(error)
            if trouble is None:
                raise
            raise click.ClickException(
                f"{trouble}; what was written so far is kept: make room and run the same command again"
            ) from None


def _disk_trouble(error: Exception) -> str | None:
    """What to say of a disk that is full or not writable; None for any other error.

    Libraries report it in types of their own (safetensors, tensorstore), so their text is looked at too.
    """
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT, EROFS, EACCES, EPERM):
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    text = str(error)
    return next((os.strerror(code) for code in (ENOSPC, EDQUOT, EROFS) if os.strerror(code) in text), None)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ssb")
def main() -> None:
    """Semantic Soft Bootstrapping: a language model learns from its own hinted solutions.

    CONFIG is a YAML file (see configs/); any setting can be given as --section.key value.
    """


def _stage(function):
    """Arguments of a command that works in a run folder."""
    function = click.argument("overrides", nargs=-1, type=click.UNPROCESSED)(function)
    function = click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder.")(function)
    function = click.argument("config", type=click.Path(path_type=Path))(function)
    settings = {"ignore_unknown_options": True}
    return main.command(context_settings=settings)(function)


@contextlib.contextmanager
def _opened(config: Path, out: Path, overrides: tuple[str, ...]) -> Iterator:
    """Loads the settings, takes the run folder, and imports the rest only then: a typing error costs no second."""
    try:
        settings = load_config(config, overrides)
    except SsbError as error:
        raise click.UsageError(str(error)) from None
    with owning(out):
        _use_compilation_cache(settings)
        from ssb_jax import pipeline
        from ssb_jax.workspace import Workspace

        run = pipeline.Run(out, Workspace(settings))
        pipeline.save_config(run, replace=False)
        yield pipeline, run


def _use_compilation_cache(config: Config) -> None:
    import jax

    if config.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.compilation_cache).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@_stage
def run(config: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """All stages; those that are complete are skipped."""
    with _opened(config, out, overrides) as (pipeline, opened):
        pipeline.make_pairs(opened)
        pipeline.make_targets(opened)
        pipeline.distil(opened)
        results = pipeline.evaluate(opened)
        pipeline.save_config(opened, replace=True)  # not before every stage has accepted them
        _print_funnel(pipeline.funnel(opened))
        _print_results(results)


@_stage
def rollout(config: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Rollouts, their verification and the hints, until as many questions are mixed as pairs are wanted."""
    with _opened(config, out, overrides) as (pipeline, opened):
        waiting = pipeline.roll_out(opened)
        note(f"{waiting} questions wait for the teacher")
        _print_funnel(pipeline.funnel(opened))


@_stage
def teach(config: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Hinted solutions of every mixed question so far; verified ones become training pairs."""
    with _opened(config, out, overrides) as (pipeline, opened):
        complete = pipeline.teach(opened)
        _print_funnel(pipeline.funnel(opened))
        if not complete:
            note("fewer pairs than teaching.max_pairs and questions left: run `ssb rollout` and `ssb teach` again")


@_stage
def targets(config: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """The teacher's distributions on the pairs' replies."""
    with _opened(config, out, overrides) as (pipeline, opened):
        pipeline.make_targets(opened)


@_stage
def distill(config: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Train the LoRA student."""
    with _opened(config, out, overrides) as (pipeline, opened):
        pipeline.distil(opened)


@_stage
def eval(config: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Evaluate the base and, when there is one, the adapter."""
    with _opened(config, out, overrides) as (pipeline, opened):
        if not opened.config.evaluation.sets:
            raise SsbError("expected at least one set in evaluation.sets, found none")
        _print_results(pipeline.evaluate(opened))


def _print_funnel(counts: dict[str, int]) -> None:
    table("From questions to pairs", ("step", "questions"), list(counts.items()))


def _print_results(results: dict[str, dict]) -> None:
    for name, result in results.items():
        header = ("model", *next(iter(result["metrics"].values())), "mean tokens")
        rows = [
            (model, *(_percent(metrics[m]) for m in header[1:-1]), f"{result['mean_tokens'][model]:.0f}")
            for model, metrics in result["metrics"].items()
        ]
        for model, differences in result["differences"].items():
            rows.append((f"{model} - base", *(_percent(differences[m], signed=True) for m in header[1:-1]), ""))
        confidence = f"{100 * result['confidence']:.0f} % intervals"
        table(f"{name}: {result['questions']} questions, {result['num_samples']} sample(s), {confidence}", header, rows)


def _percent(interval: dict, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if interval["low"] is None:
        return f"{100 * interval['value']:{sign}.1f}"
    return (
        f"{100 * interval['value']:{sign}.1f} [{100 * interval['low']:{sign}.1f}, {100 * interval['high']:{sign}.1f}]"
    )


@main.command()
@click.argument("source", metavar="IN.jsonl", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where the graded rows go.")
@click.option("--explain", nargs=2, metavar="RESPONSE GOLD", help="Grade one response and say why.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, 60, min_open=True),
    default=1.5,
    show_default=True,
    help="Seconds a response.",
)
def verify(source: Path | None, out: Path | None, explain: tuple[str, str] | None, time_limit: float) -> None:
    """Grade rows with `gold` and `response`; adds `correct`, `extracted` and `reason`."""
    from ssb_jax import answers

    if explain is not None:
        click.echo(answers.explain(*explain))
        return
    if source is None or out is None:
        raise click.UsageError("expected IN.jsonl and --out OUT.jsonl, or --explain RESPONSE GOLD")
    if out.resolve() == source.resolve():
        raise click.UsageError(f"--out {out} is the input itself; choose another file")
    click.echo(json.dumps(answers.verify_file(source, out, time_limit=time_limit)))


@main.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--peft", type=click.Path(path_type=Path), help="Folder for the adapter in PEFT's format.")
@click.option("--merged", type=click.Path(path_type=Path), help="Folder for the base with the adapter merged in.")
def export(folder: Path, peft: Path | None, merged: Path | None) -> None:
    """Write a finished run's adapter for peft, or merged for transformers and vLLM."""
    if peft is None and merged is None:
        raise click.UsageError("expected --peft OUT, --merged OUT or both")
    from ssb_jax.export import export as write

    write(folder, peft=peft, merged=merged)


@main.command("pretrain-tiny")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the checkpoint.")
@click.option("--steps", type=int, help="Optimizer steps; the shipped model's by default.")
@click.option("--seed", default=0, show_default=True)
def pretrain_tiny(out: Path, steps: int | None, seed: int) -> None:
    """Pretrain the small model that ships in the package, from nothing."""
    from ssb_jax.tiny.pretrain import pretrain_tiny as pretrain

    pretrain(out, seed=seed, **({} if steps is None else {"steps": steps}))


if __name__ == "__main__":
    sys.exit(main())
