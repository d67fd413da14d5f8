"""The built site in a real browser: where both are, and how a page is opened."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.site.serving import CHROMIUM

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
PAGES = sorted(page.relative_to(SITE).as_posix() for page in SITE.glob("book/*.html"))
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium on this machine (.ci/run installs one)"
)


@contextlib.contextmanager
def launch() -> Iterator[Browser]:
    """Start the machine's Chromium."""
    assert CHROMIUM, "CI must have a Chromium: see .ci/run"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


class Watch:
    """What a page asked for, and what went wrong on it."""

    def __init__(self, page: Page) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )

    def foreign(self, address: str) -> list[str]:
        """Return the requests that left the site."""
        return [url for url in self.requests if not url.startswith((address, "data:"))]


def settle(page: Page) -> None:
    """Wait until all mathematics is set; the site's policy forbids Playwright's `wait_for_function`."""
    if page.evaluate("document.querySelectorAll('.math').length"):
        page.evaluate("MathJax.startup.promise")
