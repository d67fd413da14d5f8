"""Grades a folder of submissions in parallel; what was graded before is not graded again."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tqdm import tqdm

from vaecourse import __version__
from vaecourse.coursework import results
from vaecourse.coursework.box.sandbox import self_test
from vaecourse.coursework.box.watching import Limits
from vaecourse.coursework.gradebook import CourseFolder
from vaecourse.coursework.grading import Grades, grade_submission, student_code, tasks_of
from vaecourse.coursework.intake import Submission, left_out, read_submission, submission_folders
from vaecourse.coursework.release import source_notebooks


class GradedClass(NamedTuple):
    """The grades of a class, how many of them are new, and the names that are not submissions."""

    grades: list[Grades]
    num_new: int
    left_out: list[str]


def grade_class(
    submitted: Path,
    out: Path,
    source: Path,
    *,
    jobs: int | None = None,
    limits: Limits | None = None,
    trusted: bool = False,
    again: bool = False,
) -> GradedClass:
    """Grade every ``<student>/<psN>/<psN>.ipynb`` in a folder and return the grades.

    Results, grades.csv, the gradebook and feedback pages are written below `out`.  A second call goes
    on where the first was stopped: a submission whose bytes this version of the package has graded is
    skipped, unless `again` is set.  `source` holds the instructor's notebooks.  `jobs` boxes run at a
    time, by default one per processor.

    SandboxError means that there is no sandbox that holds, ValueError that there is nothing to grade.
    """
    if not submitted.is_dir():
        raise ValueError(f"{submitted} is not a folder of submissions")
    folders = [(s, a) for s, a in submission_folders(submitted) if tasks_of(a)]
    if not folders:
        raise ValueError(f"there is no <student>/<psN>/<psN>.ipynb below {submitted}")
    if not trusted:
        self_test()
    names = {assignment for _, assignment in folders}
    notebooks = [path for path in source_notebooks(source) if path.stem in names]
    if missing := names - {path.stem for path in notebooks}:
        raise ValueError(f"there is no instructor notebook of {', '.join(sorted(missing))} below {source}")
    submissions = [read_submission(submitted, student, assignment) for student, assignment in folders]
    waiting = [s for s in submissions if again or kept_grades(out, s) is None]
    with contextlib.closing(CourseFolder(out, notebooks)) as course:
        graded = grade_all(waiting, jobs=jobs or os.cpu_count() or 1, limits=limits, trusted=trusted)
        for fresh in tqdm(graded, total=len(waiting), unit="submission", disable=None):
            results.keep(out, results.as_json(fresh))
        done = []
        for submission in submissions:
            found = kept_grades(out, submission)
            assert found is not None
            written = course.record(found, submission.cells)
            done.append(grades := course.final(found))
            sources = [source for _, source in student_code(submission.cells)]
            path = out / "feedback" / grades.student / grades.assignment / f"{grades.assignment}.html"
            results.write(path, results.feedback_page(grades, sources, written))
        everything = [kept[0] for path in out.glob("results/*/*.json") if (kept := results.read_result(path))]
        results.write(out / "grades.csv", results.grades_csv(map(course.final, everything)))
    unknown = [f"{s}/{a}" for s, a in submission_folders(submitted) if not tasks_of(a)]
    return GradedClass(done, len(waiting), sorted([*left_out(submitted), *unknown]))


def kept_grades(out: Path, submission: Submission) -> Grades | None:
    """Return the grades of these very bytes by this version of the package, if there are any."""
    kept = results.read_result(results.result_path(out, submission.student, submission.assignment))
    if kept is None or kept[0].digest != submission.digest or kept[1] != __version__:
        return None
    return kept[0]


def grade_all(
    submissions: Sequence[Submission], *, jobs: int, limits: Limits | None = None, trusted: bool = False
) -> Iterator[Grades]:
    """Yield grades as they become ready; `jobs` boxes run at a time."""
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
            pool.shutdown(cancel_futures=True)


def table(graded: GradedClass) -> str:
    """Return a table for the screen: one line per submission, with the tasks that earned no points."""
    width = max([len("student"), *(len(grades.student) for grades in graded.grades)])
    lines = [f"{'student':<{width}}  set    points  not right"]
    for grades in graded.grades:
        failed = [
            f"{mark.task} ({mark.verdict.partition(':')[0]})" for mark in grades.marks if not mark.score
        ]
        points = f"{grades.score:g}/{grades.max_score:g}"
        line = f"{grades.student:<{width}}  {grades.assignment:<4}  {points:>7}  {', '.join(failed)}"
        lines.append(line.rstrip())
    return "\n".join(lines)
