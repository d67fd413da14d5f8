"""Every chapter also runs with parameters other than those the site shows."""

from pathlib import Path

import papermill
import pytest
from nbformat import v4

from tests.notebook_rules import NOTEBOOK_METADATA, ROOT
from vaecourse._notebooks import NotebookRun, run_notebooks

CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
PARAMETERS = {
    "01_gaussian_regression": {"seed": 1, "num_points": 30},
    "02_vae_elbo": {"seed": 1, "noise_scale": 0.2, "num_images": 4000, "num_epochs": 12},
    "03_gaussian_to_mse": {"seed": 1, "num_images": 6000, "num_epochs": 14},
    "04_bernoulli_to_bce": {"seed": 1, "num_images": 7000, "num_epochs": 10},
    "05_gpu_training": {"seed": 1, "num_images": 5000, "num_epochs": 2},
    "06_bound_to_likelihood": {"seed": 1, "num_images": 15_000, "num_epochs": 5, "num_samples": 200},
}


def run_with(path: Path, parameters: dict, folder: Path) -> NotebookRun:
    """Run a notebook into a folder; refuse values that are the notebook's own."""
    own = papermill.inspect_notebook(str(path))
    same = [name for name, value in parameters.items() if name in own and own[name]["default"] == repr(value)]
    if same:
        raise ValueError(f"{path.name} has {', '.join(same)} at this value already; choose another")
    (result,) = run_notebooks([path], folder, parameters=parameters, timeout=120)
    return result


def test_every_chapter_has_other_parameters():
    missing = [
        f"add {path.stem} to PARAMETERS in tests/test_papermill.py"
        for path in CHAPTERS
        if path.stem not in PARAMETERS
    ]
    surplus = sorted(set(PARAMETERS) - {path.stem for path in CHAPTERS})
    assert (missing, surplus) == ([], [])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_runs_with_other_parameters(path, tmp_path):
    assert run_with(path, PARAMETERS[path.stem], tmp_path).error is None


def notebook(folder: Path, *tags: str, last: str = "print(seed)") -> Path:
    """Return a notebook of two cells, the first with these tags."""
    first = v4.new_code_cell("seed = 0  # any integer", id="parameters", metadata={"tags": list(tags)})
    path = folder / "sample.ipynb"
    cells = [first, v4.new_code_cell(last, id="print-seed")]
    path.write_text(v4.writes(v4.new_notebook(cells=cells, metadata=NOTEBOOK_METADATA)), "utf-8")
    return path


def test_parameters_are_injected(tmp_path):
    result = run_with(notebook(tmp_path, "parameters"), {"seed": 7}, tmp_path / "out")
    assert v4.reads(result.output.read_text("utf-8")).cells[-1].outputs[0].text == "7\n"


def test_failing_notebook_is_reported(tmp_path):
    path = notebook(tmp_path, "parameters", last="assert seed == 0")
    result = run_with(path, {"seed": 7}, tmp_path / "out")
    assert (result.cell, result.error) == ("print-seed", "AssertionError")


@pytest.mark.parametrize(
    ("tags", "parameters", "message"),
    [
        pytest.param(["parameters"], {"sed": 7}, "has no parameter sed; it has seed", id="unknown"),
        pytest.param([], {"seed": 7}, "has no parameters: no cell tagged", id="no-cell"),
        pytest.param(["parameters"], {"seed": 0}, "has seed at this value already", id="unchanged"),
    ],
)
def test_parameters_without_effect_are_refused(tags, parameters, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_with(notebook(tmp_path, *tags), parameters, tmp_path / "out")
    assert not (tmp_path / "out").exists()
