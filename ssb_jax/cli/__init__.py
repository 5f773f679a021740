"""The command `ssb`: one subcommand a stage, `run` for all of them.

Results go to files and stdout, progress to stderr. Exit status: 0 success, 1 an error with its one-line reason, 2 bad
usage.
"""

from ssb_jax.cli import (
    answers,
    baselines,
    bench,
    compare,
    doctor,
    exchange,
    grpo,
    losses,
    models,
    preflight,
    report,
    stages,
    study,
)
from ssb_jax.cli.group import main

__all__ = [
    "answers",
    "baselines",
    "bench",
    "compare",
    "doctor",
    "exchange",
    "grpo",
    "losses",
    "main",
    "models",
    "preflight",
    "report",
    "stages",
    "study",
]
