"""The machine's browser, and the built site."""

import os
import re
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Let a worker keep a file whose tests share what is slow to make, and take other tests as it is free.

    With pytest 9.2, xdist 3.8 no longer sees `xdist_group` (its issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = lambda test: re.sub(r"(test_(live|pdf)\.py)::.*", r"\1", test)
    return scheduler
