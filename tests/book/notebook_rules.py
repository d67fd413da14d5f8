"""The normal form of the book's notebooks: what it demands, and the command that writes it.

    python -m tests.book.notebook_rules book/*.ipynb            # report violations
    python -m tests.book.notebook_rules --fix book/*.ipynb      # strip, tidy, rewrite the setup cell first
    python -m tests.book.notebook_rules --execute book/*.ipynb  # also run, and store what check cells print

A cell tagged `nbval-check-output` keeps its text output and `execution_count: 1`, because nbval
silently compares nothing where either is missing.  All other cells keep neither, so that the
file changes only where somebody edited it.
"""

import argparse
import ast
import re
import statistics
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode, v4
from nbformat.validator import iter_validate

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]

SETUP = f"""\
from importlib.util import find_spec

if find_spec("vaecourse") is None:  # on Colab: fetch the course's package
    %pip install --quiet "vaecourse @ git+{REPOSITORY}"

import matplotlib.pyplot as plt
import torch

from vaecourse.plotting import use_style

use_style()"""

NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_METADATA = {"tags", "mystnb", "nbgrader"}
CHECK = "nbval-check-output"
TAGS = {"parameters", "by-hand", CHECK, "nbval-ignore-output", "hide-input"}
MAX_LINES, MAX_MEDIAN, MAX_DIGITS, MIN_ALT = 15, 6, 5, 40

CLOSING = re.compile(r"\$\$\s*\(([^()]*)\)$")  # of a labelled equation
SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
RANDOM_ID = re.compile(r"[0-9a-f]{8,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DECIMAL = re.compile(
    r"(?i)(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*(?:e[+-]?\d+)?|e[+-]?\d+)(?![\w.]*\.\d)"
)
FORBIDDEN = {
    r"\bos\.(environ|getenv)\b": "reads the environment",
    r"\bif CI\b": "asks whether it runs in CI",
    r"\bsmoke_test\b": "has a smoke-test switch",
    r"\ballow_errors\b": "allows errors",
}
NAMES_THE_MEDIUM = re.compile(
    r"(?i)(an?|the)?\s*(figure|image|picture|plot|graph|chart)s?\s+(showing|shows|of|with)\b"
)

# A full stop, a blank and a capital, where the word before the stop is no abbreviation.
ABBREVIATION = re.compile(
    r"(?i)\b(e\.g|i\.e|i\.i\.d|w\.r\.t|cf|vs|approx|resp|al|Eqs?|Figs?|Secs?|Chs?|App|Dr|Prof|Mr|Ms|St)\."
)
BOUNDARY = re.compile(r"""(?:[a-z0-9)\]"'”’»$`*_%]|[A-Z]{2})[.?!]+["'”’»)]*\s+["'“‘«(\[*_]*[A-Z]""")

# Calls after which Jupyter shows nothing, because they return None.
# fmt: off
RETURNS_NONE = {
    "print", "display", "use_style",
    "close", "show", "savefig", "tight_layout", "grid", "margins", "tick_params", "label_outer",
    "set_axis_off", "set_axis_on", "set_aspect", "set_xscale", "set_yscale", "invert_xaxis", "invert_yaxis",
    "append", "extend", "update", "sort", "clear", "insert", "remove",
    "backward", "step", "zero_grad", "seed", "set_printoptions", "set_num_threads", "set_default_dtype",
}
# fmt: on


class Markdown(NamedTuple):
    """What the rules need to know of a Markdown text; code fences and display mathematics are left out."""

    prose: list[str]
    labels: list[str]
    references: list[str]
    problems: list[str]


def scan(text: str) -> Markdown:
    """Return the prose lines, equation labels, `{eq}` references and malformed equations of a text."""
    found = Markdown([], [], [], [])
    problem = found.problems.append
    fence, directive, in_math, opened_well = "", "", False, False
    for line in text.splitlines():
        bare = line.strip()
        masked = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "``", line)
        if fence:
            if bare.startswith(fence) and not bare.strip(fence[0]):
                fence = ""
            elif directive == "{math}" and (option := re.match(r":label:\s*(\S+)", bare)):
                found.labels.append(option[1])
                problem(f"equation {option[1]} is a math directive; write $$ on a line … $$ ({option[1]})")
        elif in_math:
            if "$$" in bare:
                in_math = False
                if label := CLOSING.search(bare):
                    found.labels.append(label[1])
                    if not opened_well or bare != f"$$ ({label[1]})":
                        form = f"$$ and close with $$ ({label[1]}), each on a line of its own"
                        problem(f"equation {label[1]} must open with {form}")
                elif not bare.endswith("$$"):
                    problem(f"text follows the closing $$ in {bare!r}; start a new line after it")
        elif opening := re.match(r"(`{3,}|~{3,}|:{3,}(?=\s*\{math\}))\s*(\{\S+\})?", bare):
            fence, directive = opening[1], opening[2] or ""
        elif "$$" in masked:
            rest = bare.removeprefix("$$")
            if not bare.startswith("$$"):
                problem(f"$$ stands inside the line {bare!r}; give it a line of its own, or write $…$")
            elif "$$" not in rest:
                in_math, opened_well = True, not rest
            elif label := CLOSING.search(rest):
                found.labels.append(label[1])
                problem(f"equation {label[1]} stands on one line; put $$ and $$ ({label[1]}) on their own")
        elif re.match(r"\\begin\{|\\\[", bare):
            problem(f"display mathematics begins with {bare!r}; put $$ on its own line around it")
        else:
            found.references.extend(re.findall(r"\{eq\}`([^`]*)`", line))
            found.prose.append(line)
    if in_math:
        problem("a $$ is never closed; add the closing line")
    if fence:
        problem(f"a code fence is never closed; add the closing {fence}")
    for name in found.labels + found.references:
        if not name.startswith("eq-") or not SLUG.fullmatch(name):
            problem(f"equation label {name!r} must be kebab-case and start with eq-; rename it")
    return found


def read(path: Path) -> NotebookNode:
    """Return the notebook of a file."""
    return v4.reads(path.read_text("utf-8"))


def sources(path: Path) -> list[str]:
    """Return the Markdown texts of a notebook or of a Markdown page."""
    if path.suffix == ".md":
        return [path.read_text("utf-8")]
    return [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]


def labels(path: Path) -> list[str]:
    """Return the equation labels that a notebook or a Markdown page defines, in order of appearance."""
    return [label for text in sources(path) for label in scan(text).labels]


def references(path: Path) -> list[str]:
    """Return the labels that a notebook or a Markdown page cites with the `eq` role, in order."""
    return [label for text in sources(path) for label in scan(text).references]


def run_on_lines(prose: list[str]) -> Iterator[str]:
    """Yield the lines that hold more than one sentence; code, mathematics, links, tables are masked."""
    for line in prose:
        text = re.sub(r"^[\s>]*(?:[-*+]\s+|\d+[.)]\s+)?", "", line)
        if text.startswith(("|", "#")):
            continue
        text = re.sub(r"(`+).*?\1", "`…`", text)
        text = re.sub(r"\$[^$]+\$", "$…$", text)
        text = re.sub(r"!?\[[^\]]*\]\([^)]*\)", "[…]", text)
        if BOUNDARY.search(ABBREVIATION.sub(lambda match: match[1], text)):
            yield line.strip()


def parse(source: str) -> ast.Module:
    """Return the syntax tree of a code cell; where it holds IPython magics, these become `pass`."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE))


def called(node: ast.AST) -> str:
    """Return the last name of a call's function: `subplots` for `plt.subplots()`, else an empty string."""
    function = getattr(node, "func", None) if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, without the bodies of functions and classes that it only defines."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield child
            yield from executed(child)


def num_figures(tree: ast.Module) -> int:
    """Return how many figures a cell makes.

    Counted are `plt.subplots`, `plt.subplot_mosaic` and `plt.figure`.  A cell without these makes
    one figure if it draws through `plt`, or calls a `plot_*` function.
    """
    calls = [node for node in executed(tree) if isinstance(node, ast.Call)]
    pyplot = [called(call) for call in calls if re.fullmatch(r"plt\.\w+", ast.unparse(call.func))]
    created = sum(name in {"subplots", "subplot_mosaic", "figure"} for name in pyplot)
    draws = set(pyplot) - {"close", "get_cmap", "rc"}
    return created or int(bool(draws) or any(called(call).startswith("plot_") for call in calls))


def num_outputs(tree: ast.Module) -> int:
    """Return how many outputs a cell has, judged by its text alone.

    Counted are each call of `print` or `display` that is written down (once, also inside a loop),
    each figure, and the value of the last statement if it is an expression.  Jupyter shows such a
    value unless it is None, so a call counts as well, except those in `RETURNS_NONE` and the
    `assert_*` functions; `ax.plot(...)` and `ax.legend()` do return something that a reader would
    see.  A cell that makes a figure can therefore not end in a value: assign it to `_`, or let
    a call that returns None (`ax.set_xscale("log")`) come last.
    """
    shown = num_figures(tree) + sum(called(node) in {"print", "display"} for node in executed(tree))
    last = tree.body[-1].value if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    return shown + bool(last and called(last) not in RETURNS_NONE and not called(last).startswith("assert_"))


def assigned(node: ast.AST) -> set[str]:
    """Return the names that a tree binds."""
    return {n.id for n in executed(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def is_literal_assignment(statement: ast.stmt) -> bool:
    """Return whether a statement is `name = literal`, the only form that papermill can replace."""
    if not (isinstance(statement, ast.Assign) and [type(t) for t in statement.targets] == [ast.Name]):
        return False
    try:
        ast.literal_eval(statement.value)
    except ValueError:
        return False
    return True


def does_nothing(statement: ast.stmt) -> bool:
    """Return whether a statement is `pass`, `continue`, `...` or another constant."""
    is_constant = isinstance(getattr(statement, "value", None), ast.Constant)
    return isinstance(statement, ast.Pass | ast.Continue) or (isinstance(statement, ast.Expr) and is_constant)


def texts(cell: NotebookNode) -> Iterator[str | None]:
    """Yield the text of each stored output, and None for an output that is not text alone."""
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            yield output.text
        elif list(output.get("data", {})) == ["text/plain"]:
            yield output.data["text/plain"]
        else:
            yield None


def check_outputs(cell: NotebookNode, tags: list[str]) -> Iterator[str]:
    """Yield what is wrong with the stored outputs of a code cell."""
    if CHECK not in tags:
        if cell.outputs or cell.execution_count is not None:
            yield "stores an output or an execution count; run --fix, or tag it nbval-check-output"
        return
    stored = list(texts(cell))
    if not stored or cell.execution_count != 1:
        yield "is a check cell without output and execution count 1 (nbval passes it unseen); run --execute"
    if len(stored) > 1:
        yield f"stores {len(stored)} outputs; print once, or split the cell"
    if None in stored:
        yield "stores an output that is not plain text; print text, or drop the tag nbval-check-output"
    for number in (n for text in stored if text for n in DECIMAL.findall(text)):
        if len(re.sub(r"[eE].*|\D", "", number).lstrip("0")) > MAX_DIGITS:
            yield f"prints {number}; print at most {MAX_DIGITS} significant digits"


def check_figure(cell: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with the description of a cell's figure."""
    mystnb = cell.metadata.get("mystnb", {})
    alt = mystnb.get("image", {}).get("alt", "")
    caption, name = (mystnb.get("figure", {}).get(key, "") for key in ("caption", "name"))
    if len(alt) < MIN_ALT:
        yield f"has no mystnb.image.alt of at least {MIN_ALT} characters; say what there is to see"
    if alt and alt == caption:
        yield "repeats its caption as alt text; the caption states the finding, the alt text what is drawn"
    if NAMES_THE_MEDIUM.match(alt):
        yield "has an alt text that names the medium; begin with what there is to see"
    if not caption:
        yield "has no mystnb.figure.caption; state the finding"
    if not name.startswith("fig-") or not SLUG.fullmatch(name):
        yield f"has mystnb.figure.name {name!r}; give it a kebab-case name that starts with fig-"


def check_code(cell: NotebookNode, tags: list[str]) -> Iterator[str]:
    """Yield what is wrong with the source of a code cell."""
    lines = [line.rstrip() for line in cell.source.splitlines() if line.strip()]
    if len(lines) > MAX_LINES:
        yield f"has {len(lines)} lines; split it, {MAX_LINES} are allowed"
    if any(line.endswith(";") for line in lines):
        yield "ends a line with a semicolon (nbval still sees the value); assign the value to _"
    for pattern, what in FORBIDDEN.items():
        if re.search(pattern, cell.source):
            yield f"{what}; a lesson runs the same everywhere, use the parameters cell"
    try:
        tree = parse(cell.source)
    except SyntaxError as error:
        yield f"is not Python ({error.msg}); correct it"
        return
    for node in ast.walk(tree):
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        is_named_lambda = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda)
        if (is_definition or is_named_lambda) and "by-hand" not in tags:
            yield "defines a function or a class; import it from the package, or tag the cell by-hand"
        if isinstance(node, ast.ExceptHandler) and all(map(does_nothing, node.body)):
            yield "has an except that passes; let the error show, or print it"
    if (count := num_outputs(tree)) > 1:
        yield f"has {count} outputs (prints, figures, a shown last value); split it, or assign the value to _"
    if num_figures(tree):
        yield from check_figure(cell)
    elif "hide-input" in tags:
        yield "hides its input but makes no figure; drop the tag hide-input"
    if "parameters" in tags and not all(map(is_literal_assignment, tree.body)):
        yield "is the parameters cell but holds more than `name = literal`; move the rest to a later cell"


def check_cell(cell: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with one cell, seen alone."""
    name = cell.get("id", "")
    if not SLUG.fullmatch(name) or RANDOM_ID.fullmatch(name):
        yield "has an id that is no readable kebab-case slug; name the cell after what it does"
    tags = cell.metadata.get("tags", [])
    if foreign := sorted(set(cell.metadata) - CELL_METADATA):
        yield f"has foreign metadata {', '.join(foreign)}; run --fix"
    if unknown := sorted(set(tags) - TAGS):
        yield f"has the tag {', '.join(unknown)}; allowed are {', '.join(sorted(TAGS))}"
    if cell.cell_type == "code":
        yield from check_outputs(cell, tags)
        yield from check_code(cell, tags)
    elif cell.cell_type == "markdown":
        found = scan(cell.source)
        yield from found.problems
        for line in run_on_lines(found.prose):
            yield f"has several sentences on the line {line!r}; write one sentence per line"


def check_headings(cells: list[NotebookNode]) -> Iterator[tuple[str, str]]:
    """Yield cell id and message for misplaced headings."""
    level, titles = 0, 0
    for cell in (cell for cell in cells if cell.cell_type == "markdown"):
        for line in scan(cell.source).prose:
            if not (heading := re.match(r"(#{1,6})\s", line)):
                continue
            if len(heading[1]) > level + 1 and level:
                yield cell.id, f"skips a heading level at {line!r}; use {'#' * (level + 1)}"
            level = len(heading[1])
            titles += level == 1
            if level == 1 and (titles > 1 or cell is not cells[0]):
                yield cell.id, f"has the level-1 heading {line!r}; only the first cell has one, use ##"
    if not titles:
        yield "notebook", "has no title; begin the first cell with a level-1 heading"


def check_parameters(code: list[NotebookNode]) -> Iterator[tuple[str, str]]:
    """Yield cell id and message for a missing, doubled or overruled parameters cell."""
    places = [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
    if len(places) != 1:
        yield "notebook", f"has {len(places)} cells tagged parameters; exactly one is needed"
        return
    own, *later = code[places[0] :]
    for cell in later:
        with suppress(SyntaxError):  # check_code reports it
            if again := assigned(parse(own.source)) & assigned(parse(cell.source)):
                yield cell.id, f"assigns the parameter {', '.join(sorted(again))} again; choose another name"


def figure_names(nb: NotebookNode) -> list[str]:
    """Return the names of a notebook's figures, in order of appearance."""
    figures = (cell.metadata.get("mystnb", {}).get("figure", {}) for cell in nb.cells)
    return [figure["name"] for figure in figures if figure.get("name")]


def check_notebook(nb: NotebookNode) -> Iterator[tuple[str, str]]:
    """Yield cell id and message for everything that is wrong with a notebook."""
    if (nb.nbformat, nb.nbformat_minor) != (4, 5):
        yield "notebook", f"is nbformat {nb.nbformat}.{nb.nbformat_minor}; run --fix to write 4.5"
        return
    if invalid := next(iter_validate(nb, version=4, version_minor=5), None):
        yield "notebook", f"is not valid nbformat 4.5 ({invalid.message}); correct it, or run --fix"
        return
    if nb.metadata != NOTEBOOK_METADATA:
        yield "notebook", "has metadata other than the plain Python 3 kernelspec and language; run --fix"
    names = Counter(("cell id", cell.id) for cell in nb.cells)
    names += Counter(("figure name", name) for name in figure_names(nb))
    for (kind, name), count in names.items():
        if count > 1:
            yield name, f"the {kind} occurs {count} times; rename all but one"
    yield from ((cell.id, message) for cell in nb.cells for message in check_cell(cell))
    yield from check_headings(nb.cells)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    if not code or (code[0].id, code[0].metadata, code[0].source) != ("setup", {}, SETUP):
        yield "setup", "the first code cell is not the canonical one, untagged, with id setup; run --fix"
    yield from check_parameters(code)
    lengths = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code]
    if code and (median := statistics.median(lengths)) > MAX_MEDIAN:
        yield "notebook", f"has code cells of median {median:g} lines; split some, {MAX_MEDIAN} is the limit"


def violations(path: Path) -> list[str]:
    """Return one message `file: cell-id: what is wrong; how to repair it` per broken rule."""
    return [f"{path}: {cell_id}: {message}" for cell_id, message in check_notebook(read(path))]


def normalize(nb: NotebookNode) -> None:
    """Bring a notebook into normal form in place; what needs a decision is left for `violations`."""
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = v4.new_notebook(metadata=NOTEBOOK_METADATA).metadata
    first = next((i for i, cell in enumerate(nb.cells) if cell.cell_type == "code"), len(nb.cells))
    if first == len(nb.cells) or nb.cells[first].get("id") != "setup":
        nb.cells.insert(first, v4.new_code_cell(id="setup"))
    nb.cells[first].source, nb.cells[first].metadata = SETUP, NotebookNode()
    for number, cell in enumerate(nb.cells, start=1):
        cell.setdefault("id", f"cell-{number}")
        cell.source = "\n".join(line.rstrip() for line in cell.source.splitlines()).strip("\n")
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k in CELL_METADATA and v})
        if cell.cell_type == "code":
            cell.outputs = cell.outputs if CHECK in cell.metadata.get("tags", []) else []
            cell.execution_count = 1 if cell.outputs else None
            for output in cell.outputs:
                neutral = {"metadata": NotebookNode(), "execution_count": 1}
                output.update({key: neutral[key] for key in neutral if key in output})


def execute(nb: NotebookNode, folder: Path) -> None:
    """Run a notebook in this interpreter's kernel, in its own folder, and keep the text outputs."""
    options = {"kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"]}
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(nb, timeout=120, coalesce_streams=True, resources=resources, **options)
    client.km = client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute()
    for cell in (cell for cell in nb.cells if cell.cell_type == "code"):
        for data in (output.data for output in cell.outputs if "data" in output):
            for kind in set(data) - {"text/plain"}:
                del data[kind]
        cell.outputs = [output for output, text in zip(cell.outputs, texts(cell), strict=True) if text]


def written(nb: NotebookNode) -> str:
    """Return the bytes, as text, that a notebook in normal form has on disk."""
    return v4.writes(nb) + "\n"


def normal_form(text: str) -> str:
    """Return the normal form of a notebook file's text; applied twice it changes nothing more."""
    nb = v4.reads(text)
    normalize(nb)
    return written(nb)


def rewrite(path: Path, *, run: bool) -> None:
    """Write the normal form of a notebook's file, after running it where that is asked for."""
    nb = read(path)
    normalize(nb)
    if run:
        execute(nb, path.resolve().parent)
        normalize(nb)
    path.write_text(written(nb), "utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 1 when violations remain."""
    parser = argparse.ArgumentParser(description="Check notebooks.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH")
    parser.add_argument("--fix", action="store_true", help="write the normal form first")
    parser.add_argument("--execute", action="store_true", help="also run, and store what check cells show")
    options = parser.parse_args(argv)
    failed = False
    for path in options.paths:
        try:
            if options.fix or options.execute:
                rewrite(path, run=options.execute)
            found = violations(path)
        except CellExecutionError as error:
            found = [f"{path}: notebook: does not run, nothing written\n{error}"]
        print(*found, sep="\n", end="\n" if found else "")
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
