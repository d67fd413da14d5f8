"""Print the book as `_build/vaecourse.pdf`, and its cheat sheet as `book/_static/cheat-sheet.pdf`.

`make pdf` first lets Sphinx write the whole book into one HTML page, below `_build/pdf`.  Here that page
loses the theme's frame and all scripts but MathJax's, its anchors become unique, and Chromium prints it
with the styles of `book/_static/print.css`.
"""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urljoin

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SINGLE = ROOT / "_build" / "pdf" / "_build" / "singlehtml"
BOOK = ROOT / "_build" / "vaecourse.pdf"
SHEET = ROOT / "book" / "_static" / "cheat-sheet.pdf"
SHEET_PAGE = "book/cheat_sheet"
BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<title>{title}</title>
{head}
<script>
MathJax.startup = {{ typeset: false }};
MathJax.options.menuOptions = {{ settings: {{ assistiveMml: false }} }}; // what is hidden is not printed
</script>
<link rel="stylesheet" href="_static/print.css">
</head>
<body class="{kind}"><main class="bd-content">
{article}
</main></body>
</html>
"""
# MathJax takes its size from the font around it, which must be there first.
SET = """async () => {
  await Promise.all([...document.fonts].map((font) => font.load()));
  await MathJax.startup.promise;
  await MathJax.typesetPromise();
  await document.fonts.ready;
}"""
WIDTHS = {"book": 210 - 2 * 18, "sheet": 210 - 2 * 10}  # mm of print, as in print.css
FAULTS = """() => {
  const faults = [];
  const report = (what, found) => found.forEach((one) => {
    faults.push(`${what}: ${(one.alt || one.textContent).trim().slice(0, 80)}`);
  });
  const all = (selector) => [...document.querySelectorAll(selector)];
  const isOut = (one) => one.getBoundingClientRect().right > innerWidth + 1;
  report("no mathematics", all("mjx-merror, .math:not(:has(mjx-container))"));
  report("no image", all("img").filter((image) => !image.naturalWidth));
  report("sticks out", all("main :not(mjx-container *)").filter(isOut));
  report("sticks out", all("mjx-math").filter(isOut));
  return faults;
}"""
ARTICLE = re.compile(r'<article class="bd-article">.*</article>', re.DOTALL)
HEAD = re.compile(
    r'<link [^>]*href="_static/[^>]*rel="stylesheet"[^>]*>|<link rel="stylesheet"[^>]*href="_static/[^>]*>'
    r'|<script>window\.MathJax.*?</script>|<script [^>]*src="_static/mathjax/[^>]*></script>',
    re.DOTALL,
)
TITLE = re.compile(r"<h1[^>]*>(.*?)<a ", re.DOTALL)
PLAIN = re.compile(r'<span class="(?:n|p|w|nn)">([^<]*)</span>')  # code in the colour of text
# A formula with the stop after it; else the stop may begin the next line.
STOPPED = re.compile(r'[(“]?<span class="math [^"]*">[^<]*</span>[.,;:?!)”’]+')
DATE = re.compile(rb"(?<=\(D:)\d{14}[^)]*(?=\))")


def chromium() -> str:
    """Return the path of the machine's Chromium."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    sys.exit(f"No browser to print with: install Chromium, so that one of {', '.join(BROWSERS)} can be run.")


def pages(single: str) -> dict[str, str]:
    """Return the pages of the book by name, cut out of the page that holds them all."""
    article = ARTICLE.search(single)
    assert article, "the theme has no article any more"
    first, *rest = re.split(r'<span id="document-([^"]+)"></span>', article[0])
    return {"book/index": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def finish(name: str, page: str, names: list[str], base: str, is_alone: bool = False) -> str:
    """Return a page with anchors of its own, links that work on paper, and headings from h1 on.

    Links lead into the book, or to the site at `base` if the page is printed alone or they leave the book.
    """

    def relink(match: re.Match[str]) -> str:
        address = match[1]
        if address.startswith("#"):
            target, _, anchor = address[1:].rpartition("/")
            if target not in names:
                target, anchor = name, address[1:]
            is_inside = not is_alone or target == name
            address = f"#{target}/{anchor}" if is_inside else f"{base}{target}.html#{anchor}".rstrip("#")
        else:  # downloads are named from the site's root, everything else from the page
            address = urljoin(base if address.startswith("_downloads/") else f"{base}{name}.html", address)
        return f' href="{address}"'

    page = PLAIN.sub(r"\1", page)  # makes the file a third smaller, as every element becomes a tag
    page = STOPPED.sub(r'<span class="unbroken">\g<0></span>', page)
    page = re.sub(r' id="([^"]*)"', rf' id="{name}/\1"', page)
    page = re.sub(r' href="([^"]*)"', relink, page)
    if name != names[0]:
        page = re.sub(r"(</?h)([2-6])\b", lambda match: f"{match[1]}{int(match[2]) - 1}", page)
        page = re.sub(r'<section class="', r"\g<0>chapter ", page, count=1)
        page = re.sub(r"<h1>", rf'<h1 id="{name}/">', page, count=1)
    return page


def printable(single: str) -> dict[str, str]:
    """Return the two pages to be printed, the book and the cheat sheet."""
    found = pages(single)
    names = list(found)
    canonical = re.search(r'<link rel="canonical" href="([^"]*)"', single)
    assert canonical, "_config.yml has no baseurl"
    base = canonical[1].removesuffix(f"{names[0]}.html")
    head = "\n".join(HEAD.findall(single))
    book = "".join(finish(name, page, names, base) for name, page in found.items())
    version = importlib.metadata.version("vaecourse")
    imprint = f'<p class="imprint">Version {version} of <a href="{base}">{base}</a></p>'
    written = {"book": book.replace("</h1>", f"</h1>\n{imprint}", 1)}
    sheet = finish(SHEET_PAGE, found[SHEET_PAGE], names, base, is_alone=True)
    written["sheet"] = f'<article class="bd-article">{sheet}'
    return {
        kind: PAGE.format(title=TITLE.search(article)[1], head=head, kind=kind, article=article)
        for kind, article in written.items()
    }


def faults(page: Page, width: float) -> list[str]:
    """Return what would look wrong on paper, where a page is as wide as it is printed, in mm."""
    page.set_viewport_size({"width": round(width / 25.4 * 96), "height": 1000})
    page.emulate_media(media="print")
    page.evaluate(SET)
    return page.evaluate(FAULTS)


def print_pages(browser: Browser, targets: dict[str, Path], single: Path = SINGLE) -> None:
    """Print the book, the sheet or both to files, from a folder with the single-page build."""
    source = single / "book" / "index.html"
    if not source.is_file():
        sys.exit(f"{source} is missing: `make pdf` builds it.")
    written = printable(source.read_text("utf-8"))
    for kind, target in targets.items():
        path = single / f"{kind}.html"
        path.write_text(written[kind], "utf-8")
        page = browser.new_page()
        page.set_default_timeout(180_000)
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(path.as_uri())
        found = faults(page, WIDTHS[kind])
        found += [f"asks another host: {url}" for url in asked if not url.startswith(("file:", "data:"))]
        if found:
            sys.exit("\n".join([f"{path} cannot be printed:", *found]))
        pdf = page.pdf(prefer_css_page_size=True, print_background=True, tagged=True, outline=True)
        # without the time of printing, equal pages give equal files
        target.write_bytes(DATE.sub(b"20000101000000+00'00'", pdf))
        page.close()


if __name__ == "__main__":
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        print_pages(browser, {"book": BOOK, "sheet": SHEET})
        browser.close()
    print(f"The book: file://{BOOK}")
