"""Checkpoint and adapter folders: what loads, what each device reads, and how a bad folder is refused."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from model_helpers import CONFIG, make_lora, make_model
from safetensors.numpy import load_file, save_file

from ssb_jax.config import SsbError
from ssb_jax.model import weights
from ssb_jax.model.adapters import load_adapter, save_adapter
from ssb_jax.model.sharding import leaf_name, make_mesh
from ssb_jax.model.transformer import abstract_model
from ssb_jax.model.weights import load_model, random_model, resolve_model, save_model

WEIGHTS, INDEX, CONFIG_JSON = "model.safetensors", "model.safetensors.index.json", "config.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tmp_path):
    save_model(make_model(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change, file=WEIGHTS):
    """Rewrites a file of tensors after `change(tensors)`."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def split(folder, *, extra=None):
    """Turns a single file into two shards and their index; `extra` tensors go into the second one too."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in shards.items():
        more = (extra or {}) if file.startswith("model-00002") else {}
        save_file({name: tensors[name] for name in members} | more, folder / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_save_and_load_are_inverse(folder):
    assert_equal(load_model(folder), make_model())


def test_an_index_of_many_files_loads_as_one_file(folder):
    split(folder)
    assert_equal(load_model(folder), make_model())


def test_large_models_are_saved_as_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 20_000)
    save_model(make_model(), tmp_path)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert all((tmp_path / file).stat().st_size < 25_000 for file in files)
    assert_equal(load_model(tmp_path), make_model())
    monkeypatch.undo()
    save_model(make_model(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == [WEIGHTS], "no stale shard is left"


def test_saving_keeps_companions_and_settings_of_the_source(folder, tmp_path):
    settings = json.loads((folder / CONFIG_JSON).read_text()) | {"eos_token_id": 7, "torch_dtype": "bfloat16"}
    (folder / CONFIG_JSON).write_text(json.dumps(settings))
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (folder / name).write_text(name)
    (folder / "training_args.bin").write_text("not copied")
    save_model(make_model(), tmp_path / "copy", source_folder=folder)
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert copied == {CONFIG_JSON, WEIGHTS, "tokenizer.json", "generation_config.json", "chat_template.jinja"}
    written = json.loads((tmp_path / "copy" / CONFIG_JSON).read_text())
    assert (written["eos_token_id"], written["dtype"], "torch_dtype" in written) == (7, "float32", False)
    save_model(make_model(seed=5), folder, source_folder=folder)
    assert json.loads((folder / CONFIG_JSON).read_text())["eos_token_id"] == 7
    assert (folder / "tokenizer.json").read_text() == "tokenizer.json"
    assert_equal(load_model(folder), make_model(seed=5))


def test_an_interrupted_save_is_refused_when_loaded(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(make_model(), folder)
    assert sorted(path.name for path in folder.iterdir()) == [WEIGHTS], "no temporary file is left"
    with pytest.raises(SsbError, match=r"config\.json cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("disk", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("wanted", [jnp.bfloat16, jnp.float32])
def test_every_dtype_on_disk_is_cast_to_the_one_asked_for(folder, disk, wanted):
    edit(folder, lambda t: t.update({name: array.astype(disk) for name, array in t.items()}))
    expected = jax.tree.map(lambda x: np.asarray(x).astype(disk).astype(wanted), make_model())
    loaded = load_model(folder, dtype=wanted)
    assert loaded.dtype == wanted
    assert_equal(loaded, expected)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 4), (8, 1, 1)], ids=str)
def test_each_part_of_the_files_is_read_once(folder, shape):
    data, fsdp, tensor = shape
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    tensors = load_file(folder / WEIGHTS)
    read = []

    class Counted:
        def __init__(self, array):
            self.array = array

        def __getitem__(self, slices):
            read.append(self.array[slices].nbytes)
            return self.array[slices]

    counted = {name: Counted(array) for name, array in tensors.items()}
    abstract = abstract_model(CONFIG)
    jax.tree_util.tree_map_with_path(
        lambda path, x, sharding: weights._load_parameter(leaf_name(path), x, sharding, counted),
        abstract,
        weights._target_shardings(abstract, mesh),
    )
    assert sum(read) == sum(array.nbytes for array in tensors.values())
    assert_equal(load_model(folder, mesh=mesh), make_model())


def test_random_weights_do_not_depend_on_the_mesh():
    one, many = random_model(CONFIG, seed=3), random_model(CONFIG, seed=3, mesh=make_mesh(fsdp=4, tensor=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, many)
    np.testing.assert_allclose(np.std(one.layers["up_proj"][...]), CONFIG.initializer_range, rtol=0.05)


# ---- folders that are refused ----------------------------------------------------------------------------------------


def test_all_that_is_wrong_is_listed_in_one_error(folder):
    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
        tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((3, 3), np.float32)
        tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros((32,), np.int8)

    edit(folder, spoil)
    split(folder, extra={EMBED: np.zeros((96, 32), np.float32)})
    with pytest.raises(SsbError) as error:
        load_model(folder)
    for line in (
        "5 problems",
        f"duplicate: {EMBED} in model-00001-of-00002.safetensors and model-00002-of-00002.safetensors",
        "missing: model.norm.weight (32,)",
        "unmapped: model.layers.7.mlp.up_proj.weight",
        "misshaped: model.layers.0.mlp.up_proj.weight is (3, 3), expected (48, 32)",
        "dtype: model.layers.1.self_attn.q_proj.bias is I8, expected one of BF16, F16, F32",
    ):
        assert line in str(error.value)


def test_a_redundant_head_and_rotary_buffers_are_known(folder):
    def add(tensors):
        tensors[HEAD] = tensors[EMBED].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros((4,), np.float32)
        tensors["model.rotary_emb.inv_freq"] = np.zeros((4,), np.float32)

    edit(folder, add)
    assert_equal(load_model(folder), make_model())


def test_a_head_that_differs_from_the_tied_embedding_is_refused(folder):
    edit(folder, lambda t: t.update({HEAD: t[EMBED] + np.float32(1)}))
    with pytest.raises(SsbError, match=r"unmapped: lm_head\.weight"):
        load_model(folder)


def test_an_untied_model_needs_its_head(folder):
    settings = json.loads((folder / CONFIG_JSON).read_text()) | {"tie_word_embeddings": False}
    (folder / CONFIG_JSON).write_text(json.dumps(settings))
    with pytest.raises(SsbError, match=r"missing: lm_head\.weight \(96, 32\)"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_file_is_named(folder, keep):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(SsbError, match=r"model\.safetensors is not a whole safetensors file.*again"):
        load_model(folder)


def test_a_missing_shard_is_named(folder):
    split(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SsbError, match=r"model-00002-of-00002\.safetensors does not exist"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (WEIGHTS, None, r"holds no weights: expected model\.safetensors or"),
        (CONFIG_JSON, None, r"config\.json cannot be read \(No such file or directory\)"),
        (CONFIG_JSON, "{", r"config\.json is not JSON"),
        (CONFIG_JSON, "[]", r"config\.json must hold a JSON object"),
        (CONFIG_JSON, "{}", "model_type must be 'qwen2', got None"),
        (INDEX, '{"weight_map": {}}', "has no weight_map"),
    ],
)
def test_an_incomplete_folder_is_refused(folder, file, content, message):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(SsbError, match=message):
        load_model(folder)


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where", "a/b/c"])
def test_no_such_folder(name):
    with pytest.raises(SsbError, match="no such folder; give a folder, a hub id"):
        resolve_model(name)


def test_hub_ids_go_through_the_hub_and_its_cache(folder, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(weights.huggingface_hub, "snapshot_download", download)
    assert resolve_model("Qwen/Qwen2.5-3B-Instruct", "main") == folder
    assert (asked["name"], asked["revision"]) == ("Qwen/Qwen2.5-3B-Instruct", "main")
    assert "*.safetensors" in asked["allow_patterns"]


def test_a_hub_id_that_the_hub_does_not_give(monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("Cannot reach the hub")

    monkeypatch.setattr(weights.huggingface_hub, "snapshot_download", download)
    with pytest.raises(SsbError, match=r"hub did not give it \(Cannot reach the hub\); check the name"):
        resolve_model("Qwen/Nothing")


# ---- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path):
    save_adapter(make_lora(), tmp_path / "adapter", base="Qwen/Some")
    return tmp_path / "adapter"


def test_an_adapter_comes_back_as_it_was_on_a_mesh_too(adapter):
    mesh = make_mesh(fsdp=2, tensor=4)
    loaded = load_adapter(adapter, CONFIG, mesh=mesh)
    assert_equal(loaded, make_lora())
    assert loaded.a["up_proj"].addressable_shards[0].data.shape == (3, 32 // 2, 4)


def test_an_adapter_of_another_base_is_refused(adapter):
    with pytest.raises(SsbError, match="does not fit its config and this base model") as error:
        load_adapter(adapter, replace(CONFIG, intermediate_size=64, num_layers=4))
    name = "base_model.model.model.layers.{}.mlp.down_proj.lora_A.weight"
    assert f"misshaped: {name.format(0)} is (4, 48), expected (4, 64)" in str(error.value)
    assert f"missing: {name.format(3)} (4, 64)" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA, got 'LOHA'"),
        ({"use_dora": True, "bias": "all"}, "bias='all' is not implemented; use_dora=True is not implemented"),
        ({"use_rslora": True}, "use_rslora=True is not implemented"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"r": 0}, "r must be a positive whole number, got 0"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "target_modules must be a list of"),
        ({"target_modules": "all-linear"}, "target_modules must be a list of"),
        ({"target_modules": ["q_proj"]}, "unmapped: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"),
        ({"r": 5}, r"expected \(5, 32\)"),
    ],
)
def test_an_adapter_that_we_do_not_implement_is_refused(adapter, change, message):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SsbError, match=message):
        load_adapter(adapter, CONFIG)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_is_refused(adapter, file):
    (adapter / file).unlink()
    with pytest.raises(SsbError, match=file):
        load_adapter(adapter, CONFIG)


def test_a_truncated_adapter_is_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(SsbError, match=r"adapter_model\.safetensors is not a whole safetensors file"):
        load_adapter(adapter, CONFIG)
    shutil.rmtree(adapter)
    with pytest.raises(SsbError, match=r"adapter_config\.json cannot be read"):
        load_adapter(adapter, CONFIG)
