"""Imports in the package point only downwards, from a floor to the floors below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vaecourse

ROOT = Path(vaecourse.__file__).parent

# From the ground up; a module may import what stands before it.
FLOORS = [
    "_checks",
    "_files",
    "datasets",
    "densities",
    "likelihoods",
    "divergences",
    "objectives",
    "models",
    "checkpoints",
    "_devices",
    "_engine",
    "_resuming",
    "training",
    "evaluation",
    "_probing",
    "diagnosis",
    "plotting",
    "_configuration",
    "_processes",
    "_runs",
    "_notebooks",
    "coursework",
    "__main__",
]

# The mathematics needs nothing but these, and each other.
PURE = ["_checks", "densities", "likelihoods", "divergences"]
PURE_IMPORTS = {"torch", "math", "typing", "collections"}

FORBIDDEN_IMPORTS = {"plotting": {"torch"}}  # it receives arrays and computes nothing
FORBIDDEN_NAMES = {"utils", "helpers", "misc", "common"}


def source_files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def floor_of(path: Path) -> str:
    """First part of the module's name below the package: subpackages are one floor."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(source: str, package: str = "vaecourse") -> set[str]:
    """Dotted names of all modules that a source imports, relative imports resolved in `package`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            # "from vaecourse import models" imports a floor, not a name
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "vaecourse" else {module}
    return found


def complaints(floor: str, source: str, package: str = "vaecourse") -> list[str]:
    """What the rules have against a module of this floor."""
    if floor not in FLOORS:
        return [
            f"{floor} stands on no floor: add it to FLOORS in {Path(__file__).name}, above what it imports"
        ]
    below = FLOORS[: FLOORS.index(floor)]
    found = []
    for name in imports(source, package):
        top, _, rest = name.partition(".")
        inner = rest.split(".")[0]
        if top in ("book", "tests"):
            found.append(f"{floor} imports {name}: the package stands without book and tests")
        if top in FORBIDDEN_IMPORTS.get(floor, set()):
            found.append(f"{floor} must not import {top}")
        if top == "vaecourse" and inner not in {*below, floor, "__version__"}:
            found.append(f"{floor} imports {name}, which is not on a floor below it")
        if floor in PURE and (inner not in PURE if top == "vaecourse" else top not in PURE_IMPORTS):
            found.append(f"{floor} must do with {sorted(PURE_IMPORTS)} and {PURE}, but imports {name}")
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_obeys_the_direction_of_imports(path):
    if path == ROOT / "__init__.py":
        assert not imports(path.read_text())
        return
    package = ".".join(["vaecourse", *path.relative_to(ROOT).parts[:-1]])
    assert complaints(floor_of(path), path.read_text(), package) == []


@pytest.mark.parametrize(
    ("floor", "source"),
    [
        ("objectives", "from vaecourse.models import VAE"),
        ("objectives", "from vaecourse import models"),
        ("objectives", "import vaecourse.models as m"),
        ("objectives", "from . import models"),
        ("objectives", "from .models import VAE"),
        ("objectives", "def f():\n    from vaecourse.training import fit"),
        ("objectives", "import vaecourse"),
        ("densities", "import numpy"),
        ("densities", "from scipy import special"),
        ("likelihoods", "from vaecourse.datasets import mnist"),
        ("plotting", "import torch.nn"),
        ("training", "from tests.conftest import digits_x"),
        ("training", "import book"),
        ("helpers", ""),
    ],
)
def test_rule_finds_an_offence(floor, source):
    assert complaints(floor, source)


@pytest.mark.parametrize(
    ("floor", "source"),
    [
        (
            "objectives",
            "from vaecourse.likelihoods import Likelihood\nimport torch\nfrom typing import Protocol",
        ),
        ("evaluation", "from .objectives import elbo_terms"),
        ("likelihoods", "from vaecourse.densities import gaussian_nll\nfrom collections.abc import Callable"),
        ("coursework", "from vaecourse.coursework.report import write\nfrom vaecourse import __version__"),
    ],
)
def test_rule_accepts_what_is_allowed(floor, source):
    assert complaints(floor, source) == []


def test_no_module_has_a_name_that_says_nothing():
    names = {part.removesuffix(".py") for path in source_files() for part in path.relative_to(ROOT).parts}
    assert not names & FORBIDDEN_NAMES
    assert not [name for name in names if name.endswith("_old")]


def test_importing_the_package_is_light():
    """`import vaecourse` loads neither torch nor matplotlib: the command line answers at once."""
    heavy = "{'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)"
    command = f"import sys, vaecourse; print(vaecourse.__version__, {heavy})"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{vaecourse.__version__} set()"
