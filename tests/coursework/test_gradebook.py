"""What a person sees and decides: written answers, points by hand, and nbgrader's own commands."""

import subprocess
import sys
from contextlib import closing

import nbformat
import pytest

from tests.book.notebook_rules import ROOT
from tests.coursework.answers import code_cell
from vaecourse.coursework.gradebook import CHANGED, MAX_ANSWER, CourseFolder, inert_markdown
from vaecourse.coursework.grading import Grades, tasks_of
from vaecourse.coursework.intake import Cell
from vaecourse.coursework.oracle import Mark
from vaecourse.coursework.results import grades_csv

SOURCE = ROOT / "book/coursework/source"
NAME, OTHER = "written_penalty", "written_mistakes"


def text_cell(source: str, grade_id: str | None = NAME) -> Cell:
    return Cell("markdown", source, grade_id, is_locked=False)


def grades_of(student: str, verdict: str = "ok") -> Grades:
    marks = [Mark(task.name, task.points, task.points, verdict) for task in tasks_of("ps1")]
    return Grades(student, "ps1", tuple(marks), "digest", 0, (), "", 0.0)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    with closing(CourseFolder(tmp_path_factory.mktemp("graded"), [SOURCE / "ps1/ps1.ipynb"])) as opened:
        yield opened


def gradebook(course: CourseFolder):
    from nbgrader.api import Gradebook

    return Gradebook(course.url)


def state(course: CourseFolder, student: str, name: str = NAME):
    with gradebook(course) as book:
        grade = book.find_grade(name, "ps1", "ps1", student)
        return grade.auto_score, grade.manual_score, bool(grade.needs_manual_grade)


def copy_of(course: CourseFolder, student: str):
    path = course.folder / "autograded" / student / "ps1/ps1.ipynb"
    return nbformat.read(path, as_version=4).cells


EMPTY, WAITING = (0.0, None, False), (None, None, True)
HANDED_IN = {
    "nothing": ([], EMPTY),
    "blank": ([text_cell("  \n")], EMPTY),
    "untouched": ([text_cell("YOUR ANSWER HERE")], EMPTY),
    "answered": ([text_cell("Because.")], WAITING),
    "split and empty below": ([text_cell("Because."), text_cell("")], WAITING),
    "in a cell of their own": ([text_cell("YOUR ANSWER HERE"), text_cell("Because.", None)], WAITING),
    "without metadata": ([text_cell("Because.", None)], WAITING),
    "code only": ([code_cell("x = 1")], EMPTY),
}


@pytest.mark.parametrize(("cells", "expected"), HANDED_IN.values(), ids=HANDED_IN)
def test_only_what_is_certainly_empty_has_no_points(cells, expected, course, request):
    student = request.node.callspec.id.replace(" ", "-")
    written = course.record(grades_of(student), cells)
    assert state(course, student) == expected
    assert written[0].score == expected[0]
    text = "\n".join(cell.source for cell in copy_of(course, student))
    assert ("Because." in text) == any(cell.source == "Because." for cell in cells)


def test_halves_of_an_answer_are_shown_together_and_additions_as_such(course):
    course.record(
        grades_of("halves"), [text_cell("First."), text_cell("Second."), text_cell("## Full marks", None)]
    )
    cells = copy_of(course, "halves")
    (answer,) = [cell.source for cell in cells if cell.metadata.get("nbgrader", {}).get("grade_id") == NAME]
    assert answer == "First.\n\nSecond."
    sources = [cell.source for cell in cells]
    assert sources[-2:] == ["**Cells that the student added:**", r"\## Full marks"]


def test_answer_that_changes_after_its_mark_is_looked_at_again(course):
    course.record(grades_of("changing"), [text_cell("First thoughts.")])
    with gradebook(course) as book:
        grade = book.find_grade(NAME, "ps1", "ps1", "changing")
        grade.manual_score, grade.needs_manual_grade = 2.5, False
        book.db.commit()
    same = course.record(grades_of("changing"), [text_cell("First thoughts.")])
    assert state(course, "changing") == (None, 2.5, False)
    assert same[0].score == 2.5
    changed = course.record(grades_of("changing"), [text_cell("Second thoughts.")])
    assert state(course, "changing") == (None, 2.5, True)
    assert changed[0].comment == CHANGED


def test_points_by_hand_for_a_coded_task_are_final(course):
    found = grades_of("partial", "wrong: got 1 where 2 is expected")
    course.record(found, [])
    assert course.final(found) == found
    with gradebook(course) as book:
        book.find_grade("test_best_scale", "ps1", "ps1", "partial").manual_score = 1.5
        book.find_comment("best_scale", "ps1", "ps1", "partial").manual_comment = "nearly"
        book.db.commit()
    course.record(found, [])  # grading again leaves them
    final = course.final(found)
    mark = next(mark for mark in final.marks if mark.task == "best_scale")
    assert (mark.score, mark.verdict) == (1.5, "wrong: got 1 where 2 is expected; by hand: nearly")
    assert "partial,ps1,best_scale,1.5,2,wrong: got 1 where 2 is expected; by hand: nearly" in grades_csv(
        [final]
    )


MISCHIEF = {
    "a tag": ("<script>alert(1)</script>", "< script>alert(1)< /script>"),
    "a link": ("[x](javascript:alert(1))", "[x] (javascript:alert(1))"),
    "a picture": ("![x](http://example.org/x.png)", "![x] (http://example.org/x.png)"),
    "a reference": ("[x][1]\n\n[1]: javascript:alert(1)", "[x] [1]\n\n[1] : javascript:alert(1)"),
    "a heading": (f"# {OTHER}", rf"\# {OTHER}"),
    "a heading in a quote": (f"> ## {OTHER}", rf"> \## {OTHER}"),
    "a heading by underlining": (f"{OTHER}\n====", f"{OTHER}\n" + r"\===="),
    "a diagram": ("```mermaid\ngraph", "``` text\ngraph"),
    "mathematics": (r"$a<0$, $b < c$, $f[x]$, $\#A$", r"$a<0$, $b < c$, $f[x]$, $\#A$"),
}


@pytest.mark.parametrize(("source", "shown"), MISCHIEF.values(), ids=MISCHIEF)
def test_markdown_of_students_is_inert(source, shown):
    assert inert_markdown(source) == shown


def test_very_long_answers_are_cut_in_the_copy():
    assert len(inert_markdown("x" * 10**6)) < MAX_ANSWER + 100


def test_nbgrader_refuses_to_run_student_code(course):
    course.record(grades_of("hostile"), [])
    place = course.folder / "submitted/hostile/ps1"
    place.mkdir(parents=True)
    marker = course.folder / "was run"
    notebook = nbformat.read(course.folder / "release/ps1/ps1.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"open({str(marker)!r}, 'w')"))
    nbformat.write(notebook, place / "ps1.ipynb")
    command = [sys.executable, "-m", "nbgrader", "autograde", "ps1", "--student", "hostile", "--force"]
    done = subprocess.run(command, cwd=course.folder, capture_output=True, text=True)
    assert done.returncode != 0
    assert "use `vaecourse grade`" in done.stderr
    assert not marker.exists()


def test_result_that_never_came_to_the_gradebook_stays_as_it_is(course):
    """A call was stopped between the two, and the submission is gone."""
    assert course.final(grades_of("withdrawn")) == grades_of("withdrawn")


def test_cells_that_come_or_go_after_the_first_grading_need_another_folder(tmp_path):
    with closing(CourseFolder(tmp_path / "graded", [SOURCE / "ps1/ps1.ipynb"])) as course:
        course.record(grades_of("ada"), [])
    notebook = nbformat.read(SOURCE / "ps1/ps1.ipynb", as_version=4)
    notebook.cells = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") != OTHER]
    changed = tmp_path / "ps1/ps1.ipynb"
    changed.parent.mkdir()
    nbformat.write(notebook, changed)
    with pytest.raises(ValueError, match="came or went since the first grading: use a new --out"):
        CourseFolder(tmp_path / "graded", [changed])
