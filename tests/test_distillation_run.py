"""Targets and distillation as stages: right, resumable to the last bit, and stopping where something does not fit."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distillation_case import MODEL, full_logits, make_config, make_model, make_pairs, make_targets, train
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file

from ssb_jax.config import SsbError
from ssb_jax.losses import menu
from ssb_jax.metrics import read_metrics
from ssb_jax.model.adapters import load_adapter
from ssb_jax.model.sharding import make_mesh
from ssb_jax.model.transformer import model_shardings
from ssb_jax.stages import targets
from ssb_jax.store import TargetWriter, open_store

PAIRS = make_pairs(6, longest=9)  # batches of 2, 2 epochs: 6 steps


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The same step is compiled by one test and loaded by the others, also in their child processes."""
    folder = tmp_path_factory.mktemp("xla")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()
        yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder with targets and 6 steps of training, made without interruption."""
    root = tmp_path_factory.mktemp("finished")
    make_targets(PAIRS, root / "targets")
    summary = train(PAIRS, root)
    return root, summary


def adapter_of(root):
    return load_file(root / "distillation" / "adapter" / "adapter_model.safetensors")


def losses_of(root):
    return [row["loss"] for row in read_metrics(root / "distillation")]


def assert_same_training(root, other):
    assert losses_of(root) == losses_of(other)  # bit by bit
    ours, theirs = adapter_of(root), adapter_of(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


# ---- targets


def test_a_target_is_for_its_reply_token(tmp_path):
    """The head of the stored state is the teacher's logits at the position that predicts reply token t."""
    model = make_model()
    counts = make_targets(PAIRS, tmp_path)
    store = open_store(tmp_path)
    states = np.concatenate([store.read(pair) for pair in PAIRS])
    expected = full_logits(model, [p.teacher_prompt_ids for p in PAIRS], [p.reply_ids for p in PAIRS])
    np.testing.assert_allclose(states @ np.asarray(model.head_weight()).T, expected, rtol=1e-4, atol=1e-4)
    assert counts["examples"] == 6
    assert counts["tokens"] == sum(len(pair.reply_ids) for pair in PAIRS)


def test_targets_continue_with_what_is_missing_and_give_the_same(tmp_path, monkeypatch):
    config = make_config(targets={"batch_size": 2})
    make_targets(PAIRS, tmp_path / "whole", config=config)
    left = []
    real = TargetWriter.add

    def add(self, pair, values):
        if len(left) == 3:
            raise KeyboardInterrupt
        left.append(pair.question_id)
        real(self, pair, values)
        self.flush()

    monkeypatch.setattr(TargetWriter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        make_targets(PAIRS, tmp_path / "cut", config=config)
    monkeypatch.setattr(TargetWriter, "add", real)
    monkeypatch.setattr(targets, "_arrays", count_calls(targets._arrays, calls := []))
    make_targets(PAIRS, tmp_path / "cut", config=config)
    assert len(calls) == 2  # of 3 batches, one is done
    whole, cut = open_store(tmp_path / "whole"), open_store(tmp_path / "cut")
    for pair in PAIRS:
        np.testing.assert_array_equal(whole.read(pair), cut.read(pair))


def count_calls(function, calls):
    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted


def test_targets_on_a_mesh_are_those_of_one_device(tmp_path):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    make_targets(PAIRS, tmp_path / "one")
    sharded = jax.device_put(make_model(), model_shardings(make_model(), mesh))
    make_targets(PAIRS, tmp_path / "mesh", model=sharded, mesh=mesh)
    one, many = open_store(tmp_path / "one"), open_store(tmp_path / "mesh")
    assert one.info == many.info
    for pair in PAIRS:
        np.testing.assert_allclose(one.read(pair), many.read(pair), rtol=1e-4, atol=1e-5)


def test_logits_are_stored_when_asked_for(tmp_path):
    counts = make_targets(PAIRS, tmp_path, config=make_config(targets={"encoding": "logits", "dtype": "bfloat16"}))
    values = open_store(tmp_path).read(PAIRS[0])
    assert values.shape == (len(PAIRS[0].reply_ids), MODEL.vocab_size)
    assert values.dtype == jnp.bfloat16
    assert counts["bytes_per_token"] > 2 * MODEL.vocab_size


ONE_STEP = {"epochs": 1, "batch_size": 6, "packing": False}


def first_loss(loss, info=None):
    """The mean of a loss of the menu over all reply tokens at T = 2, from full logits; the student is the base."""
    model, replies = make_model(), [pair.reply_ids for pair in PAIRS]
    hinted, bare = ([getattr(pair, f"{who}_prompt_ids") for pair in PAIRS] for who in ("teacher", "student"))
    teacher, student = (jax.nn.log_softmax(full_logits(model, prompts, replies) / 2) for prompts in (hinted, bare))
    return 4 * float(jnp.mean(loss(teacher, student, info)))


def test_a_teacher_that_is_not_stored_is_computed_in_the_step(tmp_path):
    config = make_config(targets={"encoding": "none"}, distillation=ONE_STEP)
    assert make_targets(PAIRS, tmp_path / "targets", config=config)["bytes"] == 0
    train(PAIRS, tmp_path, config=config)
    np.testing.assert_allclose(losses_of(tmp_path), [first_loss(menu.ssb)], rtol=1e-4)
    with pytest.raises(SsbError, match="holds targets of another model"):
        train(PAIRS, tmp_path, config=config, model=make_model(seed=1))


def test_stored_top_words_train_what_they_can(tmp_path):
    topk = {"encoding": "topk", "top_k": 20}
    loss = {**ONE_STEP, "loss": "topk_kl", "loss_options": {"k": 20}}
    config = make_config(targets=topk, distillation=loss)
    assert make_targets(PAIRS, tmp_path / "targets", config=config)["bytes_per_token"] >= 20 * 8 + 8
    train(PAIRS, tmp_path, config=config)
    expected = first_loss(functools.partial(menu.topk_kl, k=20))
    np.testing.assert_allclose(losses_of(tmp_path), [expected], rtol=1e-4)
    shutil.rmtree(tmp_path / "distillation")
    with pytest.raises(SsbError, match="temperature is 3.0, the targets know the mass of their bucket at 1.0, 2.0"):
        train(PAIRS, tmp_path, config=make_config(targets=topk, distillation={**loss, "temperature": 3.0}))
    with pytest.raises(SsbError, match="the loss ssb needs the teacher's whole distribution"):
        train(PAIRS, tmp_path, config=make_config(targets=topk))


def test_views_are_stored_and_used(tmp_path):
    """Seen against itself, the teacher's contrast is nothing, so that the plain loss is left."""
    config = make_config(targets={"views": ["swapped"]}, distillation={**ONE_STEP, "loss": "contrast"})
    counts = make_targets(PAIRS, tmp_path / "targets", config=config, views={"swapped": PAIRS})
    assert counts["bytes_per_token"] > 2 * 4 * MODEL.hidden_size
    train(PAIRS, tmp_path, config=config, views={"swapped": PAIRS})
    np.testing.assert_allclose(losses_of(tmp_path), [first_loss(menu.ssb)], rtol=1e-4)
    other = [dataclasses.replace(pair, teacher_prompt_ids=pair.teacher_prompt_ids[1:]) for pair in PAIRS]
    with pytest.raises(SsbError, match="targets of q0 were made for other tokens"):
        train(PAIRS, tmp_path, config=config, views={"swapped": other})


def test_in_bfloat16_the_store_loses_nothing_and_the_student_learns_about_the_same(finished, tmp_path):
    """Weights and states in bfloat16, adapter, loss and optimizer in float32."""
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_model())
    computed = {pair.question_id: states for pair, states in targets.teacher_targets(model, PAIRS)}
    make_targets(PAIRS, tmp_path / "targets", model=model)
    store = open_store(tmp_path / "targets")
    for pair in PAIRS:
        np.testing.assert_array_equal(store.read(pair), computed[pair.question_id])
        assert store.read(pair).dtype == jnp.bfloat16
    train(PAIRS, tmp_path, model=model)
    root, _ = finished
    np.testing.assert_allclose(losses_of(tmp_path), losses_of(root), rtol=0.1)
    assert all(x.dtype == np.float32 for x in adapter_of(tmp_path).values())


def test_pairs_that_do_not_fit_are_named(tmp_path):
    long = dataclasses.replace(PAIRS[0], teacher_prompt_ids=tuple([1] * 200))
    with pytest.raises(SsbError, match=r"pair q0: hinted prompt and reply have 2\d\d tokens, the model's context 128"):
        make_targets([long], tmp_path / "long")
    with pytest.raises(SsbError, match="two pairs have the id q1"):
        make_targets([PAIRS[1], PAIRS[1]], tmp_path / "twice")
    with pytest.raises(SsbError, match="pair q2: expected a hinted prompt and a reply"):
        make_targets([dataclasses.replace(PAIRS[2], reply_ids=())], tmp_path / "empty")


# ---- distillation


def test_a_fresh_student_is_the_base_and_learns(finished):
    """Step 1's loss is T^2 KL between the base with hints and the base without; the last step's is smaller."""
    root, summary = finished
    rows = read_metrics(root / "distillation")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert summary["steps"] == 6
    assert summary["last_loss"] == rows[-1]["loss"] < summary["first_loss"] == rows[0]["loss"]
    assert rows[0]["learning_rate"] == pytest.approx(2e-4)
    assert rows[-1]["learning_rate"] == pytest.approx(2e-4 / 6)
    assert {row["epoch"] for row in rows} == {(i + 1) / 3 for i in range(6)}
    looked = [{"top10_overlap", "outside_top100", "hedges", "leaks", "kl_quarter1"} & row.keys() for row in rows]
    assert [len(names) for names in looked] == [5, 3, 3, 3, 3, 3]  # one step in 25 looks, the first to begin with
    assert 0 < rows[0]["top10_overlap"] <= 1
    assert sum(row["reply_tokens"] for row in rows) == 2 * sum(len(pair.reply_ids) for pair in PAIRS)


def test_the_adapter_is_the_trained_one(finished):
    root, _ = finished
    lora = load_adapter(root / "distillation" / "adapter", MODEL)
    assert (lora.rank, lora.alpha) == (4, 8.0)
    assert all(x.any() for x in lora.b.values())


@pytest.mark.parametrize("stop_after", [4, 6])
def test_stopped_and_continued_is_the_same_as_straight(finished, tmp_path, monkeypatch, stop_after):
    """Stopped inside the second interval, and just before the adapter is saved."""
    root, summary = finished
    shutil.copytree(root / "targets", tmp_path / "targets")
    interrupt_after(monkeypatch, stop_after)
    with pytest.raises(KeyboardInterrupt):
        train(PAIRS, tmp_path)
    assert not (tmp_path / "distillation" / "adapter").exists()
    monkeypatch.undo()
    again = train(PAIRS, tmp_path)
    assert_same_training(root, tmp_path)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in summary.items() if k != "seconds"}


def interrupt_after(monkeypatch, rows):
    from ssb_jax.metrics import MetricsLog

    real = MetricsLog.write

    def write(self, step, values):
        real(self, step, values)
        if step == rows:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsLog, "write", write)


def test_killed_and_continued_is_the_same_as_straight(finished, tmp_path):
    """kill -9 in the middle of a run of another process; metrics have every step once."""
    root, _ = finished
    shutil.copytree(root / "targets", tmp_path / "targets")
    code = (
        "import os, signal, conftest\n"
        "from pathlib import Path\n"
        "from distillation_case import make_pairs, train\n"
        "from ssb_jax.metrics import MetricsLog\n"
        "write = MetricsLog.write\n"
        "def write_and_die(self, step, values):\n"
        "    write(self, step, values)\n"
        "    if step == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "MetricsLog.write = write_and_die\n"
        f"train(make_pairs(6, longest=9), Path({str(tmp_path)!r}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    died = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert [row["step"] for row in read_metrics(tmp_path / "distillation")] == [1, 2, 3, 4, 5]
    train(PAIRS, tmp_path)
    assert_same_training(root, tmp_path)


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, capsys):
    root, _ = finished
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "distillation" / "adapter")
    for path in (tmp_path / "distillation" / "checkpoints" / "6" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    train(PAIRS, tmp_path)
    err = capsys.readouterr().err
    assert "checkpoint of step 6" in err
    assert "continues after step 3" in err
    assert_same_training(root, tmp_path)


@pytest.fixture
def broken_loss(tmp_path):
    """A loss that is not a number on one pair alone: where it is, and the pair's id."""
    lengths = [len(pair.reply_ids) for pair in PAIRS]
    blamed = next(i for i, n in enumerate(lengths) if lengths.count(n) == 1)
    (tmp_path / "broken.py").write_text(
        "import jax.numpy as jnp\n"
        "def broken(teacher_logp, student_logp, info):\n"
        f"    wrong = jnp.where(info.length == {lengths[blamed]}, jnp.nan, 1.0)\n"
        "    return wrong * (jnp.exp(teacher_logp) * (teacher_logp - student_logp)).sum(-1)\n"
    )
    return f"{tmp_path}/broken.py:broken", f"q{blamed}"


def test_a_loss_that_is_not_finite_stops_and_names_the_examples(finished, tmp_path, broken_loss):
    root, _ = finished
    shutil.copytree(root / "targets", tmp_path / "targets")
    loss, blamed = broken_loss
    config = make_config(distillation={"loss": loss, "checkpoint_every": 1})
    with pytest.raises(SsbError, match=rf"step [123]: the loss of {blamed} is not finite .* training stopped"):
        train(PAIRS, tmp_path, config=config)
    steps = len(losses_of(tmp_path))
    saved = [int(path.name) for path in (tmp_path / "distillation" / "checkpoints").glob("[0-9]*")]
    assert max(saved, default=0) == steps  # the last good one is there, the bad one is not
    assert not (tmp_path / "distillation" / "adapter").exists()


def test_batches_that_are_not_finite_can_be_skipped_and_are_counted(finished, tmp_path, broken_loss, capsys):
    """Stopped at a bad batch, the run goes on with `skip`: that batch changes nothing, the learning rate waits."""
    root, _ = finished
    shutil.copytree(root / "targets", tmp_path / "targets")
    loss, blamed = broken_loss
    with pytest.raises(SsbError, match="training stopped"):
        train(PAIRS, tmp_path, config=make_config(distillation={"loss": loss, "checkpoint_every": 1}))
    summary = train(
        PAIRS, tmp_path, config=make_config(distillation={"loss": loss, "checkpoint_every": 1, "on_nan": "skip"})
    )
    rows = read_metrics(tmp_path / "distillation")
    skipped = [row["step"] for row in rows if "skipped" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert summary["skipped"] == len(skipped) == 2  # once an epoch
    assert f"the loss of {blamed} is not finite" in capsys.readouterr().err
    rates = [row["learning_rate"] for row in rows if "skipped" not in row]
    assert rates == pytest.approx([2e-4 * (6 - n) / 6 for n in range(4)])
    assert all(np.isfinite(x).all() and x.any() for x in adapter_of(tmp_path).values())


def test_missing_or_foreign_targets_stop_before_the_first_step(finished, tmp_path):
    root, _ = finished
    shutil.copytree(root / "targets", tmp_path / "targets")
    with pytest.raises(SsbError, match=r"1 of 7 pairs have no targets .* \(q6\); run `ssb targets` again"):
        train(make_pairs(7, longest=9), tmp_path)
    with pytest.raises(SsbError, match="holds targets of another model"):
        train(PAIRS, tmp_path, model=make_model(seed=1))
    changed = [dataclasses.replace(PAIRS[0], reply_ids=(1, 2, 3)), *PAIRS[1:]]
    with pytest.raises(SsbError, match="targets of q0 were made for other tokens"):
        train(changed, tmp_path)
    assert not (tmp_path / "distillation" / "metrics.jsonl").exists()


def test_a_target_that_was_damaged_on_disk_stops_the_run(finished, tmp_path):
    root, _ = finished
    shutil.copytree(root / "targets", tmp_path / "targets")
    shard = next((tmp_path / "targets").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    shard.write_bytes(data)
    with pytest.raises(SsbError, match="are not finite at 1 of"):
        train(PAIRS, tmp_path)


def test_a_warmup_longer_than_the_run_is_refused(finished, tmp_path):
    root, _ = finished
    shutil.copytree(root / "targets", tmp_path / "targets")
    with pytest.raises(SsbError, match="warmup_steps is 6, but there are only 6 steps"):
        train(PAIRS, tmp_path, config=make_config(distillation={"warmup_steps": 6}))


def test_checkpoints_are_as_many_as_asked_for(finished):
    root, _ = finished
    names = sorted(path.name for path in (root / "distillation" / "checkpoints").iterdir())
    assert names == ["3", "6", "digests"]
    index = json.loads((root / "targets" / "index-00000.json").read_text())
    assert len(index) == 6
