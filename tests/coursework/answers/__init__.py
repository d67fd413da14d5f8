"""Right and wrong answers to every coded task, as data: the cells of `psN_right.py` and `psN_wrong.py`.

A cell ``# %% <task>`` holds the task's base: a right answer, and names that others share.  A cell
``# %% <task>: <label>`` holds an answer, whole or as the difference to the base, see `completed`.

    python -m tests.coursework.answers   # judge them all, and write the table of the instructors' page
"""

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

from tests.book.notebook_rules import ROOT
from vaecourse.coursework.grading import check_cells
from vaecourse.coursework.intake import Cell
from vaecourse.coursework.oracle import TASKS

FOLDER = Path(__file__).parent
TABLE = ROOT / "book/coursework/answers.md"
CELL = re.compile(r"^# %% (\w+)(?:: (.*))?$", re.MULTILINE)


class Answer(NamedTuple):
    """A way to answer a task, and what is special about it."""

    task: str
    label: str
    source: str
    is_right: bool


@functools.cache
def cells() -> list[tuple[str, str, str | None, str]]:
    """Return kind, task, label and source of all cells."""
    found = []
    for path in sorted(FOLDER.glob("ps*_*.py")):
        parts = CELL.split(path.read_text("utf-8"))[1:]
        found += [(path.stem[4:], *cell) for cell in zip(*[iter(parts)] * 3, strict=True)]
    return found


def bases() -> dict[str, str]:
    """Return the base of each task."""
    return {task: source for _, task, label, source in cells() if label is None}


@functools.cache
def answers() -> list[Answer]:
    """Return all answers."""
    return [
        Answer(task, label, completed(source, bases()[task]), kind == "right")
        for kind, task, label, source in cells()
        if label is not None
    ]


def completed(row: str, base: str) -> str:
    """Return the source that a cell stands for.

    * A cell with a function is whole, and one that ends by returning is the whole body.
    * A dictionary says which parts of the base's text are others.
    * Other statements take the place of those in which the base assigns to the same name, or stand
      before the first one that needs them; a last expression is returned; what is not needed is left out.
    """
    tree = ast.parse(row)
    if any(isinstance(node, ast.FunctionDef) for node in tree.body):
        return row
    last = tree.body[-1]
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Dict):
        return with_changes(base, ast.literal_eval(last.value))
    function = ast.parse(base).body[0]
    is_body = any(isinstance(node, ast.Return) for node in ast.walk(last))
    function.body = tree.body if is_body else with_statements(function.body, tree.body)
    return ast.unparse(ast.fix_missing_locations(function))


def with_changes(text: str, changes: dict[str, str]) -> str:
    """Return a text with parts replaced, each of which must be there once; new lines are indented alike."""
    if wrong := [part for part in changes if text.count(part) != 1]:
        raise ValueError(f"not once in the base: {wrong}")

    def new(match: re.Match) -> str:
        line = text[: match.start()].rpartition("\n")[2]
        return changes[match[0]].replace("\n", "\n" + line[: len(line) - len(line.lstrip())])

    return re.sub("|".join(map(re.escape, changes)), new, text)


def names(node: ast.AST, context: type[ast.expr_context] = ast.expr_context) -> set[str]:
    """Return the names in a statement: all, or those that it stores."""
    found = [child for child in ast.walk(node) if isinstance(child, ast.Name)]
    return {name.id for name in found if isinstance(name.ctx, context)}


def with_statements(base: list[ast.stmt], row: list[ast.stmt]) -> list[ast.stmt]:
    """Return the base's statements with those of a row among them, as `completed` says."""
    *body, returned = base
    if isinstance(row[-1], ast.Expr):
        *row, last = row
        returned = ast.Return(last.value)
    place = len(body)
    for statement in reversed(row):
        stored = names(statement, ast.Store)
        old = [n for n, s in enumerate(body) if s not in row]
        target = ast.unparse(statement).partition(" = ")[0]
        same = [n for n in old if ast.unparse(body[n]).startswith(f"{target} = ")]
        if same:
            place = same[0]
            body[place] = statement
        else:
            # behind what it needs, before what needs it, and before the next of the row
            start = max([n + 1 for n in old if names(body[n], ast.Store) & names(statement)], default=0)
            users = [n for n in range(start, len(body)) if names(body[n]) & stored]
            place = 0 if not stored and statement is row[-1] else min([place, *users])
            body.insert(place, statement)
    kept, needed = [returned], names(returned)
    for statement in reversed(body):
        if statement in row or not isinstance(statement, ast.Assign) or names(statement, ast.Store) & needed:
            kept.insert(0, statement)
            needed |= names(statement)
    return kept


def code_cell(source: str, grade_id: str | None = None) -> Cell:
    """Return a cell as `intake` reads it."""
    return Cell("code", source, grade_id, is_locked=False)


def verdict(answer: Answer, seed: int) -> str:
    """Return the grader's verdict on an answer, in this process."""
    ((mark,), _) = check_cells([code_cell(answer.source)], [TASKS[answer.task]], seed=seed)
    return mark.verdict


def table(judged: list[tuple[Answer, str]]) -> str:
    """Return a Markdown table: per task how many wrong answers were refused and right ones accepted."""
    lines = ["| set | task | wrong answers refused | right answers accepted |", "|---|---|---|---|"]
    for task in sorted(TASKS.values(), key=lambda task: task.assignment):
        wrong = [v for answer, v in judged if answer.task == task.name and not answer.is_right]
        right = [v for answer, v in judged if answer.task == task.name and answer.is_right]
        refused, accepted = sum(v != "ok" for v in wrong), right.count("ok")
        counts = f"{refused} of {len(wrong)} | {accepted} of {len(right)}"
        lines.append(f"| {task.assignment} | `{task.name}` | {counts} |")
    return "\n".join(lines) + "\n"
