"""What grading costs: one submission against its bare cells, and a whole class."""

import os

from tests.benchmarks.measuring import Settings, alternate, timed
from tests.benchmarks.report import Goal, Outcome, Row
from tests.book.notebook_rules import ROOT
from vaecourse.coursework.box.sandbox import SandboxError, run, self_test
from vaecourse.coursework.classes import grade_all
from vaecourse.coursework.grading import grade_submission, student_code
from vaecourse.coursework.intake import read_submission
from vaecourse.coursework.oracle import SETUP

BARE = "the bare cells, run once, no sandbox"
TRUSTED, BOXED = "graded, no sandbox", "graded, in the sandbox"
GOAL = Goal("≤", 0.3)


def grading(settings: Settings) -> Outcome:
    """Grade the instructor's solution of the first problem set, alone and as a class of sixty."""
    try:
        self_test()
    except SandboxError as error:
        return Outcome([Row(BOXED, not_run=str(error))])
    source = ROOT / "book/coursework"
    submission = read_submission(source, "source", "ps1")  # the folder has the form of a student's
    bare = [("setup", SETUP), *student_code(submission.cells)]
    contenders = {
        BARE: lambda: run(bare, trusted=True).seconds,
        TRUSTED: lambda: grade_submission(submission, trusted=True).seconds,
        BOXED: lambda: grade_submission(submission).seconds,
    }
    seconds = alternate(contenders, settings.choose(3 * settings.rounds, 2))
    class_size = settings.choose(60, 2)
    whole, grades = timed(lambda: list(grade_all([submission] * class_size, jobs=os.cpu_count() or 1)))
    if {grade.score for grade in grades} != {grades[0].max_score}:
        raise RuntimeError("a right submission was not given full marks")
    extra = {name: [a - b for a, b in zip(seconds[name], seconds[BARE], strict=True)] for name in contenders}
    rows = [Row(name, "s", values=seconds[name]) for name in contenders]
    rows += [
        Row(f"{TRUSTED}: more than the bare cells", "s", values=extra[TRUSTED]),
        Row(f"{BOXED}: more than the bare cells", "s", GOAL, values=extra[BOXED]),
        Row(f"{class_size} submissions, one per core at a time", "s", values=[whole]),
    ]
    return Outcome(rows, {f"{name}: seconds": values for name, values in seconds.items()})
