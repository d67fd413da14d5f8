"""The contracts on imports hold and bite; modules stay small, and names say something."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vaecourse

PACKAGE = Path(vaecourse.__file__).parent
LINT = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
FORBIDDEN_NAMES = {"utils", "helpers", "misc", "common"}
MAX_LINES = 330


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """A copy of the package, to which an import can be added."""
    root = tmp_path_factory.mktemp("house")
    shutil.copytree(PACKAGE, root / "vaecourse", ignore=shutil.ignore_patterns("data", "__pycache__"))
    shutil.copy(PACKAGE.parent / "pyproject.toml", root)
    return root


def lint(root: Path) -> subprocess.CompletedProcess:
    return subprocess.run(LINT, cwd=root, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("objectives", "from vaecourse.models import VAE", "Imports point only downwards"),
        ("objectives", "def f():\n    from . import models", "Imports point only downwards"),
        ("training/step", "import vaecourse.coursework", "Imports point only downwards"),
        ("diagnosis/reading/fits", "from vaecourse.training import fit", "Imports point only downwards"),
        ("extra", "", "Imports point only downwards"),
        ("training/loop", "from vaecourse.objectives import negative_elbo", "Training does not know"),
        ("diagnosis/reading/fits", "from vaecourse import objectives", "Diagnosis knows nothing"),
        ("coursework/oracle", "from vaecourse.densities import gaussian_nll", "Of coursework, only"),
        ("coursework/box/runner", "from vaecourse.coursework import oracle", "What runs beside student code"),
        ("densities", "import numpy", "The mathematics needs torch"),
        ("plotting", "import torch.nn", "Plotting receives arrays"),
        ("training/loop", "import tests.conftest", "The package stands without"),
    ],
)
def test_contract_finds_an_offence(copied, module, line, contract):
    path = copied / "vaecourse" / f"{module}.py"
    before = path.read_text("utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n", "utf-8")
    try:
        done = lint(copied)
    finally:
        path.unlink() if before is None else path.write_text(before, "utf-8")
    assert done.returncode == 1
    assert any(text.startswith(contract) and text.endswith("BROKEN") for text in done.stdout.splitlines())


def test_contracts_hold_for_the_package(copied):
    assert lint(copied).returncode == 0


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_is_small_and_has_a_name_that_says_something(path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES
    names = {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts}
    assert not names & FORBIDDEN_NAMES and not any(name.endswith("_old") for name in names)


def test_importing_the_package_is_light():
    """`import vaecourse` loads neither torch nor matplotlib: the command line answers at once."""
    heavy = "{'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)"
    command = f"import sys, vaecourse; print(vaecourse.__version__, {heavy})"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{vaecourse.__version__} set()"
