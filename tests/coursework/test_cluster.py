"""The example that spreads grading over a Dask cluster, on a cluster of two local workers."""

import csv
import subprocess
import sys

from tests.book.notebook_rules import ROOT
from vaecourse.cli import main
from vaecourse.coursework.release import release

SOURCE = ROOT / "book/coursework/source"


def test_cluster_grades_what_the_command_then_finds_done(sandbox, tmp_path, capsys):
    (student,) = [path for path in release(SOURCE, tmp_path / "released") if path.stem == "ps1"]
    for name, notebook in (("ada", SOURCE / "ps1/ps1.ipynb"), ("bob", student)):
        (tmp_path / "submitted" / name / "ps1").mkdir(parents=True)
        (tmp_path / "submitted" / name / "ps1/ps1.ipynb").write_bytes(notebook.read_bytes())
    folders = [str(tmp_path / "submitted"), str(tmp_path / "graded")]
    command = [sys.executable, str(ROOT / "book/coursework/grade_on_cluster.py"), *folders, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["ada ps1: 11", "bob ps1: 0"]
    assert main(["grade", folders[0], "--out", folders[1], "--source", str(SOURCE)]) == 0
    assert "2 submissions, 0 of them graded now" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "graded/grades.csv").read_text("utf-8").splitlines()))
    is_full = {row["student_id"]: row["score"] == row["max_score"] for row in rows}
    assert is_full == {"ada": True, "bob": False}
