"""The machine's browser, and the built site."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.site.browser import SITE, launch
from tests.site.serving import serve


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The machine's Chromium."""
    with launch() as browser:
        yield browser


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Where the built site is served."""
    with serve(SITE) as address:
        yield address
