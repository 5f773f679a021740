"""`ssb compare`: numbers against brute force, what it reads, and what it refuses or warns of."""

import csv
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

from ssb_jax.cli import main
from ssb_jax.compare import compare, read_results
from ssb_jax.compare.output import amount
from ssb_jax.compare.reach import crossing
from ssb_jax.config import SsbError
from ssb_jax.stats import bootstrap_seeds_and_questions


def results_file(path, method, share, *, seed=0, questions=32, count=40, start=0, settings=None, **set_fields):
    """A hand-made file of results: the first `share` of the questions right."""
    right = round(share * count)
    rows = [{"id": f"q{start + i}", "correct": int(i < right)} for i in range(count)]
    cost = {"questions": questions, "generated_tokens": 100 * questions, "flops": 1e9 * questions}
    values = {"method": method, "seed": seed, "cost": cost, "sets": {"test": {"rows": rows, **set_fields}}}
    values["settings"] = settings or {}
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def grid(tmp_path):
    """Two methods, two seeds, two sizes: `fast` needs a quarter of the questions of `slow`."""
    shares = {("fast", 32): (0.5, 0.6), ("fast", 128): (0.8, 0.8), ("slow", 128): (0.5, 0.6), ("slow", 512): (0.8, 0.8)}
    return [
        results_file(tmp_path / f"{method}-{questions}-{seed}.json", method, share, seed=seed, questions=questions)
        for (method, questions), both in shares.items()
        for seed, share in enumerate(both)
    ]


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_points_average_seeds_and_questions(grid):
    comparison = compare(read_results(grid))
    means = {(p.method, p.cost["questions"]): p.accuracy for p in comparison.points}
    assert {key: round(i.value, 9) for key, i in means.items()} == {
        ("fast", 32): 0.55,
        ("fast", 128): 0.8,
        ("slow", 128): 0.55,
        ("slow", 512): 0.8,
    }
    assert all(i.low < i.value < i.high for i in means.values())
    assert all(p.seeds == (0, 1) for p in comparison.points)


def test_differences_are_taken_at_equal_questions(grid):
    differences = {(p.method, p.cost["questions"]): p.difference for p in compare(read_results(grid)).points}
    assert differences[("slow", 128)].value == pytest.approx(-0.25)
    assert differences[("slow", 128)].high < 0
    assert differences[("slow", 512)] is None


def test_who_reaches_an_accuracy_first_and_by_what_factor(grid):
    reaches = {(r.method, r.axis): r for r in compare(read_results(grid), accuracy=0.7).reaches}
    fast, slow = reaches[("fast", "questions")], reaches[("slow", "questions")]
    assert fast.cost == pytest.approx(32 * 4**0.6)  # 0.7 lies 0.6 of the way from 0.55 to 0.8
    assert fast.factor is None
    assert slow.factor.value == pytest.approx(4)
    assert slow.factor.low < 4 < slow.factor.high
    assert reaches[("slow", "flops")].factor.value == pytest.approx(4)
    assert ("fast", "device_seconds") not in reaches  # nobody said
    unreached = compare(read_results(grid), accuracy=0.99)
    assert unreached.reaches == ()
    assert unreached.warnings == ("test: nothing is said of who reaches 99 % first: no method does",)


def test_a_factor_counts_the_replicates_in_which_the_cheapest_never_arrives(tmp_path):
    """One seed of the first method is right on everything, the other on nothing: it may never arrive, and so be
    infinitely dearer."""
    files = [results_file(tmp_path / f"{m}{seed}.json", m, 0, seed=seed, questions=16) for m in "ab" for seed in (0, 1)]
    files += [results_file(tmp_path / f"a+{seed}.json", "a", share, seed=seed) for seed, share in enumerate((1, 0))]
    files += [results_file(tmp_path / f"b+{seed}.json", "b", 0.6, seed=seed, questions=64) for seed in (0, 1)]
    reaches = {(r.method, r.axis): r for r in compare(read_results(files), accuracy=0.5).reaches}
    assert reaches["a", "questions"].cost == pytest.approx(32)
    factor = reaches["b", "questions"].factor
    assert (factor.value, factor.low) == (pytest.approx(16 * 4 ** (5 / 6) / 32), 0)


def test_of_two_costs_that_are_at_most_so_much_nobody_knows_which_is_first(tmp_path):
    """A method whose cheapest point is there already may pay less than that."""

    def reach(**points):
        files = [
            results_file(tmp_path / f"{method}-{questions}.json", method, share, questions=questions)
            for method, curve in points.items()
            for questions, share in curve.items()
        ]
        found = {r.method: r for r in compare(read_results(files), accuracy=0.5).reaches if r.axis == "questions"}
        return found["a"], found["b"]

    a, b = reach(a={32: 0.6}, b={64: 0.7})
    assert (a.at_most, a.is_first, b.at_most, b.is_first, b.factor) == (True, False, True, False, None)
    a, b = reach(a={16: 0.5}, b={16: 0.4, 64: 0.6})
    assert (a.at_most, a.is_first, b.factor_is, b.factor.low) == (True, True, "at least", None)
    assert b.factor.value == pytest.approx(2)
    a, b = reach(a={16: 0.4, 64: 0.6}, b={128: 0.6})
    assert (a.is_first, b.factor_is, b.factor.value) == (False, "at most", pytest.approx(4))
    out = run(tmp_path / "a-16.json", tmp_path / "a-64.json", tmp_path / "b-128.json", "--reach", 0.5).stdout
    assert "≤ 128 (x ≤ 4)" in out
    assert "(first)" not in out


def test_who_reaches_an_accuracy_at_an_unknown_cost_is_not_left_out(tmp_path):
    known = results_file(tmp_path / "a.json", "a", 0.6)
    values = json.loads(results_file(tmp_path / "b.json", "b", 0.7).read_text())
    values.pop("cost")
    (tmp_path / "b.json").write_text(json.dumps(values))
    a, b = (r for r in compare(read_results([known, tmp_path / "b.json"])).reaches if r.axis == "flops")
    assert (a.is_first, b.reached, b.cost) == (False, True, None)
    out = run(known, tmp_path / "b.json", "--reach", 0.65).stdout
    assert out.count("never") == 3
    assert "reaching 65.0 %" in out
    [warning] = compare(read_results([tmp_path / "b.json"]), accuracy=0.6).warnings
    assert warning.endswith("who reaches 60 % first: no source says what a method cost")
    assert "reaching 50.0 %" in run(known, "--reach", 0.5).stdout, "of one method alone"


def test_runs_of_one_limit_are_seeds_whatever_they_used(tmp_path):
    """A run stops when it has its pairs, after more or fewer questions."""
    files = [results_file(tmp_path / f"{i}.json", "a", 0.5, seed=i, questions=500 + i) for i in range(2)]
    comparison = compare(read_results(files))
    assert len(comparison.points) == 2
    assert "no seed in common at 500, 501 questions, and are taken for a curve" in comparison.warnings[0]
    for path in files:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"limit": None}))
    comparison = compare(read_results(files))
    assert [(p.seeds, p.cost["questions"]) for p in comparison.points] == [((0, 1), 500.5)]
    assert comparison.warnings == ()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"limit": 64}))
    assert len(compare(read_results(files)).points) == 2


def test_runs_of_one_method_with_other_settings_are_no_seeds_of_each_other(tmp_path):
    def result(seed, **settings):
        path = tmp_path / f"{seed}-{len(settings)}-{'-'.join(map(str, settings.values()))}.json"
        return results_file(path, "ssb", 0.5, seed=seed, settings=settings)

    same = [result(seed, **{"model": "tiny 1", "lora.rank": 8}) for seed in (0, 1)]
    assert [p.seeds for p in compare(read_results(same)).points] == [(0, 1)]
    other = result(2, **{"model": "tiny 1", "lora.rank": 16})
    points = compare(read_results([*same, other])).points
    assert [(p.method, p.seeds) for p in points] == [("ssb [lora.rank 8]", (0, 1)), ("ssb [lora.rank 16]", (2,))]
    few, many = ({"model": m, "lora.rank": r, "lora.alpha": a} for m, r, a in (("tiny 1", 8, 2), ("small 2", 32, 1)))
    names = [r.method for r in read_results([result(seed, **few) for seed in (0, 1)] + [result(2, **many)])]
    assert names[0] == names[1] != names[2]
    assert names[2].startswith("ssb [model small 2, lora.rank 32, ... (")
    unknown = results_file(tmp_path / "old.json", "ssb", 0.5, seed=7)
    assert [r.method for r in read_results([*same, unknown])] == ["ssb"] * 3
    whole = result(8, **{"model": "tiny 1", "lora.rank": 8.0})
    assert [r.method for r in read_results([*same, whole])] == ["ssb"] * 3


def test_runs_that_were_drawn_or_graded_differently_are_no_seeds_of_each_other(tmp_path):
    graded = [{"sampling": {"temperature": t}, "prompts": "ab"} for t in (0.0, 0.8)]
    files = [results_file(tmp_path / f"{i}.json", "ssb", 0.5, seed=i, graded=g) for i, g in enumerate(graded)]
    names = [p.method for p in compare(read_results(files)).points]
    assert names == ["ssb [sampling.temperature 0.0]", "ssb [sampling.temperature 0.8]"]


def test_sets_that_are_drawn_differently_leave_a_methods_name_alone(tmp_path):
    rows = [{"id": f"q{i}", "correct": i % 2} for i in range(8)]
    sets = {name: {"rows": rows, "graded": {"sampling": {"temperature": t}}} for name, t in (("a", 0.0), ("b", 0.8))}
    for seed in (0, 1):
        values = {"method": "ssb", "seed": seed, "settings": {"lora.rank": 8}, "sets": sets}
        (tmp_path / f"{seed}.json").write_text(json.dumps(values))
    points = compare(read_results([tmp_path / "0.json", tmp_path / "1.json"])).points
    assert [(p.set, p.method, p.seeds) for p in points] == [("a", "ssb", (0, 1)), ("b", "ssb", (0, 1))]


def test_a_table_in_a_pipe_has_every_column_whole_and_ssb_is_what_differences_are_taken_to(tmp_path):
    long = {"model": "a model's name of some length", "lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    other = {"model": "another", "lora.target_modules": ["q_proj"]}
    files = [results_file(tmp_path / "grpo.json", "grpo", 0.5)]
    files += [results_file(tmp_path / f"{i}.json", "ssb", 0.5, seed=i, settings=s) for i, s in enumerate((long, other))]
    table = run(*files).stdout
    assert "…" not in table
    name = "ssb [model a model's name of some length, lora.target_modules ['q_proj', 'k_proj', 'v_proj', 'o_proj']]"
    assert name in table
    assert f"minus {name}" in table


def test_a_base_is_one_row_whoever_says_it(tmp_path):
    one = results_file(tmp_path / "a.json", "base", 0.5)
    values = json.loads(one.read_text())
    del values["cost"]
    values["sets"]["test"]["rows"] = values["sets"]["test"]["rows"][:30]
    (tmp_path / "b.json").write_text(json.dumps(values | {"seed": 1}))
    other = results_file(tmp_path / "c.json", "weak", 0.25)
    comparison = compare(read_results([one, tmp_path / "b.json", other, results_file(tmp_path / "d.json", "e", 0.9)]))
    assert [(p.method, p.seeds) for p in comparison.points] == [("base", (0,)), ("weak", (0,)), ("e", (0,))]
    assert {reach.accuracy for reach in comparison.reaches} == {20 / 30}, "what the base has anyway is no goal"


def test_answers_from_elsewhere_are_not_the_runs_own(tmp_path):
    rows = [{"id": "q", "answers": {"gpt4": [{"outcome": "correct"}]}}]
    cost = {"questions": 8, "flops": 1.0}
    values = {"method": "rft", "own": None, "settings": {"model": "m"}, "cost": cost, "sets": {"test": {"rows": rows}}}
    (tmp_path / "results.json").write_text(json.dumps(values))
    [result] = read_results([tmp_path / "results.json"])
    assert (result.method, result.cost["flops"], result.settings) == ("gpt4", None, {})


def test_the_rounds_of_a_run_stand_beside_each_other_with_what_all_cost(tmp_path):
    for number in (1, 2):
        folder = tmp_path / f"run/rounds/0{number}"
        (folder / "evaluation").mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        answers = {"base": [{"outcome": "incorrect"}], "ssb": [{"outcome": "correct"}]}
        sets = {"test": {"rows": [{"id": "q", "answers": answers}]}}
        cost = {"questions": 8, "generated_tokens": 100 * number, "flops": 1.0, "device_seconds": None}
        values = {"method": "ssb", "cost": cost, "sets": sets, "settings": {"model": f"m{number}", "lora.rank": 8}}
        (folder / "evaluation/results.json").write_text(json.dumps(values))
    base, first, second = read_results([tmp_path / "run"])
    assert (base.method, first.method, second.method) == ("base", "ssb", "ssb, round 2")
    assert second.settings == first.settings == {"model": "m1", "lora.rank": 8}
    assert second.cost == {"questions": 8, "generated_tokens": 300, "flops": 2.0, "device_seconds": None}
    assert run(tmp_path / "run").exit_code == 0
    (tmp_path / "run/rounds/02/evaluation/results.json").unlink()
    assert len(read_results([tmp_path / "run"])) == 2


def test_a_model_that_never_boxes_is_told_as_a_failure_of_format(tmp_path):
    answers = {"base": [{"outcome": "unanswered"}], "ssb": [{"outcome": "correct"}]}
    rows = [{"id": q, "answers": answers} for q in "ab"]
    told = {"base": {"boxed": 0.0, "never_boxed": 1, "truncated": 0}, "ssb": {"boxed": 1.0, "never_boxed": 0}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"method": "ssb", "sets": {"test": {"rows": rows, "format": told}}}))
    warnings = compare(read_results([path])).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("test: base put 0.0 % of its answers in")


def test_a_model_that_never_boxes_is_told_from_its_answers_too(tmp_path):
    rows = [{"id": q, "answers": {"trained": [{"outcome": "truncated"}, {"outcome": "unanswered"}]}} for q in "ab"]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"method": "grpo", "sets": {"test": {"rows": rows}}}))
    [warning] = compare(read_results([path])).warnings
    assert warning.startswith("test: grpo put 0.0 % of its answers in \\boxed{} (2 have no box, 2 were cut off")


def test_what_a_reader_must_know_is_said(tmp_path):
    """Questions that were trained on, methods that start from different models, other questions under one id."""
    shared = {"shared_with_training": ["q0", "q1"]}
    one = results_file(tmp_path / "a.json", "a", 0.5, settings={"model": "tiny 1"}, **shared)
    other = results_file(tmp_path / "b.json", "b", 0.5, settings={"model": "small 2"})
    for path, text in ((one, "Is it?"), (other, "Was it?")):
        values = json.loads(path.read_text())
        values["sets"]["test"]["rows"][3]["question"] = text
        path.write_text(json.dumps(values))
    assert compare(read_results([one, other])).warnings == (
        "test: 1 questions of one id have different texts, such as q3",
        "test: different models before training: a from tiny 1; b from small 2",
        f"test: 2 of its 40 questions are training questions of a too, not unseen ones ({one})",
    )


def test_a_cost_that_is_of_no_model_is_said(tmp_path):
    rows = [{"id": "q", "answers": {"x": [{"outcome": "correct"}], "y": [{"outcome": "correct"}]}}]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"cost": {"questions": 8}, "sets": {"test": {"rows": rows}}}))
    warnings = compare(read_results([path])).warnings
    assert f"test: its cost is of none of x, y: say in `own` which model it trained ({path})" in warnings


def test_crossing_is_the_first_one():
    costs, nan = np.array([10.0, 100.0, 1000.0]), np.inf
    values = np.array([[0.0, 0.9, 0.0, 0.6], [1.0, 0.0, 0.1, 0.4], [0.0, 1.0, 0.2, 0.8]])
    expected = [10**1.5, 10.0, nan, 10.0]
    assert crossing(costs, values, 0.5) == pytest.approx(expected)


def test_the_bootstrap_of_seeds_and_questions_is_that_of_a_crossed_design():
    random = np.random.default_rng(0)
    one_seed = (random.random((1, 200)) < 0.4).astype(float)
    spread = bootstrap_seeds_and_questions({"a": one_seed}, {"a": (0,)}, resamples=4000)["a"].std()
    assert spread == pytest.approx(one_seed.std() / 200**0.5, rel=0.05)
    for count in (2, 3, 6):  # questions do not matter at all: the standard error of a mean over seeds
        seeds = np.repeat(random.random((count, 1)), 200, axis=1)
        spread = bootstrap_seeds_and_questions({"a": seeds}, {"a": range(count)}, resamples=8000)["a"].std()
        assert spread == pytest.approx(seeds[:, 0].std(ddof=1) / count**0.5, rel=0.05)
    three = (random.random((3, 200)) < random.random((3, 1))).astype(float)
    means = bootstrap_seeds_and_questions(
        {"a": three, "b": three - 0.1, "c": three}, {"a": (0, 1, 2), "b": (0, 1, 2), "c": (3, 4, 5)}, resamples=50
    )
    assert means["a"] - means["b"] == pytest.approx(np.full(50, 0.1)), "paired by question and seed"
    assert (means["a"] - means["c"]).std() > 0.05


def test_an_interval_does_not_depend_on_what_else_is_compared(grid):
    every, some = (compare(read_results(files)) for files in (grid[::-1], [f for f in grid if "slow" not in f.name]))
    found = {(p.method, p.cost["questions"]): p.accuracy for p in every.points}
    assert all(found[p.method, p.cost["questions"]] == p.accuracy for p in some.points)


def test_table_csv_json_and_figure(grid, tmp_path):
    out = {name: tmp_path / f"out.{name}" for name in ("csv", "json", "svg")}
    result = run(*grid, "--csv", out["csv"], "--json", out["json"], "--figure", out["svg"])
    assert result.exit_code == 0, result.output
    for word in ("minus fast", "-25.0", "reaching 80.0 %", "x 4", "3.2 k", "55.0 ["):
        assert word in result.stdout
    rows = list(csv.DictReader(out["csv"].read_text().splitlines()))
    assert [(r["method"], float(r["questions"])) for r in rows] == [
        ("fast", 32),
        ("fast", 128),
        ("slow", 128),
        ("slow", 512),
    ]
    assert json.loads(out["json"].read_text())["points"][0]["accuracy"]["value"] == pytest.approx(0.55)
    assert out["svg"].read_text().count("<g id=") > 10


def test_a_csv_made_by_hand_is_read_like_json(tmp_path):
    path = tmp_path / "grpo.csv"
    lines = ["method,seed,set,question,correct,questions,generated_tokens,flops,device_seconds"]
    lines += [f"grpo,{seed},test,q{i},{0.5 if i else 1},64,,1e12," for seed in (0, 1) for i in range(4)]
    path.write_text("\n".join(lines))
    results = read_results([path])
    assert [r.seed for r in results] == [0, 1]
    assert results[0].cost == {"questions": 64, "generated_tokens": None, "flops": 1e12, "device_seconds": None}
    assert compare(results).points[0].accuracy.value == pytest.approx(0.625)


def test_a_run_folder_has_its_base_and_its_adapter(tmp_path):
    rows = [
        {
            "id": f"q{i}",
            "answer": "1",
            "answers": {"base": [{"outcome": "incorrect"}], "ssb": [{"outcome": "correct"}, {"outcome": "truncated"}]},
        }
        for i in range(3)
    ]
    cost = {"questions": 8, "generated_tokens": 9, "flops": 1.0, "device_seconds": 2.0}
    (tmp_path / "evaluation").mkdir()
    path = tmp_path / "evaluation/results.json"
    path.write_text(json.dumps({"seed": 3, "cost": cost, "sets": {"test": {"rows": rows}}}))
    base, ssb = read_results([tmp_path])
    assert (base.method, set(base.scores.values()), base.cost["flops"]) == ("base", {0.0}, 0)
    assert (ssb.method, set(ssb.scores.values()), ssb.cost, ssb.seed) == ("ssb", {0.5}, cost, 3)


def test_a_study_stands_for_its_finished_cells(tmp_path):
    for seed in range(2):
        folder = tmp_path / f"study/cells/a-{seed}/evaluation"
        folder.mkdir(parents=True)
        (folder.parent / "config.yaml").write_text("")
        results_file(folder / "results.json", "a", 0.5, seed=seed)
    (tmp_path / "study/cells/begun").mkdir()
    (tmp_path / "study/cells/begun/config.yaml").write_text("")
    other = results_file(tmp_path / "other.json", "b", 0.5)
    results = read_results([tmp_path / "study", other])
    assert [(r.method, r.seed) for r in results] == [("a", 0), ("a", 1), ("b", 0)]
    assert (
        f"1 of 3 begun cells of {tmp_path / 'study'} are not evaluated yet, such as begun"
        in compare(results).warnings[0]
    )


def test_other_grading_and_missing_questions_are_said(tmp_path):
    one = results_file(tmp_path / "a.json", "a", 0.5, graded={"math-verify": "0.9.0"})
    other = results_file(tmp_path / "b.json", "b", 0.5, start=10, graded={"math-verify": "0.8.0"})
    result = run(one, other)
    assert result.exit_code == 0, result.output
    assert "only the 30 of 50 questions" in result.stdout
    assert "graded differently: math-verify is 0.9.0 in" in result.stdout


ROW = {"sets": {"test": {"rows": [{"id": "q", "correct": 1}]}}}


def answered(key, model):
    return {"id": key, "answers": {model: [{"outcome": "correct"}]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sets": {"test": {"rows": [{"id": "q", "correct": 1}] * 2}}}, "'q'; keep one row a question"),
        (
            {"sets": {"test": {"rows": [{"id": "q", "correct": 7}]}}},
            "0.correct: input should be less than or equal",
        ),
        ({"sets": {"test": {"rows": [{"id": "q"}]}}}, "there is no a row's correct"),
        ({"rows": []}, "sets: field required"),
        (
            {"method": "base", "sets": {"test": {"rows": [{"id": "q", "answers": {"m": [{"outcome": "correct"}]}}]}}},
            "method is `base`, the model before training",
        ),
        ({"sets": {}}, "sets: dictionary should have at least 1 item"),
        (ROW | {"cost": {"euros": 1}}, "cost.euros: extra inputs"),
        (ROW | {"cost": {"flops": -1}}, "cost.flops: input should be greater than or equal to 0"),
        (ROW | {"cost": {"flops": float("nan")}}, "cost.flops: input should be"),
        (ROW | {"seed": float("inf")}, "seed: input should be"),
        (ROW | {"method": ["ssb"]}, "method: input should be a valid string"),
        (ROW | {"method": ""}, "method: string should have at least 1 character"),
        ({"sets": {"test": {"rows": []}}}, "sets.test.rows: list should have at least 1 item"),
        ({"sets": {"test": {"rows": [{"id": "q", "answers": {"m": []}}]}}}, "answers.m: list should have at least 1"),
        (
            {"sets": {"test": {"rows": [answered("a", "m"), answered("b", "n")]}}},
            "question 'b' has no answer of m",
        ),
    ],
    ids=str,
)
def test_bad_results_are_one_error(content, message, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"method": "m"} | content))
    result = run(path)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1


HEADER = "method,seed,set,question,correct,questions"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "there is no row below them"),
        (f"{HEADER.replace(',', ';')}\nm;0;test;q;1;8", "with commas between; line 2: method: field required"),
        (f"{HEADER}\n,0,test,q,1,8", "line 2: method: field required"),
        (f"{HEADER}\nm,0,test,q,1,8\nm,0,test,q2,two,8", "line 3: correct: input should be a valid number"),
        (f"{HEADER}\nm,0,test,q,1,8,9", "line 2 has more cells than the first line"),
        (f"{HEADER}\nm,0,test,q,1,-8", "line 2: questions: input should be greater than or equal to 0"),
        (f"{HEADER}\nm,0,test,q,1,8\nm,0,test,q2,1,", "lines 2 and 3 are of m, seed 0, on test, and differ in what it"),
        (f"{HEADER},flops\nm,0,test,q,1,8,1\nm,0,test,q2,1,8,2", "lines 2 and 3 are of m, seed 0"),
    ],
    ids=str,
)
def test_a_bad_csv_is_one_error(text, message, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(SsbError) as error:
        read_results([path])
    assert message in str(error.value)


def test_a_csv_of_a_spreadsheet_is_read(tmp_path):
    """With a byte order mark, and one number written in two ways."""
    path = tmp_path / "r.csv"
    path.write_text(f"{HEADER}\nm,0,test,a,1,64\nm,0,test,b,0,64.0\n", encoding="utf-8-sig")
    [result] = read_results([path])
    assert (result.cost["questions"], len(result.scores)) == (64, 2)


def test_columns_that_are_not_read_are_said(tmp_path):
    path = tmp_path / "r.CSV"
    path.write_text("method,seed,set,question,correct,Questions\nm,0,test,a,1,64\nm,0,test,b,0,64\n")
    assert (
        "test: the columns Questions are not read; known are method, seed" in compare(read_results([path])).warnings[0]
    )


def test_outputs_that_cannot_be_or_would_replace_an_input_are_refused(tmp_path):
    path = results_file(tmp_path / "a.json", "a", 0.5)
    before = path.read_text()
    same = tmp_path / "same"
    os.mkfifo(tmp_path / "pipe")
    for options, told in [
        (("--json", path), "is an input, or named twice"),
        (("--csv", same, "--json", same), "is an input, or named twice"),
        (("--csv", path / "x.csv"), f"{path} is a file"),
        (("--json", tmp_path / "pipe"), "is there and is none"),
        (("--csv", same, "--figure", tmp_path / "f.jpg"), "expected a name that ends with .svg"),
        (("--against", "z"), "no results of z; there are a"),
    ]:
        result = run(path, *options)
        assert (result.exit_code, told in result.stderr) == (2, True), result.stderr
    assert path.read_text() == before
    assert not same.exists()


def test_names_with_dollar_signs_are_drawn_and_a_folder_is_no_file(tmp_path):
    path = results_file(tmp_path / "a.json", "a $\\frac$ b_", 0.5)
    assert run(path, "--figure", tmp_path / "f.svg").exit_code == 0
    result = run(path, "--csv", tmp_path)
    assert (result.exit_code, "is a directory" in result.stderr) == (2, True)
    assert run(path, "--reach", "nan").exit_code == 2


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = results_file(tmp_path / "a.json", "a", 0.5)
    with pytest.raises(SsbError, match="both have a, seed 0, on test"):
        read_results([one, results_file(tmp_path / "b.json", "a", 0.7)])
    lonely = results_file(tmp_path / "c.json", "c", 0.5, start=1000)
    with pytest.raises(SsbError, match=r"c\.json and .*a\.json, .*d\.json have no question in common"):
        compare(read_results([one, lonely, results_file(tmp_path / "d.json", "d", 0.5)]))
    with pytest.raises(SsbError, match="no results of z; there are a"):
        compare(read_results([one]), against="z")
    with pytest.raises(SsbError, match=r"no evaluation/results\.json; give a run folder, a study or a file"):
        read_results([tmp_path])
    with pytest.raises(SsbError, match="cannot be read"):
        read_results([tmp_path / "none.json"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (None, "?"), (999.6, "1 k"), (3200, "3.2 k"), (8.9e11, "890 G"), (1.5e25, "1.5e+04 Z")],
)
def test_amounts_are_short(value, text):
    assert amount(value) == text
