"""Right and wrong answers to every coded task, as data: `psN_right.py` and `psN_wrong.py`.

Each cell begins with a line `# %% <task>: <label>` and holds what a student would write.

    python -m tests.coursework.answers   # judge them all, and write the table of the instructors' page
"""

import re
from pathlib import Path
from typing import NamedTuple

from tests.book.notebook_rules import ROOT
from vaecourse.coursework.grading import check_cells
from vaecourse.coursework.intake import Cell
from vaecourse.coursework.oracle import TASKS

FOLDER = Path(__file__).parent
TABLE = ROOT / "book/coursework/answers.md"
CELL = re.compile(r"^# %% (\w+): (.*)$", re.MULTILINE)


class Answer(NamedTuple):
    """A way to answer a task, and what is special about it."""

    task: str
    label: str
    source: str
    is_right: bool


def answers() -> list[Answer]:
    """Return all answers."""
    found = []
    for path in sorted(FOLDER.glob("ps*_*.py")):
        _, *parts = CELL.split(path.read_text("utf-8"))
        is_right = path.stem.endswith("right")
        found += [Answer(*cell, is_right) for cell in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
    return found


def code_cell(source: str, grade_id: str | None = None) -> Cell:
    """Return a cell as the collector reads it."""
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
