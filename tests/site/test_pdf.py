"""The printed book and cheat sheet: complete, tagged, with links that lead somewhere and mathematics set.

Runs after the build, in the stage ``site``; prints everything again, into a temporary folder.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import yaml
from pypdf import PdfReader
from pypdf.generic import Destination

from tests.site.browser import ROOT, SITE, needs_browser

pytestmark = needs_browser
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))["parts"]
NAMES = ["book/index", *(chapter["file"] for part in PARTS for chapter in part["chapters"])]
COMMITTED = ROOT / "book" / "_static" / "cheat-sheet.pdf"
NUM_PROCESSES = 2


def source(name: str) -> str:
    """Return the Markdown of a page, and of its code nothing."""
    path = ROOT / f"{name}.md"
    if path.is_file():
        return path.read_text("utf-8")
    cells = json.loads(path.with_suffix(".ipynb").read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def code(name: str) -> str:
    path = ROOT / f"{name}.ipynb"
    cells = json.loads(path.read_text("utf-8"))["cells"] if path.is_file() else []
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def texts(path: Path, first: int, step: int) -> list[str]:
    """Return the text of every so many pages."""
    return [page.extract_text() for page in PdfReader(path).pages[first::step]]


def words(text: str) -> str:
    return " ".join(text.split())


def outline(entries: list) -> Iterator[Destination]:
    for entry in entries:
        yield from outline(entry) if isinstance(entry, list) else [entry]


@pytest.fixture(scope="module")
def printer():
    spec = importlib.util.spec_from_file_location("print_pdf", ROOT / "book" / "_ext" / "print_pdf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory, printer, browser) -> Path:
    """The single-page build, with book.pdf and sheet.pdf."""
    output = tmp_path_factory.mktemp("pdf")
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        ".",
        "--all",
        "-W",
        "-n",
        "--keep-going",
    ]
    command += ["--builder", "singlehtml", "--path-output", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    single = output / "_build" / "singlehtml"
    printer.print_pages(browser, {"book": single / "book.pdf", "sheet": single / "sheet.pdf"}, single)
    return single


@pytest.fixture(scope="module")
def book(folder) -> PdfReader:
    return PdfReader(folder / "book.pdf")


@pytest.fixture(scope="module")
def pages(folder) -> list[str]:
    """The text of each page of the book."""
    with ProcessPoolExecutor(NUM_PROCESSES) as pool:
        shares = [
            pool.submit(texts, folder / "book.pdf", first, NUM_PROCESSES) for first in range(NUM_PROCESSES)
        ]
        found = [share.result() for share in shares]
    return [found[number % NUM_PROCESSES][number // NUM_PROCESSES] for number in range(sum(map(len, found)))]


@pytest.fixture(scope="module")
def sheet(folder) -> PdfReader:
    return PdfReader(folder / "sheet.pdf")


@pytest.mark.parametrize("kind", ["book", "sheet"])
def test_pdf_is_tagged_and_says_what_it_is(kind, request):
    reader = request.getfixturevalue(kind)
    root = reader.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert "/StructTreeRoot" in root
    assert root["/Lang"] == CONFIG["sphinx"]["config"]["language"]
    page = {"book": "book/index", "sheet": "book/cheat_sheet"}[kind]
    assert reader.metadata.title == source(page).split("\n", 1)[0].removeprefix("# ")
    assert {tuple(map(round, page.mediabox[2:])) for page in reader.pages} == {(595, 842)}  # A4


def test_outline_has_every_page_of_the_book(book):
    found = {entry.title: entry for entry in book.outline if not isinstance(entry, list)}
    numbered = [chapter["file"] for part in PARTS if part.get("numbered") for chapter in part["chapters"]]
    places = []
    for name in NAMES:
        title = source(name).split("\n", 1)[0].removeprefix("# ").replace("'", "’")
        if name in numbered:
            title = f"{numbered.index(name) + 1}. {title}"
        places.append(book.get_destination_page_number(found[title]))
    assert places == sorted(set(places)), "each page of the book starts on a new page of paper, in this order"
    titles = [entry.title for entry in outline(book.outline)]
    assert len(titles) > 200
    doubled = [
        title for title in titles if title[: len(title) // 2] * 2 == title or re.match(r"(\S+ )\1", title)
    ]
    assert doubled == []


def test_links_inside_the_book_lead_somewhere(book):
    targets, dead, inside = book.named_destinations, [], 0
    for page in book.pages:
        for link in (one.get_object() for one in page.get("/Annots", [])):
            if "/Dest" in link:
                inside += 1
                if (
                    link["/Dest"] not in targets
                    or book.get_destination_page_number(targets[link["/Dest"]]) < 0
                ):
                    dead.append(link["/Dest"])
            else:
                assert link["/A"]["/URI"].startswith("https://"), link
    assert dead == []
    assert inside > 450


def test_links_to_equations_have_the_numbers_of_the_site(folder):
    """The text of each link is the number of the equation that it leads to, in the book and on the site."""
    equation = r'id="([^"]*equation-eq-[^"]*)">\s*<span class="eqno">(\([\d.]+\))'
    text = (folder / "book.html").read_text("utf-8")
    printed = dict(re.findall(equation, text))
    on_site = {
        f"{name}/{anchor}": number
        for name in NAMES
        for anchor, number in re.findall(equation, (SITE / f"{name}.html").read_text("utf-8"))
    }
    assert printed == on_site
    links = re.findall(r'href="#([^"]*/equation-eq-[^"]*)">(\([\d.]+\))</a>', text)
    assert len(links) > 250
    assert [link for link in links if printed[link[0]] != link[1]] == []


def test_every_numbered_equation_is_printed_where_its_link_leads(book, pages):
    labels = 0
    for name in NAMES:
        chapter = re.match(r"book/0(\d)_", name)
        if chapter is None:
            continue
        for number, label in enumerate(re.findall(r"^\$\$ \((eq-[a-z-]+)\)", source(name), re.MULTILINE), 1):
            labels += 1
            target = book.named_destinations[f"/{name}/equation-{label}"]
            place = book.get_destination_page_number(target)
            assert f"({chapter[1]}.{number})" in pages[place], f"{label} is not on page {place + 1}"
    assert labels > 100


def test_nothing_is_left_unset(pages):
    text = "\n".join(pages)
    for mark in ["Click to show", r"\frac", r"\mathbb", r"\(", r"\[", "{eq}", "{cite", "Link to this"]:
        assert mark not in text, mark
    lines = words("\n".join(code(name) for name in NAMES))
    assert [line for line in text.split("\n") if "$" in line and words(line) not in lines] == []


def test_solutions_are_printed(pages):
    text = words("\n".join(pages))
    for name in NAMES:
        for label in re.findall(r"^:::\{solution\} (\S+)", source(name), re.MULTILINE):
            body = source(name).split(f":::{{solution}} {label}\n:class: dropdown\n\n")[1]
            plain = re.match(r"[\w ,.']*", body.replace("'", "’"))[0].rsplit(" ", 1)[0]
            assert words(plain) in text, label


def test_only_mathjax_runs_in_what_is_printed(folder):
    for kind in ("book", "sheet"):
        text = (folder / f"{kind}.html").read_text("utf-8")
        (loaded,) = re.findall(r"<script [^>]*src=[^>]*>", text)
        assert "_static/mathjax/" in loaded
        assert text.count("<script") == 3, "MathJax, and twice its settings"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<p>as wide as the page</p>", None),
        ("<pre style='width: 180mm'>a long line</pre>", "sticks out: a long line"),
        ("<p><img alt='a curve' src='missing.svg'></p>", "no image: a curve"),
        (r"<p class='math'>\(x^2\)</p>", None),
        (r"<p class='math'>\(\frac{1}\)</p>", "no mathematics: "),
        (rf"<p class='math'>\({'+'.join('abcdefghij' * 8)}\)</p>", "sticks out: "),
        ("<p class='math'>x^2</p>", "no mathematics: x^2"),
    ],
)
def test_faults_are_found_before_printing(body, fault, folder, printer, browser):
    """Printing ends with a message where something would look wrong; the fixtures have printed the book."""
    page = browser.new_page()
    article = f'<article class="bd-article">{body}</article>'
    head = (folder / "book.html").read_text("utf-8").split("<main")[0]
    (folder / "faulty.html").write_text(f"{head}<main>{article}</main></body></html>", "utf-8")
    page.goto((folder / "faulty.html").as_uri())
    found = printer.faults(page, printer.WIDTHS["book"])
    page.close()
    assert bool(found) == bool(fault)
    assert all(one.startswith(fault) for one in found)


def test_cheat_sheet_is_one_page_and_the_committed_one(sheet):
    (page,) = sheet.pages
    (committed,) = PdfReader(COMMITTED).pages
    assert words(page.extract_text()) == words(committed.extract_text()), (
        "run `make pdf` and commit the sheet"
    )


def test_links_of_the_cheat_sheet_lead_to_the_site(sheet):
    base = CONFIG["html"]["baseurl"]
    links = [one.get_object() for one in sheet.pages[0]["/Annots"]]
    addresses = [link["/A"]["/URI"] for link in links if "/A" in link]
    assert len(addresses) == len(links) > 40
    for address in addresses:
        path, _, anchor = address.removeprefix(base).partition("#")
        assert f'id="{anchor}"' in (SITE / path).read_text("utf-8"), address
