"""Sphinx extension: what every page gets, and what the stock theme gets wrong.

Each page gets a description, a content security policy that allows no script but the site's own, and the
scripts of the live figures that stand on it.  `REPAIRS` lists the faults of the theme's HTML; a repair
that finds nothing to do in the whole book is reported, so that it can be deleted.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

logger = logging.getLogger(__name__)

SCRIPTS = {  # what stands on the page: the scripts it needs, in this order
    "<latent-plane": ["live/live.js", "live/data/plane.js", "live/latent-plane.js"],
    "<drag-sigma": ["live/live.js", "live/data/spectrum.js", "live/data/ladder.js", "live/drag-sigma.js"],
    "<loss-calculator": ["live/live.js", "live/data/spectrum.js", "live/loss-calculator.js"],
    "<gaussian-regression": ["live/live.js", "live/gaussian-regression.js"],
    'class="quiz admonition"': ["quiz.js"],
}
REDIRECT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url={root}.html">
<meta name="description" content="{description}">
<link rel="canonical" href="{base}{root}.html">
<title>{title}</title>
</head>
<body><main><h1>{title}</h1><p><a href="{root}.html">To the first page</a></p></main></body>
</html>
"""


class Repair(NamedTuple):
    """A fault of the stock HTML, and the substitution that removes it."""

    fault: str
    pattern: re.Pattern[str]
    replacement: str


REPAIRS = [
    Repair(
        "1.5 MB of script before the first letter, for a few icons; the icon font has them too",
        re.compile(r'<script src="[^"]*fontawesome\.js[^"]*"></script>\s*'),
        "",
    ),
    Repair(
        "a name that differs from the button's visible text",
        re.compile(r'(<button class="btn search-button-field[^>]*?) aria-label="Search"'),
        r"\1",
    ),
    Repair(
        "a sidebar outside of any landmark",
        re.compile(r'<div id="pst-primary-sidebar" class='),
        '<div id="pst-primary-sidebar" role="complementary" aria-label="Course contents" class=',
    ),
    Repair(
        "a list whose items are no list items",
        re.compile(r'<div role="list" class="citation-list">'),
        '<div class="citation-list">',
    ),
    Repair("a role that was withdrawn", re.compile(r' role="doc-biblioentry"'), ""),
    Repair(
        "one id for many elements",
        re.compile(r' id="(?:exercise|solution|proof)-content"'),
        "",
    ),
    Repair(
        "a handler in an attribute, which the policy forbids",
        re.compile(r'<button onclick="window\.print\(\)"'),
        '<button type="button" data-course="print"',
    ),
    Repair(  # an inline script needs the options at once
        "scripts that hold up the first letter and act only on the whole page",
        re.compile(r"<script (?![^>]*(?:\bdefer\b|documentation_options))(?=[^>]*\bsrc=)"),
        '<script defer="defer" ',
    ),
]
POLICY = (
    "default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; object-src 'none'"
)
INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
DESIGN = re.compile(r'class="[^"]*\bsd-')  # cards, tabs and grids of sphinx-design
ARTICLE = re.compile(r'<article class="bd-article">.*</article>', re.DOTALL)


def switch_off_thebe(app: Sphinx, config: Config) -> None:
    """Keep sphinx_thebe, which Jupyter Book always loads, from adding its scripts to every page.

    They name a content delivery network, fail with an error, and are of use only beside a running kernel.
    """
    for listeners in app.events.listeners.values():
        listeners[:] = [one for one in listeners if not one.handler.__module__.startswith("sphinx_thebe")]


def address_libraries(app: Sphinx, config: Config) -> None:
    """Tell the site's address, which is configured once, to the extensions that need it."""
    config.ogp_site_url = config.html_baseurl
    config.notfound_urls_prefix = urlparse(config.html_baseurl).path


def describe_page(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: object,
) -> None:
    """Give a page its description, and the links at its end the descriptions of where they lead."""
    descriptions = app.config.course_descriptions
    if pagename not in descriptions:
        logger.warning(
            "%s has no description: add it to course_descriptions in _config.yml",
            pagename,
        )
        return
    context["metatags"] = f'<meta name="description" content="{descriptions[pagename]}" />\n' + context.get(
        "metatags", ""
    )
    preview = dict.fromkeys(["og:description", "og:image:alt"], descriptions[pagename])
    context["meta"] = {**(context.get("meta") or {}), **preview}
    _, previous, following = (getattr(app.builder, "relations", {}).get(pagename) or [None] * 3)[:3]
    context["prev_description"] = descriptions.get(previous)
    context["next_description"] = descriptions.get(following)


def choose_scripts(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: object,
) -> None:
    """Load the scripts of what stands on the page, none twice, and no style sheet of what does not."""
    body = context.get("body") or ""
    for mark, scripts in SCRIPTS.items():
        if mark in body and app.builder.name == "html":
            for script in scripts:
                app.add_js_file(script, loading_method="defer")
    absent = {"thebe"} if DESIGN.search(body) else {"thebe", "sphinx-design", "design-tabs"}
    for files in ("css_files", "script_files"):
        context[files] = [
            file for file in context.get(files, []) if not any(name in str(file) for name in absent)
        ]
    scripts = context["script_files"]
    once = {(str(script), str(getattr(script, "attributes", ""))): script for script in scripts}
    context["script_files"] = list(once.values())


def policy(page: str) -> str:
    """Return the content security policy of a page: its own files, and the theme's inline scripts.

    A script inside the article came from a notebook's output or from Markdown, and is not allowed.
    """
    bodies = INLINE_SCRIPT.findall(ARTICLE.sub("", page))
    digests = {base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies}
    return POLICY.format(hashes=" ".join(f"'sha256-{digest}'" for digest in sorted(digests)))


def repair(page: str) -> tuple[str, list[int]]:
    """Return a page without the theme's faults, and how often each was found."""
    counts = []
    for _, pattern, replacement in REPAIRS:
        page, count = pattern.subn(replacement, page)
        counts.append(count)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(page)}" />'
    return page.replace('<meta charset="utf-8" />', f'<meta charset="utf-8" />\n    {meta}', 1), counts


def finish_pages(app: Sphinx, exception: Exception | None) -> None:
    """Repair every page, and write the one that leads from the site's address to the book."""
    if exception is not None or app.builder.name != "html":
        return
    found = [0] * len(REPAIRS)
    for path in sorted(Path(app.outdir).rglob("*.html")):
        if "_static" in path.parts:
            continue
        page, counts = repair(path.read_text("utf-8"))
        found = [a + b for a, b in zip(found, counts, strict=True)]
        path.write_text(page, "utf-8")
    for (fault, _, _), count in zip(REPAIRS, found, strict=True):
        if count == 0:
            logger.warning("the theme no longer has the fault %r: delete its repair", fault)
    root = app.config.root_doc
    (Path(app.outdir) / "index.html").write_text(
        REDIRECT.format(
            root=root,
            base=app.config.html_baseurl,
            title=app.config.html_title,
            description=app.config.course_descriptions[root],
        ),
        "utf-8",
    )


def lend_handlers(app: Sphinx) -> None:
    """Let the single-page builder, of which the PDF is made, write everything that the site's can.

    sphinx_exercise registers its nodes for "singlehtml" by name, and from then on Sphinx no longer falls
    back to what other extensions have registered for "html": cells and citations could not be written.
    """
    handlers, name = app.registry.translation_handlers, app.builder.name
    if name == "singlehtml":
        handlers[name] = {**handlers.get("html", {}), **handlers.get(name, {})}


def name_pages(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let links of the single page say which page they lead to, as ``#page/anchor``.

    Anchors such as "summary" occur on many pages, and the builder is about to forget whose was meant;
    print_pdf.py gives the anchors their pages.
    """
    if app.builder.name != "singlehtml":
        return
    for link in doctree.findall(nodes.reference):
        if link.get("refuri", "").startswith("#document-"):
            page, _, anchor = link["refuri"].removeprefix("#document-").partition("#")
            link["refuri"] = f"#{page}/{anchor}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks."""
    app.add_config_value("course_descriptions", {}, "html", types=(dict,))
    app.connect("config-inited", switch_off_thebe)
    app.connect("config-inited", address_libraries)
    app.connect("builder-inited", lend_handlers)
    app.connect("doctree-resolved", name_pages)
    app.connect("html-page-context", describe_page, priority=100)  # before sphinxext.opengraph reads it
    app.connect("html-page-context", choose_scripts, priority=900)
    app.connect("build-finished", finish_pages, priority=900)  # after every other extension
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
