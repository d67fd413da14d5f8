"""Hostile notebooks reach nothing, forging ones earn nothing, and without a sandbox nothing is run."""

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tqdm

from tests.book.notebook_rules import ROOT
from tests.coursework import attacks
from vaecourse.cli import main
from vaecourse.coursework import grading
from vaecourse.coursework.box import sandbox as boxes
from vaecourse.coursework.box.filter import MACHINES, seccomp_filter
from vaecourse.coursework.box.sandbox import FIRST_UID, SandboxError, is_root, self_test
from vaecourse.coursework.box.watching import MB, Outcome
from vaecourse.coursework.grading import grade_submission, tasks_of
from vaecourse.coursework.intake import Submission
from vaecourse.coursework.oracle import Draw
from vaecourse.coursework.results import as_json, feedback_page, from_json, grades_csv, result_text

by_name = {"ids": lambda attack: attack.name}


@pytest.fixture(scope="module")
def world():
    with attacks.outside() as found:
        yield found


def processes_of_the_box() -> list[psutil.Process]:
    """Return what still runs: of the box's own user, or by its command line where there is no such user."""
    found = []
    for process in psutil.process_iter(["uids", "cmdline", "status"]):
        uids, words = process.info["uids"], process.info["cmdline"] or []
        is_uid = uids is not None and uids.real == FIRST_UID + attacks.SLOT
        mine = is_uid if is_root() else "box.runner" in words
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def comes_true(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return bool(found)


# ---- hostile notebooks ----


@pytest.mark.usefixtures("sandbox")
def test_box_starts_from_an_environment_that_is_a_link(tmp_path):
    (tmp_path / "linked").symlink_to(sys.prefix)
    command = "from vaecourse.coursework.box.sandbox import self_test; self_test(slot=7)"
    python = tmp_path / "linked" / "bin" / "python"
    done = subprocess.run([python, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_package_is_hidden_under_every_name_that_leads_to_it(tmp_path, monkeypatch):
    package = tmp_path / "real" / "lib" / "vaecourse"
    package.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setattr(boxes, "PACKAGE", package)
    shown = [tmp_path / "link", tmp_path / "real", Path("/opt")]
    words = boxes._hide_package(shown)
    assert [words[i + 1] for i, word in enumerate(words) if word == "--tmpfs"] == [
        str(place / "lib" / "vaecourse") for place in shown[:2]
    ]


@pytest.mark.parametrize("attack", attacks.of_kind("hostile"), **by_name)
def test_hostile_notebook_is_contained(attack, sandbox, world):
    world.num_connections()
    start = time.monotonic()
    grades = attacks.graded(attack, world)
    assert time.monotonic() - start < attacks.LIMITS.wall + 2
    assert attacks.what_came(grades) == attack.outcome, grades
    assert world.secret not in repr(grades)
    assert world.num_connections() == 0
    assert list((world.folder / "outside").iterdir()) == []
    assert (world.folder / "ps1.ipynb").read_text() == "{}"
    assert comes_true(lambda: not processes_of_the_box(), seconds=1)


@pytest.mark.parametrize("attack", [a for a in attacks.of_kind("hostile") if a.is_harmless], **by_name)
def test_the_same_attack_succeeds_without_a_box(attack, world):
    world.num_connections()
    came = attacks.what_came(attacks.graded(attack, world, trusted=True))
    assert came.startswith("Reached"), "a broken attack shows nothing"
    assert world.num_connections() == attack.name.startswith(("connect to this", "connect to an"))
    for path in (world.folder / "outside").iterdir():
        path.unlink()
    (world.folder / "ps1.ipynb").write_text("{}")


def test_box_does_not_outlive_a_grader_that_is_killed(sandbox):
    """This also shows that processes of the box are found while there are some."""
    start = "from vaecourse.coursework.box.sandbox import run\n"
    start += f"run([('cell', 'import time; time.sleep(60)')], slot={attacks.SLOT})"
    with subprocess.Popen([sys.executable, "-c", start], cwd=ROOT) as grader:
        assert comes_true(processes_of_the_box, seconds=20)
        grader.kill()
    assert comes_true(lambda: not processes_of_the_box(), seconds=1)


def test_package_among_the_libraries_is_hidden_too(sandbox, monkeypatch):
    """Here it lies outside of the environment; a library takes its part."""
    cell = ("cell", "import tqdm\n\ndef is_there():\n    return hasattr(tqdm, 'tqdm')")
    call = {"id": 0, "task": "", "group": "", "function": "is_there"}
    for package, is_there in ((boxes.PACKAGE, True), (Path(tqdm.__file__).parent, False)):
        monkeypatch.setattr(boxes, "PACKAGE", package)
        outcome = boxes.run([cell], [call], limits=attacks.LIMITS, slot=attacks.SLOT)
        told = json.loads(outcome.result.splitlines()[1])
        assert told["value"] == {"kind": "number", "value": is_there}


def test_filter_is_made_for_the_kinds_of_machines_that_are_known():
    assert seccomp_filter("riscv64") == b""
    for machine in MACHINES:
        program = seccomp_filter(machine)
        lines = [struct.unpack_from("=HBBI", program, start) for start in range(0, len(program), 8)]
        assert [line[0] for line in lines[-2:]] == [6, 6], "it ends by returning"
        jumps = [place + 1 + jump for place, line in enumerate(lines[:-2]) for jump in line[1:3]]
        assert max(jumps) == len(lines) - 1, "no jump leaves the program"


# ---- limits ----

NO_TIMER = "signal.setitimer(signal.ITIMER_REAL, 0)\n"  # without the timer of cells
IN_AN_ANSWER = "def learning_rate_for_sse(learning_rate, scale):\n    "
SLEEP = "time.sleep(60)"
FILL = f"kept = b'x' * 300_000_000; {SLEEP}"
FILL_ALL = f"for _ in range(3):\n    os.fork()\n    kept = b'x' * 50_000_000\n{SLEEP}"
ANSWER = attacks.PIPE + "for pipe in result_pipes():\n    os.write(pipe, b'x' * 1_100_000)\n" + SLEEP
TIME, MEMORY = "timeout: it ran out of time", "memory: it used more than 200 MB"
CASES = {
    "wall": ({"wall": 1.5}, NO_TIMER + SLEEP, TIME, 0),
    "cpu": ({"cpu": 1.0}, NO_TIMER + "while True:\n    pass", TIME, 0),
    "cell": ({"cell": 0.3}, SLEEP, "ok", 4),
    "task": ({"task": 0.3}, IN_AN_ANSWER + SLEEP, TIME, 2),
    "memory of one process": ({"memory": 200 * MB}, FILL, MEMORY, 0),
    "memory of a tree": ({"memory": 200 * MB}, FILL_ALL, MEMORY, 0),
    "memory in an answer": ({"memory": 200 * MB}, IN_AN_ANSWER + FILL, MEMORY, 2),
    "output": ({"output": MB}, f"print('x' * 1_100_000); {SLEEP}", "output: it printed more than 1 MB", 0),
    "result": ({"result": MB}, ANSWER, "malformed: it answered with more than 1 MB", 0),
}


@pytest.mark.parametrize(("changed", "code", "verdict", "points"), CASES.values(), ids=CASES)
def test_limit_has_its_verdict(changed, code, verdict, points, sandbox, world):
    limits = replace(attacks.LIMITS, **changed)
    start = time.monotonic()
    grades = attacks.graded(attacks.Attack("", "hostile", "", code, ""), world, limits=limits)
    assert time.monotonic() - start < limits.wall + 2
    assert (grades.marks[0].verdict, grades.score) == (verdict, points)


FORK = f"for n in range(20):\n    if os.fork() == 0:\n        {SLEEP}"
WRITE = "for n in range(3):\n    Path(f'{n}').write_bytes(bytes(1_000_000))"
INSIDE = {
    "processes": ({"processes": 20}, FORK, "BlockingIOError"),
    "scratch": ({"scratch": 2 * MB}, WRITE, "OSError: [Errno 28] No space left on device"),
    "size of a file": ({"scratch": 2 * MB}, "Path('x').write_bytes(bytes(3_000_000))", "OSError: [Errno 27]"),
    "address space": ({"address_space": 10**9}, "bytearray(1_100_000_000)", "MemoryError"),
}


@pytest.mark.parametrize(("changed", "code", "error"), INSIDE.values(), ids=INSIDE)
def test_limit_is_an_error_inside(changed, code, error, sandbox, world):
    limits = replace(attacks.LIMITS, **changed)
    for allowed, limit in ((False, limits), (True, attacks.LIMITS)):  # the same code under the usual limits
        grades = attacks.graded(attacks.Attack("", "hostile", "", code, ""), world, limits=limit)
        assert (error in repr(grades.failed_cells)) is not allowed, grades.failed_cells


def test_processor_time_of_ended_children_counts(sandbox, world):
    attack = next(a for a in attacks.of_kind("hostile") if a.name == "processor time in small pieces")
    assert attacks.graded(attack, world, limits=replace(attacks.LIMITS, wall=6.0, cpu=1.0)).seconds < 5


# ---- forgeries ----


@pytest.mark.parametrize("attack", attacks.of_kind("forging"), **by_name)
def test_forgery_earns_no_more_than_honest_wrong_answers(attack, sandbox, world):
    grades = attacks.graded(attack, world)
    assert attacks.what_came(grades) == attack.outcome, grades
    assert grades.score <= 2
    assert all(mark.verdict.isprintable() for mark in grades.marks)
    for text in (result_text(as_json(grades)), grades_csv([grades]), feedback_page(grades)):
        text.encode("utf-8")  # can be written


# ---- without a sandbox ----

WEAKER = """\
for word do
    shift
    [ "$word" = --remount-ro ] && word=--dir
    set -- "$@" "$word"
done
exec REAL "$@\""""
BROKEN = {
    "missing": (None, "bwrap is not installed"),
    "refused": ("echo 'No permissions to create new namespace' >&2\nexit 1", "No permissions to create"),
    "silent": ("exit 0", "the sandbox does not start"),
    "weaker": (WEAKER, "the sandbox does not hold: it can write to /"),
}


@pytest.mark.parametrize(("script", "message"), BROKEN.values(), ids=BROKEN)
def test_no_sandbox_no_grading(script, message, tmp_path, monkeypatch, capsys):
    if script == WEAKER and shutil.which("bwrap") is None:
        pytest.skip("no bwrap to weaken")
    submitted, marker = tmp_path / "submitted", tmp_path / "was run"
    attacks.adding(f"open({str(marker)!r}, 'w')")(attacks.right_notebook(), submitted / "ada/ps1")
    with tempfile.TemporaryDirectory() as name:  # tmp_path cannot be entered by the user of a box
        folder = Path(name)
        folder.chmod(0o755)
        if script is None:
            (folder / "setpriv").symlink_to("/bin/true")
        else:
            real = shutil.which("bwrap") or ""
            (folder / "bwrap").write_text(f"#!/bin/sh\n{script.replace('REAL', real)}\n")
            (folder / "bwrap").chmod(0o755)
        # first in the PATH stands another bwrap, or there is none
        monkeypatch.setenv("PATH", name if script is None else f"{name}:{os.environ['PATH']}")
        with pytest.raises(SandboxError, match=message):
            self_test(attacks.SLOT)
        for words in (
            ["grade", str(submitted), "--out", str(tmp_path / "out"), "--source", str(attacks.SOURCE)],
            ["grade-one", str(submitted / "ada/ps1/ps1.ipynb")],
        ):
            assert main(words) == 3
            said = capsys.readouterr()
            assert message in said.err
            assert "--trust-submissions" in said.err
            assert "ada" not in said.out
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


# ---- results that nobody should believe ----

NASTY = [
    None, True, -1, 0, 10**300, 1e308, float("nan"), float("inf"), "", "ok", "\ud800", "\x00\x1b[2J\n",
    "x" * 500, [], {}, [[1], [2, 3]], [[[[]]]], [None], {"kind": "tensor", "values": [1], "shape": [-1, 0]},
    {"kind": "other", "type": "\ud800"}, {"kind": "number", "value": 10**4000}, [float("inf")], ["x"],
]  # fmt: skip
PARTS = ["changed", "missing", "error", "value", "id", "task", "problem"]


def mutated(result: bytes, rng: random.Random) -> bytes:
    """Return a result in which something is different."""
    lines = result.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            return attacks.with_wrong_bytes(result, rng, 4)
        case 1:
            return result[: rng.randrange(len(result))]
        case 2:
            rng.shuffle(lines)
        case 3:
            lines[place : place + 1] = [] if rng.random() < 0.5 else [lines[place]] * 2
        case _:  # a value, anywhere
            node = told = json.loads(lines[place])
            key = rng.choice([*told, *PARTS])
            while (inner := node.get(key) if isinstance(node, dict) else node[key]) and rng.random() < 0.7:
                if not isinstance(inner, dict | list):
                    break
                node, key = inner, rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            node[key] = rng.choice(NASTY)
            lines[place] = json.dumps(told).encode() + b"\n"
    return b"".join(lines)


def test_mutated_results_never_raise_and_never_give_more(monkeypatch):
    submission = Submission("ada", "ps1", tuple(attacks.WRONG), "")
    real, kept = grading.run, []
    monkeypatch.setattr(grading, "run", lambda *args, **more: kept.append(real(*args, **more)) or kept[-1])
    honest = grade_submission(submission, seed=1, limits=attacks.FORGING_LIMITS, trusted=True)
    assert honest.score == 2
    checks = {task: list(task.checks(Draw(1 + n))) for n, task in enumerate(tasks_of("ps1"))}
    tasks = [task._replace(checks=lambda draw, mine=mine: mine) for task, mine in checks.items()]
    monkeypatch.setattr(grading, "tasks_of", lambda assignment: tasks)
    rng, scores = random.Random(0), Counter()
    for _ in range(1000):
        result = mutated(kept[0].result, rng)
        problem = rng.choice(["", "", "ended", "timeout", "memory", "result"])
        monkeypatch.setattr(grading, "run", lambda *a, r=result, p=problem, **more: Outcome(r, p, 0.1, ""))
        grades = grade_submission(submission, seed=1)
        assert grades.score <= honest.score
        scores[grades.score] += 1
        assert from_json(json.loads(result_text(as_json(grades)))) == grades
        grades_csv([grades]).encode()
        "".join(grades.failed_cells).encode()
    assert min(scores.values()) > 100, "some mutations cost the points, others do not"


# ---- the page ----


def test_table_on_the_page_lists_every_attack():
    named = re.findall(r"^\| ([^|]+?) \|", attacks.TABLE.read_text("utf-8"), re.MULTILINE)
    names = [attack.name for attack in attacks.ATTACKS]
    assert [name for name in named if name != "attack"] == names, "run python -m tests.coursework.attacks"
    assert len(set(names)) == len(names)
