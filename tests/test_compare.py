"""`ssb compare`: numbers against brute force, what it reads, and what it refuses or warns of."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from ssb_jax.cli import main
from ssb_jax.compare import compare, read_results
from ssb_jax.compare.output import amount
from ssb_jax.compare.points import crossing
from ssb_jax.config import SsbError
from ssb_jax.stats import bootstrap_seeds_and_questions


def results_file(path, method, share, *, seed=0, questions=32, count=40, start=0, **set_fields):
    """A hand-made file of results: the first `share` of the questions right."""
    right = round(share * count)
    rows = [{"id": f"q{start + i}", "correct": int(i < right)} for i in range(count)]
    cost = {"questions": questions, "generated_tokens": 100 * questions, "flops": 1e9 * questions}
    values = {"method": method, "seed": seed, "cost": cost, "sets": {"test": {"rows": rows, **set_fields}}}
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
    assert compare(read_results(grid), accuracy=0.99).reaches == ()


def test_crossing_is_the_first_one():
    costs, nan = np.array([10.0, 100.0, 1000.0]), np.inf
    values = np.array([[0.0, 0.9, 0.0, 0.6], [1.0, 0.0, 0.1, 0.4], [0.0, 1.0, 0.2, 0.8]])
    expected = [10**1.5, 10.0, nan, 10.0]
    assert crossing(costs, values, 0.5) == pytest.approx(expected)


def test_the_bootstrap_of_seeds_and_questions_is_that_of_a_crossed_design():
    random = np.random.default_rng(0)
    one_seed = (random.random((1, 200)) < 0.4).astype(float)
    spread = bootstrap_seeds_and_questions([one_seed], resamples=4000)[0].std()
    assert spread == pytest.approx(one_seed.std() / 200**0.5, rel=0.05)
    seeds = np.repeat(random.random((6, 1)), 200, axis=1)  # questions do not matter at all
    assert bootstrap_seeds_and_questions([seeds], resamples=4000)[0].std() == pytest.approx(
        seeds[:, 0].std() / 6**0.5, rel=0.05
    )
    same = bootstrap_seeds_and_questions([one_seed, one_seed - 0.1], resamples=50)
    assert same[0] - same[1] == pytest.approx(np.full(50, 0.1))  # questions are shared: paired


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
    assert [(r.method, r.seed) for r in read_results([tmp_path / "study", other])] == [("a", 0), ("a", 1), ("b", 0)]


def test_other_grading_and_missing_questions_are_said(tmp_path):
    one = results_file(tmp_path / "a.json", "a", 0.5, graded={"math-verify": "0.9.0"})
    other = results_file(tmp_path / "b.json", "b", 0.5, start=10, graded={"math-verify": "0.8.0"})
    result = run(one, other)
    assert result.exit_code == 0, result.output
    assert "only the 30 of 50 questions" in result.stderr
    assert "graded differently: math-verify is 0.9.0 in" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sets": {"test": {"rows": [{"id": "q", "correct": 1}] * 2}}}, "'q'; keep one row a question"),
        ({"sets": {"test": {"rows": [{"id": "q", "correct": 7}]}}}, "share of a question's samples"),
        ({"sets": {"test": {"rows": [{"id": "q"}]}}}, "expected results as JSON"),
        ({"rows": []}, "expected results as JSON"),
        ({"sets": {}}, "found none"),
        ({"sets": {"test": {"rows": [{"id": "q", "correct": 1}]}}, "cost": {"euros": 1}}, "cost has euros"),
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


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = results_file(tmp_path / "a.json", "a", 0.5)
    with pytest.raises(SsbError, match="both have a, seed 0, on test"):
        read_results([one, results_file(tmp_path / "b.json", "a", 0.7)])
    with pytest.raises(SsbError, match="no question in common"):
        compare(read_results([one, results_file(tmp_path / "c.json", "c", 0.5, start=1000)]))
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
