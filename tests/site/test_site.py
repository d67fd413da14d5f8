"""The built site, as files and in a real browser: nothing from other hosts, no errors, nothing unreadable.

Runs after the build, in the stage ``site``.
"""

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import nbformat
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from tests.site.browser import PAGES, ROOT, SITE, Watch, needs_browser, settle
from tests.site.serving import serve
from vaecourse.coursework.release import student_version

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
BASE = CONFIG["html"]["baseurl"]
DESCRIPTIONS = CONFIG["sphinx"]["config"]["course_descriptions"]
EXTRA = ["search.html", "genindex.html"]


def load(name: str):
    """Import one of the build's extensions."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = load("course_pages")


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


@functools.cache
def targets(page: Path) -> set[str]:
    """Everything on a page that a link can lead to."""
    if page.suffix != ".html":
        return set()
    found = Elements(page.relative_to(SITE).as_posix()).found
    return {a[name] for _, a in found for name in ("id", "name") if a.get(name)}


@pytest.mark.parametrize("page", [*PAGES, *EXTRA, "index.html"])
def test_links_lead_somewhere(page):
    dead = []
    for tag, attributes in Elements(page).found:
        link = urlparse(attributes.get("href") or "")
        if tag != "a" or link.scheme or link.netloc or attributes.get("href") in (None, "#"):
            continue
        path = (SITE / page).parent / unquote(link.path) if link.path else SITE / page
        if not path.is_file() or (link.fragment and unquote(link.fragment) not in targets(path.resolve())):
            dead.append(attributes["href"])
    assert dead == []


@pytest.mark.parametrize("page", PAGES)
def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in Elements(page).found if attributes.get("id")]
    assert sorted({one for one in ids if ids.count(one) > 1}) == []


# --- what search engines and messengers see --------------------------------------------------------------


def meta(page: str) -> dict[str, str]:
    found = [a for tag, a in Elements(page).found if tag == "meta"]
    return {
        a.get("name") or a.get("property") or a.get("http-equiv") or "charset": a.get("content")
        for a in found
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
    unused = (
        set(DESCRIPTIONS) - {page.removesuffix(".html") for page in PAGES} - {"search", "genindex", "404"}
    )
    assert unused == set()


@pytest.mark.parametrize("page", PAGES)
def test_page_has_a_preview(page):
    found = meta(page)
    assert found["og:url"] == BASE + page
    assert found["og:description"] == found["description"]
    with Image.open(SITE / found["og:image"].removeprefix(BASE)) as image:
        assert image.size == (1146, 600)


def test_sitemap_lists_every_page():
    found = {element.text for element in ET.parse(SITE / "sitemap.xml").iter() if element.tag.endswith("loc")}
    assert found == {BASE + page for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_links_to_neighbours_say_what_is_there(page):
    text = (SITE / page).read_text("utf-8")
    neighbours = re.findall(r'<link rel="(?:next|prev)" title="[^"]*" href="([^"]*)\.html"', text)
    assert 1 <= len(neighbours) <= 2
    for neighbour in neighbours:
        name = urljoin(page, neighbour)
        assert f'<p class="prev-next-description">{DESCRIPTIONS[name]}</p>' in text


# --- launching -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notebook", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem)
def test_chapters_can_be_opened_elsewhere(notebook):
    links = [a.get("href") or "" for tag, a in Elements(f"book/{notebook.stem}.html").found if tag == "a"]
    owner_and_name = urlparse(CONFIG["repository"]["url"]).path.strip("/")
    path = f"book/{notebook.name}"
    assert f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{path}" in links
    assert f"https://mybinder.org/v2/gh/{owner_and_name}/main?urlpath=lab/tree/{path}" in links
    assert f"../_sources/{path}" in links
    offered = nbformat.reads((SITE / "_sources" / path).read_text("utf-8"), 4)
    assert offered.cells == nbformat.read(notebook, 4).cells


def test_binder_would_build_the_environment():
    """What Binder runs accepts the repository, and builds it from environment.yml."""
    command = [
        sys.executable,
        "-m",
        "repo2docker",
        "--no-build",
        "--debug",
        "--user-name=reader",
        "--user-id=1000",
    ]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, timeout=120)
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
    assert [page for page in PAGES if repair.pattern.search((SITE / page).read_text("utf-8"))] == []


def test_no_page_loads_a_kernel_or_a_script_twice():
    for page in PAGES:
        scripts = [a["src"] for tag, a in Elements(page).found if tag == "script" and a.get("src")]
        assert len(set(scripts)) == len(scripts), page
        assert "thebe" not in (SITE / page).read_text("utf-8").lower().replace("thebelab", ""), page


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


@pytest.fixture(scope="module")
def hostile_site(tmp_path_factory) -> Path:
    """A page with scripts in its text and its outputs, built with the course's extension."""
    source = tmp_path_factory.mktemp("hostile")
    cell = nbformat.v4.new_code_cell("1", execution_count=1)
    cell.outputs = [
        nbformat.v4.new_output("display_data", data={kind: body}) for kind, body in OUTPUTS.items()
    ]
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Page\n\n" + HOSTILE), cell]),
        source / "page.ipynb",
    )
    settings = {
        "root_doc": "page",
        "extensions": ["myst_nb", "course_pages"],
        "html_theme": "sphinx_book_theme",
        "html_title": "hostile",
        "html_baseurl": BASE,
        "html_context": {"default_mode": "light"},
        "html_theme_options": {"use_fullscreen_button": False},
        "nb_execution_mode": "off",
        "course_descriptions": dict.fromkeys(["page", "search", "genindex"], "A page."),
    }
    conf = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n{conf}\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(source), str(source / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return source / "out"


@needs_browser
@pytest.mark.parametrize("is_protected", [True, False], ids=["policy", "without"])
def test_scripts_in_text_and_outputs_do_not_run(hostile_site, browser, is_protected):
    page_file = hostile_site / f"page-{is_protected}.html"
    text = (hostile_site / "page.html").read_text("utf-8")
    page_file.write_text(text if is_protected else re.sub(r"<meta http-equiv=.Content-Sec[^>]*>", "", text))
    with serve(hostile_site) as address:
        page = browser.new_page()
        page.goto(address + page_file.name)
        page.wait_for_load_state("networkidle")
        ran = page.evaluate("window.ran || []")
        page.close()
    expected = {"markdown script", "handler", "svg", "html output", "javascript output"}
    assert set(ran) == (set() if is_protected else expected)


# --- in the browser --------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize("page_name", [*PAGES, *EXTRA])
def test_page_works_in_a_browser(page_name, address, browser):
    page = browser.new_page(viewport={"width": 320, "height": 800})
    watch = Watch(page)
    page.goto(address + page_name)
    settle(page)
    raw = page.evaluate(
        "[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length"
    )
    bad_formulas = page.evaluate("document.querySelectorAll('mjx-merror').length")
    # MathJax gives scripts a size of their own where it mistakes the size of the text around them
    wrong_scripts = page.evaluate(
        "document.querySelectorAll('mjx-script :is(mjx-mi, mjx-mn)[style*=font-size]').length"
    )
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    page.close()
    assert watch.errors == []
    assert watch.foreign(address) == []
    assert (raw, bad_formulas, wrong_scripts) == (0, 0, 0)
    assert overflow <= 0, f"the page is {overflow} px wider than a phone's screen"


RULES = {
    "resultTypes": ["violations"],
    "runOnly": {
        "type": "tag",
        "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    },
}
# Words of code are coloured by their class: the first of each says all, and thousands take axe long.
ONE_TOKEN_OF_EACH_KIND = """(() => {
  const seen = new Set();
  document.querySelectorAll(".highlight span[class]").forEach((token) => {
    if (seen.has(token.className)) token.replaceWith(...token.childNodes);
    else seen.add(token.className);
  });
})()"""


@needs_browser
@pytest.mark.parametrize("page_name", [*PAGES, *EXTRA])
def test_page_is_accessible(page_name, address, browser):
    """Axe finds nothing, in light and in dark mode; formulas speak as MathML."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True)  # axe is injected
    page = context.new_page()
    page.goto(address + page_name)
    settle(page)
    page.add_style_tag(content="* { transition: none !important }")
    formulas = "document.querySelectorAll('mjx-container')"
    silent = page.evaluate(f"[...{formulas}].filter(e => !e.querySelector('mjx-assistive-mml math')).length")
    page.evaluate(f"{formulas}.forEach(e => e.replaceWith(document.createTextNode('formula')))")
    page.evaluate(ONE_TOKEN_OF_EACH_KIND)
    found = {}
    for mode in ["light", "dark"]:
        page.evaluate("mode => { document.documentElement.dataset.theme = mode }", mode)
        for violation in Axe().run(page, options=RULES).response["violations"]:
            found[mode, violation["id"]] = [node["target"] for node in violation["nodes"]][:5]
    context.close()
    assert (silent, found) == (0, {})


@needs_browser
@pytest.mark.parametrize(
    ("words", "page_name"),
    [
        ("implied variance", "03_gaussian_to_mse"),
        ("evidence lower bound", "02_vae_elbo"),
        ("softplus", "04_bernoulli_to_bce"),
        ("importance weighted bound", "02_vae_elbo"),
        ("active units", "06_bound_to_likelihood"),
    ],
)
def test_search_finds(words, page_name, address, browser):
    page = browser.new_page()
    watch = Watch(page)
    page.goto(f"{address}search.html?q={words.replace(' ', '+')}")
    page.wait_for_selector("#search-results ul.search li", timeout=20_000)
    expect(page.locator("#search-results")).to_contain_text("page(s) matching", timeout=20_000)
    links = page.locator("#search-results ul.search li a").evaluate_all("all => all.map(a => a.href)")
    page.close()
    assert [link for link in links if page_name in link]
    assert watch.errors == []


@needs_browser
def test_not_found_page_works_at_any_depth(browser, tmp_path):
    """It is served for whatever address is wrong, below the site's own path."""
    root = tmp_path / urlparse(BASE).path.strip("/")
    root.parent.mkdir(parents=True, exist_ok=True)
    root.symlink_to(SITE, target_is_directory=True)
    (tmp_path / "some" / "where").mkdir(parents=True)
    shutil.copy(SITE / "404.html", tmp_path / "some" / "where" / "else.html")
    with serve(tmp_path) as address:
        page = browser.new_page()
        watch = Watch(page)
        page.goto(f"{address}some/where/else.html")
        page.wait_for_load_state("networkidle")
        assert page.locator("article h1").inner_text().startswith("Page not found")
        page.locator(".bd-sidenav a").first.click()
        assert page.locator("article h1").inner_text().startswith("What a VAE loss assumes")
        page.close()
    assert watch.errors == []


@needs_browser
@pytest.mark.parametrize(
    "page_name", ["book/index.html", "book/03_gaussian_to_mse.html", "book/live_figures.html"]
)
def test_page_works_as_a_file(page_name, browser):
    page = browser.new_page()
    watch = Watch(page)
    page.goto(f"file://{SITE}/{page_name}")
    settle(page)
    page.wait_for_load_state("networkidle")
    assert page.locator(".math mjx-container").count() > 0
    assert page.evaluate("document.fonts.check('16px \"Source Serif 4\"')")
    if "live" in page_name:
        assert "The nearest of 2000" in page.locator("latent-plane .live-reading").inner_text()
    page.locator(".prev-next-area a").last.click()
    page.wait_for_load_state("networkidle")
    page.close()
    assert watch.errors == []
    assert watch.foreign("file://") == []


@needs_browser
def test_search_works_as_a_file(browser):
    page = browser.new_page()
    watch = Watch(page)
    page.goto(f"file://{SITE}/search.html?q=variance")
    page.wait_for_selector("#search-results ul.search li", timeout=20_000)
    page.close()
    assert watch.errors == []


@needs_browser
def test_quiz_answers_mouse_and_keyboard(address, browser):
    page = browser.new_page()
    watch = Watch(page)
    page.goto(f"{address}book/03_gaussian_to_mse.html")
    settle(page)
    quizzes = page.locator(".quiz.admonition")
    assert quizzes.count() == 4
    for index in range(4):
        quiz = quizzes.nth(index)
        answer = quiz.locator(".admonition")
        right = int(answer.locator("strong").first.text_content().rstrip("."))
        choices = quiz.locator("input[type=radio]")
        wrong = 1 if right != 1 else 2
        choices.nth(wrong - 1).check()
        assert quiz.locator(".quiz-verdict").inner_text().startswith("No.")
        assert not answer.locator("p").nth(1).is_visible()
        for _ in range(abs(right - wrong)):
            page.keyboard.press("ArrowDown" if right > wrong else "ArrowUp")
        assert choices.nth(right - 1).is_checked()
        assert quiz.locator(".quiz-verdict").inner_text() == "Right."
        assert answer.locator("p").nth(1).is_visible()
    page.close()
    assert watch.errors == []


@needs_browser
def test_quiz_marks_the_chosen_answer_alone(address, browser):
    """Choices are numbered as in the answer, one is marked, and other quizzes keep theirs."""
    page = browser.new_page()
    page.goto(f"{address}book/03_gaussian_to_mse.html")
    quizzes = page.locator(".quiz.admonition").all()
    for quiz in quizzes:
        right = int(quiz.locator(".admonition strong").first.text_content().rstrip("."))
        labels = quiz.locator("fieldset label")
        for number in [*range(1, labels.count() + 1), right]:
            chosen = labels.nth(number - 1)
            assert chosen.inner_text().lstrip().startswith(f"{number}.")
            chosen.locator("input").check()
            marks = labels.evaluate_all("all => all.map(label => label.className)")
            expected = [""] * labels.count()
            expected[number - 1] = "quiz-right" if number == right else "quiz-wrong"
            assert marks == expected
    for quiz in quizzes:
        assert quiz.locator("input:checked").count() == 1
    page.close()


@needs_browser
def test_buttons_of_the_header_work(address, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script("window.print = () => { window.printed = true }")
    page.goto(f"{address}book/01_gaussian_regression.html")
    page.locator(".theme-switch-button").first.click()
    assert page.evaluate("document.documentElement.dataset.mode") != "light"
    page.locator(".dropdown-download-buttons button").first.click()
    page.locator("[data-course=print]").click()
    assert page.evaluate("window.printed")
    page.close()


@needs_browser
def test_every_icon_has_a_glyph(address, browser):
    """The icon fonts are cut down; an icon that was forgotten would show as an empty box."""
    for page_name in ["book/01_gaussian_regression.html", "book/questions.html", "search.html"]:
        page = browser.new_page()
        page.goto(address + page_name)
        page.evaluate("document.fonts.ready")
        shown = page.evaluate(
            """[...document.querySelectorAll('i[class*=fa-], .admonition-title')].flatMap(e => {
                 const style = getComputedStyle(e, e.tagName == 'I' ? '::before' : '::after');
                 const text = style.content.replace(/"/g, '');
                 return text.length == 1 ? [[text, style.fontFamily, style.fontWeight]] : [];
               })"""
        )
        page.close()
        assert len(shown) > 5
        glyphs = {code for font in fonts() for code in font}
        assert {f"{ord(text):x}" for text, _, _ in shown if ord(text) >= 0xE000} <= {f"{g:x}" for g in glyphs}


@functools.cache
def fonts() -> list[set[int]]:
    from fontTools.ttLib import TTFont

    return [
        set(TTFont(path).getBestCmap()) for path in (SITE / "_static/vendor/fontawesome/webfonts").iterdir()
    ]
