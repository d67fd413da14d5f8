"""The commands of coursework: ``vaecourse release``, ``check``, ``grade`` and ``grade-one``."""

import argparse
import sys
from pathlib import Path

COURSEWORK = Path(__file__).resolve().parents[2] / "book/coursework"  # of the checkout around this package


def add_release_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``vaecourse release``."""
    _source_option(parser)
    target = "for <psN>/<psN>.ipynb (default: book/coursework/release of this repository)"
    parser.add_argument(
        "--output-dir", type=Path, metavar="FOLDER", help=target, default=COURSEWORK / "release"
    )


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``vaecourse check``."""
    parser.add_argument("notebook", metavar="psN.ipynb", type=Path, help="your notebook")
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="of the inputs (default: %(default)s)"
    )


def add_grade_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``vaecourse grade``."""
    parser.add_argument("submitted", metavar="SUBMITTED", type=Path, help="holds <student>/<psN>/<psN>.ipynb")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", required=True, help="for everything that comes of it"
    )
    _source_option(parser)
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="submissions at a time (default: one per processor)"
    )
    again = "grade all of them, whatever was graded before"
    parser.add_argument("--again", action="store_true", help=again)
    _trust_option(parser)


def add_grade_one_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``vaecourse grade-one``."""
    parser.add_argument("notebook", metavar="NOTEBOOK", type=Path, help="<student>/<psN>/<psN>.ipynb")
    parser.add_argument("--seed", type=int, metavar="N", help="of the inputs (default: drawn anew)")
    slot = "number of this one among those that root runs at the same moment on a machine (default: 0)"
    parser.add_argument("--slot", type=int, metavar="N", default=0, help=slot)
    _trust_option(parser)


def _source_option(parser: argparse.ArgumentParser) -> None:
    text = (
        "the instructor's notebooks, <psN>/<psN>.ipynb (default: book/coursework/source of this repository)"
    )
    parser.add_argument("--source", type=Path, metavar="FOLDER", default=COURSEWORK / "source", help=text)


def _trust_option(parser: argparse.ArgumentParser) -> None:
    trust = "run student code without a sandbox, as yourself, with all that you may do"
    parser.add_argument("--trust-submissions", action="store_true", help=trust)


def _need_posix() -> None:
    if sys.platform == "win32":
        raise OSError("grading needs Linux, or for submissions that you trust macOS; on Windows use WSL")


def run_release(options: argparse.Namespace, words: list[str]) -> int:
    """Carry out ``vaecourse release``."""
    from vaecourse.coursework.release import release

    for path in release(options.source, options.output_dir):
        print(path)
    return 0


def run_check(options: argparse.Namespace, words: list[str]) -> int:
    """Carry out ``vaecourse check``; the status is 1 where a task is not right yet."""
    from vaecourse.coursework.collector import read_cells
    from vaecourse.coursework.grading import check_cells, tasks_of
    from vaecourse.coursework.oracle import TASKS

    cells = list(read_cells(options.notebook.read_bytes()))
    names = {cell.grade_id for cell in cells}
    tasks = [task for task in TASKS.values() if task.name in names]
    if not tasks:
        raise ValueError(f"{options.notebook} has no cell of a problem set: its nbgrader metadata are gone")
    marks, failed = check_cells(cells, tasks_of(tasks[0].assignment), seed=options.seed)
    for mark in marks:
        sign = "ok " if mark.score else "-- "
        print(f"{sign} {mark.task}" + ("" if mark.score else f"\n      {mark.verdict}"))
    for name, error in failed.items():
        print(f"a cell raised an error: {name}: {error}")
    score, possible = sum(mark.score for mark in marks), sum(mark.max_score for mark in marks)
    print(f"{score:g} of {possible:g} points for coded tasks; a grader draws other inputs of the same kind")
    return int(score < possible)


def run_grade(options: argparse.Namespace, words: list[str]) -> int:
    """Carry out ``vaecourse grade``."""
    _need_posix()
    from vaecourse.coursework.pile import grade_pile, table

    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    pile = grade_pile(
        options.submitted,
        options.out,
        options.source,
        jobs=options.jobs,
        trusted=options.trust_submissions,
        again=options.again,
    )
    print(table(pile))
    print(f"\n{len(pile.grades)} submissions, {pile.num_new} of them graded now; written to {options.out}")
    for name in pile.left_out:
        print(f"left out, because it is not <student>/<psN>: {name}")
    return 0


def run_grade_one(options: argparse.Namespace, words: list[str]) -> int:
    """Carry out ``vaecourse grade-one``."""
    _need_posix()
    from vaecourse.coursework.collector import ASSIGNMENT, read_submission
    from vaecourse.coursework.grading import grade_submission, tasks_of
    from vaecourse.coursework.report import as_json, result_text
    from vaecourse.coursework.sandbox import self_test

    path = options.notebook.absolute()
    assignment, student = path.parent.name, path.parent.parent.name
    if not ASSIGNMENT.fullmatch(assignment) or not tasks_of(assignment):
        raise ValueError(
            f"{options.notebook} does not lie in a folder psN, so it is not known what it answers"
        )
    if not options.trust_submissions:
        self_test(options.slot)
    grades = grade_submission(
        read_submission(path.parent.parent.parent, student, assignment),
        seed=options.seed,
        slot=options.slot,
        trusted=options.trust_submissions,
    )
    print(result_text(as_json(grades)), end="")
    return 0
