"""Grades one submission, or a pile of them in parallel: collector, sandbox, oracle, and what is kept.

The steps for one submission: its code cells go into a box with calls whose inputs were drawn
from a fresh seed; answers are judged outside.  Where a task brings the box down (by memory, say),
it loses its points and the box is started again with the rest.
"""

import contextlib
import json
import secrets
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from queue import SimpleQueue
from typing import Any, NamedTuple

from vaecourse.coursework import ps1, ps2, ps3, ps4, ps5, runner  # noqa: F401  (the sets register their tasks)
from vaecourse.coursework.collector import Cell, Submission
from vaecourse.coursework.oracle import SETUP, TASKS, Check, Draw, Mark, Task, clean, verdict_of
from vaecourse.coursework.sandbox import Limits, Outcome, run

PROBLEMS = {
    "timeout": "timeout: it ran out of time",
    "memory": "memory: it used more than {memory} MB",
    "output": "output: it printed more than {output} MB",
    "result": "malformed: it answered with more than {result} MB",
    "stopped": "stopped: grading was stopped",
    "ended": "error: the process ended before it could answer",
}


class Grades(NamedTuple):
    """The marks of one submission, and what else is worth knowing about it."""

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
        """Points in all."""
        return sum(mark.score for mark in self.marks)

    @property
    def max_score(self) -> float:
        """Points possible."""
        return sum(mark.max_score for mark in self.marks)


def tasks_of(assignment: str) -> list[Task]:
    """Return the coded tasks of a problem set in their order; none where there is no such set."""
    return [task for task in TASKS.values() if task.assignment == assignment]


def student_code(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Return name and source of the code that is run: every code cell but the locked ones, which are ours."""
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
    """Return the marks of a submission.

    Parameters
    ----------
    submission : Submission
        What the collector has read.
    seed : int, optional
        Of the inputs; drawn anew if left out, and part of the result, so that it can be repeated.
    limits : Limits, optional
        What it may use; the default limits if left out.
    slot : int, default 0
        Number of the box among those that run at the same moment.
    trusted : bool, default False
        Run without a sandbox.
    stop : threading.Event, optional
        Ends the run when it is set; the grades are then worth nothing.

    Returns
    -------
    Grades
        A mark for every task of the problem set.  Nothing that a student hands in makes this function
        raise.
    """
    seed = secrets.randbits(48) if seed is None else seed
    tasks = tasks_of(submission.assignment)
    verdicts = dict.fromkeys([task.name for task in tasks], f"malformed: {submission.problem}")
    failed: tuple[str, ...] = ()
    seconds = 0.0
    if not submission.problem:
        checks = {task.name: list(task.checks(Draw(seed + n))) for n, task in enumerate(tasks)}
        code = student_code(submission.cells)
        session = _Session(code, limits or Limits(), slot, trusted, stop)
        found = session.verdicts(checks)
        verdicts = {name: _explained(verdict, name, session.failed_cells) for name, verdict in found.items()}
        failed = tuple(f"{name}: {error}" for name, error in session.failed_cells.items())
        seconds = session.seconds
    marks = tuple(_mark(task, verdicts[task.name]) for task in tasks)
    return Grades(
        submission.student,
        submission.assignment,
        marks,
        submission.digest,
        seed,
        failed,
        "; ".join(filter(None, [submission.remark, _other_set(submission)])),
        seconds,
    )


def _other_set(submission: Submission) -> str:
    """Return a remark where the cells are those of another problem set."""
    names = {cell.grade_id for cell in submission.cells}
    others = {task.assignment for task in TASKS.values() if task.name in names}
    if others and submission.assignment not in others:
        return f"the cells are those of {', '.join(sorted(others))}"
    return ""


class _Session:
    """The runs of one submission."""

    def __init__(
        self,
        code: Sequence[tuple[str, str]],
        limits: Limits,
        slot: int,
        trusted: bool,
        stop: threading.Event | None,
    ) -> None:
        self.code, self.limits, self.slot, self.trusted, self.stop = code, limits, slot, trusted, stop
        self.failed_cells: dict[str, str] = {}
        self.seconds, self.has_begun = 0.0, False

    def verdicts(self, checks: dict[str, list[Check]]) -> dict[str, str]:
        """Return the verdict on each task; a task that ends a run is left out of the next."""
        found: dict[str, str] = {}
        while waiting := {name: mine for name, mine in checks.items() if name not in found}:
            outcome = self._run(waiting)
            result = read_result(outcome.result, bool(outcome.problem))
            if result is None:
                unsound = "malformed: the result is not what the runner writes"
                return {**found, **dict.fromkeys(waiting, unsound)}
            found |= self._settled(waiting, *result)
            left = [name for name in waiting if name not in found]
            verdict = self._verdict(outcome.problem or "ended")
            if self.has_begun and outcome.problem not in ("timeout", "stopped"):
                left = left[:1]  # it ended the run, and the others have another chance
            found |= dict.fromkeys(left, verdict)
        return found

    def _settled(
        self, waiting: dict[str, list[Check]], replies: dict[int, dict[str, Any]], problems: dict[str, str]
    ) -> dict[str, str]:
        """Return the verdicts on tasks that have an answer to every call, or a problem of their own.

        The first task without either is the one during which the run ended.
        """
        found, start = {}, 0
        for name, mine in waiting.items():
            numbers = range(start, start + len(mine))
            start += len(mine)
            problem = next((problems[g] for check in mine if (g := check.group or name) in problems), "")
            if all(number in replies for number in numbers):
                answers = [replies[number] for number in numbers]
                found[name] = verdict_of(list(zip(mine, answers, strict=True)))
            elif problem:
                found[name] = self._verdict(problem)
            else:
                break
        return found

    def _run(self, waiting: dict[str, list[Check]]) -> Outcome:
        """Run the cells, and the calls of all tasks that wait, numbered from 0."""
        limits = replace(self.limits, wall=max(1.0, self.limits.wall - self.seconds))
        if self.trusted:  # without a namespace of its own, all processes of this user would count
            limits = replace(limits, processes=0)
        cells = [("setup", SETUP), *self.code]
        owned = [(name, check) for name, mine in waiting.items() for check in mine]
        calls = [
            {"id": number, "group": check.group or name, **check.call}
            for number, (name, check) in enumerate(owned)
        ]
        lines = [{"cells": cells, "limits": asdict(limits)}, *calls]
        job = "".join(json.dumps(line) + "\n" for line in lines).encode()
        outcome = run(job, limits=limits, slot=self.slot, trusted=self.trusted, stop=self.stop)
        self.seconds += outcome.seconds
        self._note_cells(outcome.result)
        return outcome

    def _note_cells(self, result: bytes) -> None:
        """Keep what the first line says about cells that failed; it also shows that calls have begun."""
        first = read_line(result.partition(b"\n")[0]) or {}
        cells = first.get("failed_cells")
        self.has_begun = isinstance(cells, list)
        if isinstance(cells, list):
            named = [cell for cell in cells[:20] if isinstance(cell, dict)]
            self.failed_cells = {clean(cell.get("cell")): clean(cell.get("error")) for cell in named}

    def _verdict(self, problem: str) -> str:
        sizes = {name: int(value) // 10**6 for name, value in asdict(self.limits).items()}
        return PROBLEMS[problem].format(**sizes)


def read_line(line: bytes) -> dict[str, Any] | None:
    """Return a line of the result, or nothing if it is not a JSON object."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_result(result: bytes, is_cut: bool) -> tuple[dict[int, dict[str, Any]], dict[str, str]] | None:
    """Take a result apart: replies by number, and problems by group; nothing if a line is not sound.

    A run that was cut off may end in the middle of a line.
    """
    lines = result.split(b"\n")
    if is_cut:
        lines.pop()
    replies: dict[int, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    for line in filter(None, lines):
        told = read_line(line)
        if told is None:
            return None
        if isinstance(number := told.get("id"), int):
            replies.setdefault(number, told)
        elif isinstance(group := told.get("group"), str) and told.get("problem") in ("timeout", "ended"):
            problems[group] = told["problem"]
    return replies, problems


# ---- on a student's own machine ----


def check_cells(
    cells: Sequence[Cell], tasks: Sequence[Task], *, seed: int = 0
) -> tuple[list[Mark], dict[str, str]]:
    """Return the marks that cells would get, computed in this process, without any protection.

    Parameters
    ----------
    cells : sequence of Cell
        Of a notebook whose author runs this.
    tasks : sequence of Task
        What is asked.
    seed : int, default 0
        Of the inputs; graders draw others.

    Returns
    -------
    marks : list of Mark
        One for each task.
    failed : dict
        Names of cells that raised an error, and the error.
    """
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(sys.modules.__setitem__, "__main__", sys.modules["__main__"])
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        namespace = runner.notebook_module().__dict__
        for name, source in [("setup", SETUP), *student_code(cells)]:
            try:
                runner.run_cell(source, name, namespace)
            except (Exception, SystemExit) as error:
                failed[name] = runner.describe(error)
        verdicts = {task.name: _verdict_here(task, namespace, seed + n) for n, task in enumerate(tasks)}
    return [_mark(task, _explained(verdicts[task.name], task.name, failed)) for task in tasks], failed


def _verdict_here(task: Task, namespace: dict[str, Any], seed: int) -> str:
    checks = list(task.checks(Draw(seed)))
    groups: dict[str, list[tuple[int, Check]]] = {}
    for index, check in enumerate(checks):
        groups.setdefault(check.group, []).append((index, check))
    replies: dict[int, dict[str, Any]] = {}
    for group in groups.values():
        for told in runner.answers([{"id": index, **check.call} for index, check in group], namespace):
            replies[told["id"]] = json.loads(json.dumps(told))
    return verdict_of([(check, replies[index]) for index, check in enumerate(checks)])


def _explained(verdict: str, task: str, failed: dict[str, str]) -> str:
    """Say why there is no function, where its cell raised an error."""
    if verdict.startswith("error: there is no function") and task in failed:
        return f"{verdict}: its cell raised {failed[task]}"
    return verdict


def _mark(task: Task, verdict: str) -> Mark:
    return Mark(task.name, task.points if verdict == "ok" else 0.0, task.points, clean(verdict))


# ---- a pile ----


def grade_all(
    submissions: Sequence[Submission],
    *,
    jobs: int,
    limits: Limits | None = None,
    trusted: bool = False,
) -> Iterator[Grades]:
    """Yield grades in the order in which they are ready.

    Parameters
    ----------
    submissions : sequence of Submission
        What the collector has read.
    jobs : int
        How many boxes run at a time.
    limits : Limits, optional
        What each may use.
    trusted : bool, default False
        Run without a sandbox.

    Yields
    ------
    Grades
        Of one submission.
    """
    stop = threading.Event()
    slots: SimpleQueue[int] = SimpleQueue()  # of boxes that run at the same moment
    for slot in range(jobs):
        slots.put(slot)

    def grade(submission: Submission) -> Grades:
        slot = slots.get()
        try:
            return grade_submission(submission, limits=limits, slot=slot, trusted=trusted, stop=stop)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(grade, submission) for submission in submissions]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            stop.set()
            for future in waiting:
                future.cancel()
