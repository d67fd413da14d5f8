"""Grades one submission: its code cells go into a box, with calls whose inputs come from a fresh seed.

The answers are judged outside.  A task that brings the box down (by using too much memory, say) loses
its points, and the box is started again with the other tasks.
"""

import contextlib
import json
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any, NamedTuple

import vaecourse.coursework.tasks  # noqa: F401  (the sets register their tasks)
from vaecourse.coursework.box import runner
from vaecourse.coursework.box.sandbox import run
from vaecourse.coursework.box.watching import Limits, Outcome
from vaecourse.coursework.intake import Cell, Submission
from vaecourse.coursework.oracle import SETUP, TASKS, Check, Draw, Mark, Task, clean, told, verdict_of

PROBLEMS = {
    "timeout": "timeout: it ran out of time",
    "memory": "memory: it used more than {memory} MB",
    "output": "output: it printed more than {output} MB",
    "result": "malformed: it answered with more than {result} MB",
    "stopped": "stopped: grading was stopped",
    "ended": "error: the process ended before it could answer",
}
UNSOUND = "malformed: the result is not what the runner writes"


class Grades(NamedTuple):
    """The marks of one submission, with everything else worth keeping."""

    student: str
    assignment: str
    marks: tuple[Mark, ...]
    digest: str
    seed: int
    failed_cells: tuple[str, ...]
    remark: str
    seconds: float

    @property
    def score(self) -> float:
        """Points earned."""
        return sum(mark.score for mark in self.marks)

    @property
    def max_score(self) -> float:
        """Points possible."""
        return sum(mark.max_score for mark in self.marks)


def tasks_of(assignment: str) -> list[Task]:
    """Return the coded tasks of a problem set in their order; none where there is no such set."""
    return [task for task in TASKS.values() if task.assignment == assignment]


def student_code(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Return names and sources of the code cells to run: all but the locked ones, which are ours."""
    named = [(cell.grade_id or f"cell {number}", cell) for number, cell in enumerate(cells, 1)]
    return [(name, cell.source) for name, cell in named if cell.cell_type == "code" and not cell.is_locked]


def grade_submission(
    submission: Submission,
    *,
    seed: int | None = None,
    limits: Limits | None = None,
    slot: int = 0,
    trusted: bool = False,
    stop: threading.Event | None = None,
) -> Grades:
    """Return the marks of a submission; nothing that a student hands in makes this function raise.

    A seed that is left out is drawn, and is part of the result, so that the grading can be repeated.
    `slot`, `trusted` and `stop` are passed on to `vaecourse.coursework.box.sandbox.run`; a grading that
    was stopped is worth nothing.
    """
    seed = secrets.randbits(48) if seed is None else seed
    tasks = tasks_of(submission.assignment)
    verdicts = dict.fromkeys(tasks, f"malformed: {submission.problem}")
    failed, seconds = dict[str, str](), 0.0
    if not submission.problem:
        checks = {task: list(task.checks(Draw(seed + n))) for n, task in enumerate(tasks)}
        start = partial(run, slot=slot, trusted=trusted, stop=stop)
        verdicts, failed, seconds = _verdicts(checks, submission.cells, limits or Limits(), start)
    marks = tuple(_mark(task, verdicts[task], failed) for task in tasks)
    errors = tuple(f"{name}: {error}" for name, error in failed.items())
    remark = "; ".join(filter(None, [submission.remark, _other_set(submission)]))
    who = (submission.student, submission.assignment)
    return Grades(*who, marks, submission.digest, seed, errors, remark, seconds)


def _other_set(submission: Submission) -> str:
    """Return a remark if the cells are those of another problem set."""
    names = {cell.grade_id for cell in submission.cells}
    others = {task.assignment for task in TASKS.values() if task.name in names}
    if others and submission.assignment not in others:
        return f"the cells are those of {', '.join(sorted(others))}"
    return ""


def _mark(task: Task, verdict: str, failed_cells: dict[str, str]) -> Mark:
    if verdict.startswith("error: there is no function") and task.name in failed_cells:
        verdict = f"{verdict}: its cell raised {failed_cells[task.name]}"
    return Mark(task.name, task.points if verdict == "ok" else 0.0, task.points, clean(verdict))


def _verdicts(
    checks: dict[Task, list[Check]], cells: Sequence[Cell], limits: Limits, start: Callable[..., Outcome]
) -> tuple[dict[Task, str], dict[str, str], float]:
    """Return the verdict on each task, the errors of failed cells by name, and the seconds it took.

    A task that ends a run is left out of the next run.
    """
    found, failed, seconds = dict[Task, str](), dict[str, str](), 0.0
    code = [("setup", SETUP), *student_code(cells)]
    sizes = {name: int(value) // 10**6 for name, value in asdict(limits).items()}
    says = {problem: text.format(**sizes) for problem, text in PROBLEMS.items()}
    while waiting := {task: task.calls(mine) for task, mine in checks.items() if task not in found}:
        calls = [{"id": number, **call} for number, call in enumerate(chain(*waiting.values()))]
        outcome = start(code, told(calls), limits=replace(limits, wall=max(1.0, limits.wall - seconds)))
        result = Result(outcome)
        seconds += outcome.seconds
        failed = result.failed_cells or failed
        if not result.is_sound:
            return found | dict.fromkeys(waiting, UNSOUND), failed, seconds
        numbers = count()
        for task, mine in waiting.items():
            replies = [result.replies.get(number) for number in islice(numbers, len(mine))]
            if None not in replies:
                found[task] = verdict_of(task, checks[task], replies)
            elif task.name in result.problems:
                found[task] = says[result.problems[task.name]]
            else:  # this task ended the run; the others may get another chance
                has_ended = result.has_begun and outcome.problem not in ("timeout", "stopped")
                left = [task] if has_ended else [other for other in waiting if other not in found]
                found |= dict.fromkeys(left, says[outcome.problem or "ended"])
                break
    return found, failed, seconds


class Result:
    """What came out of a run, read with suspicion: failed cells, replies by number, problems by task."""

    def __init__(self, outcome: Outcome) -> None:
        lines = outcome.result.split(b"\n")
        if outcome.problem:  # it may end in the middle of a line
            lines.pop()
        said = [_json_object(line) for line in lines if line]
        self.is_sound = None not in said
        cells = (said[0] or {}).get("failed_cells") if said else None
        self.has_begun = isinstance(cells, list)  # with the calls
        named = [cell for cell in cells[:20] if isinstance(cell, dict)] if isinstance(cells, list) else []
        self.failed_cells = {clean(cell.get("cell")): clean(cell.get("error")) for cell in named}
        self.replies: dict[int, dict[str, Any]] = {}
        self.problems: dict[str, str] = {}
        for line in filter(None, said):
            if isinstance(number := line.get("id"), int):
                self.replies.setdefault(number, line)
            elif isinstance(name := line.get("task"), str) and line.get("problem") in ("timeout", "ended"):
                self.problems[name] = line["problem"]


def _json_object(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return None


# ---- on a student's own machine ----


def check_cells(
    cells: Sequence[Cell], tasks: Sequence[Task], *, seed: int = 0
) -> tuple[list[Mark], dict[str, str]]:
    """Return the marks that cells would get, and the errors of failed cells by name.

    The cells run in this process, without any protection: only their author should call this.
    """
    failed: dict[str, str] = {}
    marks = []
    with contextlib.ExitStack() as stack:
        stack.callback(sys.modules.__setitem__, "__main__", sys.modules["__main__"])
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        namespace = runner.notebook_module().__dict__
        for name, source in [("setup", SETUP), *student_code(cells)]:
            try:
                runner.run_cell(source, name, namespace)
            except (Exception, SystemExit) as error:
                failed[name] = runner.describe(error)
        for n, task in enumerate(tasks):
            checks = list(task.checks(Draw(seed + n)))
            replies = json.loads(json.dumps(list(runner.answers(told(task.calls(checks)), namespace))))
            marks.append(_mark(task, verdict_of(task, checks, replies), failed))
    return marks, failed
