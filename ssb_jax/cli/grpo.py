"""`ssb grpo`."""

from pathlib import Path

from ssb_jax.cli.group import in_run_folder, opened
from ssb_jax.cli.stages import print_results
from ssb_jax.console import mapping, note


@in_run_folder
def grpo(config: Path, out: Path | str, overrides: tuple[str, ...]) -> None:
    """Train the student by GRPO on its own graded answers, then evaluate it."""
    with opened(config, out, (*overrides, "--method", "grpo")) as (pipeline, current):
        results = pipeline.run_all(current)
        note(mapping(pipeline.survey(current)))
        print_results(results)
