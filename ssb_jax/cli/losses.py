"""`ssb losses`: a finished run's pairs and targets through several losses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ssb_jax.artifacts import owning
from ssb_jax.cli.group import LocalPath, main, use_compilation_cache
from ssb_jax.config import SsbError, load_config
from ssb_jax.console import table


@main.command()
@click.argument("folder", metavar="DIR", type=LocalPath(exists=True, file_okay=False))
@click.option("--losses", required=True, help="Names, or file.py:function, by commas; options as jsd(beta=0.1).")
@click.option("--out", type=LocalPath(), help="Folder for the tables and the picture [DIR/losses].")
@click.option("--student", type=click.Choice(["base", "adapter"]), default="base", show_default=True)
@click.option("--pairs", type=click.IntRange(1), default=64, show_default=True, help="How many pairs to replay.")
def losses(folder: Path, losses: str, out: Path | None, student: str, pairs: int) -> None:
    """Replay a run's pairs and targets through several losses, without new rollouts.

    Writes what each loss makes of each reply token (tokens.csv), sums by position and kind of token (summary.csv) and a
    picture (losses.png), all beside the published loss.
    """
    config = load_config(folder / "config.yaml")
    with owning(folder):
        use_compilation_cache(config)
        from ssb_jax.lab import replay, tables
        from ssb_jax.pipeline import Run
        from ssb_jax.workspace import Workspace

        wanted = {name: _resolved(name) for name in (replay.PUBLISHED, *_split(losses))}
        workspace, out = Workspace(config), out or folder / "losses"
        found = replay.replay(Run(folder, workspace), wanted, student=student, count=pairs)
        tokenizer = workspace.chat.tokenizer
        summary = tables.write_tables(
            found,
            out,
            text_of=lambda token: workspace.chat.decode([token], keep_special=True),
            special=frozenset(tokenizer.all_special_ids),
        )
        tables.draw(summary, out / "losses.png")
        header = ("loss", "mean", "gradient norm", "cosine", "outside top 100")
        keys = ("loss", "mean_value", "adapter_gradient_norm", "adapter_gradient_cosine", "outside_top100")
        rows = [tuple(_shown(row[key]) for key in keys) for row in summary if row["by"] == "all"]
        table(
            f"{len(found.tokens):,} reply tokens, student: {student}, T = {found.temperature:g}; in {out}", header, rows
        )


def _shown(value: object) -> object:
    return value if isinstance(value, str) else float(value)


def _split(text: str) -> list[str]:
    """The losses of a list: commas outside of parentheses part them."""
    names = [part.strip() for part in re.findall(r"[^,(]+(?:\([^)]*\)?)?", text)]
    if not any(names):
        raise click.UsageError("expected --losses a,b,c")
    return list(dict.fromkeys(name for name in names if name))


def _resolved(name: str) -> Callable[..., Any]:
    from ssb_jax.losses.menu import resolve_loss

    loss, options = _parsed(name)
    try:
        return resolve_loss(loss, options)
    except SsbError as error:
        raise SsbError(f"--losses {name}: {str(error).removeprefix('distillation.loss: ')}") from None


def _parsed(name: str) -> tuple[str, dict[str, float | str]]:
    """`jsd(beta=0.1)` -> its name and options."""
    match = re.fullmatch(r"([^()]+)(?:\(([^()]*)\))?", name)
    if match is None:
        raise SsbError(f"--losses: {name!r} is not a loss; expected a name, or a name with options as jsd(beta=0.1)")
    options = {}
    for part in filter(None, (match[2] or "").split(",")):
        key, equals, value = (x.strip() for x in part.partition("="))
        if not equals:
            raise SsbError(f"--losses: {name!r}: expected option=value in the parentheses, got {part!r}")
        try:
            options[key] = float(value) if re.search(r"[.eE]", value) else int(value)
        except ValueError:
            options[key] = value
    return match[1], options
