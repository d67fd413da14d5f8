"""The problem sets: what students get, what instructors keep, and that marks follow right and wrong."""

import ast
import json
import re
import sys
from collections import Counter

import nbformat
import pytest

from tests.book.notebook_rules import REPOSITORY, ROOT, run_on_lines, scan
from tests.coursework.answers import TABLE, Answer, answers, bases, code_cell, completed, table, verdict
from vaecourse.coursework.box.runner import notebook_module
from vaecourse.coursework.grading import check_cells, tasks_of
from vaecourse.coursework.intake import read_cells
from vaecourse.coursework.oracle import SETUP, TASKS, Draw, told
from vaecourse.coursework.release import release, source_notebooks, student_version

SOURCE = ROOT / "book/coursework/source"
SETS = source_notebooks(SOURCE)
MIN_WRONG, MIN_RIGHT = 8, 3
TOTAL_POINTS = 20

each_set = pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)


def entries(path):
    """Return the cells of a notebook that nbgrader knows, with what it knows."""
    cells = nbformat.read(path, as_version=4).cells
    return [(cell, cell.metadata.nbgrader) for cell in cells if "nbgrader" in cell.metadata]


def solutions(path):
    return [(cell, entry) for cell, entry in entries(path) if entry.solution and cell.cell_type == "code"]


# ---- right and wrong answers ----


@pytest.mark.parametrize("answer", answers(), ids=lambda a: f"{a.task}-{a.label}"[:70])
def test_wrong_answers_are_refused_and_right_ones_accepted(answer):
    found = [verdict(answer, seed) for seed in (1, 2)]
    assert [v == "ok" for v in found] == [answer.is_right] * 2, found


@each_task
def test_each_task_has_enough_answers_and_a_right_base(task):
    counts = Counter(answer.is_right for answer in answers() if answer.task == task.name)
    assert counts[False] >= MIN_WRONG
    assert counts[True] >= MIN_RIGHT
    assert verdict(Answer(task.name, "base", bases()[task.name], True), seed=1) == "ok"


BASE = "def f(x, k):\n    a = x + 1\n    b = a * k\n    return b"
ROWS = {
    "b - a": "def f(x, k):\n    a = x + 1\n    b = a * k\n    return b - a",
    "x": "def f(x, k):\n    return x",
    "a = x": "def f(x, k):\n    a = x\n    b = a * k\n    return b",
    "x = 2 * x\nc = a - x\nc": "def f(x, k):\n    x = 2 * x\n    a = x + 1\n    c = a - x\n    return c",
    "if x:\n    return k": "def f(x, k):\n    if x:\n        return k",
    '{"b =": "k()\\nb =", "return b": ""}': "def f(x, k):\n    a = x + 1\n    k()\n    b = a * k",
    "def f():\n    pass": "def f():\n    pass",
}


@pytest.mark.parametrize(("row", "source"), ROWS.items())
def test_row_stands_for_a_source(row, source):
    assert ast.dump(ast.parse(completed(row, BASE))) == ast.dump(ast.parse(source))


def test_row_that_does_not_fit_its_base_is_refused():
    with pytest.raises(ValueError, match="not once in the base"):
        completed('{"a": "b"}', BASE)


def test_no_answer_is_listed_twice_or_belongs_to_no_task():
    labels = [(answer.task, answer.label, answer.is_right) for answer in answers()]
    assert [label for label, count in Counter(labels).items() if count > 1] == []
    assert {answer.task for answer in answers()} <= set(TASKS)


def test_table_on_the_page_lists_every_answer_as_judged_rightly():
    judged = [(answer, "ok" if answer.is_right else "wrong") for answer in answers()]
    assert TABLE.read_text("utf-8") == table(judged), "run python -m tests.coursework.answers"


@each_task
def test_inputs_follow_the_seed(task):
    first, again, other = (json.dumps(told(task.calls(task.checks(Draw(seed))))) for seed in (3, 3, 4))
    assert first == again != other


# ---- the notebooks ----


@each_set
def test_instructor_solution_has_full_marks_and_student_version_none(path):
    tasks = tasks_of(path.stem)
    solved, failed = check_cells(list(read_cells(path.read_bytes())), tasks)
    assert failed == {}
    assert [mark.verdict for mark in solved] == ["ok"] * len(tasks)
    untouched, _ = check_cells(list(read_cells(student_version(path).encode())), tasks)
    assert {mark.score for mark in untouched} == {0}
    assert {mark.verdict for mark in untouched} == {"error: not written yet"}


@each_set
def test_tasks_points_and_cells_agree_with_the_grader(path):
    tasks = tasks_of(path.stem)
    assert [entry.grade_id for _, entry in solutions(path)] == [task.name for task in tasks]
    points = {entry.grade_id: entry.points for _, entry in entries(path) if entry.grade}
    assert {task.name: points[f"test_{task.name}"] for task in tasks} == {t.name: t.points for t in tasks}
    assert sum(points.values()) == TOTAL_POINTS


@each_set
def test_solution_cells_define_one_function_each(path):
    for cell, entry in solutions(path):
        defined = [node.name for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
        wanted = ["save_state", "load_state"] if entry.grade_id == "save_state" else [entry.grade_id]
        assert defined == wanted


@each_set
def test_first_code_cell_is_the_setup_that_the_grader_runs(path):
    first = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert first.source == SETUP
    assert first.metadata.nbgrader.locked


@each_set
def test_visible_tests_pass_with_every_right_answer(path, monkeypatch):
    """They may miss a mistake, but never accuse somebody who is right."""
    cells = [cell for cell, _ in entries(path) if cell.cell_type == "code"]
    solved = {entry.grade_id: cell.source for cell, entry in solutions(path)}
    for answer in answers():
        if not answer.is_right or TASKS[answer.task].assignment != path.stem:
            continue
        monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # put back afterwards
        namespace = notebook_module().__dict__
        for name, source in [("setup", SETUP), *{**solved, answer.task: answer.source}.items()]:
            exec(compile(source, name, "exec"), namespace)
        for cell in cells:
            if cell.metadata.nbgrader.grade_id == f"test_{answer.task}":
                exec(compile(cell.source, answer.label, "exec"), namespace)


@each_set
def test_visible_tests_fail_on_the_untouched_notebook(path):
    namespace: dict = {}
    exec(SETUP, namespace)
    for cell in read_cells(student_version(path).encode()):
        if cell.cell_type == "code" and cell.grade_id in {t.name for t in tasks_of(path.stem)}:
            exec(cell.source, namespace)
    tests = [cell for cell, entry in entries(path) if entry.grade and cell.cell_type == "code"]
    for cell in tests:
        with pytest.raises(NotImplementedError):
            exec(cell.source, dict(namespace))


@each_set
def test_source_is_in_normal_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) for name in ids)
    names = [entry.grade_id for _, entry in entries(path)]
    assert len(set(ids)) == len(ids)
    assert len(set(names)) == len(names)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"nbgrader", "tags"}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
            lines = cell.source.splitlines()
            assert max(map(len, lines)) <= 80, cell.id
        else:
            found = scan(cell.source)
            assert found.problems == []
            assert found.labels == [], "problem sets are read in Jupyter, which shows no labels"
            assert list(run_on_lines(found.prose)) == []
            assert not re.search(r"\{\w+\}`", cell.source), "no MyST roles: Jupyter and Colab show them raw"


@each_set
def test_links_lead_to_chapters_that_exist(path):
    site = "https://{}.github.io/{}/".format(*REPOSITORY.removeprefix("https://github.com/").split("/"))
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    pages = re.findall(re.escape(site) + r"([\w/]+)\.html", text)
    assert pages, "a problem set links to its chapter"
    assert [page for page in pages if not list(ROOT.glob(f"{page}.*"))] == []


# ---- what students get ----


@each_set
def test_student_version_holds_no_trace_of_a_solution(path):
    text = student_version(path)
    for cell, entry in entries(path):
        if entry.solution:
            regions = cell.source.split("### BEGIN SOLUTION")[1:]
            body = "".join(region.split("### END SOLUTION")[0] for region in regions)
            # long enough to be no accident, and not part of what is given outside of the markers
            lines = [line.strip() for line in body.splitlines() if len(line.strip()) > 25]
            assert [line for line in lines if json.dumps(line)[1:-1] in text] == []
    for word in ("SOLUTION", "MARK SCHEME", "isconception"):
        assert word not in text
    notebook = nbformat.reads(text, as_version=4)
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"nbgrader", "deletable", "editable"}
    answers_left = [c.source for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution")]
    assert all("raise NotImplementedError()" in s or s == "YOUR ANSWER HERE" for s in answers_left)


def test_release_writes_the_same_bytes_again(tmp_path):
    first, again = release(SOURCE, tmp_path / "a"), release(SOURCE, tmp_path / "b")
    assert [path.stem for path in first] == [path.stem for path in SETS]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_release_refuses_what_would_give_a_solution_away(tmp_path):
    notebook = nbformat.read(SETS[0], as_version=4)
    target = tmp_path / "ps1" / "ps1.ipynb"
    target.parent.mkdir()
    cell = next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("solution"))
    whole = cell.source
    cell.source = whole.replace("### BEGIN SOLUTION", "").replace("### END SOLUTION", "")
    nbformat.write(notebook, target)
    with pytest.raises(ValueError, match=f"cell {cell.metadata.nbgrader.grade_id} has no ### BEGIN SOLUTION"):
        release(tmp_path, tmp_path / "out")
    cell.source = whole
    notebook.cells[0].source += "\n### BEGIN MARK SCHEME"
    nbformat.write(notebook, target)
    with pytest.raises(ValueError, match="would still hold BEGIN MARK SCHEME"):
        release(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"there is no psN/psN\.ipynb below"):
        release(tmp_path / "out", tmp_path / "out")


# ---- the student's side ----


def test_a_task_that_fails_leaves_the_others():
    cells = [
        code_cell("def best_scale(y, loc):\n    return (y - loc).square().mean().sqrt()"),
        code_cell("raise SystemError('no')", "extra"),
        code_cell("def ridge_penalty(noise_scale, prior_scale):\n    return noise_scale / prior_scale"),
        code_cell("this is no Python", "regression_nll"),
        code_cell("%matplotlib inline\nlearning_rate_for_sse = lambda rate, scale: rate / (2 * scale**2)"),
    ]
    marks, failed = check_cells(cells, tasks_of("ps1"))
    verdicts = {mark.task: mark.verdict for mark in marks}
    assert verdicts["best_scale"] == verdicts["learning_rate_for_sse"] == "ok"
    assert verdicts["ridge_penalty"].startswith("wrong: got ")
    assert verdicts["normal_log_density"] == "error: there is no function normal_log_density"
    why = "its cell raised SyntaxError: invalid syntax"
    assert verdicts["regression_nll"].startswith(f"error: there is no function regression_nll: {why}")
    assert list(failed) == ["extra", "regression_nll"]
    assert failed["extra"] == "SystemError: no (line 1 of extra)"


def test_digits_that_agree_are_shown_with_the_ones_that_do_not():
    cell = code_cell("def best_scale(y, loc):\n    return (y - loc).square().mean().sqrt() * (1 + 1e-6)")
    (mark,), _ = check_cells([cell], [TASKS["best_scale"]])
    got, wanted = re.match(r"wrong: got ([\d.]+) where ([\d.]+) is expected", mark.verdict).groups()
    assert got != wanted
    assert "was it computed in float32" in mark.verdict


def test_argument_changed_in_place_is_wrong():
    cell = code_cell("def best_scale(y, loc):\n    y -= loc\n    return y.square().mean().sqrt()")
    (mark,), _ = check_cells([cell], [TASKS["best_scale"]])
    assert mark.verdict == "wrong: it changed its argument number 1 in place"
