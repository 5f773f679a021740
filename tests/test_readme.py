"""The README is true: its commands parse, its code runs, and CI does what it says."""

import re
import shlex
from pathlib import Path

import click
import jax
import jax.numpy as jnp
import pytest

from ssb_jax.cli import main
from ssb_jax.config import load_config
from ssb_jax.losses.menu import resolve_loss

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(part, comments=True)
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    for part in line.split(" && ")
    if part.startswith("ssb ")
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_parse(command):
    group, name, *arguments = main, *command[1:]
    while isinstance(group.commands[name], click.Group):
        group, (name, *arguments) = group.commands[name], arguments
    given = group.commands[name].make_context(name, arguments).params
    if "config" in given:
        load_config(ROOT / given["config"], given["overrides"])


def test_every_command_has_a_row():
    for name in main.commands:
        assert f"`ssb {name}" in README


def test_ci_runs_the_two_commands():
    ci = (ROOT / ".ci/run").read_text()
    for part in ("pip install --quiet -e '.[test]'", "pytest -n 2", "ssb run configs/tiny.yaml --out"):
        assert part in ci
        assert part.replace(" --quiet", "") in README


def test_the_library_example_answers(capsys):
    exec(PYTHON[0], {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("boxed" in line for line in lines)


def test_the_loss_example_is_a_loss(tmp_path):
    path = tmp_path / "my_loss.py"
    path.write_text(PYTHON[1])
    loss = resolve_loss(f"{path}:total_variation")
    p, q = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 3, 7)))
    expected = 0.5 * jnp.abs(jnp.exp(p) - jnp.exp(q)).sum(-1)
    assert jnp.allclose(loss(p, q, None), expected)
    assert jnp.all(loss(p, p, None) == 0)
