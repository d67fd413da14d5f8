"""The printed book and cheat sheet: complete, tagged, with links that lead somewhere and mathematics set.

Runs after the builds, in the stage ``site``; prints everything into a temporary folder.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from pypdf import PdfReader
from pypdf.generic import Destination
from pypdfium2 import PdfDocument

from tests.site.browser import BASE, CONFIG, ROOT, SITE, extension

PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))["parts"]
NAMES = ["book/index", *(chapter["file"] for part in PARTS for chapter in part["chapters"])]
COMMITTED = ROOT / "book" / "_static" / "cheat-sheet.pdf"
printer = extension("print_pdf")
pytestmark = pytest.mark.xdist_group("pdf")


def cells(name: str, kind: str) -> str:
    """Return the text of a page's cells of a kind; a page that is no notebook is one Markdown cell."""
    path = ROOT / f"{name}.md"
    if path.is_file():
        return path.read_text("utf-8") if kind == "markdown" else ""
    found = nbformat.read(path.with_suffix(".ipynb"), 4).cells
    return "\n".join(cell.source for cell in found if cell.cell_type == kind)


SOURCES = {name: cells(name, "markdown") for name in NAMES}


def title(name: str) -> str:
    return SOURCES[name].split("\n", 1)[0].removeprefix("# ")


def words(text: str) -> str:
    return " ".join(text.split())


def outline(entries: list) -> Iterator[Destination]:
    for entry in entries:
        yield from outline(entry) if isinstance(entry, list) else [entry]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, browser) -> Path:
    """A copy of the single-page build, with book.pdf and sheet.pdf."""
    single = shutil.copytree(printer.SINGLE, tmp_path_factory.mktemp("pdf") / "single")
    printer.print_pages(browser, {"book": single / "book.pdf", "sheet": single / "sheet.pdf"}, single)
    return single


@pytest.fixture(scope="module")
def readers(folder) -> dict[str, PdfReader]:
    return {kind: PdfReader(folder / f"{kind}.pdf") for kind in ("book", "sheet")}


@pytest.fixture(scope="module")
def pages(folder) -> list[str]:
    """The text of each page of the book."""
    return [page.get_textpage().get_text_range() for page in PdfDocument(folder / "book.pdf")]


@pytest.mark.parametrize(("kind", "page"), [("book", "book/index"), ("sheet", "book/cheat_sheet")])
def test_pdf_is_tagged_and_says_what_it_is(kind, page, readers):
    reader = readers[kind]
    root = reader.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert "/StructTreeRoot" in root
    assert root["/Lang"] == CONFIG["sphinx"]["config"]["language"]
    assert reader.metadata.title == title(page)
    assert {tuple(map(round, page.mediabox[2:])) for page in reader.pages} == {(595, 842)}  # A4


def test_outline_has_every_page_of_the_book(readers):
    book = readers["book"]
    found = {entry.title: entry for entry in book.outline if not isinstance(entry, list)}
    numbered = [chapter["file"] for part in PARTS if part.get("numbered") for chapter in part["chapters"]]
    places = []
    for name in NAMES:
        number = f"{numbered.index(name) + 1}. " if name in numbered else ""
        places.append(book.get_destination_page_number(found[number + title(name).replace("'", "’")]))
    assert places == sorted(set(places)), "each page of the book starts on a new page of paper, in this order"
    titles = [entry.title for entry in outline(book.outline)]
    assert len(titles) > 200
    assert [one for one in titles if one[: len(one) // 2] * 2 == one or re.match(r"(\S+ )\1", one)] == []


def test_links_inside_the_book_lead_somewhere(readers):
    book = readers["book"]
    links = [link.get_object() for page in book.pages for link in page.get("/Annots", [])]
    inside = [link["/Dest"] for link in links if "/Dest" in link]
    assert len(inside) > 450
    targets = {
        name: book.get_destination_page_number(target) for name, target in book.named_destinations.items()
    }
    assert [name for name in inside if targets.get(name, -1) < 0] == []
    outside = [link["/A"]["/URI"] for link in links if "/Dest" not in link]
    assert [address for address in outside if not address.startswith("https://")] == []


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


def test_every_numbered_equation_is_printed_where_its_link_leads(readers, pages):
    book, labels = readers["book"], 0
    for name in NAMES:
        chapter = re.match(r"book/0(\d)_", name)
        found = re.findall(r"^\$\$ \((eq-[a-z-]+)\)", SOURCES[name], re.MULTILINE) if chapter else []
        for number, label in enumerate(found, 1):
            labels += 1
            target = book.named_destinations[f"/{name}/equation-{label}"]
            place = book.get_destination_page_number(target)
            assert f"({chapter[1]}.{number})" in pages[place], f"{label} is not on page {place + 1}"
    assert labels > 100


def test_nothing_is_left_unset(pages):
    text = "\n".join(pages)
    marks = ["Click to show", r"\frac", r"\mathbb", r"\(", r"\[", "{eq}", "{cite", "Link to this"]
    assert [mark for mark in marks if mark in text] == []
    code = words("\n".join(cells(name, "code") for name in NAMES))
    assert [line for line in text.split("\n") if "$" in line and words(line) not in code] == []


def test_solutions_are_printed(pages):
    text = words("\n".join(pages))
    solution = re.compile(r"^:::\{solution\} (\S+)\n:class: dropdown\n\n([\w ,.'’]*)", re.MULTILINE)
    begun = [found for name in NAMES for found in solution.findall(SOURCES[name].replace("'", "’"))]
    assert len(begun) == sum(source.count("\n:::{solution} ") for source in SOURCES.values())
    assert [label for label, plain in begun if words(plain.rsplit(" ", 1)[0]) not in text] == []


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
def test_faults_are_found_before_printing(body, fault, folder, tab):
    """Printing ends with a message where something would look wrong; the fixtures have printed the book."""
    article = f'<article class="bd-article">{body}</article>'
    head = (folder / "book.html").read_text("utf-8").split("<main")[0]
    (folder / "faulty.html").write_text(f"{head}<main>{article}</main></body></html>", "utf-8")
    tab.goto((folder / "faulty.html").as_uri())
    found = printer.faults(tab, printer.WIDTHS["book"])
    tab.emulate_media(media="screen")
    assert bool(found) == bool(fault)
    assert all(one.startswith(fault) for one in found)


def test_cheat_sheet_is_one_page_and_the_committed_one(readers):
    (page,) = readers["sheet"].pages
    (committed,) = PdfReader(COMMITTED).pages
    texts = [words(one.extract_text()) for one in (page, committed)]
    assert texts[0] == texts[1], "run `make pdf` and commit the sheet"


def test_links_of_the_cheat_sheet_lead_to_the_site(readers):
    links = [one.get_object() for one in readers["sheet"].pages[0]["/Annots"]]
    addresses = [link["/A"]["/URI"] for link in links if "/A" in link]
    assert len(addresses) == len(links) > 40
    for address in addresses:
        path, _, anchor = address.removeprefix(BASE).partition("#")
        assert f'id="{anchor}"' in (SITE / path).read_text("utf-8"), address
