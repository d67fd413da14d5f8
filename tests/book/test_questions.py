"""The page "Questions people ask": all its entries, each complete, each line of Python with its value."""

import ast
import re

import pytest

from tests.book.notebook_rules import ROOT, run_on_lines, scan

PAGE = (ROOT / "book" / "questions.md").read_text("utf-8")
ENTRIES = dict(entry.split("\n", 1) for entry in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PREAMBLE, *_ = BLOCK.findall(PAGE)
LINES = {question: block for question, entry in ENTRIES.items() for block in BLOCK.findall(entry)}


def test_page_is_well_formed_and_has_as_many_questions_as_it_says():
    assert "answers forty-one questions" in PAGE
    assert len(ENTRIES) == 41
    page = scan(PAGE)
    assert (page.problems, list(run_on_lines(page.prose))) == ([], [])


@pytest.mark.parametrize("question", ENTRIES)
def test_entry_is_short_and_names_its_source_and_its_proof(question):
    answer, _, rest = BLOCK.sub("", ENTRIES[question]).partition("\nAsked ")
    sentences = [line for line in answer.splitlines() if line and not line.startswith("(")]
    assert 2 <= len(sentences) <= 5
    assert re.search(r"^Shown in .*\]\(\w+\.ipynb#", rest, re.MULTILINE)


@pytest.mark.parametrize("question", LINES)
def test_line_of_python_returns_what_stands_beside_it(question):
    names = {}
    exec(PREAMBLE, names)
    *statements, last = ast.parse(LINES[question]).body
    exec(compile(ast.Module(statements, []), question, "exec"), names)
    value = eval(compile(ast.Expression(last.value), question, "eval"), names)
    stated = re.search(r"  # (.*)\n$", LINES[question])[1]
    if isinstance(value, float):
        assert value == pytest.approx(float(stated), rel=1e-14)
    else:
        assert repr(value) == stated
