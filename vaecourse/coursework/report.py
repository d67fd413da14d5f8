"""What is kept of grades: one JSON file per submission, grades.csv, and a feedback page for each student."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaecourse import __version__
from vaecourse._files import replace_file
from vaecourse.coursework.grading import Grades
from vaecourse.coursework.oracle import Mark

COLUMNS = ["student_id", "assignment", "task", "score", "max_score", "verdict"]


@dataclass(frozen=True)
class WrittenMark:
    """The mark of a written answer; its score is None until a person has read it."""

    name: str
    score: float | None
    max_score: float
    comment: str | None


def as_json(grades: Grades) -> dict[str, Any]:
    """Return grades as JSON data.

    Parameters
    ----------
    grades : Grades
        Of one submission.

    Returns
    -------
    dict
        From which `from_json` makes them again.
    """
    return {
        **grades._asdict(),
        "marks": [mark._asdict() for mark in grades.marks],
        "score": grades.score,
        "max_score": grades.max_score,
        "version": __version__,
    }


def result_path(out: Path, student: str, assignment: str) -> Path:
    """Return where the result of a submission is kept.

    Parameters
    ----------
    out : pathlib.Path
        The folder of everything that comes of grading.
    student, assignment : str
        Which submission.

    Returns
    -------
    pathlib.Path
        A JSON file.
    """
    return out / "results" / student / f"{assignment}.json"


def result_text(told: dict[str, Any]) -> str:
    """Return the text of such a file.

    Parameters
    ----------
    told : dict
        What `as_json` has told.

    Returns
    -------
    str
        JSON.
    """
    return json.dumps(told, indent=1) + "\n"


def from_json(told: dict[str, Any]) -> Grades:
    """Return the grades that `as_json` has told.

    Parameters
    ----------
    told : dict
        JSON data.

    Returns
    -------
    Grades
        Of one submission.
    """
    known = {name: told[name] for name in Grades._fields}
    marks = tuple(Mark(**mark) for mark in told["marks"])
    return Grades(**{**known, "marks": marks, "failed_cells": tuple(told["failed_cells"])})


def write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all; folders above it are made.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    text : str
        Its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode("utf-8"))


def grades_csv(all_grades: Iterable[Grades]) -> str:
    """Return the text of grades.csv: a row per student, problem set and coded task.

    Parameters
    ----------
    all_grades : iterable of Grades
        In any order.

    Returns
    -------
    str
        Sorted by student and problem set.
    """
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    for grades in sorted(all_grades, key=lambda grades: (grades.student, grades.assignment)):
        for mark in grades.marks:
            points = [f"{mark.score:g}", f"{mark.max_score:g}"]
            rows.writerow([grades.student, grades.assignment, mark.task, *points, mark.verdict])
    return file.getvalue()


def feedback_page(grades: Grades, sources: Sequence[str] = (), written: Sequence[WrittenMark] = ()) -> str:
    """Return a student's page; every text in it is escaped.

    Parameters
    ----------
    grades : Grades
        Marks of the coded tasks.
    sources : sequence of str
        The student's code cells.
    written : sequence of WrittenMark
        Marks of the written answers.

    Returns
    -------
    str
        HTML that asks for no other file.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("feedback.html").render(
        grades=grades,
        sources=[source for source in sources if source.strip()],
        written=written,
        written_score=sum(answer.score or 0.0 for answer in written),
        written_max=sum(answer.max_score for answer in written),
        is_waiting=any(answer.score is None for answer in written),
    )


def read_result(path: Path) -> tuple[Grades, str] | None:
    """Return the grades that a file keeps, and the version of the package that has found them.

    Parameters
    ----------
    path : pathlib.Path
        Written by an earlier call.

    Returns
    -------
    tuple or None
        None where there is no file, or what is there is no result: it can be made again.
    """
    try:
        told = json.loads(path.read_text("utf-8"))
        return from_json(told), told["version"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
