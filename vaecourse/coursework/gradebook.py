"""Writes marks into nbgrader's gradebook, where written answers are marked and results exported.

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
from pathlib import Path
from typing import Any

from vaecourse.coursework.collector import Cell
from vaecourse.coursework.grading import Grades
from vaecourse.coursework.release import student_version
from vaecourse.coursework.report import WrittenMark, write

CONFIG = '''\
"""Settings of nbgrader for this folder, which `vaecourse grade` has filled."""

c = get_config()
c.CourseDirectory.course_id = "vaecourse"
'''


class CourseFolder:
    """A course folder of nbgrader with its gradebook.

    Parameters
    ----------
    folder : pathlib.Path
        Made if missing.
    notebooks : sequence of pathlib.Path
        The instructor's notebooks, which say what is graded.
    """

    def __init__(self, folder: Path, notebooks: Sequence[Path]) -> None:
        import nbformat

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
            self._save_cells(path.stem)

    def _save_cells(self, assignment: str) -> None:
        from nbgrader.api import Gradebook
        from nbgrader.preprocessors import SaveCells

        names = {"notebook": assignment, "assignment": assignment, "db_url": self.url}
        with _nbgrader():
            with Gradebook(self.url) as book:
                book.update_or_create_assignment(assignment)
            SaveCells().preprocess(copy.deepcopy(self.released[assignment]), {"nbgrader": names})

    def record(self, grades: Grades, cells: Sequence[Cell]) -> list[WrittenMark]:
        """Write the marks of a submission, keep what a person has marked, and return that.

        Parameters
        ----------
        grades : Grades
            Marks of the coded tasks.
        cells : sequence of Cell
            The submission; empty if it could not be read.

        Returns
        -------
        list of WrittenMark
            Of the written answers, in their order.
        """
        from nbgrader.api import Gradebook

        self._write_copy(grades, cells)
        names = (grades.assignment, grades.assignment, grades.student)
        with _nbgrader(), Gradebook(self.url) as book:
            book.update_or_create_student(grades.student)
            book.update_or_create_submission(grades.assignment, grades.student)
            for mark in grades.marks:
                grade = book.find_grade(f"test_{mark.task}", *names)
                grade.auto_score, grade.needs_manual_grade = mark.score, False
                book.find_comment(mark.task, *names).auto_comment = mark.verdict
            written = [
                self._written(book, cell, names, cells) for cell in self.written_cells(grades.assignment)
            ]
            book.db.commit()
        return written

    def written_cells(self, assignment: str) -> list[Any]:
        """Return the cells of a problem set that a person marks.

        Parameters
        ----------
        assignment : str
            Name of the problem set.

        Returns
        -------
        list of nbformat.NotebookNode
            Cells of the released notebook.
        """
        entries = [(cell, cell.metadata.get("nbgrader", {})) for cell in self.released[assignment].cells]
        return [cell for cell, entry in entries if entry.get("grade") and entry.get("solution")]

    def _written(
        self, book: Any, cell: Any, names: tuple[str, str, str], cells: Sequence[Cell]
    ) -> WrittenMark:
        name = cell.metadata.nbgrader.grade_id
        grade, comment = book.find_grade(name, *names), book.find_comment(name, *names)
        answers = [given.source for given in cells if given.grade_id == name and not given.is_locked]
        if not answers or answers[-1].strip() in ("", cell.source.strip()):
            grade.auto_score, grade.needs_manual_grade = 0.0, False
            comment.auto_comment = "No response."
        else:
            grade.auto_score = None
            grade.needs_manual_grade = grade.manual_score is None
            comment.auto_comment = None
        score = grade.auto_score if grade.manual_score is None else grade.manual_score
        points = float(cell.metadata.nbgrader.points)
        return WrittenMark(name, score, points, comment.manual_comment or comment.auto_comment)

    def _write_copy(self, grades: Grades, cells: Sequence[Cell]) -> None:
        """Write what a person reads while marking: the released notebook with the student's answers in it.

        Nothing of it is run again.
        """
        import nbformat
        from nbformat.v4 import new_code_cell, new_markdown_cell

        notebook = copy.deepcopy(self.released[grades.assignment])
        given = {cell.grade_id: cell for cell in cells if cell.grade_id and not cell.is_locked}
        known = set()
        for cell in notebook.cells:
            entry = cell.metadata.get("nbgrader", {})
            known.add(entry.get("grade_id"))
            if entry.get("solution") and entry["grade_id"] in given:
                source = given[entry["grade_id"]].source
                cell.source = source if cell.cell_type == "code" else inert_markdown(source)
        for other in cells:
            if not other.is_locked and other.grade_id not in known and other.source.strip():
                is_code = other.cell_type == "code"
                source = other.source if is_code else inert_markdown(other.source)
                notebook.cells.append(new_code_cell(source) if is_code else new_markdown_cell(source))
        for number, cell in enumerate(notebook.cells):
            cell.setdefault("id", f"cell-{number}")
        path = Path("autograded") / grades.student / grades.assignment / f"{grades.assignment}.ipynb"
        write(self.folder / path, nbformat.writes(notebook) + "\n")


def inert_markdown(source: str) -> str:
    """Return Markdown in which tags, links and pictures are text; mathematics stays as it is.

    Formgrader shows answers in the instructor's browser and lets everything through.  A blank makes
    the difference between a tag or a link and text, and none in mathematics.

    Parameters
    ----------
    source : str
        A student's text.

    Returns
    -------
    str
        The same for the eye.
    """
    source = re.sub(r"<(?=[A-Za-z/!?])", "< ", source)
    return re.sub(r"\](?=[(\[:])", "] ", source)


@contextlib.contextmanager
def _nbgrader() -> Iterator[None]:
    """Let nbgrader find the tools beside Python, and hush its remarks about its own use of SQLAlchemy."""
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ["PATH"] = path
