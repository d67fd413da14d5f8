"""Grades a folder of submissions; what is done already is not done again."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vaecourse import __version__
from vaecourse.coursework.collector import Submission, left_out, read_submission, submission_folders
from vaecourse.coursework.gradebook import CourseFolder
from vaecourse.coursework.grading import Grades, grade_all, student_code, tasks_of
from vaecourse.coursework.release import source_notebooks
from vaecourse.coursework.report import (
    as_json,
    feedback_page,
    grades_csv,
    read_result,
    result_path,
    result_text,
    write,
)
from vaecourse.coursework.sandbox import Limits, self_test


class Pile(NamedTuple):
    """What was found in a folder of submissions, and what came of it."""

    grades: list[Grades]
    num_new: int
    left_out: list[str]


def grade_pile(
    submitted: Path,
    out: Path,
    source: Path,
    *,
    jobs: int | None = None,
    limits: Limits | None = None,
    trusted: bool = False,
    again: bool = False,
) -> Pile:
    """Grade every submission in a folder and write results, grades.csv, the gradebook and feedback pages.

    Parameters
    ----------
    submitted : pathlib.Path
        With ``<student>/<psN>/<psN>.ipynb``.
    out : pathlib.Path
        Where everything is written.  A second call goes on where a first was stopped: a submission
        whose bytes were graded by this version of the package is not run again.
    source : pathlib.Path
        The instructor's notebooks, ``psN/psN.ipynb``.
    jobs : int, optional
        How many run at a time; one per processor if left out.
    limits : Limits, optional
        What each submission may use.
    trusted : bool, default False
        Run without a sandbox.
    again : bool, default False
        Run all of them, whatever was graded before.

    Returns
    -------
    Pile
        The grades, and what was left out.

    Raises
    ------
    SandboxError
        If there is no sandbox that holds.
    ValueError
        If there is nothing to grade.
    """
    if not submitted.is_dir():
        raise ValueError(f"{submitted} is not a folder of submissions")
    folders = [(s, a) for s, a in submission_folders(submitted) if tasks_of(a)]
    if not folders:
        raise ValueError(f"there is no <student>/<psN>/<psN>.ipynb below {submitted}")
    if not trusted:
        self_test()
    names = {assignment for _, assignment in folders}
    course = CourseFolder(out, [path for path in source_notebooks(source) if path.stem in names])
    if missing := names - set(course.released):
        raise ValueError(f"there is no instructor notebook of {', '.join(sorted(missing))} below {source}")
    submissions = [read_submission(submitted, student, assignment) for student, assignment in folders]
    waiting = [s for s in submissions if again or kept_grades(out, s) is None]
    for fresh in _with_progress(waiting, jobs or os.cpu_count() or 1, limits, trusted):
        write(result_path(out, fresh.student, fresh.assignment), result_text(as_json(fresh)))
    done = []
    for submission in submissions:
        found = kept_grades(out, submission)
        assert found is not None
        written = course.record(found, submission.cells)
        done.append(grades := course.final(found))
        page = feedback_page(grades, [source for _, source in student_code(submission.cells)], written)
        write(out / "feedback" / grades.student / grades.assignment / f"{grades.assignment}.html", page)
    everything = [kept[0] for path in out.glob("results/*/*.json") if (kept := read_result(path))]
    write(out / "grades.csv", grades_csv([course.final(grades) for grades in everything]))
    unknown = [f"{s}/{a}" for s, a in submission_folders(submitted) if not tasks_of(a)]
    return Pile(done, len(waiting), sorted([*left_out(submitted), *unknown]))


def kept_grades(out: Path, submission: Submission) -> Grades | None:
    """Return the grades of these very bytes by this version of the package, if there are any.

    Parameters
    ----------
    out : pathlib.Path
        Where results are.
    submission : Submission
        What the collector has read.

    Returns
    -------
    Grades or None
        None if it has to be graded.
    """
    kept = read_result(result_path(out, submission.student, submission.assignment))
    is_current = kept is not None and kept[0].digest == submission.digest and kept[1] == __version__
    return kept[0] if kept is not None and is_current else None


def _with_progress(
    submissions: Sequence[Submission], jobs: int, limits: Limits | None, trusted: bool
) -> Iterator[Grades]:
    from tqdm import tqdm

    graded = grade_all(submissions, jobs=jobs, limits=limits, trusted=trusted)
    with tqdm(total=len(submissions), unit="submission", disable=not sys.stderr.isatty()) as bar:
        for grades in graded:
            bar.update()
            yield grades


def table(pile: Pile) -> str:
    """Return a table for the screen: a line per submission.

    Parameters
    ----------
    pile : Pile
        What was graded.

    Returns
    -------
    str
        Student, problem set, points, and the tasks that earned none with their reasons in brief.
    """
    width = max([len("student"), *(len(grades.student) for grades in pile.grades)])
    lines = [f"{'student':<{width}}  set    points  not right"]
    for grades in pile.grades:
        reasons = [
            f"{mark.task} ({mark.verdict.partition(':')[0]})" for mark in grades.marks if mark.score == 0
        ]
        points = f"{grades.score:g}/{grades.max_score:g}"
        lines.append(
            f"{grades.student:<{width}}  {grades.assignment:<4}  {points:>7}  {', '.join(reasons)}".rstrip()
        )
    return "\n".join(lines)
