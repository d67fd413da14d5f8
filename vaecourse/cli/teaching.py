"""The commands of coursework: release, check, grade and grade-one."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vaecourse.cli.configuration import WHOLE, MaybeCount, Natural

COURSEWORK = Path(__file__).resolve().parents[2] / "book/coursework"  # of the checkout around this package

SOURCE, RELEASE = COURSEWORK / "source", COURSEWORK / "release"
# short in help texts, instead of a path of this machine
Source = Annotated[Path, Parameter(show_default=lambda path: path.relative_to(COURSEWORK.parents[1]))]


def release(*, out: Source = RELEASE, source: Source = SOURCE) -> None:
    """Make student notebooks of the problem sets.

    Solutions, model answers and outputs are gone, and locked cells carry nbgrader's checksums. The
    same source gives the same bytes.

    Parameters
    ----------
    out
        Folder for <psN>/<psN>.ipynb.
    source
        The instructor's notebooks, <psN>/<psN>.ipynb.
    """
    from vaecourse.coursework.release import release as write_release

    for path in write_release(source, out):
        print(path)


def check(notebook: Annotated[Path, Parameter(metavar="psN.ipynb")], /, *, seed: Natural = 0) -> int:
    """Try a solved problem set before handing it in.

    Your functions are called with inputs like those of the grader, and you hear what is wrong. This
    EXECUTES your notebook's cells, on your machine, without a sandbox. The status is 1 while a task
    is not right.

    Parameters
    ----------
    notebook
        Your notebook.
    seed
        Seed of the inputs.
    """
    from vaecourse.coursework.grading import check_cells, tasks_of
    from vaecourse.coursework.intake import read_cells
    from vaecourse.coursework.oracle import TASKS

    cells = list(read_cells(notebook.read_bytes()))
    names = {cell.grade_id for cell in cells}
    tasks = [task for task in TASKS.values() if task.name in names]
    if not tasks:
        raise ValueError(f"{notebook} has no cell of a problem set: its nbgrader metadata are gone")
    marks, failed = check_cells(cells, tasks_of(tasks[0].assignment), seed=seed)
    for mark in marks:
        print(f"ok  {mark.task}" if mark.score else f"--  {mark.task}\n      {mark.verdict}")
    for name, error in failed.items():
        print(f"a cell raised an error: {name}: {error}")
    score, possible = sum(mark.score for mark in marks), sum(mark.max_score for mark in marks)
    print(f"{score:g} of {possible:g} points for coded tasks; a grader draws other inputs of the same kind")
    return int(score < possible)


def grade(
    submitted: Path,
    /,
    *,
    out: Path,
    source: Source = SOURCE,
    jobs: MaybeCount = None,
    again: bool = False,
    trust_submissions: bool = False,
) -> None:
    """Grade a folder of submissions, each in a sandbox.

    Student code runs in a sandbox (bubblewrap): no network, no files, limits on time, memory,
    processes and output. It only answers calls, with inputs drawn anew for each submission, and is
    judged outside. The folder given with --out gets grades.csv, feedback/<student>/<psN>/<psN>.html
    and a gradebook of nbgrader, in which written answers are marked.

    The same command again goes on where it was stopped. Where there is no sandbox it refuses with
    status 3; --trust-submissions runs the code without one, which is for code that you know.

    Parameters
    ----------
    submitted
        Folder with <student>/<psN>/<psN>.ipynb.
    out
        Folder for everything that comes of it.
    source
        The instructor's notebooks, <psN>/<psN>.ipynb.
    jobs
        Submissions at a time; one per processor if left out.
    again
        Grade all of them, whatever was graded before.
    trust_submissions
        Run student code without a sandbox, as yourself, with all that you may do.
    """
    _need_posix()
    from vaecourse.coursework.classes import grade_class, table

    graded = grade_class(submitted, out, source, jobs=jobs, trusted=trust_submissions, again=again)
    print(table(graded))
    print(f"\n{len(graded.grades)} submissions, {graded.num_new} of them graded now; written to {out}")
    for name in graded.left_out:
        print(f"left out, because it is not <student>/<psN>: {name}")


def grade_one(
    notebook: Path,
    /,
    *,
    seed: Annotated[int | None, WHOLE] = None,
    slot: Natural = 0,
    trust_submissions: bool = False,
) -> None:
    """Grade one submission, as grade does, and print the result as JSON.

    This is the piece that a cluster runs many times.

    Parameters
    ----------
    notebook
        <student>/<psN>/<psN>.ipynb
    seed
        Seed of the inputs; drawn anew if left out.
    slot
        Number of this one among those that root runs at the same moment on a machine.
    trust_submissions
        Run student code without a sandbox, as yourself, with all that you may do.
    """
    _need_posix()
    from vaecourse.coursework.box.sandbox import self_test
    from vaecourse.coursework.grading import grade_submission, tasks_of
    from vaecourse.coursework.intake import ASSIGNMENT, read_submission
    from vaecourse.coursework.results import as_json, result_text

    path = notebook.absolute()
    assignment, student = path.parent.name, path.parent.parent.name
    if not ASSIGNMENT.fullmatch(assignment) or not tasks_of(assignment):
        raise ValueError(f"{notebook} does not lie in a folder psN, so it is not known what it answers")
    if not trust_submissions:
        self_test(slot)
    submission = read_submission(path.parent.parent.parent, student, assignment)
    grades = grade_submission(submission, seed=seed, slot=slot, trusted=trust_submissions)
    print(result_text(as_json(grades)), end="")


def _need_posix() -> None:
    if sys.platform == "win32":
        raise OSError("grading needs Linux, or for submissions that you trust macOS; on Windows use WSL")
