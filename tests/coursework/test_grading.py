"""A class of submissions: each is marked by itself, whatever its neighbours are, and pages show text."""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.coursework.answers import answers, code_cell
from tests.coursework.attacks import (
    FORGING_LIMITS,
    PS1,
    SOURCE,
    adding,
    cell_named,
    changing,
    file_of,
    in_zip,
    of_kind,
    renaming,
    right_notebook,
    save,
    what_came,
    with_wrong_bytes,
    zipped,
)
from vaecourse.cli import main
from vaecourse.coursework.box.watching import Limits
from vaecourse.coursework.classes import grade_class, kept_grades
from vaecourse.coursework.grading import grade_submission, tasks_of
from vaecourse.coursework.intake import Submission, UnreadableError, read_cells, read_submission
from vaecourse.coursework.results import COLUMNS, result_path

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'


# ---- what was handed in, beside the table of attacks ----


def student_of(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def injecting(notebook: dict, folder: Path) -> None:
    """Hand in markup wherever text can stand."""
    cell_named(notebook, "best_scale")["source"] = (
        f"def best_scale(y, loc):\n    return type({SCRIPT!r}, (), {{}})()  # {IMAGE}"
    )
    cell_named(notebook, "ridge_penalty")["source"] = (
        f"def ridge_penalty(*args):\n    raise type({IMAGE!r}, (ValueError,), {{}})({SCRIPT!r})"
    )
    cell_named(notebook, "written_penalty")["source"] = f"{SCRIPT} {IMAGE} [a](javascript:alert(1))"
    code = {"cell_type": "code", "outputs": [], "execution_count": None}
    named = {"nbgrader": {"grade_id": IMAGE, "locked": False, "solution": True}}
    notebook["cells"] += [
        {**code, "source": f"raise ValueError({SCRIPT!r})", "metadata": named},
        {"cell_type": "markdown", "source": f"{SCRIPT} {IMAGE} ![a](http://192.0.2.1/a.png)", "metadata": {}},
    ]
    save(notebook, folder, f"{IMAGE.replace('/', '')}.ipynb")


def cells_of(*sources: object) -> bytes:
    cells = [{"cell_type": "code", "source": source, "metadata": {}} for source in sources]
    return json.dumps({"nbformat": 4, "cells": cells}).encode()


def too_large(notebook: dict, folder: Path) -> None:
    save(notebook, folder)
    os.truncate(folder / "ps1.ipynb", 20_000_001)


def link_to_file(notebook: dict, folder: Path) -> None:
    folder.mkdir(parents=True)
    save(notebook, folder.parents[2], "secret.ipynb")
    (folder / "ps1.ipynb").symlink_to(folder.parents[2] / "secret.ipynb")


def link_to_folder(notebook: dict, folder: Path) -> None:
    save(notebook, folder.parents[2] / "elsewhere")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder.parents[2] / "elsewhere")


DEEP = b'{"nbformat": 4, "cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
DAMAGED = bytearray(zipped(cells_of("x" * 1000)))
DAMAGED[45:60] = bytes(range(240, 255))
ODD = {
    "link to a file": (link_to_file, r"ps1\.ipynb is not a file that can be read: a link"),
    "link to a folder": (link_to_folder, "it cannot be read: Not a directory"),
    "named pipe": (
        lambda n, folder: (folder.mkdir(parents=True), os.mkfifo(folder / "ps1.ipynb")),
        r"ps1\.ipynb is not a regular file",
    ),
    "folder for a file": (lambda n, folder: (folder / "ps1.ipynb").mkdir(parents=True), "it cannot be read"),
    "too large": (too_large, r"ps1\.ipynb has more than 20 MB: clear its outputs"),
    "too many cells": (file_of(cells_of(*["1"] * 501)), "it has 501 cells, more than 500"),
    "too much text": (file_of(cells_of("1" * 600_000, "1" * 600_000)), "its cells hold more than 1000000"),
    "deep JSON": (file_of(DEEP), "it is not a notebook: not JSON"),
    "huge number": (file_of(b'{"nbformat": ' + b"4" * 10_000 + b"}"), "it is not a notebook: not JSON"),
    "other format": (file_of(b'{"nbformat": 3, "worksheets": []}'), "it is not a notebook of format 4"),
    "no source": (file_of(cells_of(None)), "one of its cells has no source"),
    "a list": (file_of(b"[1, 2]"), "it is not a notebook of format 4"),
    "zip bomb": (
        file_of(zipped(bytes(30_000_000)), "a.zip"),
        r"ps1\.ipynb has more than 20 MB when unpacked",
    ),
    "no zip": (file_of(b"PK", "a.zip"), "the archive cannot be read"),
    "damaged zip": (file_of(bytes(DAMAGED), "a.zip"), "the archive cannot be read"),
    "two zips": (
        lambda n, folder: (in_zip(n, folder), (folder / "b.zip").touch()),
        r"there is no ps1\.ipynb in the folder, but b\.zip, homework\.zip",
    ),
    "many files": (
        lambda n, folder: (save(n, folder), [(folder / f"{k}").touch() for k in range(100)]),
        "there are more than 100 files",
    ),
}


@pytest.mark.parametrize(("hand_in", "problem"), ODD.values(), ids=ODD)
def test_what_cannot_be_read_has_a_reason(hand_in, problem, tmp_path):
    hand_in(right_notebook(), tmp_path / "submitted" / "ada" / "ps1")
    submission = read_submission(tmp_path / "submitted", "ada", "ps1")
    assert submission.cells == ()
    assert re.search(problem, submission.problem), submission.problem


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_bomb_is_not_unpacked(method, tmp_path):
    file_of(zipped(bytes(200_000_000), method), "a.zip")({}, tmp_path / "ada" / "ps1")
    tracemalloc.start()
    try:
        submission = read_submission(tmp_path, "ada", "ps1")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert submission.problem
    assert peak < 100_000_000


SMALL = cells_of("x = 1\n" * 40)
WHOLE = {
    "notebook": ("ps1.ipynb", lambda: json.dumps(right_notebook()).encode()[:6_000]),
    "zip": ("ps1.zip", lambda: zipped(SMALL)),
    "lzma": ("ps1.zip", lambda: zipped(SMALL, zipfile.ZIP_LZMA)),
}


@pytest.mark.parametrize(("name", "whole"), WHOLE.values(), ids=WHOLE)
def test_mutated_files_never_raise_anything_else(name, whole, tmp_path):
    """A file is a notebook or has a reason; a damaged one does not end the grading of the others."""
    content = whole()
    file_of(content, name)({}, tmp_path / "ada/ps1")
    rng = random.Random(0)
    for _ in range(1000):
        (tmp_path / "ada/ps1" / name).write_bytes(with_wrong_bytes(content, rng, 3))
        read_submission(tmp_path, "ada", "ps1")


# Half of a surrogate pair can be said in JSON, but neither written nor printed.
NOT_TEXT = {
    "source": file_of(cells_of("x = '\ud800'")),
    "message": adding("raise ValueError('\\ud800')"),
    "name of a cell": lambda notebook, folder: (
        cell_named(notebook, "best_scale").update(source="raise ValueError"),
        renaming("best_scale", "\ud800")(notebook, folder),
    ),
    "type": changing(best_scale="best_scale = type('\\n\\x1b[2J', (), {})"),
    "answer": changing(written_penalty="\ud800\x00"),
}


# ---- the listed answers, through the sandbox ----


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("assignment", ["ps1", "ps2", "ps3", "ps4", "ps5"])
def test_a_sample_of_the_listed_answers_is_marked_alike_in_the_sandbox(assignment, is_right, sandbox):
    last = {answer.task: answer.source for answer in answers() if answer.is_right is is_right}
    tasks = tasks_of(assignment)
    cells = tuple(code_cell(last[task.name], task.name) for task in tasks)
    grades = grade_submission(Submission("ada", assignment, cells, ""))
    assert [mark.score for mark in grades.marks] == [task.points * is_right for task in tasks], grades


def test_a_task_with_many_calls_that_hang_costs_its_own_points_only(sandbox):
    endless = "def {}(*args):\n    while True:\n        pass"
    right = {answer.task: answer.source for answer in answers() if answer.is_right}
    hanging = {name: endless.format(name) for name in ("train_step", "epoch_indices")}
    cells = tuple(code_cell(source, name) for name, source in {**right, **hanging}.items())
    grades = grade_submission(Submission("ada", "ps5", cells, ""), limits=Limits(task=2.0))
    verdicts = {mark.task: mark.verdict for mark in grades.marks}
    assert {name for name, verdict in verdicts.items() if verdict != "ok"} == set(hanging)
    assert {verdicts[name] for name in hanging} == {"timeout: it ran out of time"}


# ---- a class ----

NAMES = ["Zoë", "Zoe\u0308", "Åsa Öberg", "a.b+c@d-e", "0", "x" * 100]
NO_NAMES = ["-rf", "=1+1", "...", "a;b", "$(id)", "x" * 101, "a\nb", os.fsdecode(b"\xff")]


@pytest.fixture(scope="module")
def everybody(sandbox, tmp_path_factory):
    """Return the folder in which everything was graded at once, and what the call has returned."""
    folder = tmp_path_factory.mktemp("class")
    submitted = folder / "submitted"
    handed_in = {
        **{student_of(attack.name): attack.hand_in for attack in of_kind("submission")},
        **{f"odd-{student_of(name)}": hand_in for name, (hand_in, _) in ODD.items()},
        **{f"no-text-{student_of(name)}": hand_in for name, hand_in in NOT_TEXT.items()},
        "injecting": injecting,
        **dict.fromkeys([*NAMES, *NO_NAMES], file_of(b"{}")),
    }
    for student, hand_in in handed_in.items():
        hand_in(right_notebook(), submitted / student / "ps1")
    (submitted / "nobody").mkdir()
    (submitted / "linked").symlink_to(submitted / "correct")
    for name in ("ps99", "notes", "ps1 (1)"):
        (submitted / "correct" / name).mkdir()
    (submitted / "readme.txt").touch()
    return folder, grade_class(submitted, folder / "out", SOURCE, jobs=2, limits=FORGING_LIMITS)


@pytest.mark.parametrize("attack", of_kind("submission"), ids=lambda attack: attack.name)
def test_submission_has_its_own_marks(attack, everybody):
    (grades,) = [g for g in everybody[1].grades if g.student == student_of(attack.name)]
    assert what_came(grades) == attack.outcome, grades


def test_unreadable_submissions_have_zero_and_the_reason(everybody):
    found = {g.student: g for g in everybody[1].grades}
    for name, (_, problem) in ODD.items():
        grades = found[f"odd-{student_of(name)}"]
        assert grades.score == 0
        assert all(re.match(f"malformed: .*{problem}", mark.verdict) for mark in grades.marks), grades


def test_what_is_no_text_does_not_stop_the_others(everybody):
    verdicts = [mark.verdict for grades in everybody[1].grades for mark in grades.marks]
    assert all(map(str.isprintable, verdicts)), "a verdict is one line for a table and a terminal"
    for name in NOT_TEXT:
        path = everybody[0] / f"out/feedback/no-text-{student_of(name)}/ps1/ps1.html"
        assert path.read_text("utf-8")


def test_names_of_students(everybody):
    students = {grades.student for grades in everybody[1].grades}
    assert students >= set(NAMES)
    assert not students & set(NO_NAMES)
    assert "nobody" not in students
    left_out = [
        "readme.txt", "linked", "correct/notes", "correct/ps1 (1)", "correct/ps99",
        *(repr(name)[1:-1] for name in NO_NAMES if not name.startswith("."))
    ]  # fmt: skip
    assert sorted(everybody[1].left_out) == sorted(left_out)
    "".join(everybody[1].left_out).encode("utf-8")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_grades_csv_has_a_row_for_each_task(everybody):
    rows = rows_of(everybody[0] / "out/grades.csv")
    assert list(rows[0]) == COLUMNS
    assert COLUMNS == ["student_id", "assignment", "task", "score", "max_score", "verdict"]
    assert [row["task"] for row in rows] == list(PS1) * len(everybody[1].grades)
    assert {row["assignment"] for row in rows} == {"ps1"}
    points = {g.student: g.score for g in everybody[1].grades}
    for student, score in points.items():
        assert sum(float(row["score"]) for row in rows if row["student_id"] == student) == score
    verdicts = {row["verdict"].partition(":")[0] for row in rows}
    assert verdicts == {"ok", "wrong", "error", "timeout", "malformed"}
    assert all((row["verdict"] == "ok") == (row["score"] == row["max_score"]) for row in rows)
    assert not any(value.startswith(tuple("=+-@")) for row in rows for value in row.values())


# ---- pages ----

ACTIVE = {"script", "img", "link", "iframe", "object", "form", "a", "svg", "base"}
HARMLESS = {"lang", "charset", "http-equiv", "content", "name", "class", "scope"}


class Page(HTMLParser):
    """Collects elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_data(self, data):
        self.text += data


def test_pages_show_markup_as_text_and_ask_for_nothing(everybody):
    pages = sorted((everybody[0] / "out/feedback").glob("*/ps1/ps1.html"))
    assert len(pages) == len(everybody[1].grades)
    for path in pages:
        page = Page(path.read_text("utf-8"))
        assert not page.tags & ACTIVE
        assert {name for _, name, _ in page.attributes} <= HARMLESS, "no handler of an event, no address"
        assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
        assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    page = Page((everybody[0] / "out/feedback/injecting/ps1/ps1.html").read_text("utf-8"))
    # script: the type's name, two messages, and the sources of three cells; image: file, cell, class, sources
    assert page.text.count(SCRIPT) >= 5, "the injected text must have reached the page"
    assert page.text.count(IMAGE) >= 3, "the injected text must have reached the page"


def test_copies_for_the_formgrader_are_inert(everybody):
    for path in (everybody[0] / "out/autograded").glob("*/ps1/ps1.ipynb"):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            assert cell.get("outputs", []) == []
            if cell["cell_type"] == "markdown" and cell["metadata"].get("nbgrader", {}).get("solution", True):
                source = "".join(cell["source"])
                assert not re.search(r"<[a-z/!?]|\]\(", source, re.IGNORECASE), source
    injected = (everybody[0] / "out/autograded/injecting/ps1/ps1.ipynb").read_text("utf-8")
    assert "< script>" in injected


# ---- what is kept ----


@pytest.fixture
def again(everybody):
    """Return a function that grades a few of them once more, into the folder of everybody's grades."""
    folder = everybody[0]
    for name in ("0", "correct", "wrong"):
        shutil.copytree(folder / "submitted" / name, folder / "few" / name, dirs_exist_ok=True)
    return lambda: grade_class(folder / "few", folder / "out", SOURCE, jobs=1, limits=FORGING_LIMITS)


def test_second_call_grades_only_what_has_changed(everybody, again):
    folder, _ = everybody
    out = folder / "out"
    kept = [out / "grades.csv", *out.glob("results/*/*.json")]
    before = {path: path.read_bytes() for path in kept}
    assert again().num_new == 0
    assert {path: path.read_bytes() for path in kept} == before

    (folder / "few/0/ps1/ps1.ipynb").write_bytes(b'{"nbformat": 4, "cells": []}')
    result_path(out, "wrong", "ps1").unlink()
    third = again()
    assert third.num_new == 2
    found = {grades.student: what_came(grades) for grades in third.grades}
    assert found == {
        "0": "error, 0 of 11 points",
        "correct": "11 of 11 points",
        "wrong": "wrong, 2 of 11 points",
    }
    assert list(out.rglob("*.tmp")) == []


@pytest.mark.parametrize("kept", ["", '{"digest": "', "[]", "{}", "null"])
def test_result_that_is_not_whole_is_made_again(kept, tmp_path):
    file_of(b"{}")({}, tmp_path / "ada/ps1")
    path = result_path(tmp_path / "out", "ada", "ps1")
    path.parent.mkdir(parents=True)
    path.write_text(kept)
    assert kept_grades(tmp_path / "out", read_submission(tmp_path, "ada", "ps1")) is None


def test_marks_of_a_person_stay_and_are_shown(everybody, again):
    from nbgrader.api import Gradebook

    folder, _ = everybody
    names = ("written_penalty", "ps1", "ps1", "correct")
    with Gradebook(f"sqlite:///{folder / 'out/gradebook.db'}") as book:
        assert book.find_grade(*names).needs_manual_grade
        assert not book.find_grade("written_mistakes", *names[1:]).needs_manual_grade, "no response"
        book.find_grade(*names).manual_score = 3.5
        book.find_grade(*names).needs_manual_grade = False
        book.find_comment(*names).manual_comment = f"Good {SCRIPT}"
        book.db.commit()
    again()
    with Gradebook(f"sqlite:///{folder / 'out/gradebook.db'}") as book:
        assert book.find_grade(*names).manual_score == 3.5
        assert not book.find_grade(*names).needs_manual_grade
        assert book.find_submission("ps1", "correct").score == 14.5
        assert book.find_submission("ps1", "wrong").score == 2
        assert book.find_submission("ps1", "not-JSON").score == 0
    page = Page((folder / "out/feedback/correct/ps1/ps1.html").read_text("utf-8"))
    assert f"Good {SCRIPT}" in page.text
    assert re.search(r"3\.5 /\s+4", page.text)
    assert "Written answers: 3.5 of 9 points" in " ".join(page.text.split())


def test_nbgrader_exports_the_marks(everybody):
    folder, done = everybody
    ours = (folder / "out/grades.csv").read_text("utf-8")
    before = set((folder / "out").iterdir())
    nbgrader = Path(sys.executable).with_name("nbgrader")
    export = subprocess.run([nbgrader, "export"], cwd=folder / "out", capture_output=True, text=True)
    assert export.returncode == 0, export.stderr
    assert (folder / "out/grades.csv").read_text("utf-8") == ours, "nbgrader has another grades.csv"
    (exported,) = set((folder / "out").iterdir()) - before
    assert exported.name == "marks.csv"
    found = {row["student_id"]: float(row["score"]) for row in rows_of(exported)}
    assert found["right-for-the-visible-tests-only"] == 9
    assert set(found) == {grades.student for grades in done.grades}


# ---- the command line ----


def test_check_tells_a_student_what_is_wrong(tmp_path, capsys):
    save(right_notebook(), tmp_path)
    assert main(["check", str(tmp_path / "ps1.ipynb")]) == 0
    assert "11 of 11 points" in capsys.readouterr().out
    changing(best_scale="def best_scale(y, loc):\n    return (y - loc).std()")(right_notebook(), tmp_path)
    assert main(["check", str(tmp_path / "ps1.ipynb")]) == 1
    said = capsys.readouterr().out
    assert "9 of 11 points" in said
    assert re.search(r"^--  best_scale\n      wrong: ", said, re.MULTILINE)
    (tmp_path / "ps1.ipynb").write_text("{")
    assert main(["check", str(tmp_path / "ps1.ipynb")]) == 2
    assert "not JSON" in capsys.readouterr().err


def test_grade_one_prints_json_that_the_seed_repeats(sandbox, tmp_path, capsys):
    of_kind("submission")[1].hand_in(right_notebook(), tmp_path / "ada/ps1")
    words = ["grade-one", str(tmp_path / "ada/ps1/ps1.ipynb"), "--seed", "7"]
    found = []
    for more in ([], ["--trust-submissions"]):
        assert main([*words, *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert (found[0]["student"], found[0]["score"], found[0]["seed"]) == ("ada", 2, 7)
    assert found[0]["marks"] == found[1]["marks"]
    assert main(["grade-one", str(tmp_path / "ps1.ipynb")]) == 2


def grade_words(tmp_path: Path) -> list[str]:
    return ["grade", str(tmp_path / "submitted"), "--out", str(tmp_path / "out"), "--source", str(SOURCE)]


def test_folder_without_submissions_cannot_be_graded(tmp_path, capsys):
    submitted = tmp_path / "submitted"
    assert main(grade_words(tmp_path)) == 2
    assert "is not a folder of submissions" in capsys.readouterr().err
    (submitted / "ada").mkdir(parents=True)
    (submitted / "bob/ps99").mkdir(parents=True)
    (submitted / "link").symlink_to(submitted / "ada")
    assert main(grade_words(tmp_path)) == 2
    assert "there is no <student>/<psN>/<psN>.ipynb" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_grade_prints_a_table(sandbox, tmp_path, capsys):
    file_of(b"{}")({}, tmp_path / "submitted/ada/ps1")
    (tmp_path / "submitted/ada/ps98").mkdir()
    assert main([*grade_words(tmp_path), "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ada +ps1 +0/11  normal_log_density \(malformed\), ", said, re.MULTILINE)
    assert re.search(r"^1 submissions?, 1 .*graded now", said, re.MULTILINE)
    assert "ps98" in said, "a problem set that does not exist is said to be left out"
    assert main([*grade_words(tmp_path), "--jobs", "0"]) == 2


def test_cells_that_are_not_as_expected():
    """What is read of a cell: source as a list, and no more of nbgrader's facts than two."""
    cells = [{"source": ["a\n", "b"]}, {"source": "", "metadata": {"nbgrader": 3}}]
    first, second = read_cells(json.dumps({"nbformat": 4, "cells": cells}).encode())
    assert first == ("None", "a\nb", None, False)
    assert second == ("None", "", None, False)
    with pytest.raises(UnreadableError, match="no source"):
        list(read_cells(b'{"nbformat": 4, "cells": [{"source": [1]}]}'))
