"""Writes marks into nbgrader's gradebook, where people mark written answers and export results.

The folder is a course folder of nbgrader: ``gradebook.db``, ``release/`` and ``autograded/``, so
that ``nbgrader formgrader`` and ``nbgrader export`` work in it.
"""

import contextlib
import copy
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from vaecourse.coursework.grading import Grades
from vaecourse.coursework.intake import Cell
from vaecourse.coursework.release import nbgrader_entry, student_version
from vaecourse.coursework.results import WrittenMark, write

CONFIG = '''\
"""Settings of nbgrader for this folder, which `vaecourse grade` has filled."""

from nbgrader.preprocessors import NbGraderPreprocessor


class RefuseAutograde(NbGraderPreprocessor):
    """nbgrader's own autograder would run student code as you, outside of any sandbox."""

    def preprocess(self, nb, resources):
        raise RuntimeError("use `vaecourse grade` in place of `nbgrader autograde`")


c = get_config()
c.CourseDirectory.course_id = "vaecourse"
c.Autograde.sanitize_preprocessors = [RefuseAutograde]
# grades.csv is written by `vaecourse grade`, with other columns
c.ExportPlugin.to = "marks.csv"
# a heading in an answer must not take the name of a box for points
c.HTMLExporter.exclude_anchor_links = True
'''

# What a person reads of one cell; formgrader is slow with much longer ones.
MAX_ANSWER = 20_000
CUT = "\n\n(cut here: the rest is in the notebook that was handed in)"
CHANGED = "The answer has changed since it was marked."


class CourseFolder:
    """A course folder of nbgrader, made if missing, with its gradebook, which stays open until `close`.

    The instructor's notebooks say what is graded.
    """

    def __init__(self, folder: Path, notebooks: Sequence[Path]) -> None:
        from nbgrader.preprocessors import SaveCells

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.url = f"sqlite:///{(folder / 'gradebook.db').resolve()}"
        self.released: dict[str, Any] = {}
        if not (folder / "nbgrader_config.py").exists():
            write(folder / "nbgrader_config.py", CONFIG)
        for path in notebooks:
            text = student_version(path)
            write(folder / "release" / path.stem / path.name, text)
            write(folder / "source" / path.stem / path.name, path.read_text("utf-8"))
            self.released[path.stem] = nbformat.reads(text, as_version=4)
            names = {"notebook": path.stem, "assignment": path.stem, "db_url": self.url}
            with self._opened() as book:
                book.update_or_create_assignment(path.stem)
                try:
                    SaveCells().preprocess(copy.deepcopy(self.released[path.stem]), {"nbgrader": names})
                except RuntimeError as error:  # nbgrader's word for it
                    advice = f"cells of {path.stem} came or went since the first grading: use a new --out"
                    raise ValueError(advice) from error

    @cached_property
    def _book(self) -> Any:
        from nbgrader.api import Gradebook

        return Gradebook(self.url)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Provide the gradebook as it is now; earlier changes that were not committed are rolled back.

        nbgrader must find the tools beside Python, and warns about its own use of SQLAlchemy.
        """
        path = os.environ.get("PATH", os.defpath)
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._book.db.rollback()
                yield self._book
        finally:
            os.environ["PATH"] = path

    def close(self) -> None:
        """Close the gradebook."""
        self._book.close()

    def record(self, grades: Grades, cells: Sequence[Cell]) -> list[WrittenMark]:
        """Write the marks of a submission and return those of its written answers.

        What a person has marked stays.  There are no cells if the submission could not be read.
        """
        changed = self._write_copy(grades, cells)
        names = (grades.assignment, grades.assignment, grades.student)
        written = []
        with self._opened() as book:
            book.update_or_create_student(grades.student)
            book.update_or_create_submission(grades.assignment, grades.student)
            for mark in grades.marks:
                grade = book.find_grade(f"test_{mark.task}", *names)
                grade.auto_score, grade.needs_manual_grade = mark.score, False
                book.find_comment(mark.task, *names).auto_comment = inert_markdown(mark.verdict)
            for cell in self.released[grades.assignment].cells:
                entry = nbgrader_entry(cell)
                if entry.get("grade") and entry.get("solution"):  # a person marks it
                    name = entry["grade_id"]
                    grade, comment = book.find_grade(name, *names), book.find_comment(name, *names)
                    is_empty = self._is_empty(cell, grades.assignment, cells)
                    grade.auto_score = 0.0 if is_empty else None
                    comment.auto_comment = "No response." if is_empty else None
                    if grade.manual_score is None:
                        grade.needs_manual_grade = not is_empty
                    elif name in changed:
                        grade.needs_manual_grade, comment.auto_comment = True, CHANGED
                    score = grade.auto_score if grade.manual_score is None else grade.manual_score
                    said = comment.manual_comment or comment.auto_comment
                    written.append(WrittenMark(name, score, float(entry["points"]), said))
            book.db.commit()
        return written

    def final(self, grades: Grades) -> Grades:
        """Return grades with the points and comments that a person has given to coded tasks."""
        from nbgrader.api import MissingEntry

        names = (grades.assignment, grades.assignment, grades.student)
        marks = []
        with self._opened() as book:
            for mark in grades.marks:
                try:
                    points = book.find_grade(f"test_{mark.task}", *names).manual_score
                    comment = book.find_comment(mark.task, *names).manual_comment
                except MissingEntry:  # of an earlier call that was stopped before it reached the gradebook
                    points = comment = None
                if points is not None or comment:
                    verdict = f"{mark.verdict}; by hand: {comment or 'other points'}"
                    mark = mark._replace(score=mark.score if points is None else points, verdict=verdict)
                marks.append(mark)
        return grades._replace(marks=tuple(marks))

    def _is_empty(self, released: Any, assignment: str, cells: Sequence[Cell]) -> bool:
        """Whether there is certainly no answer, not even Markdown in a cell that the student added."""
        known = {nbgrader_entry(cell).get("grade_id") for cell in self.released[assignment].cells}
        own = [c for c in cells if c.cell_type == "markdown" and not c.is_locked and c.grade_id not in known]
        answer = answer_to(cells, nbgrader_entry(released)["grade_id"])
        return answer in ("", released.source.strip()) and not any(cell.source.strip() for cell in own)

    def _write_copy(self, grades: Grades, cells: Sequence[Cell]) -> set[str]:
        """Write what a person reads while marking: the released notebook with the student's answers.

        Nothing in it is ever run.  The names of answers that differ from an earlier copy are returned.
        """
        notebook = copy.deepcopy(self.released[grades.assignment])
        shown: set[str | None] = set()
        for cell in notebook.cells:
            entry = nbgrader_entry(cell)
            if entry.get("solution") and (answer := answer_to(cells, entry["grade_id"])):
                shown.add(entry["grade_id"])
                cell.source = answer if cell.cell_type == "code" else inert_markdown(answer)
        added = [c for c in cells if not c.is_locked and c.source.strip() and c.grade_id not in shown]
        if added:
            notebook.cells.append(new_markdown_cell("**Cells that the student added:**"))
        for other in added:
            is_code = other.cell_type == "code"
            source = other.source if is_code else inert_markdown(other.source)
            notebook.cells.append(new_code_cell(source) if is_code else new_markdown_cell(source))
        for number, cell in enumerate(notebook.cells):
            cell.setdefault("id", f"cell-{number}")
        place = self.folder / "autograded" / grades.student / grades.assignment / f"{grades.assignment}.ipynb"
        before = _answers(nbformat.read(place, as_version=4)) if place.exists() else {}
        write(place, nbformat.writes(notebook) + "\n")
        return {name for name, source in _answers(notebook).items() if before.get(name, source) != source}


def _answers(notebook: Any) -> dict[str, str]:
    """Return the sources of the cells that nbgrader knows, by name."""
    return {entry["grade_id"]: cell.source for cell in notebook.cells if (entry := nbgrader_entry(cell))}


def answer_to(cells: Sequence[Cell], grade_id: str) -> str:
    """Return the stripped text of all the student's cells with a name; a cell may have been split."""
    return "\n\n".join(c.source for c in cells if c.grade_id == grade_id and not c.is_locked).strip()


def inert_markdown(source: str) -> str:
    """Return Markdown that looks the same, in which tags, links, pictures and headings are text.

    Formgrader shows answers in the instructor's browser without filtering them.  A space turns a tag or
    a link into text, and changes nothing in mathematics.
    """
    source = source if len(source) <= MAX_ANSWER else source[:MAX_ANSWER] + CUT
    source = re.sub(r"<(?=[A-Za-z/!?])", "< ", source)
    source = re.sub(r"\](?=[(\[:])", "] ", source)
    source = re.sub(r"(?m)^([\s>*+\-\d.)]*)#", r"\1\\#", source)  # headings have names on the page
    source = re.sub(r"(?m)^(\s*)(?=(=+|-+)\s*$)", r"\1\\", source)
    return re.sub(r"(?m)(`{3,}|~{3,})\s*mermaid", r"\1 text", source)
