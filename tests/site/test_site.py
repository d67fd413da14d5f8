"""The built site, as files and in a real browser: nothing from other hosts, no errors, nothing unreadable.

Runs after the build, in the stage ``site``.
"""

import functools
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import nbformat
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from fontTools.ttLib import TTFont
from PIL import Image
from playwright.sync_api import expect

from tests.site.browser import BASE, CONFIG, PAGES, ROOT, SITE, extension, opened
from tests.site.serving import serve
from vaecourse.coursework.release import student_version

DESCRIPTIONS = CONFIG["sphinx"]["config"]["course_descriptions"]
EXTRA = ["search.html", "genindex.html"]
each_page = pytest.mark.parametrize("page", PAGES)
pages = extension("course_pages")


@functools.cache
def text(page: str) -> str:
    return (SITE / page).read_text("utf-8")


@functools.cache
def elements(page: str) -> list[tuple[str, dict[str, str]]]:
    """Start tags of a page, with their attributes."""
    found, parser = [], HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, {k: v or "" for k, v in attrs}))
    parser.feed(text(page))
    return found


def attributes(page: str, tag: str) -> list[dict[str, str]]:
    """Return the attributes of all elements of a kind."""
    return [found for name, found in elements(page) if name == tag]


def doubled(values: list[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def present(faults: dict[str, list]) -> dict[str, list]:
    return {fault: places for fault, places in faults.items() if places}


# --- files -----------------------------------------------------------------------------------------------


def test_site_is_built():
    assert PAGES, f"{SITE} holds no pages: run `make book` first"


@each_page
def test_page_holds_what_it_must_and_nothing_twice(page):
    found, images = elements(page), attributes(page, "img")
    loaded = [a.get("src") or a.get("href", "") for tag, a in found if tag in ("script", "img", "iframe")]
    loaded += [a.get("href", "") for a in attributes(page, "link") if a.get("rel") == "stylesheet"]
    faults = {
        "from other hosts": [url for url in loaded if re.match(r"(https?:)?//", url)],
        "images without a text": [i["src"] for i in images if re.search(r"^\s*$|_images/", i.get("alt", ""))],
        "ids of many": doubled([a["id"] for _, a in found if a.get("id")]),
        "scripts loaded twice": doubled([a["src"] for a in attributes(page, "script") if a.get("src")]),
        "kernels": re.findall("thebe(?!lab)", text(page), re.IGNORECASE),
    }
    assert present(faults) == {}


def test_chapter_figures_are_numbered_figures():
    chapter = "book/01_gaussian_regression.html"
    images = [image for image in attributes(chapter, "img") if "_images/" in image["src"]]
    assert len(images) == len(attributes(chapter, "figure")) > 0


@pytest.mark.parametrize("number", range(1, 6))
def test_problem_sets_are_offered_as_students_get_them(number):
    links = attributes("book/problem_sets.html", "a")
    (link,) = [a["href"] for a in links if "download" in a and a["href"].endswith(f"/ps{number}.ipynb")]
    offered = (SITE / "book" / link).resolve()
    source = ROOT / f"book/coursework/source/ps{number}/ps{number}.ipynb"
    assert offered.read_text("utf-8") == student_version(source)
    on_colab = f"/gh-pages/{offered.relative_to(SITE.resolve()).as_posix()}"  # the branch holds the site
    assert [a for a in links if a.get("href", "").endswith(on_colab)]


def test_no_solution_is_published_with_the_site():
    """The chapters' exercises have theirs on the page; those of the problem sets stay in the repository."""
    published = [path for path in SITE.rglob("*") if path.suffix in {".ipynb", ".html", ".txt", ".js"}]
    assert len(published) > 20
    assert [path for path in published if "### BEGIN SOLUTION" in path.read_text("utf-8")] == []


@functools.cache
def targets(page: Path) -> set[str]:
    """Everything on a page that a link can lead to."""
    found = elements(page.relative_to(SITE).as_posix())
    return {value for _, a in found for name, value in a.items() if name in ("id", "name")}


@pytest.mark.parametrize("page", [*PAGES, *EXTRA, "index.html"])
def test_links_lead_somewhere(page):
    dead = []
    for href in (a.get("href", "#") for a in attributes(page, "a")):
        link = urlparse(href)
        if link.scheme or link.netloc or href == "#":
            continue
        path = (SITE / page).parent / unquote(link.path) if link.path else SITE / page
        if not path.is_file() or (link.fragment and unquote(link.fragment) not in targets(path.resolve())):
            dead.append(href)
    assert dead == []


# --- what search engines and messengers see --------------------------------------------------------------


def meta(page: str) -> dict[str, str]:
    return {
        a.get("name") or a.get("property") or a.get("http-equiv") or "charset": a.get("content", "")
        for a in attributes(page, "meta")
    }


def test_address_is_configured_once():
    """The site's address follows from the repository's, and all links to either agree."""
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
    owner, name = urlparse(repository).path.strip("/").split("/")
    assert CONFIG["repository"]["url"] == repository
    assert f"https://{owner}.github.io/{name}/" == BASE


def test_every_page_has_its_own_description():
    shown = {page: meta(page)["description"] for page in PAGES}
    assert len(set(shown.values())) == len(PAGES)
    assert {page: text for page, text in shown.items() if not 40 <= len(text) <= 170} == {}
    described = {page.removesuffix(".html") for page in PAGES} | {"search", "genindex", "404"}
    assert set(DESCRIPTIONS) - described == set()


@each_page
def test_page_has_a_preview_and_says_what_its_neighbours_hold(page):
    found = meta(page)
    assert found["og:url"] == BASE + page
    assert found["og:description"] == found["description"]
    with Image.open(SITE / found["og:image"].removeprefix(BASE)) as image:
        assert image.size == (1146, 600)
    neighbours = re.findall(r'<link rel="(?:next|prev)" title="[^"]*" href="([^"]*)\.html"', text(page))
    said = re.findall(r'<p class="prev-next-description">(.*)</p>', text(page))
    assert sorted(said) == sorted(DESCRIPTIONS[urljoin(page, one)] for one in neighbours) != []


def test_sitemap_lists_every_page():
    found = {element.text for element in ET.parse(SITE / "sitemap.xml").iter() if element.tag.endswith("loc")}
    assert found == {BASE + page for page in PAGES}


# --- launching -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem)
def test_chapters_can_be_opened_elsewhere(notebook):
    path = f"book/{notebook.name}"
    owner_and_name = urlparse(CONFIG["repository"]["url"]).path.strip("/")
    assert {
        f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{path}",
        f"https://mybinder.org/v2/gh/{owner_and_name}/main?urlpath=lab/tree/{path}",
        f"../_sources/{path}",
    } <= {a.get("href") for a in attributes(f"book/{notebook.stem}.html", "a")}
    offered = nbformat.reads(text(f"_sources/{path}"), 4)
    assert offered.cells == nbformat.read(notebook, 4).cells


def test_binder_would_build_the_environment():
    """What Binder runs accepts the repository, and builds it from environment.yml."""
    options = ["--no-build", "--debug", "--user-name=reader", "--user-id=1000"]
    command = [sys.executable, "-m", "repo2docker", *options, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Building conda environment for python=3.11" in done.stderr
    assert 'env update -p ${NB_PYTHON_PREFIX} --file "environment.yml"' in done.stdout


# --- repairs and policy ----------------------------------------------------------------------------------

STOCK = {
    "1.5 MB of script": '<script src="../_static/scripts/fontawesome.js?digest=8"></script>',
    "a name that differs": '<button class="btn search-button-field" title="Search" aria-label="Search">',
    "a sidebar outside": '<div id="pst-primary-sidebar" class="bd-sidebar-primary bd-sidebar">',
    "a list whose items": '<div role="list" class="citation-list">',
    "a role that was": '<div class="citation" role="doc-biblioentry">',
    "one id for many": '<section id="exercise-content">',
    "a handler in": '<button onclick="window.print()" class="btn">',
    "scripts that hold": '<script data-prefix="a" src="../_static/doctools.js?v=9"></script>',
}


def test_every_repair_is_tried():
    assert len(STOCK) == len(pages.REPAIRS)


@pytest.mark.parametrize(("start", "html"), STOCK.items(), ids=STOCK)
def test_repair_removes_its_fault_from_stock_html_and_from_the_site(start, html):
    (repair,) = [one for one in pages.REPAIRS if one.fault.startswith(start)]
    assert repair.pattern.search(html)
    assert not repair.pattern.search(repair.pattern.sub(repair.replacement, html))
    assert [page for page in PAGES if repair.pattern.search(text(page))] == []


@pytest.mark.parametrize("page", [*PAGES, "search.html", "404.html"])
def test_policy_allows_the_theme_and_nothing_else(page):
    policy = meta(page)["Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'self'( 'sha256-[\w+/]+=')*", rules["script-src"])
    assert set(rules["connect-src"].split()) | set(rules["form-action"].split()) == {"'self'"}


HOSTILE = """<script>window.ran = [...(window.ran || []), "markdown script"]</script>

<img src="missing.png" alt="" onerror="window.ran = [...(window.ran || []), 'handler']">

<svg onload="window.ran = [...(window.ran || []), 'svg']"></svg>
"""
OUTPUTS = {
    "text/html": '<script>window.ran = [...(window.ran || []), "html output"]</script>',
    "application/javascript": 'window.ran = [...(window.ran || []), "javascript output"]',
}
CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
root_doc = "page"
extensions = ["myst_nb", "course_pages"]
html_theme = "sphinx_book_theme"
html_baseurl = {BASE!r}
nb_execution_mode = "off"
course_descriptions = dict.fromkeys(["page", "search", "genindex"], "A page.")
"""


def test_scripts_in_text_and_outputs_do_not_run(browser, tmp_path):
    """A page with scripts in its text and its outputs is built with the course's extension, and opened."""
    v4 = nbformat.v4
    cell = v4.new_code_cell("1", execution_count=1)
    cell.outputs = [v4.new_output("display_data", data={kind: body}) for kind, body in OUTPUTS.items()]
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# Page\n\n" + HOSTILE), cell])
    nbformat.write(notebook, tmp_path / "page.ipynb")
    (tmp_path / "conf.py").write_text(CONF)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    protected = (tmp_path / "out" / "page.html").read_text("utf-8")
    bare = re.sub(r"<meta http-equiv=.Content-Sec[^>]*>", "", protected)
    (tmp_path / "out" / "bare.html").write_text(bare)
    ran = {}
    with serve(tmp_path / "out") as address:
        for name in ["page", "bare"]:
            page = browser.new_page()
            page.goto(f"{address}{name}.html")
            page.wait_for_load_state("networkidle")
            ran[name] = set(page.evaluate("window.ran || []"))
            page.close()
    everything = {"markdown script", "handler", "svg", "html output", "javascript output"}
    assert ran == {"page": set(), "bare": everything}


# --- in the browser --------------------------------------------------------------------------------------

FAULTY = {
    "formulas that are not set": ".math:not(:has(mjx-container))",
    "formulas with an error": "mjx-merror",
    # MathJax gives scripts a size of their own where it mistakes the size of the text around them
    "scripts of a wrong size": "mjx-script :is(mjx-mi, mjx-mn)[style*=font-size]",
    "formulas that do not speak as MathML": "mjx-container:not(:has(mjx-assistive-mml math))",
}
ICONS = """all => all.map((icon) =>
  getComputedStyle(icon, icon.tagName == "I" ? "::before" : "::after").content.replaceAll('"', ""))"""
RULES = {
    "light": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "dark": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]},  # the others see no colour
}
# No rule here reads style sheets, which axe would load again.
AXE = """runOnly => axe.run({ resultTypes: ["violations"], preload: { assets: ["media"] }, runOnly })
  .then((found) => found.violations)"""
# Formulas have spoken for themselves, and words of code are coloured by their class: thousands take axe long.
FEWER_ELEMENTS = """() => {
  document.querySelectorAll("mjx-container").forEach((e) => e.replaceWith("formula"));
  const seen = new Set();
  document.querySelectorAll(".highlight span[class]").forEach((token) => {
    if (seen.has(token.className)) token.replaceWith(...token.childNodes);
    else seen.add(token.className);
  });
}"""
# Contrast takes axe longest, and is that of the first two of all words that look alike on the same ground.
CONTRAST = '; axe.configure({ rules: [{ id: "color-contrast", selector: "[data-look]" }] });'
MARK_LOOKS = """(mode) => {
  document.documentElement.dataset.theme = mode;
  document.getAnimations().forEach((transition) => transition.finish());
  const GROUND = "backgroundColor backgroundImage opacity filter display position overflow";
  const grounds = new Map(), counts = new Map();
  for (const e of document.querySelectorAll("body, body *")) {
    const style = getComputedStyle(e), get = (names) => names.split(" ").map((name) => style[name]).join();
    const ground = [grounds.get(e.parentElement), e.className, e.getAttribute("style"), get(GROUND)].join();
    grounds.set(e, ground);
    const look = ground + get("color fontSize fontWeight textShadow");
    const isText = e.matches("input, select, textarea")
      || [...e.childNodes].some((node) => node.nodeType == 3 && node.data.trim());
    if (isText && e.checkVisibility()) counts.set(look, (counts.get(look) ?? 0) + 1);
    e.toggleAttribute("data-look", isText && counts.get(look) <= 2);
  }
}"""


@functools.cache
def glyphs() -> set[int]:
    """Characters of the icon fonts, which are cut down: what was forgotten would show as an empty box."""
    folder = SITE / "_static/vendor/fontawesome/webfonts"
    return {code for path in folder.iterdir() for code in TTFont(path).getBestCmap()}


@pytest.mark.parametrize("page_name", [*PAGES, *EXTRA])
def test_page_works_and_is_accessible_in_a_browser(page_name, address, tab):
    """It fits a phone, formulas and icons are there, and axe finds nothing in light and in dark mode."""
    with opened(tab, address + page_name, width=320) as page:
        faults = {what: page.locator(selector).all_text_contents() for what, selector in FAULTY.items()}
        beyond = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        faults["px that a phone does not show"] = [beyond] if beyond > 0 else []
        shown = page.locator("i[class*=fa-], .admonition-title").evaluate_all(ICONS)
        icons = [ord(text) for text in shown if len(text) == 1]
        assert len(icons) > 5
        faults["icons without a glyph"] = [hex(i) for i in icons if i >= 0xE000 and i not in glyphs()]
        page.evaluate(FEWER_ELEMENTS)
        page.set_viewport_size({"width": 1280, "height": 900})
        page.evaluate(AXE_SCRIPT + CONTRAST)
        for mode, rules in RULES.items():
            page.evaluate(MARK_LOOKS, mode)
            for one in page.evaluate(AXE, rules):
                faults[f"{mode}: {one['id']}"] = [node["target"] for node in one["nodes"]][:5]
    assert present(faults) == {}


SEARCHES = {
    "implied variance": "03_gaussian_to_mse",
    "evidence lower bound": "02_vae_elbo",
    "softplus": "04_bernoulli_to_bce",
    "importance weighted bound": "02_vae_elbo",
    "active units": "06_bound_to_likelihood",
}


def test_search_finds(address, tab):
    found = {}
    with opened(tab, f"{address}search.html") as page:
        for words, name in SEARCHES.items():
            page.goto(f"{address}search.html?q={words.replace(' ', '+')}")
            expect(page.locator("#search-results")).to_contain_text("page(s) matching", timeout=20_000)
            links = page.locator("#search-results ul.search li a").evaluate_all("all => all.map(a => a.href)")
            found[words] = name if any(name in link for link in links) else links
    assert found == SEARCHES


def test_not_found_page_works_at_any_depth(tab, tmp_path):
    """It is served for whatever address is wrong, below the site's own path."""
    root = tmp_path / urlparse(BASE).path.strip("/")
    root.parent.mkdir(parents=True, exist_ok=True)
    root.symlink_to(SITE, target_is_directory=True)
    (tmp_path / "some" / "where").mkdir(parents=True)
    shutil.copy(SITE / "404.html", tmp_path / "some" / "where" / "else.html")
    with serve(tmp_path) as address, opened(tab, f"{address}some/where/else.html") as page:
        page.wait_for_load_state("networkidle")
        assert page.locator("article h1").inner_text().startswith("Page not found")
        page.locator(".bd-sidenav a").first.click()
        assert page.locator("article h1").inner_text().startswith("What a VAE loss assumes")


@pytest.mark.parametrize("name", ["index", "answer", "live_figures"])
def test_page_works_as_a_file(name, tab):
    with opened(tab, f"file://{SITE}/book/{name}.html") as page:
        page.wait_for_load_state("networkidle")
        assert page.locator(".math mjx-container").count() > 0
        assert page.evaluate("document.fonts.check('16px \"Source Serif 4\"')")
        if name == "live_figures":
            assert "The nearest of 2000" in page.locator("latent-plane .live-reading").inner_text()
        page.locator(".prev-next-area a").last.click()
        page.wait_for_load_state("networkidle")


def test_search_works_as_a_file(tab):
    with opened(tab, f"file://{SITE}/search.html?q=variance") as page:
        page.wait_for_selector("#search-results ul.search li", timeout=20_000)


def test_quizzes_answer_mouse_and_keyboard(address, tab):
    """Choices are numbered as in the answer, one is marked, and other quizzes keep theirs."""
    with opened(tab, f"{address}book/03_gaussian_to_mse.html") as page:
        quizzes = page.locator(".quiz.admonition").all()
        assert len(quizzes) == 4
        for quiz in quizzes:
            answer, labels, verdict = map(quiz.locator, [".admonition", "fieldset label", ".quiz-verdict"])
            right = int(answer.locator("strong").first.text_content().rstrip("."))
            wrong = 1 if right != 1 else 2
            labels.nth(wrong - 1).locator("input").check()
            assert verdict.inner_text().startswith("No.")
            assert not answer.locator("p").nth(1).is_visible()
            for _ in range(abs(right - wrong)):
                page.keyboard.press("ArrowDown" if right > wrong else "ArrowUp")
            assert labels.nth(right - 1).locator("input").is_checked()
            assert verdict.inner_text() == "Right."
            assert answer.locator("p").nth(1).is_visible()
            for number in [*range(1, labels.count() + 1), right]:
                chosen = labels.nth(number - 1)
                assert chosen.inner_text().lstrip().startswith(f"{number}.")
                chosen.locator("input").check()
                expected = [""] * labels.count()
                expected[number - 1] = "quiz-right" if number == right else "quiz-wrong"
                assert labels.evaluate_all("all => all.map(label => label.className)") == expected
        assert [quiz.locator("input:checked").count() for quiz in quizzes] == [1] * 4


def test_buttons_of_the_header_work(address, tab):
    with opened(tab, f"{address}book/answer.html") as page:
        page.evaluate("() => { window.print = () => { window.printed = true } }")
        page.locator(".theme-switch-button").first.click()
        assert page.evaluate("document.documentElement.dataset.mode") != "light"
        page.locator(".dropdown-download-buttons button").first.click()
        page.locator("[data-course=print]").click()
        assert page.evaluate("window.printed")
