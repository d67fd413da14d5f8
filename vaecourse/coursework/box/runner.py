"""Runs beside student code: it executes their cells, then answers calls with plain numbers.

It is started as ``box.runner`` in a sandbox that hides the package, so it and its two neighbours
`calls` and `values` import nothing of the package but each other.  They hold no secret and decide no
mark: students who take them over can make them say anything, but they still need the right numbers
for inputs that were drawn outside.

It reads JSON lines from standard input, the first of which is the job::

    {"cells": [[NAME, SOURCE], ...], "limits": {...}}

Every other line is a call (see `calls.answer`) with an ``id``, a ``task`` and a ``group``; calls of a
group share a process and its objects.  The runner writes one JSON line per call to standard output;
for student code, standard output is connected to standard error.
"""

import ast
import contextlib
import gc
import json
import math
import os
import re
import signal
import sys
import traceback
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from .calls import answer

if sys.platform != "win32":
    import resource

MAX_MESSAGE = 300
CELL = "notebook cell: "
FINISHED = 42


class TimeIsUp(BaseException):
    """A cell took too long.  It is not an Exception, so `except Exception` does not catch it."""


# ---- also used on a student's own machine ----


def notebook_module() -> types.ModuleType:
    """Return a fresh module ``__main__``, where classes defined in cells can be found, as in a notebook."""
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    return module


def run_cell(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Execute the source of one cell; lines that only IPython understands are ignored."""
    name = f"{CELL}{name}"
    try:
        tree = ast.parse(source, name)
    except SyntaxError:
        tree = ast.parse(re.sub(r"(?m)^([ \t]*)[%!].*", r"\1pass", source), name)
    exec(compile(tree, name, "exec"), namespace)


def describe(error: BaseException) -> str:
    """Return the type and first line of an error, and the student's line that raised it."""
    try:
        text = str(error).strip().partition("\n")[0]
    except BaseException:  # an exception class of the student's
        text = "(its message could not be made)"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if (file := frame.f_code.co_filename).startswith(CELL):
            place = f" (line {line} of {file.removeprefix(CELL)})"
    return f"{type(error).__name__}{': ' if text else ''}{text}"[:MAX_MESSAGE] + place


def answers(calls: Iterable[dict[str, Any]], namespace: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the answers to calls; calls of a group share their objects."""
    objects: dict[str, dict[str, Any]] = defaultdict(dict)
    for call in calls:
        try:
            told = answer(call, namespace, objects[call["group"]])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            told = {"error": describe(error)}
        yield {"id": call.get("id"), **told}


# ---- inside the box ----


def run_cells(cells: list[list[str]], seconds: float, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Execute named cells, each for at most so many seconds, and return the failures.

    The first cell is the grader's own and has no limit: it imports torch, which is slow on a busy machine.
    """
    failed = []
    gc.disable()  # until the first cell is done: it takes an eighth of the time of importing torch
    for number, (name, source) in enumerate(cells):
        try:
            with _timer(seconds if number else 0):
                run_cell(source, name, namespace)
        except BaseException as error:  # SystemExit and TimeIsUp too: the other cells are still run
            failed.append({"cell": name, "error": describe(error)})
        finally:
            gc.enable()
    return failed


@contextlib.contextmanager
def _timer(seconds: float) -> Iterator[None]:
    """Raise TimeIsUp in a block that takes longer; 0 means no limit."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _time_is_up(signum: int, frame: object) -> NoReturn:
    raise TimeIsUp("it took too long")


def set_limits(limits: dict[str, Any]) -> None:
    """Limit each process in here; the watch outside looks at what they use together.

    A limit of 0 means no limit.
    """
    for name, value in (
        (resource.RLIMIT_CPU, math.ceil(limits["cpu"]) + 2),  # a little later than the parent
        (resource.RLIMIT_AS, limits["address_space"]),
        (resource.RLIMIT_FSIZE, limits["scratch"]),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        if value:
            resource.setrlimit(name, (value, value))


def say(results: int, told: dict[str, Any]) -> None:
    """Write one line of the results."""
    rest = (json.dumps(told) + "\n").encode()
    while rest:
        rest = rest[os.write(results, rest) :]


def say_from_a_child(results: int, lines: Iterable[dict[str, Any]], seconds: float) -> str | None:
    """Compute lines and write them in a forked process; return "timeout", "ended" or None."""
    child = os.fork()
    if child == 0:
        try:
            for told in lines:
                say(results, told)
        except BaseException:
            os._exit(1)
        os._exit(FINISHED)  # student code that exits does not know this status, or has no use for it
    try:
        with _timer(seconds):
            status = os.waitpid(child, 0)[1]
    except TimeIsUp:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "timeout"
    return None if os.waitstatus_to_exitcode(status) == FINISHED else "ended"


def main() -> None:
    """Serve one job."""
    results = os.dup(1)
    os.dup2(2, 1)
    job, *calls = [json.loads(line) for line in sys.stdin.buffer]
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    set_limits(job["limits"])
    signal.signal(signal.SIGALRM, _time_is_up)
    namespace = notebook_module().__dict__
    failed = run_cells(job["cells"], job["limits"]["cell"], namespace)
    say(results, {"failed_cells": failed[:50]})
    if any("optimizer" in call.get("make", {}) for call in calls):
        import torch  # which imports much more for its first optimizer: better once, before forking

        torch.optim.SGD([torch.zeros(1)])
    given_up = set()
    for (task, _), group in groupby(calls, lambda call: (call["task"], call["group"])):
        if task in given_up:
            continue
        problem = say_from_a_child(results, answers(list(group), namespace), job["limits"]["task"])
        if problem:
            given_up.add(task)
            say(results, {"task": task, "problem": problem})
    say(results, {"done": True})
    os._exit(0)


if __name__ == "__main__":
    main()
