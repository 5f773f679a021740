"""`ssb report` in a real headless browser: one file that asks nobody, walks, filters, and shows text as text."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ssb_jax.artifacts import complete, write_atomically, write_jsonl
from ssb_jax.cli import main
from ssb_jax.records import Hint, Lesson, Outcome, Pair, Question, Rollout, StopReason, Verdict
from ssb_jax.report import page
from ssb_jax.report.tokens import CACHE, made_from

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = (
    "</script><script>window.broken = 1</script><img src=http://example.invalid/x onerror='window.broken = 1'>"
    "<style>body { display: none }</style>\u2028<!-- {{ 7 * 7 }} &lt;b&gt; <svg onload=window.broken=1>"
)


def stage(folder, name, filename, rows, **counts):
    def make():
        write_jsonl(folder / name / filename, rows)
        return counts

    complete(folder / name, stage=name, made_from={}, make=make)


def run_folder(folder, *, finished=True):
    """A run of three questions, written by hand: one becomes a pair, one has no wrong answer, one has no right one."""
    settings = "model: {path: builtin:tiny}\nquestions: {path: q.jsonl}\n"
    settings += "evaluation: {sets: [{name: test, data: {path: t.jsonl}}]}\n"
    write_atomically(folder / "config.yaml", settings)
    questions = [Question(f"q{i}", f"Question {i}? {HOSTILE}", str(i)) for i in range(3)]
    stage(folder, "questions", "questions.jsonl", questions, questions=3)
    outcomes = {"q0": ("correct", "incorrect"), "q1": ("correct", "correct"), "q2": ("incorrect", "unanswered")}
    rollouts, verdicts = [], []
    for key, both in outcomes.items():
        for sample, outcome in enumerate(both):
            rollouts.append(Rollout(key, sample, f"{HOSTILE} \\boxed{{1}}", (1, 2, 3), StopReason.END_OF_TURN, 9))
            verdicts.append(Verdict(key, sample, Outcome(outcome), HOSTILE, HOSTILE, False, 3))
    stage(folder, "blocks/0000/rollouts", "part-00000.jsonl", rollouts)
    stage(folder, "blocks/0000/verification", "verdicts.jsonl", verdicts)
    hints = [
        Hint("q0", None, 0, 1, HOSTILE, HOSTILE, HOSTILE, 1),
        Hint("q1", "no_incorrect"),
        Hint("q2", "no_correct"),
    ]
    counts = {"questions": 3, "mixed": 1, "no_incorrect": 1, "no_correct": 1}
    stage(folder, "blocks/0000/hints", "hints.jsonl", hints, **counts)
    if not finished:
        return
    lesson = Lesson("q0", HOSTILE, Outcome.CORRECT, "0", "exact string", None, PAIR)
    stage(folder, "blocks/0000/teaching", "lessons.jsonl", [lesson], hinted=1, pairs=1)
    stage(folder, "pairs", "pairs.jsonl", [PAIR], pairs=1)
    stage(folder, "targets", "targets", [])
    steps = [{"step": i, "loss": 1 / i, "grad_norm": 0.5, "reply_length": 40.0 + i, "kl": 0.1} for i in range(1, 30)]
    stage(folder, "distillation", "metrics.jsonl", steps, seconds=1.0)
    graded = {"outcome": "correct", "extracted": "7", "reason": HOSTILE, "text": HOSTILE, "tokens": 3, "strict": True}
    rows = [
        {"id": "t0", "question": HOSTILE, "answer": HOSTILE, "level": "5"}
        | {"answers": {"base": [graded | {"outcome": "truncated"}], "ssb": [graded]}}
    ]
    accuracy = {name: {"pass@1": {"value": v, "low": v, "high": v}} for name, v in (("base", 0.0), ("ssb", 1.0))}
    found = {
        "paired": {"ssb": {"better": 1, "worse": 0, "equal": 0, "p_value": 1.0}},
        "format": {"base": {"boxed": 0.0, "never_boxed": 0, "truncated": 1}},
        "strict": {"base": {"changed": 1}},
        "shared_with_training": ["t0"],
    }
    found |= {"questions": 1, "metrics": accuracy, "differences": {"ssb": accuracy["ssb"]}, "rows": rows}
    write_atomically(folder / "evaluation/results.json", json.dumps({"sets": {"test": found}}))


PAIR = Pair("q0", f"Question 0? {HOSTILE}", "0", HOSTILE, (1,), (1,), (1, 2, 3), True)
SHADED = [["One", 0.0004, [["One", 0.99], [HOSTILE, 0.01]], [["One", 0.9], ["Two", 0.1]]], [" two", 1.5, [], []]]


def report(*folders, out):
    return CliRunner().invoke(main, ["report", *map(str, folders), "--out", str(out)])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a finished run whose tokens an earlier report has shaded."""
    folder = tmp_path_factory.mktemp("report")
    run_folder(folder / "run")
    shaded = {"made_from": made_from(folder / "run", [PAIR]), "tokens": {"q0": SHADED}}
    write_atomically(folder / "run" / CACHE, json.dumps(shaded))
    result = report(folder / "run", out=folder / "report.html")
    assert result.exit_code == 0, result.output
    return folder / "report.html"


def test_the_file_names_no_address_and_its_policy_allows_none(written):
    text = written.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    attributes = re.findall(
        r"""(?:src|href|action|poster|srcset)\s*=\s*["']?([^"'\s>]*)""", re.sub(r"&\S+?;", "", text)
    )
    outside = [a for a in attributes if not a.startswith(("data:", "#"))]
    assert all("example.invalid" in a for a in outside), "only in what a model wrote, as text"
    assert text.count("<script") == 2  # the data and the page's own


def test_what_lies_behind_an_accuracy_is_said(written):
    text = written.read_text()
    for part in ("on 1 questions, less often on 0: p = 1", "0.0 % of the replies have a boxed answer (0 never boxed"):
        assert part in text
    assert "1 of these questions are training questions too" in text


def test_an_unfinished_run_says_what_is_missing(tmp_path):
    run_folder(tmp_path / "run", finished=False)
    result = report(tmp_path / "run", out=tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text()
    for sentence in ("pairs are not complete", "adapter is not trained", "not evaluated yet on test", "No step is"):
        assert sentence in text


def test_a_folder_that_is_no_run_is_one_error(tmp_path):
    result = report(tmp_path, out=tmp_path / "report.html")
    assert result.exit_code == 1
    assert "is no run folder: it has no config.yaml" in result.stderr
    assert not (tmp_path / "report.html").exists()


def seeded_runs(folder, names):
    """Finished runs that differ by their seed, without targets, so that no reply is shaded."""
    for seed, name in enumerate(names):
        run_folder(folder / name)
        path = folder / name / "evaluation/results.json"
        cost = {"questions": 3, "generated_tokens": 9}
        write_atomically(path, json.dumps(json.loads(path.read_text()) | {"seed": seed, "cost": cost}))
        (folder / name / "targets" / "manifest.json").unlink()


def test_several_runs_are_compared(tmp_path):
    seeded_runs(tmp_path, "ab")
    result = report(tmp_path / "a", tmp_path / "b", out=tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text()
    assert "intervals over questions, and over seeds" in text
    assert "<h1>a, b</h1>" in text


def test_a_study_stands_for_its_cells(tmp_path):
    """Also one that goes on, with a cell not begun yet; many runs are named by their number."""
    seeded_runs(tmp_path / "study/cells", "abcdefgh")
    run_folder(tmp_path / "study/cells/later", finished=False)
    (tmp_path / "study/cells/not-begun").mkdir()
    write_atomically(tmp_path / "study/config.yaml", "model: {path: builtin:tiny}\nquestions: {path: q.jsonl}\n")
    result = report(tmp_path / "study", out=tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text()
    assert "<h1>9 runs</h1>" in text
    assert "<b>later is not complete.</b>" in text
    assert re.search(r'<th scope="row">ssb</th><td>8</td>', text), "eight seeds of one method"


def test_a_study_without_cells_is_one_error(tmp_path):
    (tmp_path / "cells").mkdir()
    result = report(tmp_path, out=tmp_path / "report.html")
    assert result.exit_code == 1
    assert "of which nothing has begun" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("metrics"), "sets.test.metrics: field required"),
        (lambda found: found["metrics"].clear(), "expected pass@1 of one model at least"),
        (lambda found: found["metrics"]["ssb"].clear(), "expected pass@1 of one model at least"),
        (lambda found: found["rows"][0]["answers"]["ssb"].clear(), "rows.0.answers.ssb: list should have at least 1"),
        (lambda found: found["metrics"]["ssb"]["pass@1"].update(value=None), "ssb.pass@1.value: input should be"),
        (lambda found: found["strict"].clear(), "expected strict of the models that format speaks of"),
    ],
)
def test_odd_results_are_one_error(change, message, tmp_path):
    run_folder(tmp_path / "run")
    path = tmp_path / "run/evaluation/results.json"
    values = json.loads(path.read_text())
    change(values["sets"]["test"])
    path.write_text(json.dumps(values))
    result = report(tmp_path / "run", out=tmp_path / "report.html")
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert "run `ssb eval` again" in result.stderr


def test_a_run_of_rounds_stands_for_its_rounds(tmp_path):
    for number in (1, 2):
        run_folder(tmp_path / f"run/rounds/0{number}")
    result = report(tmp_path / "run", out=tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert "ssb, round 2" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--force-prefers-reduced-motion",
    ):
        options.add_argument(argument)
    options.add_argument("--window-size=1200,900")
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def test_a_reader_walks_filters_and_hovers_and_nothing_leaves_the_file(browser, written):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    def find(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    def position():
        return find("#position").text

    browser.get(written.as_uri())
    # Hostile text is text: all of it is visible, none of it became an element or ran.
    assert HOSTILE.split("\u2028")[0] in find("#question .problem").text.replace("\n", "")
    assert browser.execute_script("return window.broken") is None
    assert browser.find_elements(By.CSS_SELECTOR, "#question img, #question script, #question style") == []
    # Walking, by keys and by buttons.
    assert position() == "1 of 4"
    press(Keys.ARROW_RIGHT)
    assert position() == "2 of 4"
    find("#next").click()
    assert position() == "3 of 4"
    press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert position() == "1 of 4"
    # Tokens: shaded by KL; hover and focus show what both models would have said.
    first, second = browser.find_elements(By.CSS_SELECTOR, ".token")
    assert ("k0" in first.get_attribute("class"), "k5" in second.get_attribute("class")) == (True, True)
    ActionChains(browser).move_to_element(first).perform()
    assert find("#tip").is_displayed()
    assert "KL 0.0004" in find("#tip").text
    assert "<img" in find("#tip").text
    first.click()
    press(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element == second
    assert position() == "1 of 4"  # the arrow moved the token, not the question
    assert "KL 1.5000" in find("#tip").text
    press(Keys.ESCAPE)
    assert not find("#tip").is_displayed()
    # Filters.
    Select(find("#verdict")).select_by_value("unanswered")
    assert (position(), "Question 2?" in find("#question").text) == ("1 of 1", True)
    Select(find("#verdict")).select_by_value("any")
    Select(find("#set")).select_by_value("test")
    assert "level 5" in find("#question .meta").text
    # An example of a dropped question leads to it.
    summary = find(".drops summary")
    summary.click()
    find(".drops button").click()
    assert "no_" in find("#question .meta").text
    # Nothing was asked of anybody, and the policy had nothing to stop.
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file")] == [written.as_uri()]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_its_window(browser, written, width):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(written.as_uri())
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [
        width,
        True,
    ]


def test_text_stands_out_from_its_ground():
    """Contrast of at least 4.5 : 1 (WCAG 2.2, 1.4.3) of the page's text colours, and of ink on every shade."""
    css = (Path(page.__file__).parent / "page.css").read_text()
    named = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", css))
    shades = re.findall(r"\.k\d \{ background: (#[0-9a-f]{6})", css)
    assert len(shades) == 5

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for name in ("ink", "soft", "accent", "correct", "incorrect", "other"):
        for ground in (named["paper"], named["ground"], "#f3faf5", "#fdf5f4"):
            assert contrast(named[name], ground) >= 4.5, (name, ground)
    for shade in shades:
        assert contrast(named["ink"], shade) >= 4.5
