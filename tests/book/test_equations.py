"""Every labelled equation of the book is checked by a test that names its label."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.book.notebook_rules import ROOT, labels, references, scan, sources

PAGES = sorted([*(ROOT / "book").glob("*.ipynb"), *(ROOT / "book").glob("*.md")])
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def labels_marked_in(path: Path) -> list[str]:
    """Return the labels of all `pytest.mark.equation(...)` in a file, without importing it."""
    calls = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    markers = [call for call in calls if ast.unparse(call.func) == "pytest.mark.equation"]
    return [ast.unparse(label).strip("'") for marker in markers for label in marker.args]


def faults(pages: list[Path], tests: list[Path]) -> list[str]:
    """Return what is wrong between equations, references and the markers of tests."""
    defined = [(page, label) for page in pages for label in labels(page)]
    cited = [(page, label) for page in pages for label in references(page)]
    marked = [(path, label) for path in tests for label in labels_marked_in(path)]
    known, tested = (Counter(label for _, label in pairs) for pairs in (defined, marked))
    return [
        *(f"{page.name}: {label} has no test" for page, label in defined if label not in tested),
        *(f"{path.name}: no page has {label}" for path, label in marked + cited if label not in known),
        *(f"{label} is defined {count} times" for label, count in known.items() if count > 1),
        *(
            f"{page.name}: {wrong}"
            for page in pages
            for text in sources(page)
            for wrong in scan(text).problems
        ),
    ]


def test_every_equation_is_well_formed_defined_once_and_tested():
    assert any(labels(page) for page in PAGES)
    assert faults(PAGES, TESTS) == []


@pytest.mark.parametrize(
    ("equations", "test", "expected"),
    [
        ("a", "@pytest.mark.equation('eq-a')\ndef test_a(): ...", []),
        ("a b", "@pytest.mark.equation('eq-a')\ndef test_a(): ...", ["page.md: eq-b has no test"]),
        ("a", "@pytest.mark.equation('eq-a', 'eq-d')\ndef test_a(): ...", ["test_page.py: no page has eq-d"]),
        ("a", "x = f(1, marks=pytest.mark.equation('eq-a'))", []),
        ("a a", "x = pytest.mark.equation('eq-a')", ["eq-a is defined 2 times"]),
        ("", "", ["page.md: no page has eq-a"]),
    ],
    ids=["none", "untested", "unknown-marker", "marked-parameter", "repeated", "dangling-reference"],
)
def test_fault_is_found(equations, test, expected, tmp_path):
    page, path = tmp_path / "page.md", tmp_path / "test_page.py"
    page.write_text("".join(f"$$\nx\n$$ (eq-{name})\n\n" for name in equations.split()) + "By {eq}`eq-a`.\n")
    path.write_text(test)
    assert faults([page], [path]) == expected
