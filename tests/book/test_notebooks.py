"""The book's notebooks are in normal form, and the rules that say so do catch what they forbid."""

import re
import sys
from pathlib import Path

import pytest
from nbformat import NotebookNode, from_dict, v4

from tests.book import notebook_rules as rules

NOTEBOOKS = sorted((rules.ROOT / "book").glob("*.ipynb"))
ALT = "Twenty points scatter about a straight line with slope two."


def test_book_has_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_follows_the_rules(path):
    assert rules.violations(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_in_normal_form(path):
    text = path.read_text("utf-8")
    assert rules.normal_form(text) == text, f"run `python -m tests.book.notebook_rules --fix {path}`"


def test_figure_names_are_unique_across_the_book():
    names = [
        (cell.metadata["mystnb"]["figure"]["name"], path.name)
        for path in NOTEBOOKS
        for cell in v4.reads(path.read_text("utf-8")).cells
        if "name" in cell.metadata.get("mystnb", {}).get("figure", {})
    ]
    places = {name: [file for other, file in names if other == name] for name, _ in names}
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


# ---- the rules themselves: a clean notebook, and one way at a time of spoiling it ----


def code(name: str, source: str, *tags: str, **more) -> NotebookNode:
    cell = v4.new_code_cell(source, id=name, **more)
    if tags:
        cell.metadata["tags"] = list(tags)
    return cell


def markdown(name: str, source: str) -> NotebookNode:
    return v4.new_markdown_cell(source, id=name)


def sample() -> NotebookNode:
    """Return a notebook that breaks no rule."""
    figure = code(
        "plot-line", "fig, ax = plt.subplots()\nax.plot([0, 1])\nax.set_xscale('linear')", "hide-input"
    )
    figure.metadata["mystnb"] = {
        "image": {"alt": ALT},
        "figure": {"caption": "The line finds the slope.", "name": "fig-line"},
    }
    printed = v4.new_output("stream", name="stdout", text="1.2345 nats\n")
    intro = (
        "# A chapter\n\n## A section\n\nOne sentence, e.g. This one, cf. Fig. 1 and {eq}`eq-mean`.\n"
        "Another ends in `code. Still code` and $x. Y$ and [a link. Still](https://example.org).\n\n"
        "| a | table. With stops |\n\n1. An item.\n\n```\nCode. In a fence with $$\n```\n\n"
        "$$\nx = y\n$$ (eq-mean)\n\n$$ z $$"
    )
    return v4.new_notebook(
        metadata=rules.NOTEBOOK_METADATA,
        cells=[
            markdown("title", intro),
            code("setup", rules.SETUP),
            code("parameters", "seed = 0  # any integer\nscales = [0.5, -1.0]", "parameters"),
            code("define-square", "def square(x):\n    return x * x", "by-hand"),
            code("print-value", 'print("1.2345 nats")', rules.CHECK, outputs=[printed], execution_count=1),
            figure,
        ],
    )


def violations_of(nb: NotebookNode, folder: Path) -> list[str]:
    path = folder / "sample.ipynb"
    path.write_text(rules.written(nb), "utf-8")
    prefix = re.escape(f"{path}: ") + r"[\w-]+: "
    messages = rules.violations(path)
    assert all(re.match(prefix, message) for message in messages)
    return [re.sub(prefix, "", message) for message in messages]


def test_rules_accept_a_clean_notebook(tmp_path):
    assert violations_of(sample(), tmp_path) == []


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


def add_check(text: str):
    """Return a change that appends a check cell with this stored output."""
    output = v4.new_output("stream", name="stdout", text=text)
    return add_code("print(seed)", rules.CHECK, outputs=[output], execution_count=1)


def set_id(name: str):
    """Return a change that renames the last cell."""
    return lambda nb: nb.cells[-1].update(id=name)


def set_figure(**changes):
    """Return a change of the figure cell's description; None removes an entry."""

    def change(nb):
        described = cell(nb, "plot-line").metadata.mystnb
        for key, value in changes.items():
            part = described.image if key == "alt" else described.figure
            part.pop(key) if value is None else part.update({key: value})

    return change


def drop(name: str):
    """Return a change that removes the named cell."""
    return lambda nb: nb.update(cells=[cell for cell in nb.cells if cell.id != name])


image = v4.new_output("display_data", data={"image/png": "aGVsbG8=", "text/plain": "<Figure>"})
stdout = v4.new_output("stream", name="stdout", text="a\n")
stderr = v4.new_output("stream", name="stderr", text="a warning\n")
value = v4.new_output("execute_result", data={"text/plain": "3"}, execution_count=1)

BROKEN = {
    "old-format": (lambda nb: nb.update(nbformat_minor=4), "is nbformat 4.4"),
    "invalid": (lambda nb: nb.cells[-1].update(surplus=1), "is not valid nbformat"),
    "notebook-metadata": (lambda nb: nb.metadata.update(colab={}), "metadata other than"),
    "language-version": (lambda nb: nb.metadata.language_info.update(version="3.11"), "metadata other than"),
    "stored-output": (add_code("print(1)", outputs=[stdout]), "stores an output or an execution count"),
    "stored-count": (add_code("print(1)", execution_count=3), "stores an output or an execution count"),
    "check-without-output": (
        add_code("print(1)", rules.CHECK, execution_count=1),
        "check cell without output",
    ),
    "check-without-count": (add_code("print(1)", rules.CHECK, outputs=[stdout]), "check cell without output"),
    "check-image": (
        add_code("_ = 1", rules.CHECK, outputs=[image], execution_count=1),
        "stores an output that is not plain text",
    ),
    "check-stderr": (
        add_code("_ = 1", rules.CHECK, outputs=[stderr], execution_count=1),
        "stores an output that is not plain text",
    ),
    "check-two-outputs": (
        add_code("_ = 1", rules.CHECK, outputs=[stdout, value], execution_count=1),
        "stores 2 outputs",
    ),
    "six-digits": (add_check("0.123456\n"), "prints 0.123456"),
    "six-digits-before-the-point": (add_check("564,831.1\n"), "prints 564,831.1"),
    "six-digits-exponent": (add_check("1.23456e-07\n"), "prints 1.23456e-07"),
    "duplicate-id": (set_id("setup"), "cell id occurs 2 times"),
    "random-id": (set_id("1f0e9a2b"), "readable kebab-case slug"),
    "random-id-letter-first": (set_id("a1f0e9b2"), "readable kebab-case slug"),
    "uuid": (set_id("bc8a3c6e-1f6d-4c3a-9a51-0d3f2b7c9e10"), "readable kebab-case slug"),
    "snake-case-id": (set_id("plot_line"), "readable kebab-case slug"),
    "foreign-metadata": (
        lambda nb: nb.cells[0].metadata.update(collapsed=True),
        "foreign metadata collapsed",
    ),
    "unknown-tag": (add_code("_ = 1", "slide"), "has the tag slide"),
    "remove-cell": (add_code("_ = 1", "remove-cell"), "has the tag remove-cell"),
    "raises-exception": (add_code("_ = 1", "raises-exception"), "has the tag raises-exception"),
    "no-parameters": (drop("parameters"), "has 0 cells tagged parameters"),
    "two-parameters": (add_code("more = 1", "parameters"), "has 2 cells tagged parameters"),
    "computed-parameter": (set_source("parameters", "seed = 1 + len('a')"), "more than `name = literal`"),
    "unpacked-parameter": (set_source("parameters", "seed, steps = 1, 2"), "more than `name = literal`"),
    "import-in-parameters": (set_source("parameters", "import math"), "more than `name = literal`"),
    "parameter-overruled": (add_code("seed = 1"), "assigns the parameter seed again"),
    "long-cell": (add_code("\n".join(["_ = 1"] * 16)), "has 16 lines"),
    "long-median": (
        lambda nb: nb.cells.extend(code(f"long-{i}", "\n\n".join(["_ = 1"] * 7)) for i in range(9)),
        "code cells of median 7 lines",
    ),
    "two-prints": (add_code("print(1)\nprint(2)"), "has 2 outputs"),
    "print-and-value": (add_code("print(1)\nseed"), "has 2 outputs"),
    "print-and-shown-call": (add_code("print(1)\ntorch.manual_seed(0)"), "has 2 outputs"),
    "figure-and-print": (
        lambda nb: cell(nb, "plot-line").update(source="plt.figure()\nprint(1)"),
        "has 2 outputs",
    ),
    "figure-and-artist": (
        lambda nb: cell(nb, "plot-line").update(source="fig, ax = plt.subplots()\nax.legend()"),
        "has 2 outputs",
    ),
    "two-figures": (
        lambda nb: cell(nb, "plot-line").update(source="fig = plt.figure()\nfig = plt.figure()"),
        "has 2 outputs",
    ),
    "function": (add_code("def f():\n    return 1"), "defines a function or a class"),
    "nested-function": (
        add_code("if seed:\n    def f():\n        return 1"),
        "defines a function or a class",
    ),
    "class": (add_code("class A:\n    x = 1"), "defines a function or a class"),
    "lambda": (add_code("f = lambda x: x"), "defines a function or a class"),
    "semicolon": (add_code("_ = 1;"), "semicolon"),
    "hidden-without-figure": (add_code("_ = 1", "hide-input"), "makes no figure"),
    "no-description": (lambda nb: cell(nb, "plot-line").metadata.mystnb.pop("image"), "no mystnb.image.alt"),
    "undescribed-pyplot": (
        lambda nb: (cell(nb, "plot-line").update(source="_ = plt.plot(x)"), set_figure(alt=None)(nb)),
        "no mystnb.image.alt",
    ),
    "undescribed-plot": (
        lambda nb: (cell(nb, "plot-line").update(source="_ = plot_line(x)"), set_figure(alt=None)(nb)),
        "no mystnb.image.alt",
    ),
    "short-alt": (set_figure(alt="A line."), "no mystnb.image.alt"),
    "alt-is-caption": (set_figure(caption=ALT), "repeats its caption"),
    "alt-figure-showing": (set_figure(alt="Figure showing " + ALT), "names the medium"),
    "alt-an-image-of": (set_figure(alt="An image of " + ALT), "names the medium"),
    "alt-plot-of": (set_figure(alt="Plot of " + ALT), "names the medium"),
    "no-caption": (set_figure(caption=None), "no mystnb.figure.caption"),
    "no-name": (set_figure(name=None), "has mystnb.figure.name ''"),
    "name-without-prefix": (set_figure(name="line"), "has mystnb.figure.name 'line'"),
    "name-snake-case": (set_figure(name="fig-a_line"), "has mystnb.figure.name 'fig-a_line'"),
    "duplicate-figure-name": (
        lambda nb: nb.cells.append(from_dict(cell(nb, "plot-line") | {"id": "again"})),
        "figure name occurs 2 times",
    ),
    "environ": (add_code("_ = os.environ['CI']"), "reads the environment"),
    "if-ci": (add_code("if CI:\n    _ = 1"), "asks whether it runs in CI"),
    "smoke-test": (add_code("_ = smoke_test"), "smoke-test switch"),
    "allow-errors": (add_code("_ = allow_errors"), "allows errors"),
    "except-pass": (add_code("try:\n    _ = 1\nexcept ValueError:\n    pass"), "except that passes"),
    "except-ellipsis": (add_code("try:\n    _ = 1\nexcept ValueError:\n    ..."), "except that passes"),
    "not-python": (add_code("_ = ="), "is not Python"),
    "two-sentences": (add_text("The first ends. The second starts."), "several sentences"),
    "two-sentences-question": (add_text("Does it end? Yes."), "several sentences"),
    "two-sentences-after-math": (add_text("It is $x$. The second starts."), "several sentences"),
    "two-sentences-after-code": (add_text("It is `x`. The second starts."), "several sentences"),
    "two-sentences-after-acronym": (add_text("This is the ELBO. The second starts."), "several sentences"),
    "two-sentences-in-item": (add_text("- The first ends. The second starts."), "several sentences"),
    "two-sentences-in-exercise": (
        add_text(":::{exercise}\n:label: ex-a\nThe first ends. The second starts.\n:::"),
        "several sentences",
    ),
    "second-title": (add_text("# Another"), "only the first cell has one"),
    "no-title": (set_source("title", "## A section"), "has no title"),
    "title-late": (
        lambda nb: (set_source("title", "Text.")(nb), add_text("# Late")(nb)),
        "only the first cell has one",
    ),
    "skipped-level": (add_text("#### Deep"), "skips a heading level"),
    "one-line-equation": (add_text("$$ x = y $$ (eq-a)"), "equation eq-a stands on one line"),
    "equation-closed-badly": (add_text("$$\nx = y $$ (eq-a)"), "equation eq-a must open with"),
    "equation-opened-badly": (add_text("$$ x\n= y\n$$ (eq-a)"), "equation eq-a must open with"),
    "equation-without-blank": (add_text("$$\nx\n$$(eq-a)"), "equation eq-a must open with"),
    "equation-directive": (add_text("```{math}\n:label: eq-a\nx\n```"), "equation eq-a is a math directive"),
    "equation-colon-directive": (
        add_text(":::{math}\n:label: eq-a\nx\n:::"),
        "equation eq-a is a math directive",
    ),
    "equation-environment": (
        add_text("\\begin{align} x \\end{align}"),
        "display mathematics begins with",
    ),
    "equation-never-closed": (add_text("$$\nx"), "never closed"),
    "equation-inside-a-line": (add_text("Here $$x$$ stands."), "stands inside the line"),
    "text-after-equation": (add_text("$$\nx\n$$ where y"), "text follows the closing $$"),
    "fence-never-closed": (add_text("```\nx"), "code fence is never closed"),
    "label-without-prefix": (add_text("$$\nx\n$$ (mean)"), "equation label 'mean'"),
    "label-snake-case": (add_text("$$\nx\n$$ (eq-a_b)"), "equation label 'eq-a_b'"),
    "reference-snake-case": (add_text("See {eq}`eq_mean`."), "equation label 'eq_mean'"),
    "setup-changed": (
        lambda nb: cell(nb, "setup").update(source=rules.SETUP + "\n_ = 1"),
        "not the canonical one",
    ),
    "setup-renamed": (lambda nb: cell(nb, "setup").update(id="imports"), "not the canonical one"),
    "setup-tagged": (lambda nb: cell(nb, "setup").metadata.update(tags=["by-hand"]), "not the canonical one"),
    "setup-late": (lambda nb: nb.cells.insert(1, code("early", "_ = 1")), "not the canonical one"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_rules_report_a_broken_notebook(change, message, tmp_path):
    nb = sample()
    change(nb)
    found = violations_of(nb, tmp_path)
    assert len(found) == 1, found
    assert message in found[0]


ALLOWED = {
    "one-print-in-a-loop": add_code("for i in range(3):\n    print(i)"),
    "value-alone": add_code("torch.manual_seed(seed)"),
    "assert-close": add_code("print(1)\ntorch.testing.assert_close(x, x)"),
    "print-in-a-definition": add_code("def f():\n    print(1)\n    print(2)", "by-hand"),
    "sorting-lambda": add_code("_ = sorted([1], key=lambda x: -x)"),
    "handled-error": add_code("try:\n    _ = 1\nexcept ValueError as error:\n    print(error)"),
    "plot-on-axes": set_source(
        "plot-line", "fig, axes = plt.subplots(1, 2)\nfor ax in axes:\n    plot_line(x, ax=ax)"
    ),
    "axes-of-a-figure": set_source("plot-line", "ax = plt.figure().subplots()\n_ = plot_line(x, ax=ax)"),
    "settings-are-no-figure": add_code(
        'plt.rcParams.update({"figure.dpi": 100})\nplt.close("all")\nprint(1)'
    ),
    "magic": add_code("%timeit -n 1 1 + 1"),
    "modulo-at-line-start": add_code("_ = (\n    7\n    % seed\n)"),
    "integers-and-versions": add_check("1234567 of 2.13.0\n"),
    "five-digits": add_check("0.00012345, 12345.0e3\n".replace("12345.0e3", "1.2345e+03")),
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
    nb.metadata["colab"] = {"name": "x"}
    nb.metadata.language_info["version"] = "3.12"
    for number, spoiled_cell in enumerate(nb.cells, start=1):
        spoiled_cell.metadata["collapsed"] = False
        spoiled_cell.source += "  \n\n"
        if spoiled_cell.cell_type == "code":
            spoiled_cell.execution_count = number
            spoiled_cell.outputs = spoiled_cell.outputs or [image.copy()]
    cell(nb, "setup").source = "import torch"
    return nb


def test_fix_restores_the_normal_form(tmp_path):
    path = tmp_path / "sample.ipynb"
    path.write_text(rules.written(spoiled()), "utf-8")
    assert rules.main([str(path)]) == 1
    assert rules.main(["--fix", str(path)]) == 0
    assert path.read_text("utf-8") == rules.written(sample())


def test_fix_changes_nothing_the_second_time(tmp_path):
    path = tmp_path / "sample.ipynb"
    nb = spoiled()
    nb.cells.pop(1)  # the setup cell has to be made as well
    for numbered in nb.cells:
        del numbered["id"]
    path.write_text(rules.written(nb), "utf-8")
    rules.main(["--fix", str(path)])
    first = path.read_bytes()
    assert rules.main(["--fix", str(path)]) == 0
    assert path.read_bytes() == first


def test_fix_writes_one_source_line_per_line_and_plain_letters(tmp_path):
    nb = sample()
    nb.cells.append(markdown("greek", "Here σ is\na width."))
    text = rules.normal_form(rules.written(nb))
    assert '\n    "Here σ is\\n",\n    "a width."\n' in text
    assert text.startswith('{\n "cells": [')
    assert text.endswith("}\n")


def test_fix_keeps_what_needs_a_decision(tmp_path, capsys):
    path = tmp_path / "sample.ipynb"
    nb = sample()
    add_code("_ = 1;", "remove-cell")(nb)
    path.write_text(rules.written(nb), "utf-8")
    assert rules.main(["--fix", str(path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.fixture
def light_setup(monkeypatch):
    """Let the setup cell import only what the sample needs: torch would take most of the time."""
    monkeypatch.setattr(rules, "SETUP", "import matplotlib.pyplot as plt")


def test_execute_stores_the_text_of_check_cells_only(light_setup, tmp_path):
    path = tmp_path / "sample.ipynb"
    nb = sample()
    cell(nb, "print-value").outputs = []
    nb.cells.append(code("add-numbers", "1 + 2", rules.CHECK))
    add_code("import sys\nfrom pathlib import Path\n\nprint(sys.executable, Path.cwd())", rules.CHECK)(nb)
    path.write_text(rules.written(nb), "utf-8")
    assert rules.main(["--execute", str(path)]) == 0
    ran = v4.reads(path.read_text("utf-8"))
    assert cell(ran, "print-value").outputs[0].text == "1.2345 nats\n"
    assert cell(ran, "print-value").execution_count == 1
    assert cell(ran, "add-numbers").outputs == [value]
    assert cell(ran, "plot-line").outputs == []
    assert cell(ran, "plot-line").execution_count is None
    assert cell(ran, "added").outputs[0].text.split() == [sys.executable, str(tmp_path)]


def test_execute_leaves_a_failing_notebook_alone(light_setup, tmp_path, capsys):
    path = tmp_path / "sample.ipynb"
    nb = sample()
    nb.cells.insert(2, code("divide", "1 / 0"))
    path.write_text(before := rules.written(nb), "utf-8")
    assert rules.main(["--execute", str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert path.read_text("utf-8") == before


def test_labels_reads_notebooks_and_pages(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("$$\nx\n$$ (eq-a)\n\n```\n$$\nx\n$$ (eq-shown)\n```\n\n$$ y $$ (eq-b)\n", "utf-8")
    notebook = tmp_path / "sample.ipynb"
    notebook.write_text(rules.written(sample()), "utf-8")
    assert rules.labels(page) == ["eq-a", "eq-b"]
    assert rules.labels(notebook) == rules.references(notebook) == ["eq-mean"]
