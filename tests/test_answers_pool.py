"""The pool: order, limits, replacement of graders, and what a grader cannot do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssb_jax.answers import GraderPool, Outcome

TOWER = r"\boxed{9^{9^{9^{9^{9}}}}}"
ALGEBRA = (r"\boxed{\frac{2\sqrt{3}}{2} + 1}", r"\sqrt{3}+1")  # needs a grader, and is right


@pytest.fixture(scope="module")
def pool():
    with GraderPool(workers=2) as pool:
        yield pool


def test_grades_come_back_in_order_and_as_they_are_known(pool):
    taken = []

    def endless():
        i = 0
        while True:
            taken.append(i)
            response, gold = ALGEBRA if i % 7 == 0 else (f"\\boxed{{{i}}}", str(i if i % 2 else i + 1))
            yield i, response, gold, False
            i += 1

    grades = pool.grade_many(endless())
    for i in range(300):
        key, grade = next(grades)
        assert key == i
        assert (grade.outcome is Outcome.CORRECT) == (i % 7 == 0 or i % 2 == 1)
    assert len(taken) < 300 + 200  # reads ahead, but not far
    grades.close()
    assert pool.grade(*ALGEBRA).outcome is Outcome.CORRECT  # what was under way does not disturb the next call


def test_a_time_out_is_its_own_outcome_and_comes_within_two_seconds(pool):
    deaths = pool.facts.deaths
    for _ in range(3):
        started = time.monotonic()
        grade = pool.grade(TOWER, "42")
        assert grade.outcome is Outcome.TIMEOUT
        assert "time limit" in grade.reason
        assert time.monotonic() - started < 2.0
        started = time.monotonic()
        assert pool.grade(*ALGEBRA).outcome is Outcome.CORRECT
        assert time.monotonic() - started < 2.0
    assert pool.facts.deaths == deaths + 3


def test_time_outs_do_not_touch_the_others(pool):
    items = [(i, *((TOWER, "42") if i % 10 == 5 else ALGEBRA), False) for i in range(40)]
    outcomes = [grade.outcome for _, grade in pool.grade_many(items)]
    assert outcomes == [Outcome.TIMEOUT if i % 10 == 5 else Outcome.CORRECT for i in range(40)]


def test_a_grader_killed_from_outside_is_replaced_and_its_answer_graded_again(pool):
    killed = []

    def items():
        for i in range(20):
            if i >= 5 and not killed:
                for pid in [slot.pid for slot in pool._slots if slot.pid is not None]:
                    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself: then the next one
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                        break
            yield i, *ALGEBRA, False

    assert [grade.outcome for _, grade in pool.grade_many(items())] == [Outcome.CORRECT] * 20
    assert killed
    assert pool.grade(*ALGEBRA).outcome is Outcome.CORRECT
    assert all(not Path(f"/proc/{pid}").exists() for pid in killed)


def test_a_stopped_grader_is_killed_from_the_pool():
    """Its own timer cannot end a stopped process: the pool's deadline does."""
    with GraderPool(workers=1, time_limit=0.5) as pool:
        os.kill(pool._slots[0].pid, signal.SIGSTOP)
        started = time.monotonic()
        assert pool.grade(*ALGEBRA).outcome is Outcome.TIMEOUT
        assert time.monotonic() - started < 1.5
        assert pool.grade(*ALGEBRA).outcome is Outcome.CORRECT


def test_the_pool_survives_the_death_of_its_nursery():
    with GraderPool(workers=1) as pool:
        assert pool.grade(*ALGEBRA).outcome is Outcome.CORRECT
        os.killpg(pool._nursery.pid, signal.SIGKILL)
        assert pool.grade(*ALGEBRA).outcome is Outcome.CORRECT
        assert pool.facts.nursery_starts == 2


def test_a_nursery_killed_while_it_starts_is_started_again(monkeypatch):
    real, starts = GraderPool._start, []

    def start(self):
        real(self)
        starts.append(self._nursery.pid)
        if len(starts) == 1:
            os.kill(self._nursery.pid, signal.SIGKILL)

    monkeypatch.setattr(GraderPool, "_start", start)
    with GraderPool(workers=1) as pool:
        assert pool.grade(*ALGEBRA).outcome is Outcome.CORRECT
        assert len(starts) == 2


def test_memory_is_limited():
    with GraderPool(workers=1, time_limit=20, memory_limit=400 << 20) as pool:
        grade = pool.grade(r"\boxed{((2^{9999})^{9999})^{99}}", "42")
        assert grade.outcome is Outcome.FAILED
        assert "memory limit" in grade.reason
        assert pool.grade(*ALGEBRA).outcome is Outcome.CORRECT


def test_a_memory_limit_that_is_too_small_is_said():
    with pytest.raises(RuntimeError, match="memory_limit is too small"):
        GraderPool(workers=1, memory_limit=1 << 20).__enter__()


def test_no_process_is_left_behind():
    with GraderPool(workers=2) as pool:
        pids = [pool._nursery.pid, *(slot.pid for slot in pool._slots)]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_graders_end_when_the_run_is_killed():
    program = (
        "import os, signal; from ssb_jax.answers import GraderPool\n"
        "pool = GraderPool(workers=1).__enter__()\n"
        "print(pool._nursery.pid, pool._slots[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in run.stdout.split()]
    assert run.returncode == -signal.SIGKILL
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_graders_hold_no_secrets(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret-9b1f")
    with GraderPool(workers=1) as pool:
        for pid in (pool._nursery.pid, pool._slots[0].pid):
            assert b"secret-9b1f" not in Path(f"/proc/{pid}/environ").read_bytes()
            assert b"secret-9b1f" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        opened = [os.readlink(link) for link in Path(f"/proc/{pool._slots[0].pid}/fd").iterdir()]
    assert sorted({name.split(":")[0] for name in opened}) == ["/dev/null", "socket"]
    assert sum(name.startswith("socket") for name in opened) == 1


ATTEMPTS = {
    "write a file": "open('{canary}', 'w').write('x')",
    "write through os": "os.open('{canary}', os.O_WRONLY | os.O_CREAT)",
    "append to a module": "open(os.__file__, 'a')",
    "read a file": "open('/etc/passwd').read()",
    "read the environment of its parent": "open(f'/proc/{{os.getppid()}}/environ', 'rb').read()",
    "list a folder": "os.listdir('/')",
    "remove a file": "os.remove('{canary}')",
    "make a folder": "os.mkdir('{canary}')",
    "rename": "os.rename('/tmp/a', '/tmp/b')",
    "link": "os.symlink('/etc/passwd', '{canary}')",
    "run a shell": "os.system('touch {canary}')",
    "run a program": "subprocess.run(['touch', '{canary}'])",
    "spawn": "os.posix_spawn('/usr/bin/touch', ['touch', '{canary}'], {{}})",
    "become a program": "os.execv('/usr/bin/touch', ['touch', '{canary}'])",
    "fork": "os.fork()",
    "open a socket": "socket.socket()",
    "resolve a name": "socket.getaddrinfo('example.org', 80)",
    "connect": "socket.create_connection(('127.0.0.1', 9))",
    "load a library": "ctypes.CDLL(None)",
    "eval": "eval('1 + 1')",
    "exec": "exec('x = 1')",
    "compile": "compile('1', 'x', 'eval')",
    "make code": "(lambda: 0).__code__.replace(co_name='x')",
    "unpickle": "pickle.loads(pickle.dumps(os.getpid))",
    "kill": "os.kill(os.getppid(), 0)",
    "lift the memory limit": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "map memory": "mmap.mmap(-1, 10)",
    "parse through sympy": "sympy.sympify('1 + 1')",
    "read an expression with eval": "sympy.Number('12')",
}


def test_a_grader_may_not_touch_files_network_processes_or_code(tmp_path):
    canary = tmp_path / "canary"
    results = _in_sandbox({name: code.format(canary=canary) for name, code in ATTEMPTS.items()})
    allowed = {
        name: result for name, result in results.items() if not result.startswith("PermissionError: a grader may")
    }
    assert allowed == {}
    assert set(results) == set(ATTEMPTS)
    assert not canary.exists()


def test_what_grading_needs_still_works_in_the_sandbox():
    grading = "str(grade_fully('x^2+2x+1', '(x+1)^2')[0])"
    results = _in_sandbox(
        {"grade": grading, "late import": "__import__('colorsys').__name__", "environment": "dict(os.environ)"}
    )
    assert results == {"grade": "returned correct", "late import": "returned colorsys", "environment": "returned {}"}


def _in_sandbox(attempts: dict[str, str]) -> dict[str, str]:
    """Runs Python expressions in a process that entered a grader's sandbox; their results by name."""
    lines = [
        "import ctypes, json, mmap, os, pickle, resource, socket, subprocess, sympy, sys",
        "from ssb_jax.answers.worker import _warm_up, enter_sandbox",
        "from ssb_jax.answers.grading import grade_fully",
        "out = os.dup(1)",
        "_warm_up()",
        "enter_sandbox(out, memory_limit=1 << 30)",
        "results = {}",
    ]
    for name, code in attempts.items():
        lines += [
            "try:",
            f"    results[{name!r}] = f'returned {{{code}}}'" if "'" not in code else f"    value = {code}",
        ]
        lines += ["" if "'" not in code else f"    results[{name!r}] = f'returned {{value}}'"]
        lines += ["except BaseException as error:", f"    results[{name!r}] = f'{{type(error).__name__}}: {{error}}'"]
    lines += ["os.write(out, json.dumps(results).encode())"]
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_grading_imports_no_jax():
    program = (
        "import sys, ssb_jax.answers, ssb_jax.answers.worker, ssb_jax.answers.equivalence; print('jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_throughput_of_plain_answers(pool):
    items = [(i, f"{'Some reasoning. ' * 40}The answer is $\\boxed{{\\${i:,}}}$.", str(i), False) for i in range(3000)]
    started = time.monotonic()
    outcomes = {grade.outcome for _, grade in pool.grade_many(items)}
    seconds = time.monotonic() - started
    assert outcomes == {Outcome.CORRECT}
    assert len(items) / seconds >= 500, f"{len(items) / seconds:.0f} answers a second"
