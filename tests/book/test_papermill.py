"""Every chapter also runs with parameters other than those the site shows."""

import subprocess
import sys
from pathlib import Path

import papermill
import pytest
from nbformat import v4

from tests.book.notebook_rules import NOTEBOOK_METADATA, ROOT

CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.ipynb"), reverse=True)  # the last take longest
PARAMETERS = {
    "01_gaussian_regression": {"seed": 1, "num_points": 30},
    "02_vae_elbo": {"seed": 1, "noise_scale": 0.2, "num_images": 4000, "num_epochs": 12},
    "03_gaussian_to_mse": {"seed": 1, "num_images": 4500, "num_epochs": 12},
    "04_bernoulli_to_bce": {"seed": 1, "num_images": 5000, "num_epochs": 10},
    "05_gpu_training": {"seed": 1, "num_images": 5000, "num_epochs": 2},
    "06_bound_to_likelihood": {"seed": 1, "num_images": 7000, "num_epochs": 6, "num_samples": 100},
}


def run_with(path: Path, parameters: dict, folder: Path) -> Path:
    """Run a copy of a notebook; refuse values that change nothing, about which papermill only warns."""
    own = papermill.inspect_notebook(str(path))
    if unknown := sorted(set(parameters) - set(own)):
        raise ValueError(
            f"{path.name} has no parameter {', '.join(unknown)}; it has {', '.join(own) or 'none'}"
        )
    if same := [name for name, value in parameters.items() if own[name]["default"] == repr(value)]:
        raise ValueError(f"{path.name} has {', '.join(same)} at this value already; choose another")
    copy = folder / path.name
    papermill.execute_notebook(
        path,
        copy,
        parameters=parameters,
        kernel_name="python3",
        cwd=path.parent,
        execution_timeout=300,
        progress_bar=False,
    )
    return copy


def test_every_chapter_has_other_parameters():
    missing = [
        f"add {path.stem} to PARAMETERS in tests/book/test_papermill.py"
        for path in CHAPTERS
        if path.stem not in PARAMETERS
    ]
    surplus = sorted(set(PARAMETERS) - {path.stem for path in CHAPTERS})
    assert (missing, surplus) == ([], [])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_with_other_parameters(path, tmp_path):
    run_with(path, PARAMETERS[path.stem], tmp_path)


def notebook(folder: Path, *tags: str, last: str = "print(seed)") -> Path:
    """Return a notebook of two cells, the first with these tags."""
    first = v4.new_code_cell("seed = 0  # any integer", id="parameters", metadata={"tags": list(tags)})
    path = folder / "sample.ipynb"
    cells = [first, v4.new_code_cell(last, id="print-seed")]
    path.write_text(v4.writes(v4.new_notebook(cells=cells, metadata=NOTEBOOK_METADATA)), "utf-8")
    return path


def test_parameters_are_injected(tmp_path):
    (tmp_path / "out").mkdir()
    copy = run_with(notebook(tmp_path, "parameters"), {"seed": 7}, tmp_path / "out")
    assert v4.reads(copy.read_text("utf-8")).cells[-1].outputs[0].text == "7\n"


def test_failing_notebook_is_reported(tmp_path):
    (tmp_path / "out").mkdir()
    path = notebook(tmp_path, "parameters", last="assert seed == 0")
    with pytest.raises(papermill.PapermillExecutionError, match="AssertionError"):
        run_with(path, {"seed": 7}, tmp_path / "out")


@pytest.mark.parametrize(
    ("tags", "parameters", "message"),
    [
        pytest.param(["parameters"], {"sed": 7}, "has no parameter sed; it has seed", id="unknown"),
        pytest.param([], {"seed": 7}, "has no parameter seed; it has none", id="no-cell"),
        pytest.param(["parameters"], {"seed": 0}, "has seed at this value already", id="unchanged"),
    ],
)
def test_parameters_without_effect_are_refused(tags, parameters, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_with(notebook(tmp_path, *tags), parameters, tmp_path)


def test_command_of_the_pages_runs_a_chapter_with_other_parameters(tmp_path):
    """papermill's own command line, as README and chapter 5 show it."""
    path = notebook(tmp_path, "parameters")
    command = [sys.executable, "-m", "papermill", path, tmp_path / "copy.ipynb", "-p", "seed", "7"]
    subprocess.run(command, check=True, capture_output=True)
    assert v4.reads((tmp_path / "copy.ipynb").read_text("utf-8")).cells[-1].outputs[0].text == "7\n"
