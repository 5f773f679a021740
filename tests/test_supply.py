"""Supply and secrets: no pickle, no code from a hub, no shell; pinned packages; tokens stay in the environment."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("ssb_jax", "launch") for path in (ROOT / folder).rglob("*.py"))
# They execute what they read, or run what they are told.
FORBIDDEN_IMPORTS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "os.system", "os.popen", "torch.load", "torch.save", "torch.hub.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"),
}


def problems(path: Path) -> list[str]:
    """What a source file does that it should not."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in FORBIDDEN_CALLS:
                found.append(f"calls {called}")
            if keywords.get("allow_pickle", "False") != "False":
                found.append(f"{called} with allow_pickle")
            if keywords.get("trust_remote_code", "False") != "False":
                found.append(f"{called} with trust_remote_code")
            if keywords.get("shell", "False") != "False":
                found.append(f"{called} through a shell")
    return [f"{path.relative_to(ROOT)}:{what}" for what in found]


def test_no_source_file_reads_pickles_runs_foreign_code_or_calls_a_shell():
    assert len(SOURCES) > 50
    assert [problem for path in SOURCES for problem in problems(path)] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x.npy', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "eval('1')",
        "subprocess.run('x', shell=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(text, tmp_path, monkeypatch):
    monkeypatch.setattr("test_supply.ROOT", tmp_path)
    (tmp_path / "bad.py").write_text(text)
    assert problems(tmp_path / "bad.py")


def test_code_in_a_model_folder_is_not_executed(tmp_path):
    """A folder that asks for its own tokenizer and model classes gets ours, and its Python file is never run."""
    import json
    import shutil

    from ssb_jax.chat import load_chat
    from ssb_jax.model.weights import load_model, resolve_model

    folder = tmp_path / "model"
    shutil.copytree(resolve_model("builtin:tiny"), folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Evil: ...\n")
    auto = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"auto_map": auto}))
    assert load_chat(folder).encode_text("1 + 1")
    load_model(folder)
    assert not (tmp_path / "executed").exists()


def test_every_package_of_the_tests_is_pinned_for_ci():
    """`.ci/run` installs exactly what `.ci/constraints.txt` says."""
    pinned = dict(
        line.split("==") for line in (ROOT / ".ci/constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.match(r"[A-Za-z0-9_.-]+", entry).group().lower().replace("_", "-") for entry in wanted}
    missing = sorted(names - {name.lower().replace("_", "-") for name in pinned})
    assert not missing, f"make .ci/constraints.txt again (.ci/pin): {missing} are not in it"
    assert len(pinned) > 60
    assert "PIP_CONSTRAINT" in (ROOT / ".ci/run").read_text()
