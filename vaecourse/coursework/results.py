"""What is kept of grades: one JSON file per submission, grades.csv, and a feedback page for each student."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaecourse import __version__
from vaecourse._files import replace_file
from vaecourse.coursework.grading import Grades
from vaecourse.coursework.oracle import Mark

COLUMNS = ["student_id", "assignment", "task", "score", "max_score", "verdict"]


class WrittenMark(NamedTuple):
    """The mark of a written answer; its score is None until a person has read it."""

    name: str
    score: float | None
    max_score: float
    comment: str | None


def as_json(grades: Grades) -> dict[str, Any]:
    """Return grades as JSON data, which `from_json` reads."""
    marks = [mark._asdict() for mark in grades.marks]
    points = {"score": grades.score, "max_score": grades.max_score}
    return {**grades._asdict(), "marks": marks, **points, "version": __version__}


def from_json(told: dict[str, Any]) -> Grades:
    """Return the grades that `as_json` wrote as JSON data."""
    known = {name: told[name] for name in Grades._fields}
    marks = tuple(Mark(**mark) for mark in told["marks"])
    return Grades(**{**known, "marks": marks, "failed_cells": tuple(told["failed_cells"])})


def result_path(out: Path, student: str, assignment: str) -> Path:
    """Return where the result of a submission is kept."""
    return out / "results" / student / f"{assignment}.json"


def result_text(told: dict[str, Any]) -> str:
    """Return JSON data from `as_json` as the text of a result file."""
    return json.dumps(told, indent=1) + "\n"


def read_result(path: Path) -> tuple[Grades, str] | None:
    """Return the grades in a result file, and the version of the package that found them.

    None means that there is no such file, or that it is not whole: the result can be made again.
    """
    try:
        told = json.loads(path.read_text("utf-8"))
        return from_json(told), told["version"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def keep(out: Path, told: dict[str, Any]) -> None:
    """Write JSON data from `as_json` where it is kept."""
    write(result_path(out, told["student"], told["assignment"]), result_text(told))


def write(path: Path, text: str) -> None:
    """Write a file wholly or not at all, and make its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode("utf-8"))


def grades_csv(all_grades: Iterable[Grades]) -> str:
    """Return the text of grades.csv: a row per coded task, sorted by student and problem set."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    for grades in sorted(all_grades, key=lambda grades: (grades.student, grades.assignment)):
        for mark in grades.marks:
            points = [f"{mark.score:g}", f"{mark.max_score:g}"]
            rows.writerow([grades.student, grades.assignment, mark.task, *points, mark.verdict])
    return file.getvalue()


def feedback_page(grades: Grades, sources: Sequence[str] = (), written: Sequence[WrittenMark] = ()) -> str:
    """Return a student's page, given their code cells and the marks of written answers.

    It asks for no other file, and every text in it is escaped.
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
