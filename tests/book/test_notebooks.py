"""The book's notebooks are in normal form, and the rules that say so do catch what they forbid."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from nbformat import NotebookNode, from_dict, v4

from tests.book import notebook_rules as rules

NOTEBOOKS = sorted((rules.ROOT / "book").glob("*.ipynb"))
ALT = "Twenty points scatter about a straight line with slope two."


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_in_normal_form_and_follows_the_rules(path):
    text = path.read_text("utf-8")
    assert rules.normal_form(text) == text, f"run `python -m tests.book.notebook_rules --fix {path}`"
    assert rules.violations(path) == []


def test_figure_names_are_unique_across_the_book():
    named = [(name, path.name) for path in NOTEBOOKS for name in rules.figure_names(rules.read(path))]
    counts = Counter(name for name, _ in named)
    assert counts
    assert [(name, file) for name, file in named if counts[name] > 1] == []


# ---- the rules themselves: a clean notebook, and one way at a time of spoiling it ----


def code(name: str, source: str, *tags: str, **more) -> NotebookNode:
    return v4.new_code_cell(source, id=name, metadata={"tags": list(tags)} if tags else {}, **more)


def markdown(name: str, source: str) -> NotebookNode:
    return v4.new_markdown_cell(source, id=name)


INTRO = (
    "# A chapter\n\n## A section\n\nOne sentence, e.g. This one, cf. Fig. 1 and {eq}`eq-mean`.\n"
    "Another ends in `code. Still code` and $x. Y$ and [a link. Still](https://example.org).\n\n"
    "| a | table. With stops |\n\n1. An item.\n\n```\nCode. In a fence with $$\n```\n\n"
    "$$\nx = y\n$$ (eq-mean)\n\n$$ z $$"
)
PLOT = "fig, ax = plt.subplots()\nax.plot([0, 1])\nax.set_xscale('linear')"


def stream(text: str, name: str = "stdout") -> NotebookNode:
    return v4.new_output("stream", name=name, text=text)


def sample() -> NotebookNode:
    """Return a notebook that breaks no rule."""
    nb = v4.new_notebook(metadata=rules.NOTEBOOK_METADATA)
    nb.cells = [
        markdown("title", INTRO),
        code("setup", rules.SETUP),
        code("parameters", "seed = 0  # any integer\nscales = [0.5, -1.0]", "parameters"),
        code("define-square", "def square(x):\n    return x * x", "by-hand"),
        code("print-value", 'print("1.2345 nats")', rules.CHECK, outputs=[stream("1.2345 nats\n")]),
        code("plot-line", PLOT, "hide-input"),
    ]
    cell(nb, "print-value").execution_count = 1
    figure = {"caption": "The line finds the slope.", "name": "fig-line"}
    cell(nb, "plot-line").metadata.mystnb = from_dict({"image": {"alt": ALT}, "figure": figure})
    return nb


def save(nb: NotebookNode, folder: Path) -> Path:
    path = folder / "sample.ipynb"
    path.write_text(rules.written(nb), "utf-8")
    return path


def violations_of(nb: NotebookNode, folder: Path) -> list[str]:
    path = save(nb, folder)
    form = re.compile(re.escape(f"{path}: ") + r"[\w-]+: (.*)")
    return [form.fullmatch(line)[1] for line in rules.violations(path)]


def cell(nb: NotebookNode, name: str) -> NotebookNode:
    return next(cell for cell in nb.cells if cell.id == name)


def set_source(name: str, source: str):
    """Return a change that replaces the source of the named cell."""
    return lambda nb: cell(nb, name).update(source=source)


def add_code(source: str, *tags: str, **more):
    """Return a change that appends a code cell."""
    return lambda nb: nb.cells.append(code("added", source, *tags, **more))


def add_text(source: str):
    """Return a change that appends a Markdown cell."""
    return lambda nb: nb.cells.append(markdown("added", source))


def add_check(*outputs: NotebookNode | str, count: int | None = 1):
    """Return a change that appends a check cell with these stored outputs."""
    stored = [stream(output) if isinstance(output, str) else output for output in outputs]
    return add_code("_ = 1", rules.CHECK, outputs=stored, execution_count=count)


def set_id(name: str):
    """Return a change that renames the last cell."""
    return lambda nb: nb.cells[-1].update(id=name)


def set_figure(*, source: str = PLOT, **changes: str | None):
    """Return a change of the figure cell, its source and its description; None removes an entry."""

    def change(nb):
        set_source("plot-line", source)(nb)
        described = cell(nb, "plot-line").metadata.mystnb
        for key, text in changes.items():
            part = described.image if key == "alt" else described.figure
            part.pop(key) if text is None else part.update({key: text})

    return change


image = v4.new_output("display_data", data={"image/png": "aGVsbG8=", "text/plain": "<Figure>"})
value = v4.new_output("execute_result", data={"text/plain": "3"}, execution_count=1)

BROKEN = {
    "is nbformat 4.4": [lambda nb: nb.update(nbformat_minor=4)],
    "is not valid nbformat": [lambda nb: nb.cells[-1].update(surplus=1)],
    "metadata other than": [
        lambda nb: nb.metadata.update(colab={}),
        lambda nb: nb.metadata.language_info.update(version="3.11"),
    ],
    "stores an output or an execution count": [
        add_code("x", outputs=[value]),
        add_code("x", execution_count=3),
    ],
    "check cell without output": [add_check(), add_check("a\n", count=None)],
    "stores an output that is not plain text": [add_check(image), add_check(stream("a warning\n", "stderr"))],
    "stores 2 outputs": [add_check("a\n", value)],
    "prints 0.123456": [add_check("0.123456\n")],
    "prints 564,831.1": [add_check("564,831.1\n")],
    "prints 1.23456e-07": [add_check("1.23456e-07\n")],
    "cell id occurs 2 times": [set_id("setup")],
    "readable kebab-case slug": [
        *map(set_id, ["1f0e9a2b", "a1f0e9b2", "bc8a3c6e-1f6d-4c3a-9a51-0d3f2b7c9e10", "plot_line"])
    ],
    "foreign metadata collapsed": [lambda nb: nb.cells[0].metadata.update(collapsed=True)],
    "has the tag raises-exception, remove-cell, slide": [
        add_code("_ = 1", "slide", "remove-cell", "raises-exception")
    ],
    "has 0 cells tagged parameters": [lambda nb: nb.cells.remove(cell(nb, "parameters"))],
    "has 2 cells tagged parameters": [add_code("more = 1", "parameters")],
    "more than `name = literal`": [
        set_source("parameters", text) for text in ("seed = 1 + len('a')", "seed, n = 1, 2", "import math")
    ],
    "assigns the parameter seed again": [add_code("seed = 1")],
    "has 16 lines": [add_code("\n".join(["_ = 1"] * 16))],
    "code cells of median 7 lines": [
        lambda nb: nb.cells.extend(code(f"long-{i}", "\n\n".join(["_ = 1"] * 7)) for i in range(9))
    ],
    "has 2 outputs": [
        *map(add_code, ["print(1)\nprint(2)", "print(1)\nseed", "print(1)\ntorch.manual_seed(0)"]),
        set_figure(source="plt.figure()\nprint(1)"),
        set_figure(source="fig, ax = plt.subplots()\nax.legend()"),
        set_figure(source="fig = plt.figure()\nfig = plt.figure()"),
    ],
    "defines a function or a class": [
        *map(add_code, ["def f():\n    return 1", "if seed:\n    def f():\n        return 1"]),
        *map(add_code, ["class A:\n    x = 1", "f = lambda x: x"]),
    ],
    "semicolon": [add_code("_ = 1;")],
    "makes no figure": [add_code("_ = 1", "hide-input")],
    "no mystnb.image.alt": [
        lambda nb: cell(nb, "plot-line").metadata.mystnb.pop("image"),
        set_figure(source="_ = plt.plot(x)", alt=None),
        set_figure(source="_ = plot_line(x)", alt=None),
        set_figure(alt="A line."),
    ],
    "repeats its caption": [set_figure(caption=ALT)],
    "names the medium": [set_figure(alt=f"{a} {ALT}") for a in ("Figure showing", "An image of", "Plot of")],
    "no mystnb.figure.caption": [set_figure(caption=None)],
    "has mystnb.figure.name ''": [set_figure(name=None)],
    "has mystnb.figure.name 'line'": [set_figure(name="line")],
    "has mystnb.figure.name 'fig-a_line'": [set_figure(name="fig-a_line")],
    "figure name occurs 2 times": [
        lambda nb: nb.cells.append(from_dict(cell(nb, "plot-line") | {"id": "b"}))
    ],
    "reads the environment": [add_code("_ = os.environ['CI']")],
    "asks whether it runs in CI": [add_code("if CI:\n    _ = 1")],
    "smoke-test switch": [add_code("_ = smoke_test")],
    "allows errors": [add_code("_ = allow_errors")],
    "except that passes": [
        *map(add_code, [f"try:\n    _ = 1\nexcept ValueError:\n    {nothing}" for nothing in ("pass", "...")])
    ],
    "is not Python": [add_code("_ = =")],
    "several sentences": [
        *map(add_text, ["The first ends. The second starts.", "- The first ends. The second starts."]),
        *map(add_text, ["It is $x$. The second starts.", "It is `x`. The second starts.", "Does it? Yes."]),
        *map(
            add_text, ["This is the ELBO. Next.", ":::{exercise}\n:label: ex-a\nThe first. The second.\n:::"]
        ),
    ],
    "only the first cell has one": [
        add_text("# Another"),
        lambda nb: (set_source("title", "Text.")(nb), add_text("# Late")(nb)),
    ],
    "has no title": [set_source("title", "## A section")],
    "skips a heading level": [add_text("#### Deep")],
    "equation eq-a stands on one line": [add_text("$$ x = y $$ (eq-a)")],
    "equation eq-a must open with": [
        *map(add_text, ["$$\nx = y $$ (eq-a)", "$$ x\n= y\n$$ (eq-a)", "$$\nx\n$$(eq-a)"])
    ],
    "equation eq-a is a math directive": [
        add_text(f"{fence}{{math}}\n:label: eq-a\nx\n{fence}") for fence in ("```", ":::")
    ],
    "display mathematics begins with": [add_text("\\begin{align} x \\end{align}")],
    "a $$ is never closed": [add_text("$$\nx")],
    "stands inside the line": [add_text("Here $$x$$ stands.")],
    "text follows the closing $$": [add_text("$$\nx\n$$ where y")],
    "code fence is never closed": [add_text("```\nx")],
    "equation label 'mean'": [add_text("$$\nx\n$$ (mean)")],
    "equation label 'eq-a_b'": [add_text("$$\nx\n$$ (eq-a_b)")],
    "equation label 'eq_mean'": [add_text("See {eq}`eq_mean`.")],
    "not the canonical one": [
        set_source("setup", rules.SETUP + "\n_ = 1"),
        lambda nb: cell(nb, "setup").update(id="imports"),
        lambda nb: cell(nb, "setup").metadata.update(tags=["by-hand"]),
        lambda nb: nb.cells.insert(1, code("early", "_ = 1")),
    ],
}


CASES = [(change, message) for message, changes in BROKEN.items() for change in changes]


@pytest.mark.parametrize(("change", "message"), CASES)
def test_rules_report_a_broken_notebook(change, message, tmp_path):
    nb = sample()
    change(nb)
    found = violations_of(nb, tmp_path)
    assert len(found) == 1, found
    assert message in found[0]


ALLOWED = {
    "nothing-changed": lambda nb: None,
    "one-print-in-a-loop": add_code("for i in range(3):\n    print(i)"),
    "value-alone": add_code("torch.manual_seed(seed)"),
    "assert-close": add_code("print(1)\ntorch.testing.assert_close(x, x)"),
    "print-in-a-definition": add_code("def f():\n    print(1)\n    print(2)", "by-hand"),
    "sorting-lambda": add_code("_ = sorted([1], key=lambda x: -x)"),
    "handled-error": add_code("try:\n    _ = 1\nexcept ValueError as error:\n    print(error)"),
    "plot-on-axes": set_figure(source="_, axes = plt.subplots(2)\nfor ax in axes:\n    plot_line(x, ax=ax)"),
    "axes-of-a-figure": set_figure(source="ax = plt.figure().subplots()\n_ = plot_line(x, ax=ax)"),
    "settings-are-no-figure": add_code('plt.rcParams.update({"a": 1})\nplt.close("all")\nprint(1)'),
    "magic": add_code("%timeit -n 1 1 + 1"),
    "modulo-at-line-start": add_code("_ = (\n    7\n    % seed\n)"),
    "integers-and-versions": add_check("1234567 of 2.13.0\n"),
    "five-digits": add_check("0.00012345, 1.2345e+03\n"),
    "bold-lead": add_text("**Result.** The loss falls."),
    "section-abbreviation": add_text("See Kingma et al. Then Eq. A holds, i.e. It does."),
    "dollars-in-code": add_text("Write `$$` here."),
    "four-levels": add_text("### Deeper\n\n#### Deepest\n\n## Up again"),
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_rules_accept_what_is_allowed(change, tmp_path):
    nb = sample()
    change(nb)
    assert violations_of(nb, tmp_path) == []


def spoiled() -> NotebookNode:
    """Return the sample as an editor would leave it: run, with foreign metadata and blanks."""
    nb = sample()
    nb.metadata.update(colab={"name": "x"}, language_info={"name": "python", "version": "3.12"})
    for number, spoiled_cell in enumerate(nb.cells, start=1):
        spoiled_cell.metadata["collapsed"] = False
        spoiled_cell.source += "  \n\n"
        if spoiled_cell.cell_type == "code":
            spoiled_cell.execution_count = number
            spoiled_cell.outputs = spoiled_cell.outputs or [image.copy()]
    cell(nb, "setup").source = "import torch"
    return nb


def test_fix_restores_the_normal_form(tmp_path):
    path = save(spoiled(), tmp_path)
    assert rules.main([str(path)]) == 1
    assert rules.main(["--fix", str(path)]) == 0
    assert path.read_text("utf-8") == rules.written(sample())


def test_fix_changes_nothing_the_second_time(tmp_path):
    nb = spoiled()
    nb.cells.pop(1)  # the setup cell has to be made as well
    for numbered in nb.cells:
        del numbered["id"]
    path = save(nb, tmp_path)
    rules.main(["--fix", str(path)])
    first = path.read_bytes()
    assert rules.main(["--fix", str(path)]) == 0
    assert path.read_bytes() == first


def test_fix_writes_one_source_line_per_line_and_plain_letters():
    nb = sample()
    nb.cells.append(markdown("greek", "Here σ is\na width."))
    text = rules.normal_form(rules.written(nb))
    assert '\n    "Here σ is\\n",\n    "a width."\n' in text
    assert text.startswith('{\n "cells": [') and text.endswith("}\n")


def test_fix_keeps_what_needs_a_decision(tmp_path, capsys):
    nb = sample()
    add_code("_ = 1;", "remove-cell")(nb)
    assert rules.main(["--fix", str(save(nb, tmp_path))]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.fixture
def light_setup(monkeypatch):
    """Let the setup cell import only what the sample needs: torch would take most of the time."""
    monkeypatch.setattr(rules, "SETUP", "import matplotlib.pyplot as plt")


def test_execute_stores_the_text_of_check_cells_only(light_setup, tmp_path):
    nb = sample()
    cell(nb, "print-value").outputs = []
    nb.cells.append(code("add-numbers", "1 + 2", rules.CHECK))
    add_code("import sys\nfrom pathlib import Path\n\nprint(sys.executable, Path.cwd())", rules.CHECK)(nb)
    path = save(nb, tmp_path)
    assert rules.main(["--execute", str(path)]) == 0
    ran = rules.read(path)
    printed, plotted = cell(ran, "print-value"), cell(ran, "plot-line")
    assert (printed.outputs[0].text, printed.execution_count) == ("1.2345 nats\n", 1)
    assert (plotted.outputs, plotted.execution_count) == ([], None)
    assert cell(ran, "add-numbers").outputs == [value]
    assert cell(ran, "added").outputs[0].text.split() == [sys.executable, str(tmp_path)]


def test_execute_leaves_a_failing_notebook_alone(light_setup, tmp_path, capsys):
    nb = sample()
    nb.cells.insert(2, code("divide", "1 / 0"))
    path = save(nb, tmp_path)
    assert rules.main(["--execute", str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert path.read_text("utf-8") == rules.written(nb)


def test_labels_reads_notebooks_and_pages(tmp_path):
    page, notebook = tmp_path / "page.md", save(sample(), tmp_path)
    page.write_text("$$\nx\n$$ (eq-a)\n\n```\n$$\nx\n$$ (eq-shown)\n```\n\n$$ y $$ (eq-b)\n", "utf-8")
    assert rules.labels(page) == ["eq-a", "eq-b"]
    assert rules.labels(notebook) == rules.references(notebook) == ["eq-mean"]
