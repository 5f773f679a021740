"""The process that a hostile answer may hurt; `pool` starts it.

It is a nursery: it imports sympy once and never reads an answer. For each socket that it was given it
forks a grader, which limits its own CPU time, memory, files and processes, forbids itself files, sockets, processes
and code (see `enter_sandbox`), and then answers requests. When a grader dies, the nursery says how on its socket and
forks the next one, in some ten milliseconds. Messages are lines of JSON.

    pool -> grader    {"answer": ..., "gold": ...}
    grader -> pool    {"ready": pid}, then {"outcome": ..., "reason": ...} to each request
    nursery -> pool   {"died": signal}
"""

import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ssb_jax.records import Outcome

SETUP_FAILED = 3
RECYCLED = 4
MEMORY_LIMIT = "memory limit"
REQUESTS_PER_GRADER = 2000  # the parser's caches grow: a fresh grader keeps the memory flat

_ALLOWED_EVENTS = {"import", "marshal.load", "marshal.loads", "sys._getframe", "sys._getframemodulename"}
_ALLOWED_EVENTS |= {"object.__getattr__", "object.__setattr__", "object.__delattr__", "builtins.id", "time.sleep"}
_ALLOWED_EVENTS |= {"gc.get_referrers", "gc.get_referents", "gc.get_objects", "array.__new__", "sys.unraisablehook"}
_CODE_EVENTS = {"exec", "compile", "code.__new__", "function.__new__"}
_POLYNOMIALS = os.path.join("sympy", "polys", "monomials.py")
_MEMORY_AT_LEAST = 64 << 20  # bytes that a grader must be able to allocate
_MANY_DESCRIPTORS = 4096
_CPU_SLACK = 1  # seconds of CPU time over the wall clock limit, which should have ended it before


def main() -> int:
    """Runs the nursery until the pool closes its sockets."""
    settings = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    _warm_up()
    sockets: dict[int, int] = {}
    for descriptor in settings["descriptors"]:
        sockets[_fork_grader(descriptor, settings)] = descriptor
    while sockets:
        pid, status = os.wait()
        descriptor = sockets.pop(pid, None)
        if descriptor is None:
            continue
        code = os.waitstatus_to_exitcode(status)
        if code == SETUP_FAILED:
            return SETUP_FAILED
        if code not in (0, RECYCLED):
            _send(descriptor, {"died": -code})
        if code != 0:
            sockets[_fork_grader(descriptor, settings)] = descriptor
    return 0


def _warm_up() -> None:
    """Imports what grading needs and runs through the branches that import lazily."""
    from ssb_jax.answers.grading import grade_fully

    pairs = [
        (r"\frac{\sqrt{3}}{2} + \sin 1", r"\frac{3}{2\sqrt{3}} + \sin 1"),
        ("x^2 + 2x + 1", "(x+1)^2"),
        ("(1, 2]", r"1 < x \le 2"),
        (r"(-\infty, 1) \cup (2, \infty)", "x<1, x>2"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1, 2)"),
        ("y = 2x + 3", "2x - y + 3 = 0"),
        (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
        (r"\binom{5}{2} + 3! + \sum_{k=1}^{3} k", "22"),
    ]
    for gold, answer in pairs:
        grade_fully(answer, gold)


def _fork_grader(descriptor: int, settings: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        try:
            enter_sandbox(descriptor, memory_limit=settings["memory_limit"])
            bytearray(_MEMORY_AT_LEAST)
        except (OSError, MemoryError):
            os._exit(SETUP_FAILED)
        code = _serve(descriptor, settings["time_limit"])
    finally:
        os._exit(code)  # not the nursery's clean-up, whatever happened


def enter_sandbox(descriptor: int | None, *, memory_limit: int) -> None:
    """Gives up, for the rest of this process's life, all that grading does not need.

    Resource limits: address space, no file may be written, no process started, few files open, no core dump. An audit
    hook refuses every event that is not on a short list: opening files (but for reading Python's own modules),
    sockets, processes, signals, ctypes, and compiling or executing code (but for importing installed modules).
    """
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    kept = 2 if descriptor is None else descriptor
    os.closerange(3, kept)
    os.closerange(kept + 1, _MANY_DESCRIPTORS)
    limits = [(resource.RLIMIT_AS, memory_limit), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)]
    limits += [(resource.RLIMIT_NPROC, 0), (resource.RLIMIT_NOFILE, 64)]
    for limit, value in limits:
        resource.setrlimit(limit, (value, value))
    os.environ.clear()
    libraries = tuple(str(Path(path).resolve()) + os.sep for path in sys.path if path) + tuple(
        str(Path(path)) + os.sep for path in (sys.prefix, sys.base_prefix)
    )
    sys.addaudithook(_refuser(libraries))


def _refuser(libraries: tuple[str, ...]):
    def refuse(event: str, arguments: tuple) -> None:
        if event in _ALLOWED_EVENTS:
            return
        if event == "open" and _is_library(arguments, libraries):
            return
        if event == "os.listdir" and f"{arguments[0]}{os.sep}".startswith(libraries):
            return
        if event in _CODE_EVENTS and _may_make_code():
            return
        if event == "resource.setrlimit" and arguments[0] == resource.RLIMIT_CPU:
            return
        raise PermissionError(f"a grader may not: {event}")

    return refuse


def _is_library(arguments: tuple, libraries: tuple[str, ...]) -> bool:
    """Whether an `open` event reads one of Python's own modules."""
    path, mode, flags = arguments
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    if not isinstance(path, str) or (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & writes:
        return False
    return path.endswith((".py", ".pyc", ".so")) and ".." not in path and path.startswith(libraries)


def _may_make_code() -> bool:
    """Whether code is made by the import system, a module that is being imported, or sympy's polynomials.

    (These compile loops over exponents, without a word of an answer in them.)
    """
    frame = sys._getframe(2)
    if frame.f_code.co_filename.endswith(_POLYNOMIALS):
        return True
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _serve(descriptor: int, time_limit: float) -> int:
    """Answers requests; the kernel ends the process when one takes longer than the limit."""
    from ssb_jax.answers.grading import grade_fully

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _send(descriptor, {"ready": os.getpid()})
    for served, request in enumerate(_lines(descriptor)):
        message = json.loads(request)
        _limit_cpu(time_limit)
        signal.setitimer(signal.ITIMER_REAL, time_limit)
        try:
            outcome, reason = grade_fully(message["answer"], message["gold"])
        except MemoryError:
            outcome, reason = Outcome.FAILED, MEMORY_LIMIT
        except PermissionError as error:
            outcome, reason = Outcome.FAILED, str(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(descriptor, {"outcome": outcome.value, "reason": reason[:300]})
        if served + 1 >= REQUESTS_PER_GRADER or reason == MEMORY_LIMIT:
            return RECYCLED
    return 0


def _limit_cpu(seconds: float) -> None:
    """Lets the process use some more CPU time: the second line behind the timer."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    ceiling = int(time.process_time()) + int(seconds) + 1 + _CPU_SLACK
    resource.setrlimit(resource.RLIMIT_CPU, (ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard), hard))


def _lines(descriptor: int) -> Iterator[bytes]:
    """The lines that arrive, until the other end closes. One request is under way at a time: nothing is read ahead."""
    pending = b""
    while chunk := os.read(descriptor, 65536):
        pending += chunk
        while b"\n" in pending:
            line, pending = pending.split(b"\n", 1)
            if line:
                yield line


def _send(descriptor: int, message: dict) -> None:
    try:
        os.write(descriptor, b"\n" + json.dumps(message).encode() + b"\n")  # ends a line cut off by a death
    except (BrokenPipeError, ConnectionResetError):
        return  # the pool is gone; the next read ends this process
