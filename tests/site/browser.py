"""The built site in a real browser: where both are, and how a page is opened."""

import contextlib
import runpy
from collections.abc import Iterator
from types import SimpleNamespace

import yaml
from playwright.sync_api import Page

from tests.site.serving import ROOT

SITE = ROOT / "_build" / "html"
PAGES = sorted(page.relative_to(SITE).as_posix() for page in SITE.glob("book/*.html"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
BASE = CONFIG["html"]["baseurl"]


@contextlib.contextmanager
def opened(tab: Page, url: str, width: int = 1280) -> Iterator[Page]:
    """Open a page, mathematics set; until it is left, it must report no error and ask no other host."""
    faults: list[str] = []
    own = ("/".join(url.split("/")[:3]), "data:")
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda one: one.type == "error" and faults.append(one.text))
    tab.on("request", lambda one: one.url.startswith(own) or faults.append(f"asks for {one.url}"))
    tab.set_viewport_size({"width": width, "height": 900})
    tab.goto(url)
    # the site's policy forbids Playwright's `wait_for_function`
    tab.evaluate("document.querySelector('.math') && MathJax.startup.promise")
    yield tab
    tab.goto("about:blank")
    assert (url, faults) == (url, [])


def extension(name: str) -> SimpleNamespace:
    """What one of the build's own modules defines."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "_ext" / f"{name}.py")))
