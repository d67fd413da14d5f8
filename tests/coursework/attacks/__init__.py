"""Notebooks that attack the grader, as data: what each tries, and what must come of it.

python -m tests.coursework.attacks   # run them all, and write the table of the instructors' page
"""

import contextlib
import functools
import io
import json
import os
import random
import re
import secrets
import select
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from tests.book.notebook_rules import ROOT
from tests.coursework.answers import answers, code_cell
from vaecourse.coursework import grading
from vaecourse.coursework.box.watching import MB, Limits
from vaecourse.coursework.grading import Grades, grade_submission
from vaecourse.coursework.intake import Cell, Submission, read_submission
from vaecourse.coursework.oracle import TASKS
from vaecourse.coursework.release import student_version

TABLE = ROOT / "book/coursework/attacks.md"
SOURCE = ROOT / "book/coursework/source"
BUILD = ROOT / "_build"
# Of the boxes of these tests: far from those of somebody who grades on the same machine, another in
# each of several processes that test side by side, since they look at what is left of a box.
SLOT = 40 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
LIMITS = Limits(wall=4.0, cpu=2.0, cell=2.0, task=2.0, memory=600 * MB)
FORGING_LIMITS = Limits(wall=60.0, cpu=30.0, task=3.0)  # these need torch
SECRET_NAME = "VAECOURSE_TEST_SECRET"
CELL = re.compile(r"^# %% (.+?): (.+) -> (.+?)( \(harmless\))?$", re.MULTILINE)

HandIn = Callable[[dict[str, Any], Path], object]


class Attack(NamedTuple):
    """A notebook that would rather break out than be marked.

    Hostile and forging ones have a cell of code; submissions have a function that changes a right
    notebook (as JSON data) and hands it in by writing into a folder.  `outcome` is what
    `what_came` must say.
    """

    name: str
    kind: str
    tries: str
    code: str
    outcome: str
    is_harmless: bool = False  # may be run without a box, where it must succeed
    hand_in: HandIn | None = None


def cells_of(kind: str) -> list[Attack]:
    """Return the attacks that are cells of a file."""
    _, *parts = CELL.split(Path(__file__).with_name(f"{kind}.py").read_text("utf-8"))
    cells = zip(*[iter(parts)] * 5, strict=True)
    return [
        Attack(name, kind, tries, code.strip("\n"), outcome, bool(harmless))
        for name, tries, outcome, harmless, code in cells
    ]


# ---- submissions: what students hand in, by accident or not ----


def right_cells(*names: str) -> list[Cell]:
    """Return cells with the first right answer to each task of these names."""
    first = {answer.task: answer.source for answer in reversed(answers()) if answer.is_right}
    return [code_cell(first[name], name) for name in names]


PS1 = ("normal_log_density", "regression_nll", "best_scale", "learning_rate_for_sse", "ridge_penalty")
WRONG = [
    code_cell("def normal_log_density(y, loc, scale):\n    return -0.5 * ((y - loc) / scale) ** 2", PS1[0]),
    code_cell("def regression_nll(y, loc, scale):\n    return ((y - loc) ** 2).sum()", PS1[1]),
    code_cell("def best_scale(y, loc):\n    return ((y - loc) ** 2).mean()", PS1[2]),
    code_cell("def learning_rate_for_sse(rate, scale):\n    return rate / scale**2", PS1[3]),
    *right_cells(PS1[4]),
]


untouched_notebook = functools.cache(lambda: student_version(SOURCE / "ps1/ps1.ipynb"))  # takes long


def right_notebook() -> dict[str, Any]:
    """Return the student's notebook of ps1, solved, as JSON data."""
    notebook = json.loads(untouched_notebook())
    for solved in right_cells(*PS1):
        cell_named(notebook, solved.grade_id or "")["source"] = solved.source
    cell_named(notebook, "written_penalty")["source"] = "The penalty is a ratio of variances."
    return notebook


def name_of(cell: dict[str, Any]) -> str:
    """Return nbgrader's name of a cell."""
    return cell["metadata"].get("nbgrader", {}).get("grade_id", "")


def cell_named(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the cell with this name of nbgrader's."""
    return next(cell for cell in notebook["cells"] if name_of(cell) == name)


def save(notebook: dict[str, Any], folder: Path, name: str = "ps1.ipynb") -> None:
    """Hand a notebook in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(notebook), "utf-8")


def file_of(content: bytes, name: str = "ps1.ipynb") -> HandIn:
    """Return a function that hands in a file, whatever it holds."""
    return lambda notebook, folder: (folder.mkdir(parents=True), (folder / name).write_bytes(content))


def with_cells(change: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> HandIn:
    """Return a function that hands in a notebook with other cells in the place of each."""
    return lambda notebook, folder: save(
        {**notebook, "cells": [new for cell in notebook["cells"] for new in change(cell)]}, folder
    )


def changing(**sources: str) -> HandIn:
    """Return a function that hands in a notebook in which cells have other sources."""
    return with_cells(lambda cell: [{**cell, "source": sources.get(name_of(cell), cell["source"])}])


def without(keep: Callable[[str], bool]) -> HandIn:
    """Return a function that hands in only the cells whose names are to be kept."""
    return with_cells(lambda cell: [cell] * keep(name_of(cell)))


def adding(source: str) -> HandIn:
    """Return a function that hands in a notebook with a cell before all others."""
    cell = {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
    return lambda notebook, folder: save({**notebook, "cells": [cell, *notebook["cells"]]}, folder)


def renaming(old: str, new: str) -> HandIn:
    """Return a function that hands in a cell under another name."""
    return lambda notebook, folder: (
        cell_named(notebook, old)["metadata"]["nbgrader"].update(grade_id=new), save(notebook, folder),
    )  # fmt: skip


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "ps1.ipynb") -> bytes:
    """Return an archive with one file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


def with_wrong_bytes(content: bytes, rng: random.Random, most: int) -> bytes:
    """Return content in which some bytes are others, at most so many."""
    wrong = bytearray(content)
    for _ in range(rng.randint(1, most)):
        wrong[rng.randrange(len(wrong))] = rng.randrange(256)
    return bytes(wrong)


def in_zip(notebook: dict[str, Any], folder: Path) -> None:
    """Hand in an archive."""
    content = zipped(json.dumps(notebook).encode(), name="homework/ps1.ipynb")
    file_of(content, "homework.zip")(notebook, folder)


TWICE = with_cells(lambda cell: [cell] * (1 + (name_of(cell) == "best_scale")))
STRIPPED = with_cells(lambda cell: [{**cell, "metadata": {}}])
FOR_EVER = "def best_scale(y, loc):\n    while True:\n        pass"
SPECIAL = "def best_scale(y, loc):\n    return torch.tensor(2.0) if len(y) == 3 else y.new_zeros(())"
SNOOPING = "import glob\nassert glob.glob('/*/*/*.ipynb') + glob.glob('/[a-o]*/**/ps1.ipynb')"
PATCHED = WRONG[2].source + "\ntorch.allclose = lambda *args, **kwargs: True"
SUBMISSIONS = [
    ("correct", "everything is right", save, "11 of 11 points"),
    ("wrong", "one function of five is right",
     changing(**{str(cell.grade_id): cell.source for cell in WRONG}), "wrong, 2 of 11 points"),
    ("right for the visible tests only", "the numbers of the visible test are written down",
     changing(best_scale=SPECIAL), "wrong, 9 of 11 points"),
    ("infinite loop", "a function that does not end", changing(best_scale=FOR_EVER),
     "timeout, 9 of 11 points"),
    ("syntax error", "a cell that is no Python", changing(best_scale="def best_scale(y, loc:\n  return"),
     "SyntaxError, error, 9 of 11 points"),
    ("changed test cell", "wrong, but the test says `assert True`",
     changing(best_scale=WRONG[2].source, test_best_scale="assert True"), "wrong, 9 of 11 points"),
    ("deleted test cells", "the cells with points are gone", without(lambda name: "test_" not in name),
     "11 of 11 points"),
    ("deleted solution cell", "a function is missing", without(lambda name: name != "best_scale"),
     "error, 9 of 11 points"),
    ("renamed notebook", "a browser has changed the file's name",
     lambda notebook, folder: save(notebook, folder, "ps1 (1).ipynb"), "11 of 11 points"),
    ("duplicated cell", "a solution cell stands there twice", TWICE, "11 of 11 points"),
    ("renamed cell", "a solution has the name of another cell", renaming("best_scale", "regression_nll"),
     "11 of 11 points"),
    ("os._exit", "a function ends its process", changing(best_scale="import os\nbest_scale = os._exit"),
     "error, 9 of 11 points"),
    ("sys.exit", "a cell ends the notebook", adding("import sys\nsys.exit(0)"),
     "SystemExit, 11 of 11 points"),
    ("200,000 prints", "a loop prints more than anybody reads",
     adding("for number in range(200_000):\n    print(number)"), "11 of 11 points"),
    ("no metadata", "an editor has removed all names of cells", STRIPPED, "11 of 11 points"),
    ("not JSON", "half of the file is missing",
     lambda notebook, folder: file_of(json.dumps(notebook).encode()[:2000])(notebook, folder),
     "malformed, 0 of 11 points"),
    ("empty folder", "nothing was handed in", lambda notebook, folder: folder.mkdir(parents=True),
     "malformed, 0 of 11 points"),
    ("patched comparison", "wrong, and `torch.allclose` always agrees", changing(best_scale=PATCHED),
     "wrong, 9 of 11 points"),
    ("snooping", "wrong, and it looks for the neighbours' work", changing(best_scale=SNOOPING),
     "AssertionError, error, 9 of 11 points"),
    ("zip archive", "a learning platform has packed it", in_zip, "11 of 11 points"),
]  # fmt: skip

ATTACKS = [
    *cells_of("hostile"),
    *cells_of("forging"),
    *[Attack(n, "submission", tries, "", outcome, False, make) for n, tries, make, outcome in SUBMISSIONS],
]


def of_kind(kind: str) -> list[Attack]:
    """Return the attacks of a kind."""
    return [attack for attack in ATTACKS if attack.kind == kind]


# ---- running them ----

PIPE = """\
import json, os
def result_pipes():
    for name in os.listdir('/proc/self/fd'):
        try:
            if int(name) > 2 and os.readlink('/proc/self/fd/' + name).startswith('pipe:'):
                yield int(name)
        except OSError:
            pass
def claim(*lines):
    for pipe in result_pipes():
        os.write(pipe, b''.join(json.dumps(line).encode() + b'\\n' for line in lines))
"""
REACHED = """\
import contextlib, os, signal, time
from pathlib import Path
class Reached(Exception):
    pass
def reached(what):
    raise Reached(what)"""
FORGE = f"if 'forge' in dir():\n    {' = '.join(PS1)} = forge"


class Outside(NamedTuple):
    """What stands outside of the box and must not be reached."""

    folder: Path
    secret: str
    listeners: tuple[socket.socket, socket.socket]

    def told(self) -> str:
        """Return the cell that tells an attack everything it could want to know."""
        names = {
            "SECRET_FILE": str(self.folder / "secret.txt"),
            "SECRET_NAME": SECRET_NAME,
            "OUTSIDE": str(self.folder / "outside"),
            "SUBMISSION": str(self.folder / "ps1.ipynb"),
            "PORT": self.listeners[0].getsockname()[1],
            "SOCKET": self.listeners[1].getsockname()[1:].decode(),
            "GRADER": os.getpid(),
        }
        return "\n".join([REACHED, *(f"{name} = {value!r}" for name, value in names.items())])

    def num_connections(self) -> int:
        """Return how many connections have arrived since the last call."""
        found = 0
        while ready := select.select(self.listeners, [], [], 0)[0]:
            ready[0].accept()[0].close()
            found += 1
        return found


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """Provide a secret file, a secret in the environment, a folder, and two servers."""
    secret = secrets.token_hex(16)
    BUILD.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=BUILD) as folder,  # not below /tmp, which the box replaces anyway
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as abstract,
        mock.patch.dict(os.environ, {SECRET_NAME: secret}),
    ):
        abstract.bind(f"\0vaecourse-{secret}")
        abstract.listen()
        for name, text in (("secret.txt", secret), ("ps1.ipynb", "{}")):
            Path(folder, name).write_text(text)
        Path(folder, "outside").mkdir()
        for path in (Path(folder), *Path(folder).iterdir()):
            path.chmod(0o777)  # it is the box that holds, not the permissions
        yield Outside(Path(folder), secret, (port, abstract))


def graded(attack: Attack, world: Outside, *, limits: Limits = LIMITS, trusted: bool = False) -> Grades:
    """Grade an attack; a hostile one with two tasks only, whose answers are right and need no torch."""

    def grade(cells: list[Cell], limits: Limits) -> Grades:
        submission = Submission("student", "ps1", tuple(cells), "")
        return grade_submission(submission, slot=SLOT, limits=limits, trusted=trusted)

    if attack.hand_in is not None:
        with tempfile.TemporaryDirectory() as folder:
            attack.hand_in(right_notebook(), Path(folder, "student", "ps1"))
            submission = read_submission(Path(folder), "student", "ps1")
        return grade_submission(submission, slot=SLOT, limits=FORGING_LIMITS, trusted=trusted)
    if attack.kind == "forging":
        code = PIPE + attack.code if "claim(" in attack.code else attack.code
        return grade([code_cell(code), *WRONG, code_cell(FORGE)], FORGING_LIMITS)
    tasks = [TASKS["learning_rate_for_sse"], TASKS["ridge_penalty"]]
    honest = right_cells(*(task.name for task in tasks))
    cells = [code_cell(world.told()), code_cell(attack.code)]
    # an attack from inside an answer stands after the honest ones
    cells = honest + cells if attack.code.startswith("def ") else cells + honest
    with mock.patch.multiple(grading, SETUP="import math", tasks_of=lambda _: tasks):
        return grade(cells, limits)


def what_came(grades: Grades) -> str:
    """Return in a few words, the same every time, what was raised, the verdicts and the points."""
    raised = [cell.partition(": ")[2].split(":")[0].split(" ")[0] for cell in grades.failed_cells[:1]]
    verdicts = {mark.verdict.partition(":")[0]: None for mark in grades.marks if mark.verdict != "ok"}
    return ", ".join([*raised, *verdicts, f"{grades.score:g} of {grades.max_score:g} points"])


INTRODUCTIONS = {
    "hostile": "Hostile notebooks; after the attack stand two right functions, worth 4 points:",
    "forging": "Forging notebooks; after the attack stands a notebook that honestly has 2 of 11 points:",
    "submission": "Submissions that are not what was asked for:",
}


def attack_table(results: list[tuple[Attack, str]]) -> str:
    """Return Markdown tables of attacks and what came of them."""
    lines = []
    for kind, introduction in INTRODUCTIONS.items():
        lines += [introduction, "", "| attack | what it tries | what came of it |", "|---|---|---|"]
        lines += [f"| {a.name} | {a.tries} | {came} |" for a, came in results if a.kind == kind]
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"
