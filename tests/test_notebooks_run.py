"""Notebooks run with other parameters: copies aside, sources untouched, failures told, no kernel left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbformat import v4

from tests.notebook_rules import NOTEBOOK_METADATA
from vaecourse.__main__ import main
from vaecourse._notebooks import NotebookRun, parse_value, run_notebooks


@pytest.fixture
def write(tmp_path):
    """Write a notebook with a parameters cell into the folder ``source``."""

    def write(name: str, *sources: str, tags: tuple[str, ...] = ("parameters",)) -> Path:
        cells = [v4.new_code_cell("seed = 0\nwidth = 5", id="parameters", metadata={"tags": list(tags)})]
        cells += [v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(v4.writes(v4.new_notebook(cells=cells, metadata=NOTEBOOK_METADATA)), "utf-8")
        return path

    return write


def last_text(path: Path) -> str:
    """What the last cell of an executed notebook printed."""
    return v4.reads(path.read_text("utf-8")).cells[-1].outputs[0].text.strip()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-3", -3),
        ("1e-3", 1e-3),
        ("True", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("[1, 'a']", [1, "a"]),
        ("(400, 200)", [400, 200]),
        ("{'a': 1}", {"a": 1}),
        ("mnist", "mnist"),
        ("'7'", "7"),
        ("{1, 2}", "{1, 2}"),
        ("a b", "a b"),
        ("", ""),
    ],
)
def test_parse_value_reads_literals_and_words(text, value):
    assert (parse_value(text), type(parse_value(text))) == (value, type(value))


def test_notebooks_run_side_by_side_with_one_thread_each_and_other_parameters(write, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    show = "import os\nprint(seed, width, os.getcwd(), os.environ['OMP_NUM_THREADS'])"
    paths = [write("first.ipynb", show), write("second {braces}.ipynb", show)]
    before = [path.read_bytes() for path in paths]
    told: list[NotebookRun] = []
    results = run_notebooks(
        paths, tmp_path / "new" / "out", parameters={"seed": 7}, num_jobs=2, report=told.append
    )
    assert [(result.path, result.error) for result in results] == [(path, None) for path in paths]
    assert sorted(told, key=str) == sorted(results, key=str)
    assert {last_text(result.output) for result in results} == {f"7 5 {tmp_path / 'source'} 1"}
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in (tmp_path / "source").iterdir()) == [path.name for path in paths]


def test_notebooks_keep_their_threads_when_they_run_alone(write, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    path = write("alone.ipynb", "import os\nprint(os.environ['OMP_NUM_THREADS'])")
    (result,) = run_notebooks([path], tmp_path / "out")
    assert (result.error, last_text(result.output)) == (None, "3")


def test_failures_name_cell_and_error_and_leave_the_other_notebooks_alone(write, tmp_path, capfd):
    paths = [
        write("fails.ipynb", "x = 1", "x / seed", "print('not reached')"),
        write("hangs.ipynb", "import time\ntime.sleep(60)"),
        write("dies.ipynb", "import os\nos._exit(3)"),
        write("works.ipynb", "print(seed)"),
    ]
    arguments = ["run", *map(str, paths), "--output-dir", str(tmp_path / "out"), "--jobs", "2"]
    assert main([*arguments, "--timeout", "4"]) == 1
    out, err = capfd.readouterr()
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["fails.ipynb"].startswith("FAILED in cell cell-1")
    assert "ZeroDivisionError: division by zero" in lines["fails.ipynb"]
    assert lines["hangs.ipynb"].startswith("FAILED in cell cell-0")
    assert "it took longer than 4 s" in lines["hangs.ipynb"]
    assert lines["dies.ipynb"].startswith("FAILED in cell cell-0")
    assert lines["works.ipynb"].startswith("done")
    assert err == "vaecourse: 3 of 4 notebooks failed\n"
    failed = v4.reads((tmp_path / "out" / "fails.ipynb").read_text("utf-8"))
    assert [output.ename for cell in failed.cells for output in cell.get("outputs", [])] == [
        "ZeroDivisionError"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"sed": 1}}, "second.ipynb has no parameter sed; it has seed, width"),
        ({"paths": ["first.ipynb", "absent.ipynb"]}, "there is no notebook .*absent.ipynb"),
        ({"paths": ["first.ipynb", "text.ipynb"]}, "text.ipynb is not a notebook"),
        ({"paths": ["first.ipynb", "untagged.ipynb"]}, "untagged.ipynb has no parameters: no cell tagged"),
        ({"paths": ["first.ipynb", "first.ipynb"]}, "no file name twice"),
        ({"paths": []}, "at least one notebook"),
        ({"output_folder": "source"}, "holds the source .*: choose another folder"),
        ({"output_folder": "source/../source"}, "holds the source .*: choose another folder"),
        ({"num_jobs": 0}, "must be at least 1, got 0 and None"),
        ({"timeout": 0}, "must be at least 1, got 1 and 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_before_anything_runs(write, tmp_path, change, message):
    mark = f"open({str(tmp_path / 'mark')!r}, 'w')"
    write("first.ipynb", mark)
    write("second.ipynb", mark)
    write("untagged.ipynb", mark, tags=())
    (tmp_path / "source" / "text.ipynb").write_text("no JSON", "utf-8")
    settings = {"paths": ["second.ipynb"], "output_folder": "out", "parameters": {"seed": 1}} | change
    paths = [tmp_path / "source" / name for name in settings.pop("paths")]
    with pytest.raises(ValueError, match=message):
        run_notebooks(paths, tmp_path / settings.pop("output_folder"), **settings)
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "out").exists()


def test_missing_papermill_is_named_with_its_extra(write, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert main(["run", str(write("first.ipynb")), "--output-dir", str(tmp_path / "out")]) == 2
    assert "pip install 'vaecourse[book]'" in capsys.readouterr().err


def test_command_line_passes_parameters_once(write, tmp_path, capsys):
    arguments = [
        "run",
        str(write("first.ipynb", "print(seed, width)")),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "-p", "seed", "[1, 2]", "-p", "width", "wide"]) == 0
    assert last_text(tmp_path / "out" / "first.ipynb") == "[1, 2] wide"
    assert main([*arguments, "-p", "seed", "1", "-p", "seed", "2"]) == 2
    assert "must not give a parameter twice, got seed, seed" in capsys.readouterr().err


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_leaves_no_kernel_behind(write, tmp_path, signum, status):
    note = "import os, pathlib, time\npathlib.Path(f'{os.getpid()}.pid').touch()\n"
    paths = [
        write("sleeps.ipynb", f"{note}time.sleep(60)"),
        write("computes.ipynb", f"{note}while True: pass"),
    ]
    command = [sys.executable, "-m", "vaecourse", "run", *map(str, paths), "--jobs", "2"]
    process = subprocess.Popen(
        [*command, "--output-dir", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "source").glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    kernels = [int(path.stem) for path in (tmp_path / "source").glob("*.pid")]
    assert [is_alive(pid) for pid in kernels] == [True, True]
    os.killpg(process.pid, signum)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=30)
    assert [is_alive(pid) for pid in kernels] == [False, False]
    assert (process.returncode, out, err) == (status, "", "vaecourse: stopped\n")
