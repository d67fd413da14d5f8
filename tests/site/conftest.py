"""The machine's browser, and the built site."""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.site.browser import SITE
from tests.site.serving import CHROMIUM, serve

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The machine's Chromium; tests that ask for it are skipped where there is none, and fail in CI."""
    if CHROMIUM is None:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("no Chromium on this machine (.ci/run installs one)")
    with sync_playwright() as api, api.chromium.launch(executable_path=CHROMIUM, args=QUIET) as browser:
        yield browser


@pytest.fixture(scope="session")
def tab(browser: Browser) -> Page:
    """Where one page is opened after the other: in a new tab, each would compile all of its scripts anew."""
    return browser.new_page()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where the built site is served."""
    with serve(SITE) as address:
        yield address
