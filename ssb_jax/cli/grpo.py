"""`ssb grpo`."""

from pathlib import Path

from ssb_jax.cli.group import in_run_folder
from ssb_jax.cli.stages import run_whole


@in_run_folder
def grpo(config: Path, out: Path | str, overrides: tuple[str, ...]) -> None:
    """Train the student by GRPO on its own graded answers, then evaluate it."""
    run_whole(config, out, (*overrides, "--method", "grpo"))
