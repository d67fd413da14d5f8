"""Every labelled equation of the book is checked by a test that names its label."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.book.notebook_rules import ROOT, labels, references, scan, sources

PAGES = sorted([*(ROOT / "book").glob("*.ipynb"), *(ROOT / "book").glob("*.md")])
TESTS = sorted((ROOT / "tests").glob("*.py"))


def labels_marked_in(path: Path) -> list[str]:
    """Return the labels of all `pytest.mark.equation(...)` in a file, without importing it."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    markers = [call for call in calls if ast.unparse(call.func) == "pytest.mark.equation"]
    return [
        arg.value if isinstance(arg, ast.Constant) else ast.unparse(arg) for m in markers for arg in m.args
    ]


def untested_labels(pages: list[Path], tests: list[Path]) -> list[str]:
    """Return the equations that no test names."""
    named = {label for path in tests for label in labels_marked_in(path)}
    return [
        f"{page.name}: {label} has no test" for page in pages for label in labels(page) if label not in named
    ]


def unknown_markers(pages: list[Path], tests: list[Path]) -> list[str]:
    """Return the markers that name an equation which no page has."""
    defined = {label for page in pages for label in labels(page)}
    return [
        f"{path.name}: no page has {label}"
        for path in tests
        for label in labels_marked_in(path)
        if label not in defined
    ]


def repeated_labels(pages: list[Path]) -> list[str]:
    """Return the labels that are defined more than once."""
    counts = Counter(label for page in pages for label in labels(page))
    return [f"{label} is defined {count} times" for label, count in counts.items() if count > 1]


def dangling_references(pages: list[Path]) -> list[str]:
    """Return the `eq` references to an equation that no page has."""
    defined = {label for page in pages for label in labels(page)}
    return [
        f"{page.name}: no page has {label}"
        for page in pages
        for label in references(page)
        if label not in defined
    ]


def test_book_has_equations():
    assert [label for page in PAGES for label in labels(page)]


def test_equations_are_well_formed():
    assert [
        (page.name, wrong) for page in PAGES for text in sources(page) for wrong in scan(text).problems
    ] == []


def test_every_equation_has_a_test():
    assert untested_labels(PAGES, TESTS) == []


def test_every_marker_names_an_equation():
    assert unknown_markers(PAGES, TESTS) == []


def test_labels_are_defined_once():
    assert repeated_labels(PAGES) == []


def test_references_have_a_target():
    assert dangling_references(PAGES) == []


@pytest.fixture
def page(tmp_path):
    """Return a page with two equations and two references, one of them to nowhere."""
    path = tmp_path / "page.md"
    text = "$$\nx\n$$ (eq-a)\n\n$$\ny\n$$ (eq-b)\n\nBy {eq}`eq-a` and {eq}`eq-c`.\n"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def marked(tmp_path):
    """Return a test file that names two equations, one of them nowhere defined."""
    path = tmp_path / "test_page.py"
    text = "@pytest.mark.equation('eq-a')\ndef test_a(): ...\nx = f(1, marks=pytest.mark.equation('eq-d'))\n"
    path.write_text(text, "utf-8")
    return path


def test_missing_test_is_found(page, marked):
    assert untested_labels([page], [marked]) == ["page.md: eq-b has no test"]


def test_unknown_marker_is_found(page, marked):
    assert unknown_markers([page], [marked]) == ["test_page.py: no page has eq-d"]


def test_repeated_label_is_found(page):
    assert repeated_labels([page, page]) == ["eq-a is defined 2 times", "eq-b is defined 2 times"]


def test_dangling_reference_is_found(page):
    assert dangling_references([page]) == ["page.md: no page has eq-c"]
