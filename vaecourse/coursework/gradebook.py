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
            try:
                SaveCells().preprocess(copy.deepcopy(self.released[assignment]), {"nbgrader": names})
            except RuntimeError as error:  # nbgrader's word for it
                advice = f"cells of {assignment} came or went since the first grading: use a new --out"
                raise ValueError(advice) from error

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

        before = self._read_copy(grades)
        self._write_copy(grades, cells)
        changed = {
            name for name, source in self._read_copy(grades).items() if before.get(name, source) != source
        }
        names = (grades.assignment, grades.assignment, grades.student)
        with _nbgrader(), Gradebook(self.url) as book:
            book.update_or_create_student(grades.student)
            book.update_or_create_submission(grades.assignment, grades.student)
            for mark in grades.marks:
                grade = book.find_grade(f"test_{mark.task}", *names)
                grade.auto_score, grade.needs_manual_grade = mark.score, False
                book.find_comment(mark.task, *names).auto_comment = inert_markdown(mark.verdict)
            written = [
                self._written(book, cell, names, cells, cell.metadata.nbgrader.grade_id in changed)
                for cell in self._written_cells(grades.assignment)
            ]
            book.db.commit()
        return written

    def final(self, grades: Grades) -> Grades:
        """Return grades with the points and comments that a person has given to coded tasks.

        Parameters
        ----------
        grades : Grades
            As the grader has found them.

        Returns
        -------
        Grades
            The same where nobody has changed anything.
        """
        from nbgrader.api import Gradebook, MissingEntry

        names = (grades.assignment, grades.assignment, grades.student)
        marks = []
        with _nbgrader(), Gradebook(self.url) as book:
            for mark in grades.marks:
                try:
                    points = book.find_grade(f"test_{mark.task}", *names).manual_score
                    comment = book.find_comment(mark.task, *names).manual_comment
                except MissingEntry:  # of an earlier call that was stopped before it came to the gradebook
                    points = comment = None
                if points is not None or comment:
                    verdict = f"{mark.verdict}; by hand: {comment or 'other points'}"
                    mark = mark._replace(score=mark.score if points is None else points, verdict=verdict)
                marks.append(mark)
        return grades._replace(marks=tuple(marks))

    def _written_cells(self, assignment: str) -> list[Any]:
        """Return the cells of a problem set that a person marks."""
        entries = [(cell, cell.metadata.get("nbgrader", {})) for cell in self.released[assignment].cells]
        return [cell for cell, entry in entries if entry.get("grade") and entry.get("solution")]

    def _written(
        self, book: Any, cell: Any, names: tuple[str, str, str], cells: Sequence[Cell], is_changed: bool
    ) -> WrittenMark:
        name = cell.metadata.nbgrader.grade_id
        grade, comment = book.find_grade(name, *names), book.find_comment(name, *names)
        is_empty = answer_to(cells, name) in ("", cell.source.strip()) and not self._has_text_of_its_own(
            names[0], cells
        )
        grade.auto_score = 0.0 if is_empty else None
        comment.auto_comment = "No response." if is_empty else None
        if grade.manual_score is None:
            grade.needs_manual_grade = not is_empty
        elif is_changed:
            grade.needs_manual_grade, comment.auto_comment = True, CHANGED
        score = grade.auto_score if grade.manual_score is None else grade.manual_score
        points = float(cell.metadata.nbgrader.points)
        return WrittenMark(name, score, points, comment.manual_comment or comment.auto_comment)

    def _has_text_of_its_own(self, assignment: str, cells: Sequence[Cell]) -> bool:
        """Whether there is Markdown in cells of the student's own: an answer may stand there."""
        known = {
            cell.metadata.get("nbgrader", {}).get("grade_id") for cell in self.released[assignment].cells
        }
        own = [cell for cell in cells if cell.cell_type == "markdown" and not cell.is_locked]
        return any(cell.source.strip() for cell in own if cell.grade_id not in known)

    def _copy_path(self, grades: Grades) -> Path:
        place = Path("autograded") / grades.student / grades.assignment
        return self.folder / place / f"{grades.assignment}.ipynb"

    def _read_copy(self, grades: Grades) -> dict[str, str]:
        """Return the answers in the copy that a person reads, by name; none where there is no copy yet."""
        import nbformat

        if not (path := self._copy_path(grades)).exists():
            return {}
        cells = nbformat.read(path, as_version=4).cells
        return {cell.metadata.nbgrader.grade_id: cell.source for cell in cells if "nbgrader" in cell.metadata}

    def _write_copy(self, grades: Grades, cells: Sequence[Cell]) -> None:
        """Write what a person reads while marking: the released notebook with the student's answers in it.

        Nothing of it is run again.
        """
        import nbformat
        from nbformat.v4 import new_code_cell, new_markdown_cell

        notebook = copy.deepcopy(self.released[grades.assignment])
        shown: set[str | None] = set()
        for cell in notebook.cells:
            entry = cell.metadata.get("nbgrader", {})
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
        write(self._copy_path(grades), nbformat.writes(notebook) + "\n")


def answer_to(cells: Sequence[Cell], grade_id: str) -> str:
    """Return what stands in the student's cells of a name; a cell may have been split.

    Parameters
    ----------
    cells : sequence of Cell
        The submission.
    grade_id : str
        nbgrader's name of the cell.

    Returns
    -------
    str
        Without blank ends; empty where there is no such cell.
    """
    return "\n\n".join(c.source for c in cells if c.grade_id == grade_id and not c.is_locked).strip()


def inert_markdown(source: str) -> str:
    """Return Markdown in which tags, links, pictures and headings are text; mathematics stays as it is.

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
    source = source if len(source) <= MAX_ANSWER else source[:MAX_ANSWER] + CUT
    source = re.sub(r"<(?=[A-Za-z/!?])", "< ", source)
    source = re.sub(r"\](?=[(\[:])", "] ", source)
    source = re.sub(r"(?m)^([\s>*+\-\d.)]*)#", r"\1\\#", source)  # headings have names on the page
    source = re.sub(r"(?m)^(\s*)(?=(=+|-+)\s*$)", r"\1\\", source)
    return re.sub(r"(?m)(`{3,}|~{3,})\s*mermaid", r"\1 text", source)


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
