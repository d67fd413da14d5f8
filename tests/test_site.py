"""The built site, as files and in a real browser: nothing from other hosts, no errors, all mathematics set.

Runs after the build, in the stage ``site``.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vaecourse.coursework.release import student_version

SITE = Path(__file__).parents[1] / "_build" / "html"
PAGES = sorted(page.relative_to(SITE).as_posix() for page in SITE.glob("book/*.html"))
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"), reason="no Chromium on this machine (.ci/run installs one)"
)


class Elements(HTMLParser):
    """Start tags of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed((SITE / page).read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_site_is_built():
    assert PAGES, f"{SITE} holds no pages: run `make book` first"


@pytest.mark.parametrize("page", PAGES)
def test_page_loads_nothing_from_other_hosts(page):
    loaded = [
        attributes.get("src") or attributes.get("href") or ""
        for tag, attributes in Elements(page).found
        if tag in ("script", "img", "iframe") or (tag == "link" and attributes.get("rel") == "stylesheet")
    ]
    assert [url for url in loaded if re.match(r"(https?:)?//", url)] == []


@pytest.mark.parametrize("page", PAGES)
def test_page_images_have_alternative_text(page):
    images = [attributes for tag, attributes in Elements(page).found if tag == "img"]
    bare = [
        i["src"] for i in images if not (i.get("alt") or "").strip() or "_images/" in (i.get("alt") or "")
    ]
    assert bare == []


def test_chapter_figures_are_numbered_figures():
    chapter = Elements("book/01_gaussian_regression.html").found
    images = [a for tag, a in chapter if tag == "img" and "_images/" in (a["src"] or "")]
    figures = [a for tag, a in chapter if tag == "figure"]
    assert len(images) == len(figures) > 0


@pytest.mark.parametrize("number", range(1, 6))
def test_problem_sets_are_offered_as_students_get_them(number):
    links = [attributes for tag, attributes in Elements("book/problem_sets.html").found if tag == "a"]
    (link,) = [
        link
        for link in links
        if (link.get("href") or "").endswith(f"/ps{number}.ipynb") and "download" in link
    ]
    offered = (SITE / "book" / (link["href"] or "")).resolve()
    source = SITE.parents[1] / f"book/coursework/source/ps{number}/ps{number}.ipynb"
    assert offered.read_text("utf-8") == student_version(source)
    on_colab = f"/gh-pages/{offered.relative_to(SITE.resolve()).as_posix()}"  # the branch holds the site
    assert [link for link in links if (link.get("href") or "").endswith(on_colab)]


def test_no_solution_is_published_with_the_site():
    """The chapters' exercises have theirs on the page; those of the problem sets stay in the repository."""
    published = [path for path in SITE.rglob("*") if path.suffix in {".ipynb", ".html", ".txt", ".js"}]
    assert len(published) > 20
    assert [path for path in published if "### BEGIN SOLUTION" in path.read_text("utf-8")] == []


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert BROWSER, "CI must have a Chromium: see .ci/run"
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=quiet)
        yield browser
        browser.close()


@needs_browser
@pytest.mark.parametrize("page_name", PAGES)
def test_page_works_in_a_browser(page_name, address, browser):
    page = browser.new_page(viewport={"width": 320, "height": 800})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address + page_name)
    if page.evaluate("document.querySelectorAll('.math').length"):
        page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.evaluate("MathJax.startup.promise")
    raw = page.evaluate(
        "[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length"
    )
    bad_formulas = page.evaluate("document.querySelectorAll('mjx-merror').length")
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    page.close()
    assert errors == []
    assert [url for url in requests if not url.startswith((address, "data:"))] == []
    assert (raw, bad_formulas) == (0, 0)
    assert overflow <= 0, f"the page is {overflow} px wider than a phone's screen"
