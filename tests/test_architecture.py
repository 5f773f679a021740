"""Imports point down only, and the lower layers start without JAX."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ssb_jax"
# From the bottom up. A module may import its own layer's modules of the same package, and every layer below.
LAYERS = [
    {"config", "records"},
    {"artifacts", "console", "figures"},
    {"chat", "prompts", "answers", "metrics", "stats", "remote"},
    {"model", "hosts"},
    {"sampling", "losses", "store", "checkpoint", "costs"},
    {"training"},
    {"tiny", "workspace"},
    {"answering", "scores", "summaries", "given"},
    {"model_card"},
    {"stages", "baselines"},
    {"pipeline", "export", "bench", "preflight", "doctor", "compare"},
    {"study", "report", "rounds", "lab", "exchange"},
    {"cli"},
    {"__main__"},
]
WITHOUT_JAX = [
    "config",
    "records",
    "artifacts",
    "console",
    "chat",
    "prompts",
    "answers",
    "stats",
    "tiny.problems",
    "remote",
]


def _layer(part):
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ssb_jax."):
            yield node.module.split(".")[1:]
        elif isinstance(node, ast.ImportFrom) and node.module == "ssb_jax":
            yield from ([alias.name] for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: imports are absolute")


def test_imports_point_down():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if part == "__init__":
            continue
        for module in _imports(path):
            same_package = module[0] == part
            if not same_package and _layer(module[0]) >= _layer(part) and "problems" not in module:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {'.'.join(module)}")
    assert wrong == []


def test_stages_never_import_each_other():
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not [m for m in _imports(path) if m[0] == "stages"], path


def test_only_baselines_and_benchmarks_import_torch():
    for path in PACKAGE.rglob("*.py"):
        imported = re.findall(r"^\s*(?:import|from) (torch|peft|accelerate)\b", path.read_text(), re.MULTILINE)
        assert not imported or path.relative_to(PACKAGE).parts[0] in ("baselines", "bench"), path


def test_lower_layers_do_not_import_jax():
    names = ", ".join(f"ssb_jax.{name}" for name in WITHOUT_JAX)
    code = f"import {names}, sys; sys.exit(', '.join(m for m in ('jax', 'torch') if m in sys.modules) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_module_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, "a module starts with a docstring"
